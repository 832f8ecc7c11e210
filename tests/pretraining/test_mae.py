"""MAE: equal to the published formulation, masks that follow from numbers, what is learned, saved and refused."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import timm
import torch
import torch.nn.functional as F
from tiny_autoencoders import TINY, VIT, images, mae, make_trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import zoo
from zoo.callbacks import EfficientTrain, KNNEvaluation
from zoo.functional import Stage, mask_from_noise, patchify, position_table
from zoo.pretraining.mae import masked_mean, patch_errors

NOISE = torch.tensor([[0.7, 0.1, 0.5, 0.3, 0.9, 0.2], [0.15, 0.85, 0.25, 0.65, 0.05, 0.45]])


# The formulation ----------------------------------------------------------------------------------------------------


def attend(state: dict[str, Tensor], prefix: str, x: Tensor, heads: int) -> Tensor:
    """Return the output of a pre-norm transformer block, written out."""

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ state[f"{prefix}{name}.weight"].T + state[f"{prefix}{name}.bias"]

    def norm(name: str, value: Tensor) -> Tensor:
        return layer_norm(state, prefix + name, value)

    q, k, v = linear("attn.qkv", norm("norm1", x)).chunk(3, dim=-1)
    parts = []
    for one in range(heads):
        cut = slice(one * q.shape[-1] // heads, (one + 1) * q.shape[-1] // heads)
        score = q[..., cut] @ k[..., cut].transpose(-1, -2) / (q.shape[-1] // heads) ** 0.5
        parts.append(score.softmax(dim=-1) @ v[..., cut])
    x = x + linear("attn.proj", torch.cat(parts, dim=-1))
    hidden = linear("mlp.fc1", norm("norm2", x))
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    return x + linear("mlp.fc2", hidden)


def layer_norm(state: dict[str, Tensor], name: str, value: Tensor) -> Tensor:
    centred = value - value.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def published(module: zoo.MAE, picture: Tensor, noise: Tensor, keep: int) -> tuple[Tensor, list[Tensor]]:
    """Return prediction and loss of every hidden patch of one image (1, 3, 16, 16), as the paper describes it."""
    state = {name: value.double() for name, value in module.state_dict().items()}
    encoder = {name.removeprefix("backbone.model."): value for name, value in state.items()}
    normal = (picture - module.backbone.mean) / module.backbone.std
    patches = [normal[0, :, r : r + 4, c : c + 4] for r in range(0, 16, 4) for c in range(0, 16, 4)]
    order = sorted(range(16), key=lambda patch: noise[0, patch].item())
    kernel, bias = encoder["patch_embed.proj.weight"], encoder["patch_embed.proj.bias"]
    table = encoder["pos_embed"][0]
    tokens = [encoder["cls_token"][0, 0] + table[0]]
    tokens += [(kernel * patches[p]).sum(dim=(1, 2, 3)) + bias + table[1 + p] for p in order[:keep]]
    x = torch.stack(tokens)[None]
    for block in range(2):
        x = attend(encoder, f"blocks.{block}.", x, heads=2)
    x = layer_norm(encoder, "norm", x)[0]

    decoder = {name.removeprefix("decoder."): value for name, value in state.items()}
    x = x @ decoder["embed.weight"].T + decoder["embed.bias"]
    places = [decoder["mask_token"][0, 0]] * 16
    for token, patch in enumerate(order[:keep], start=1):
        places[patch] = x[token]
    y = torch.stack([x[0], *places])[None] + position_table(8, (4, 4))
    y = layer_norm(decoder, "norm", attend(decoder, "blocks.0.", y, heads=2))
    y = (y @ decoder["pred.weight"].T + decoder["pred.bias"])[0, 1:]
    errors = []
    for patch in order[keep:]:
        target = patches[patch].permute(1, 2, 0).flatten()
        target = (target - target.mean()) / (target.var(unbiased=True) + 1e-6).sqrt()
        errors.append((y[patch] - target).square().mean())
    return y, errors


def test_forward_is_the_published_formulation() -> None:
    module = mae(backbone_args={"mlp_ratio": 4}, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]).double()
    pictures, noise = torch.rand(2, 3, 16, 16).double(), torch.rand(2, 16)
    predicted, mask = module(pictures, noise)
    errors = []
    for row in range(2):
        expected, own = published(module, pictures[row : row + 1], noise[row : row + 1], keep=4)
        torch.testing.assert_close(predicted[row], expected, atol=1e-12, rtol=0)
        errors += own
    assert mask.sum(dim=1).tolist() == [12, 12]
    loss = module.losses(pictures, noise)["loss"]
    assert loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-6)  # a loss is float32


def test_worked_example_of_the_loss() -> None:
    n, length, d = (torch.arange(size, dtype=torch.float64) for size in (2, 6, 4))
    n, length, d = n[:, None, None], length[None, :, None], d[None, None]
    target, predicted = (1 + n + 2 * length + 3 * d).sin(), (0.1 * (n - length + d).cos()).requires_grad_()
    mask = mask_from_noise(NOISE, 3).mask.double()
    plain = patch_errors(predicted, target)
    assert masked_mean(plain, mask).item() == pytest.approx(0.614997627441, abs=1e-11)
    assert plain[0, :2].tolist() == pytest.approx([0.473329284850, 0.131187900371], abs=1e-11)

    scaled = patch_errors(predicted, target, normalize=True)
    expected = [0.713775663928, 0.712831364379, 0.734162877011, 0.799428025299, 0.790871154814, 0.771396130485]
    assert scaled[0].tolist() == pytest.approx(expected, abs=1e-11)
    loss = masked_mean(scaled, mask)
    assert loss.item() == pytest.approx(0.755573019692, abs=1e-11)  # 1.0057 with the variance divided by 4
    (gradient,) = torch.autograd.grad(loss, predicted)
    expected = [-0.072533462832, 0.086813827413, -0.065499479116, 0.052337139307]
    assert gradient[0, 0].tolist() == pytest.approx(expected, abs=1e-11)
    assert not gradient[0, 1].any()  # visible


def test_patch_of_one_colour_is_finite() -> None:
    predicted = 0.1 * torch.tensor([[[1.0, 2, 3, 4]]])
    assert patch_errors(predicted, torch.full_like(predicted, 0.3), normalize=True).item() == pytest.approx(0.075)


# Masks --------------------------------------------------------------------------------------------------------------


def test_masks_follow_from_the_seed_and_its_numbers() -> None:
    module, batch = mae(), torch.rand(4, 3, 16, 16)
    first = module.draw_noise(batch, 0, 1, 2)
    torch.rand(7)  # nobody else's numbers matter
    assert torch.equal(module.draw_noise(batch, 0, 1, 2), first)
    others = [
        module.draw_noise(batch, 0, 2, 1),
        module.draw_noise(batch, 0, 1),
        mae(mask_seed=1).draw_noise(batch, 0, 1, 2),
    ]
    assert not any(torch.equal(other, first) for other in others)


def test_epochs_and_batches_have_other_masks_and_evaluations_the_same() -> None:
    seen: dict[str, list[Tensor]] = {"train": [], "val": []}

    class Watch(zoo.MAE):
        def losses(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
            seen["train" if self.trainer.training else "val"].append(noise)
            return super().losses(images, noise)

    torch.manual_seed(0)
    data = images(batch_size=12)
    make_trainer(num_sanity_val_steps=0).fit(Watch(**TINY, backbone_args=VIT), data)
    train = seen["train"]
    assert len(train) == 4
    assert len({tuple(noise.flatten().tolist()) for noise in train}) == 4
    half = len(seen["val"]) // 2
    assert all(torch.equal(*pair) for pair in zip(seen["val"][:half], seen["val"][half:], strict=True))


def test_number_of_visible_patches_replaces_the_ratio() -> None:
    _, mask = mae(num_visible=3)(torch.rand(2, 3, 16, 16))
    assert mask.sum(dim=1).tolist() == [13, 13]


# Learning -----------------------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_leaves_positions_alone() -> None:
    module = mae(optimizer=lambda groups: torch.optim.AdamW(groups, lr=3e-3, weight_decay=0.05))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = make_trainer(max_epochs=12)
    first = trainer.validate(module, images(), verbose=False)[0]["test/loss"]
    trainer.fit(module, images())
    assert trainer.callback_metrics["test/loss"] < 0.97 * first
    same = [name for name, value in module.state_dict().items() if torch.equal(value, before[name])]
    assert same == ["backbone.model.pos_embed"]


def test_weight_decay_spares_what_has_one_dimension() -> None:
    module = mae()
    make_trainer(max_epochs=1).fit(module, images())
    decayed, spared = module.trainer.optimizers[0].param_groups
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    assert {names[id(parameter)] for parameter in spared["params"]} == {
        name for name, parameter in module.named_parameters() if parameter.ndim == 1
    }
    assert {"backbone.model.cls_token", "decoder.mask_token"} <= {
        names[id(parameter)] for parameter in decayed["params"]
    }
    assert len(decayed["params"]) + len(spared["params"]) == len(names) - 1  # all but the table of positions
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    assert decayed["betas"] == (0.9, 0.95)


def test_labels_are_not_needed() -> None:
    trainer = make_trainer(max_epochs=1)
    trainer.fit(mae(), DataLoader(TensorDataset(torch.rand(4, 3, 16, 16)), batch_size=2))
    assert trainer.callback_metrics["train/loss"] > 0


@pytest.mark.parametrize(
    ("size", "options"),
    [((16, 24), {"img_size": [16, 24]}), ((8, 12), {"img_size": [8, 12], "patch_size": [4, 2], "in_chans": 1})],
)
def test_images_may_be_no_squares_and_have_one_channel(size: tuple[int, int], options: dict[str, Any]) -> None:
    channels = options.get("in_chans", 3)
    module = mae(backbone_args=options, mean=[0.5] * channels, std=[0.5] * channels)
    batch = torch.rand(2, channels, *size)
    losses = module.losses(batch, module.draw_noise(batch))
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"])
    assert module.reconstruct(batch)["predicted"].shape == batch.shape


def test_upstream_mean_of_tokens_with_norm_is_a_feature_of_a_masked_autoencoder() -> None:
    """``fc_norm=False`` keeps the last normalisation of tokens and pools behind it."""
    module = mae(backbone_args={"global_pool": "avg", "fc_norm": False})
    batch = torch.rand(2, 3, 16, 16)
    tokens = module.backbone.model.forward_features(module.backbone.normalize(batch))
    torch.testing.assert_close(module.backbone(batch), tokens[:, 1:].mean(dim=1))


def test_sizes_of_a_curriculum_pass_through_encoder_and_decoder() -> None:
    grids = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            grids.append(pl_module.grid(batch[0]))

    module = mae(backbone_args={"dynamic_img_size": True})
    curriculum = EfficientTrain([Stage(8, 1), Stage(12, 1), Stage(16, 1)], base_size=16, divisor=4)
    trainer = make_trainer(curriculum, Watch(), max_epochs=3)
    trainer.fit(module, images(batch_size=24))
    assert grids == [(2, 2), (3, 3), (4, 4)]
    assert torch.isfinite(trainer.callback_metrics["test/loss"])


def test_sizes_of_a_curriculum_may_resample_positions() -> None:
    curriculum = EfficientTrain(
        [Stage(8, 1), Stage(16, 1)], base_size=16, divisor=4, positions="resample", evaluation="stage"
    )
    module = mae()
    make_trainer(curriculum).fit(module, images())
    assert module.backbone.model.pos_embed.shape[1] == 17
    assert not module.backbone.model.pos_embed.requires_grad


def test_neighbours_are_watched_during_pretraining() -> None:
    trainer = make_trainer(KNNEvaluation(k=3), max_epochs=1)
    trainer.fit(mae(), images())
    assert trainer.callback_metrics["test/knn"] > 0.5


# What comes out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_reconstruction_shows_what_is_predicted(norm_pix_loss: bool) -> None:
    """A decoder that knows the answer paints the image."""
    module, batch = mae(norm_pix_loss=norm_pix_loss), torch.rand(2, 3, 16, 16)
    target = patchify(module.backbone.normalize(batch), (4, 4))
    if norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    module.decoder.forward = lambda *args: target
    pictures = module.reconstruct(batch)
    assert list(pictures) == ["original", "visible", "predicted", "predicted and visible"]
    torch.testing.assert_close(pictures["predicted"], batch)
    torch.testing.assert_close(pictures["predicted and visible"], batch)
    grey = (pictures["visible"] - 0.5).abs().amax(dim=1) < 1e-5
    cells = F.avg_pool2d(grey.float()[:, None], 4).flatten(1)
    assert cells.sum(dim=1).tolist() == [12, 12]
    hidden = mask_from_noise(module.draw_noise(batch), 4).mask
    assert torch.equal(cells, hidden)

    module.decoder.forward = lambda *args: torch.full_like(target, 1e4)
    both = patchify(module.reconstruct(batch)["predicted and visible"], (4, 4))
    torch.testing.assert_close(both[hidden == 0], patchify(batch, (4, 4))[hidden == 0])
    assert (both[hidden == 1] == 1).all()


def test_predictions_are_features_and_the_loss_of_each_image() -> None:
    module, batch = mae(), torch.rand(3, 3, 16, 16)
    (found,) = make_trainer().predict(module, DataLoader(TensorDataset(batch), batch_size=3))
    torch.testing.assert_close(found["features"], module.eval().backbone(batch))
    noise = module.draw_noise(batch, 0)
    assert found["loss"].mean().item() == pytest.approx(module.losses(batch, noise)["loss"].item(), rel=1e-5)
    assert found["loss"].shape == (3,)


def test_checkpoint_gives_the_module_back(tmp_path: Path) -> None:
    trainer, module = make_trainer(max_epochs=1), mae(mask_ratio=0.5)
    trainer.fit(module, images())
    trainer.save_checkpoint(tmp_path / "mae.ckpt")
    again = zoo.MAE.load_from_checkpoint(tmp_path / "mae.ckpt")
    batch, noise = torch.rand(2, 3, 16, 16), torch.rand(2, 16)
    torch.testing.assert_close(again(batch, noise), module(batch, noise), rtol=0, atol=0)
    assert torch.load(tmp_path / "mae.ckpt", weights_only=True)["hyper_parameters"]["mask_ratio"] == 0.5


# Weights of others --------------------------------------------------------------------------------------------------


def official(module: zoo.MAE) -> dict[str, Tensor]:
    """Return the state as the official code names it."""
    encoder = {name: value + 0.1 for name, value in module.backbone.model.state_dict().items()}
    decoder = {
        name if name == "mask_token" else f"decoder_{name}": value + 0.2
        for name, value in module.decoder.state_dict().items()
    }
    return {**encoder, **decoder, "decoder_pos_embed": position_table(8, (4, 4))[None]}


def test_published_files_are_loaded_with_or_without_their_decoder(tmp_path: Path) -> None:
    state = official(mae())
    torch.save({"model": state}, tmp_path / "full.pth")
    full = mae(checkpoint_path=str(tmp_path / "full.pth"))
    torch.testing.assert_close(official(full), {name: value + 0.1 for name, value in state.items()} | {
        name: value + 0.2 for name, value in state.items() if name.startswith("decoder_") or name == "mask_token"
    } | {"decoder_pos_embed": state["decoder_pos_embed"]})  # fmt: skip

    alone = {name: value for name, value in state.items() if "decoder" not in name and name != "mask_token"}
    torch.save({"model": alone}, tmp_path / "encoder.pth")
    encoder = mae(checkpoint_path=str(tmp_path / "encoder.pth"))
    torch.testing.assert_close(encoder.backbone.model.state_dict(), alone)
    assert encoder.decoder.mask_token.abs().max() < 0.1 < state["mask_token"].min()  # fresh
    assert not encoder.backbone.model.pos_embed.requires_grad


def test_weights_of_the_hub_keep_their_positions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=0, **VIT)
    torch.save(model.state_dict(), tmp_path / "hub.pt")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "hub.pt"), "num_classes": 0}}
    module = mae(pretrained=True, backbone_args=overlay)
    torch.testing.assert_close(module.backbone.model.state_dict(), model.state_dict())


def test_file_of_another_decoder_is_refused(tmp_path: Path) -> None:
    torch.save({"model": official(mae(decoder_dim=16))}, tmp_path / "full.pth")
    with pytest.raises(ValueError, match=r"does not fit MAEDecoder: .* has shape"):
        mae(checkpoint_path=str(tmp_path / "full.pth"))


# Errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio=1.0 must be more than 0"),
        ({"num_visible": 16}, "num_visible=16 leaves 16 of 16 patches visible"),
        ({"decoder_heads": 3}, "decoder_dim=8 must be a multiple of 4 and of decoder_heads=3"),
        ({"backbone": "vit_tinny_patch16_224"}, "Did you mean vit_tiny_patch16_224"),
        ({"backbone_args": {"global_pool": "avg"}}, "add fc_norm=False"),
        ({"backbone_args": {"num_classes": 3}}, r"backbone_args holds \['num_classes'\]"),
        ({"backbone_args": {"in_chans": 1}}, "mean holds 3 numbers, and the images have 1 channels"),
        ({"backbone_args": {"img_size": 4, "patch_size": 1, "in_chans": 1}, "mean": [0.5], "std": [0.5]}, "has none"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mae(**arguments)


def test_network_without_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="ResNet cannot be run on some patches only"):
        zoo.MAE(backbone="test_resnet")


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [(False, "The backbone takes images of 16 x 16 pixels, got 18 x 16"), (True, "18 x 16 pixels are not covered by")],
)
def test_images_of_a_size_that_does_not_fit_are_refused(dynamic: bool, message: str) -> None:
    module = mae(backbone_args={"dynamic_img_size": dynamic})
    with pytest.raises(ValueError, match=message):
        make_trainer(max_epochs=1).fit(module, DataLoader(TensorDataset(torch.rand(4, 3, 18, 16)), batch_size=2))


def test_fit_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="give max_epochs or max_steps"):
        make_trainer(max_epochs=-1).fit(mae(), images())


def test_checkpoint_of_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit MAE"):
        mae().on_load_checkpoint({"state_dict": mae(decoder_depth=2).state_dict()})
