"""ImageClassifier: what the network sees, how it learns, what is counted, and that interruptions change nothing."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from classifiers import VIT, Inputs, classifier, images, loader, make_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from timm.optim import Lars, param_groups_layer_decay
from torchvision.transforms import v2

import zoo
from zoo.cli.lightning import run
from zoo.datamodules import ClassificationDataModule
from zoo.datamodules.sources import Synthetic
from zoo.nn import CosineWithWarmup, create_backbone
from zoo.supervised.image_classifier import build_head, parameter_groups

# Parameter groups and schedule --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "test_efficientnet", "caformer_s18"])
@pytest.mark.parametrize("layer_decay", [None, 0.65])
def test_groups_are_those_of_timm_for_the_network_with_its_own_classifier(name: str, layer_decay: float | None) -> None:
    backbone, whole = create_backbone(name, pretrained=False), timm.create_model(name, num_classes=3)
    head = build_head("train", backbone.num_features, 3)

    def rules(groups: list[dict[str, Any]], named: dict[str, torch.Tensor]) -> dict[str, tuple[float, bool]]:
        names = {id(parameter): name for name, parameter in named.items()}
        return {
            names[id(parameter)]: (group["lr_scale"], group.get("weight_decay") != 0)
            for group in groups
            for parameter in group["params"]
        }

    own = rules(
        parameter_groups(backbone, head, layer_decay),
        dict(backbone.model.named_parameters()) | {f"zoo.{name}": value for name, value in head.named_parameters()},
    )
    spared = whole.no_weight_decay() if hasattr(whole, "no_weight_decay") else ()
    groups = param_groups_layer_decay(whole, 0.1, no_weight_decay_list=spared, layer_decay=layer_decay or 1.0)
    timms = rules(groups, dict(whole.named_parameters()))
    assert own.pop("zoo.weight") == (1.0, True)
    assert own.pop("zoo.bias") == (1.0, False)
    assert own == {name: timms[name] for name in own}
    assert min(scale for scale, _ in own.values()) < 0.3 or layer_decay is None


def test_tokens_and_biases_are_not_decayed() -> None:
    module = classifier()
    spared, decayed = (
        {id(parameter) for parameter in group["params"]} for group in parameter_groups(module.backbone, module.head)
    )
    model = module.backbone.model
    assert {id(model.pos_embed), id(model.cls_token), id(model.patch_embed.proj.bias)} <= spared
    assert {id(model.patch_embed.proj.weight), id(module.head.weight)} <= decayed


def test_rates_of_layers_follow_the_schedule_over_all_steps() -> None:
    rates: list[dict[int, tuple[float, float]]] = []

    class Rates(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            rates.append(
                {
                    id(group["params"][0]): (group["lr"], group["weight_decay"])
                    for group in trainer.optimizers[0].param_groups
                }
            )

    module = classifier(
        layer_decay=0.5,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.3),
        schedule=lambda optimizer, steps: CosineWithWarmup(optimizer, steps, warmup_share=0.5),
    )
    make_trainer(Rates(), accumulate_grad_batches=3).fit(module, images())  # 2 epochs of 3 batches: 2 optimizer steps
    model, layers = module.backbone.model, len(module.backbone.model.blocks) + 1
    first, last = id(model.cls_token), id(module.head.weight)
    assert first in rates[0]
    assert [step[last] for step in rates[::3]] == [(0.0, 0.3), (0.1, 0.3)]  # warm-up over 1 of 2 steps
    assert rates[3][first] == (pytest.approx(0.1 * 0.5**layers), 0.0)


def test_fit_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="give max_epochs or max_steps"):
        make_trainer(max_epochs=-1).fit(classifier(), images())


# What the network sees ----------------------------------------------------------------------------------------------


def test_mixed_targets_are_smoothed_cross_entropies() -> None:
    """Black and white images: the grey that the network sees tells the share of each, so the loss is known."""
    pictures = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    module = classifier(mixup=1.0, label_smoothing=0.1)
    inputs, trainer = Inputs(), make_trainer(max_epochs=1)
    trainer.callbacks.append(inputs)
    trainer.fit(module, loader(pictures, torch.tensor([0, 2]), 2))
    grey, features = inputs.seen[0]
    share = grey[1].mean()  # of the white image, class 2, in the second picture
    assert 0.02 < share < 0.98
    torch.testing.assert_close(grey[0], torch.full_like(grey[0], 1 - share))
    targets = torch.tensor([[share, 0, 1 - share], [1 - share, 0, share]]) * 0.9 + 0.1 / 3
    torch.manual_seed(0)
    scores = classifier().head(features)  # the head before its one step
    expected = -(targets * scores.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(trainer.callback_metrics["train/loss"], expected)


@pytest.mark.parametrize(("mixup", "cutmix", "kinds"), [(1.0, 0.0, {"mixup"}), (0.0, 1.0, {"cutmix"}), (1, 1, None)])
def test_batches_are_mixed_in_the_share_and_way_asked_for(mixup: float, cutmix: float, kinds: set[str] | None) -> None:
    module = classifier(mixup=mixup, cutmix=cutmix, mix_probability=0.5)
    batch = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    seen = []
    for _ in range(60):
        mixed, targets = module.mixing(batch, torch.tensor([0, 2]))
        if targets.ndim == 1:
            seen.append("plain")
            assert torch.equal(mixed, batch)
        else:
            seen.append("cutmix" if set(mixed.unique().tolist()) <= {0.0, 1.0} else "mixup")
            torch.testing.assert_close(targets[:, 2], mixed.mean(dim=(1, 2, 3)))  # as much of the label as of the image
    assert 15 < seen.count("plain") < 45
    assert set(seen) - {"plain"} == (kinds or {"mixup", "cutmix"})


def test_batch_may_be_cropped_between_erasing_and_mixing() -> None:
    class Crop(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            self.arrived = batch[0].clone()
            batch[0] = batch[0][..., :8, :8]

    inputs, crop = Inputs(), Crop()
    size = {**VIT["backbone_args"], "dynamic_img_size": True}
    module = classifier(random_erasing=1.0, cutmix=1.0, backbone_args=size)
    plain = torch.full((4, 3, 16, 16), 0.5)
    make_trainer(inputs, crop, max_epochs=1).fit(module, loader(plain, torch.tensor([0, 1, 2, 0]), 4))
    assert crop.arrived.shape == plain.shape
    assert all((picture != 0.5).any() for picture in crop.arrived.round(decimals=4))
    assert inputs.seen[0][0].shape == (4, 3, 8, 8)


def test_erased_pixels_are_normal_where_the_network_sees_them_and_others_stay() -> None:
    module = classifier(random_erasing=0.5, mean=[0.2, 0.4, 0.6], std=[0.1, 0.2, 0.3])
    plain = torch.full((200, 3, 32, 32), 0.25)
    erased = module.erase(plain)
    changed = (erased - plain).abs().amax(dim=1) > 1e-5
    assert 70 < changed.flatten(1).any(dim=1).sum() < 130  # about half of the images
    shares = changed.flatten(1).float().mean(dim=1)
    assert shares[shares > 0].min() > 0.01
    assert shares.max() < 0.36
    pixels = erased.movedim(1, -1)[changed]
    torch.testing.assert_close(pixels.mean(dim=0), torch.tensor([0.2, 0.4, 0.6]), atol=0.01, rtol=0)
    torch.testing.assert_close(pixels.std(dim=0), torch.tensor([0.1, 0.2, 0.3]), atol=0.01, rtol=0)


def test_evaluation_sees_the_images_as_they_are() -> None:
    inputs = Inputs()
    plain = torch.full((4, 3, 16, 16), 0.5)
    batches = loader(plain, torch.tensor([0, 1, 2, 0]), 4)
    make_trainer(inputs, max_epochs=1, num_sanity_val_steps=0).fit(
        classifier(random_erasing=1.0, mixup=1.0), batches, batches
    )
    (trained, _), (evaluated, _) = inputs.seen
    assert not torch.equal(trained, plain)
    assert torch.equal(evaluated, plain)


# Counting -----------------------------------------------------------------------------------------------------------


class FromPixels(zoo.ImageClassifier):
    """Takes the first row of pixels for the scores."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 0]


def test_measures_are_those_counted_by_hand() -> None:
    names = ["crane", "hen", "owl", "crane", "duck", "kite", "swan"]
    scores, labels = torch.randn(50, 7), torch.randint(6, (50,))  # no image of the last class
    batches = loader(scores[:, None, None].expand(-1, 3, -1, -1), labels, 8)  # the last batch holds two
    module = FromPixels(7, **VIT, class_names=names, label_smoothing=0.3)
    trainer = make_trainer()
    measured = trainer.test(module, batches, verbose=False)[0]

    right = scores.argmax(1) == labels
    per_class = [right[labels == label].float().mean().item() for label in range(6)]
    expected = {
        "test/acc": right.float().mean().item(),
        "test/acc5": (scores.topk(5).indices == labels[:, None]).any(1).float().mean().item(),
        "test/acc_class_mean": sum(per_class) / 6,
        "test/loss": F.cross_entropy(scores, labels).item(),
        "test/class/crane 0/acc": per_class[0],
        "test/class/hen/acc": per_class[1],
        "test/class/owl/acc": per_class[2],
        "test/class/crane 3/acc": per_class[3],
        "test/class/duck/acc": per_class[4],
        "test/class/kite/acc": per_class[5],
    }
    assert measured == pytest.approx(expected, rel=1e-5)
    first = loader(scores[:9, None, None].expand(-1, 3, -1, -1), labels[:9], 8)
    again = trainer.validate(module, first, verbose=False)[0]  # nothing is left of the images before
    assert again["val/acc"] == pytest.approx(right[:9].float().mean().item())
    assert again["val/loss"] == pytest.approx(F.cross_entropy(scores[:9], labels[:9]).item())
    assert set(again) == {"val/acc", "val/acc5", "val/acc_class_mean", "val/loss"}


def test_split_is_the_one_that_the_datamodule_names() -> None:
    trainer = make_trainer(max_epochs=1)
    trainer.fit(classifier(), images())
    assert set(trainer.callback_metrics) == {"train/loss", "test/loss", "test/acc", "test/acc_class_mean"}


def test_predictions_name_the_class_and_its_probability() -> None:
    module = FromPixels(3, **VIT, class_names=["cat", "dog", "hen"])
    rows = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    batches = loader(rows[:, None, None].expand(-1, 3, -1, -1), torch.tensor([0, 1]), 2)
    (predicted,) = make_trainer().predict(module, batches)
    assert predicted["label"].tolist() == [1, 0]
    assert predicted["class_name"] == ["dog", "cat"]
    assert torch.equal(predicted["scores"], rows)
    expected = [rows[0].exp()[1] / rows[0].exp().sum(), rows[1].exp()[0] / rows[1].exp().sum()]
    torch.testing.assert_close(predicted["probability"], torch.stack(expected))


# Modes --------------------------------------------------------------------------------------------------------------


def test_training_learns() -> None:
    trainer = make_trainer(max_epochs=6, gradient_clip_val=1.0)
    trainer.fit(classifier(), images(per_class=16))
    assert trainer.callback_metrics["test/acc"] == 1


@pytest.mark.parametrize("pretrained", [True, False])
def test_fine_tuning_with_mean_pooling_starts_from_the_weights(pretrained: bool, weights: str) -> None:
    arguments = {**VIT["backbone_args"], "global_pool": "avg"}
    if pretrained:  # as the hub's entry of MAE, which has no classifier
        source = {"pretrained": True}
        arguments["pretrained_cfg_overlay"] = {"file": weights, "num_classes": 0}
    else:
        source = {"checkpoint_path": weights}
    module = classifier(mode="finetune", **source, backbone_args=arguments)
    state = torch.load(weights, weights_only=True)
    model = module.backbone.model.state_dict()
    assert all(torch.equal(model[name], value) for name, value in state.items() if not name.startswith("norm."))
    assert 1e-5 < module.head.weight.std() < 3e-5
    assert torch.equal(module.head.bias, torch.zeros(3))


def test_probe_trains_the_head_alone(weights: str, tmp_path: Path) -> None:
    module = classifier(mode="linear_probe", checkpoint_path=weights)
    before = {name: value.clone() for name, value in module.backbone.state_dict().items()}
    head = module.head[1].weight.clone()
    save = ModelCheckpoint(tmp_path, save_last=True)
    trainer = make_trainer(save, max_epochs=4, enable_checkpointing=True)
    trainer.fit(module, images(per_class=16))
    torch.testing.assert_close(module.backbone.state_dict(), before, rtol=0, atol=0)
    assert zoo.nn.is_frozen(module.train().backbone)
    assert (module.head[1].weight - head).norm() > 0.01
    (group,) = [group for group in trainer.optimizers[0].param_groups if group["weight_decay"]]
    assert group["params"] == [module.head[1].weight]

    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert {name.partition(".")[0] for name in saved} == {"head"}
    loaded = zoo.ImageClassifier.load_from_checkpoint(tmp_path / "last.ckpt").eval()
    pictures = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(loaded(pictures), module.eval()(pictures), rtol=0, atol=0)


def test_probe_of_random_weights_keeps_them_in_its_checkpoint() -> None:
    checkpoint = {"state_dict": dict((module := classifier(mode="linear_probe")).state_dict())}
    module.on_save_checkpoint(checkpoint)
    assert any(name.startswith("backbone.") for name in checkpoint["state_dict"])


def test_probe_normalises_features_as_mae() -> None:
    normalisation = build_head("linear_probe", 2, 3)[0]
    out = normalisation(torch.tensor([[1.0, 2], [3, 6], [5, 1]]))
    expected = [[-1.224744641752, -0.46291], [0, 1.388730000866], [1.224744641752, -0.925820000578]]
    torch.testing.assert_close(out, torch.tensor(expected))
    torch.testing.assert_close(normalisation.running_mean, torch.tensor([0.3, 0.3]))
    torch.testing.assert_close(normalisation.running_var, torch.tensor([1.3, 1.6]))
    assert not list(normalisation.parameters())


def test_upstream_lars_is_that_of_the_probe() -> None:
    """timm adapts only groups with weight decay: a vanishing one gives MAE's rule, biases without scaling included."""
    matrix, bias = torch.nn.Parameter(torch.tensor([[3.0, 4]])), torch.nn.Parameter(torch.ones(1))
    groups = [{"params": [matrix]}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = Lars(groups, lr=6.4, momentum=0.9, weight_decay=1e-12)
    expected = [([[2.9808, 3.9744]], -2.2), ([[2.9317248, 3.95136]], -8.28)]
    for gradient, (after, scalar) in zip([[[0.6, 0.8]], [[1.0, 0]]], expected, strict=True):
        matrix.grad, bias.grad = torch.tensor(gradient), torch.tensor([0.5])
        optimizer.step()
        torch.testing.assert_close(matrix.detach(), torch.tensor(after))
        assert bias.item() == pytest.approx(scalar)


# Command line -------------------------------------------------------------------------------------------------------


def test_printed_configuration_is_read_back(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)

    def printed(*args: str) -> str:
        with pytest.raises(SystemExit) as stop:
            run(["fit", *args, "--print_config"])
        assert stop.value.code in (0, None)
        return capsys.readouterr().out

    options = ["--model", "ImageClassifier", "--data", "ClassificationDataModule"]
    default = yaml.safe_load(printed(*options))["model"]["init_args"]
    assert default["optimizer"]["class_path"] == "torch.optim.AdamW"
    assert default["optimizer"]["init_args"]["weight_decay"] == 0.05
    options += [
        "--model.optimizer",
        "torch.optim.SGD",
        "--model.optimizer.lr",
        "0.5",
        "--model.backbone_args.img_size",
        "32",
    ]
    given = printed(*options, "--model.schedule", "torch.optim.lr_scheduler.CosineAnnealingLR")
    (tmp_path / "printed.yaml").write_text(given)
    assert printed("--config", "printed.yaml") == given
    model = yaml.safe_load(given)["model"]["init_args"]
    assert model["optimizer"]["init_args"]["lr"] == 0.5
    assert model["backbone_args"] == {"img_size": 32}
    assert model["schedule"]["class_path"] == "torch.optim.lr_scheduler.CosineAnnealingLR"


def test_optimizer_and_schedule_of_a_recipe_are_used(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {
        "model": {
            "class_path": "ImageClassifier",
            "init_args": {
                **VIT,
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5, "momentum": 0.9}},
                "schedule": {"class_path": "CosineWithWarmup", "init_args": {"warmup_share": 0.0, "final_ratio": 0.25}},
            },
        },
        "data": {
            "class_path": "ClassificationDataModule",
            "init_args": {"source": {"class_path": "Synthetic", "init_args": {"image_size": 16}}},
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "logger": False},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(["fit", "--config", "recipe.yaml", "--run_dir", "out"])
    saved = torch.load("out/checkpoints/last.ckpt", weights_only=True)
    (group, *_) = saved["optimizer_states"][0]["param_groups"]
    assert group["momentum"] == 0.9
    assert group["initial_lr"] == 0.5
    assert group["lr"] == pytest.approx(0.125)
    loaded = zoo.ImageClassifier.load_from_checkpoint("out/checkpoints/last.ckpt")
    assert loaded.num_classes == saved["hyper_parameters"]["num_classes"]


# Errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "num_classes=1 must be at least 2"),
        ({"class_names": ["cat"]}, "class_names holds 1 names for num_classes=3"),
        ({"mode": "probe"}, r"mode='probe' must be 'train', 'finetune' or 'linear_probe'"),
        ({"mode": "finetune"}, r"mode='finetune' needs weights"),
        ({"mode": "linear_probe", "layer_decay": 0.75}, "trains no layer of the backbone"),
        ({"mode": "linear_probe", "drop_path": 0.1}, "trains no layer of the backbone"),
        ({"mixup": -0.1}, r"mixup=-0.1 is the parameter of a Beta distribution"),
        ({"cutmix": -1.0}, r"cutmix=-1.0 is the parameter"),
        ({"mix_probability": -0.5}, r"mix_probability=-0.5 must be from 0 to 1"),
        ({"random_erasing": 1.5}, r"random_erasing=1.5 must be from 0 to 1"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1.0 must be from 0 to 1, and less than 1"),
        ({"drop_path": -0.1}, r"drop_path=-0.1 must be from 0 to 1"),
        ({"layer_decay": 0.0}, r"layer_decay=0.0 must be more than 0"),
        ({"backbone": "vgg11", "backbone_args": None, "drop_path": 0.1}, "no stochastic depth: set it to 0"),
        ({"backbone": "test_vitt"}, "timm has no model 'test_vitt'. Did you mean test_vit"),
        ({"backbone_args": {"num_classes": 5}}, r"backbone_args holds \['num_classes'\]"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier(**arguments)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3]), "Labels 0 to 3 do not fit num_classes=3"),
        (torch.tensor([-1, 2]), "Labels -1 to 2 do not fit"),
        (torch.rand(2, 3), r"int64 of shape \(B,\), got torch.float32 of shape \(2, 3\)"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_wrong_labels_are_refused(labels: torch.Tensor, message: str, split: str) -> None:
    good, bad = (loader(torch.rand(2, 3, 16, 16), part, 2) for part in (torch.tensor([0, 1]), labels))
    batches = (bad, good) if split == "train" else (good, bad)
    with pytest.raises(ValueError, match=message):
        make_trainer().fit(classifier(), *batches)


def test_batches_too_small_are_refused_before_training() -> None:
    with pytest.raises(ValueError, match="got batch_size=1"):
        make_trainer().fit(classifier(mixup=0.2), images(batch_size=1))
    with pytest.raises(ValueError, match="the last of 24 images is alone in a batch"):
        make_trainer().fit(classifier(mode="linear_probe"), images(batch_size=23))


def test_datamodule_that_takes_the_erasing_hook_is_refused() -> None:
    class Own(ClassificationDataModule):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch

    data = Own(Synthetic(num_classes=3, image_size=16), evaluate="test", train_transform=v2.Identity())
    with pytest.raises(ValueError, match="on_after_batch_transfer, and Lightning calls that of Own"):
        make_trainer().fit(classifier(random_erasing=0.1), data)
    make_trainer(max_epochs=1).fit(classifier(), data)  # without erasing there is nothing to lose


def test_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    other = classifier(num_classes=4)
    checkpoint = {"state_dict": dict(other.state_dict())}
    with pytest.raises(ValueError, match=r"head.weight has shape \(4, 64\) in the file and \(3, 64\) here"):
        classifier().on_load_checkpoint(checkpoint)
