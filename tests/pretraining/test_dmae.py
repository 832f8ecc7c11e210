"""DMAE: the loss of the paper's code, one view for student and teacher, and a teacher that is cut and not saved."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from tiny_autoencoders import VIT, images, mae, make_trainer

import zoo
from zoo.functional import mask_from_noise
from zoo.nn import is_frozen
from zoo.pretraining.dmae import build_head, feature_loss, resolve_taps

TEACHER = {**VIT, "embed_dim": 24, "depth": 4}


def dmae(**kwargs: Any) -> zoo.DMAE:
    return mae(zoo.DMAE, **{"teacher": "test_vit", "teacher_pretrained": False, "teacher_args": TEACHER, **kwargs})


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """Write the checkpoint of a teacher that was a moment in training."""
    trainer = make_trainer(max_epochs=1)
    trainer.fit(mae(backbone_args=TEACHER, mean=[0.4, 0.5, 0.6], std=[0.2, 0.2, 0.2]), images())
    trainer.save_checkpoint(tmp_path / "teacher.ckpt")
    return str(tmp_path / "teacher.ckpt")


# The feature loss ---------------------------------------------------------------------------------------------------


def example() -> tuple[torch.Tensor, ...]:
    n, t, a, b = (torch.arange(size, dtype=torch.float64) for size in (2, 3, 3, 4))
    student = (0.5 * n[:, None, None] + t[None, :, None] - a).cos()
    teacher = (1 + n[:, None, None] + t[None, :, None] * b).sin()
    return student, teacher, 0.2 * (1 + 2 * b[:, None] + a).sin(), 0.05 * b


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.554759267794),
        ({"tokens": "patch"}, 0.634392661590),
        ({"distance": "l2"}, 0.478548060113),
        ({"normalize": False}, 0.757819733303),
        ({"distance": "smooth_l1"}, 0.232592542350),
        ({"distance": "cosine"}, 2 * 0.478548060113),  # the mean of 2 - 2 cos, over 4 channels, is the value above
    ],
)
def test_worked_examples_of_the_feature_loss(options: dict[str, Any], expected: float) -> None:
    student, teacher, weight, bias = example()
    projected = student @ weight.T + bias
    first = [0.254807967263, 0.076254235630, -0.176659201469, 0.354007467357]
    assert projected[0, 0].tolist() == pytest.approx(first, abs=1e-11)
    assert feature_loss(projected, teacher, **options).item() == pytest.approx(expected, abs=1e-11)


def test_class_token_is_what_the_patches_are_not() -> None:
    student, teacher, weight, bias = example()
    projected = student @ weight.T + bias
    whole, patches, first = (feature_loss(projected, teacher, tokens=tokens) for tokens in ("all", "patch", "cls"))
    torch.testing.assert_close(whole, (2 * patches + first) / 3)


def test_worked_example_of_the_gradient() -> None:
    student, teacher, weight, bias = example()
    student.requires_grad_()
    weight.requires_grad_()
    feature_loss(student @ weight.T + bias, teacher).backward()
    expected = [0.078665407489, -0.240002492877, -0.338013208119]
    assert weight.grad[0].tolist() == pytest.approx(expected, abs=1e-11)
    expected = [0.006278351593, 0.020013806974, 0.015348660522]
    assert student.grad[0, 0].tolist() == pytest.approx(expected, abs=1e-11)


def test_half_precision_is_compared_in_single() -> None:
    student, teacher = torch.randn(2, 3, 8).half().requires_grad_(), torch.randn(2, 3, 8).half()
    loss = feature_loss(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, feature_loss(student.detach().float(), teacher.float()))


def test_rule_of_the_taps() -> None:
    assert [resolve_taps(None, depth, "taps") for depth in (12, 24, 32, 4, 1)] == [[8], [17], [23], [2], [0]]
    assert resolve_taps([-1, 0], 12, "taps") == [11, 0]


def test_heads_of_each_kind() -> None:
    assert build_head("linear", 4, 6)(torch.rand(2, 4)).shape == (2, 6)
    mlp = build_head("mlp", 4, 6)
    assert [tuple(layer.weight.shape) for layer in (mlp[0], mlp[2])] == [(6, 4), (6, 6)]
    assert not list(build_head("none", 4, 4).parameters())


# One step -----------------------------------------------------------------------------------------------------------


def features(model: torch.nn.Module, pixels: torch.Tensor, keep: torch.Tensor, block: int) -> torch.Tensor:
    """Return the output of a block for some patches, by timm's own forward of an image with those patches in a row."""
    found = []
    for picture, ids in zip(pixels, keep, strict=True):
        tokens = model.patch_embed(picture[None]) + model.pos_embed[:, 1:]
        x = torch.cat([model.cls_token + model.pos_embed[:, :1], tokens[:, ids]], dim=1)
        for layer in model.blocks[: block + 1]:
            x = layer(x)
        found.append(x)
    return torch.cat(found)


def test_losses_are_those_of_the_published_code() -> None:
    # Other means than the teacher's: each normalises the images as it was trained to see them.
    module = dmae(alpha=0.5, taps=[0, 1], teacher_taps=[2, 1], mean=[0.2, 0.3, 0.4], std=[0.3, 0.2, 0.1]).eval()
    whole = timm.create_model("test_vit", num_classes=0, **TEACHER)
    whole.load_state_dict(module.teacher.model.state_dict(), strict=False)  # blocks behind the tap do not matter
    batch, noise = torch.rand(3, 3, 16, 16), torch.rand(3, 16)
    keep = mask_from_noise(noise, 4).ids_keep
    seen, shown = module.backbone.normalize(batch), module.teacher.normalize(batch)
    assert not torch.allclose(seen, shown)
    expected = 0.0
    for head, mine, theirs in zip(module.heads, [0, 1], [2, 1], strict=True):
        student = F.normalize(head(features(module.backbone.model, seen, keep, mine)), dim=-1)
        teacher = F.normalize(features(whole, shown, keep, theirs), dim=-1)
        expected += (student - teacher).abs().mean()
    losses = module.losses(batch, noise)
    torch.testing.assert_close(losses["loss_feature"], expected.detach())
    plain = super(zoo.DMAE, module).losses(batch, noise)["loss"]
    torch.testing.assert_close(losses["loss_pixel"], plain.detach())
    torch.testing.assert_close(losses["loss"], plain + 0.5 * expected)


def test_order_of_the_visible_patches_does_not_matter() -> None:
    module, batch, noise = dmae().eval(), torch.rand(2, 3, 16, 16), torch.rand(2, 16)
    keep = noise.argsort(dim=1)[:, :4]
    other = noise.clone().scatter(1, keep, noise.gather(1, keep).flip(1))
    assert not torch.equal(mask_from_noise(other, 4).ids_keep, keep)
    torch.testing.assert_close(module.losses(batch, other), module.losses(batch, noise), atol=1e-5, rtol=1e-5)


def test_student_is_drawn_to_the_teacher_and_the_teacher_stays(checkpoint: str) -> None:
    optimizer = {"optimizer": lambda groups: torch.optim.AdamW(groups, lr=3e-3)}
    module = dmae(teacher=checkpoint, teacher_args=None, **optimizer)
    before = {name: value.clone() for name, value in module.teacher.state_dict().items()}
    trainer = make_trainer(max_epochs=10)
    (first,) = trainer.validate(module, images(), verbose=False)
    trainer.fit(module, images())
    assert set(first) == {"test/loss", "test/loss_pixel", "test/loss_feature", "test/cosine"}
    assert trainer.callback_metrics["test/cosine"] > first["test/cosine"] + 0.3
    assert trainer.callback_metrics["test/loss_feature"] < 0.8 * first["test/loss_feature"]
    torch.testing.assert_close(module.teacher.state_dict(), before, rtol=0, atol=0)
    assert module.train().backbone.training
    assert is_frozen(module.teacher)
    owned = {id(parameter) for group in trainer.optimizers[0].param_groups for parameter in group["params"]}
    assert owned.isdisjoint(id(parameter) for parameter in module.teacher.parameters())
    assert id(module.heads[0].weight) in owned


# The teacher --------------------------------------------------------------------------------------------------------


def test_blocks_behind_the_tap_are_gone_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    create = timm.create_model

    def remember(*args: Any, **kwargs: Any) -> Any:
        model = create(*args, **kwargs)
        made.extend(weakref.ref(block.attn.qkv.weight) for block in model.blocks)
        return model

    monkeypatch.setattr(timm, "create_model", remember)
    module = dmae(teacher_taps=[1])
    gc.collect()
    assert [ref() is not None for ref in made[-4:]] == [True, True, False, False]
    assert len(module.teacher.model.blocks) == 2
    assert isinstance(module.teacher.model.norm, torch.nn.Identity)
    assert "16.8 % of what it would take with all patches and 4 blocks" in module.describe_cost()


def test_teacher_of_a_checkpoint_brings_its_network_and_normalisation(checkpoint: str) -> None:
    module = dmae(teacher=checkpoint, teacher_args=None)
    torch.testing.assert_close(module.teacher.mean.flatten(), torch.tensor([0.4, 0.5, 0.6]))
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, value in module.teacher.model.state_dict().items():
        assert torch.equal(value, saved[f"backbone.model.{name}"])


def test_teacher_by_name_takes_a_file_of_weights(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=0, **TEACHER)
    torch.save({"model": model.state_dict()}, tmp_path / "mae.pth")
    module = dmae(teacher_checkpoint=str(tmp_path / "mae.pth"))
    weights = module.teacher.model.state_dict()
    torch.testing.assert_close(weights, {name: model.state_dict()[name] for name in weights}, rtol=0, atol=0)


def test_classifier_may_teach(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = zoo.ImageClassifier(3, "test_vit", backbone_args={**TEACHER, "global_pool": "avg"})
    trainer = make_trainer(max_epochs=1)
    trainer.fit(classifier, images())
    trainer.save_checkpoint(tmp_path / "classifier.ckpt")
    module = dmae(teacher=str(tmp_path / "classifier.ckpt"), teacher_args=None)
    torch.testing.assert_close(
        module.teacher.model.blocks[0].state_dict(), classifier.backbone.model.blocks[0].state_dict()
    )


@pytest.mark.parametrize("rebuilt", [True, False])
def test_teacher_that_can_be_rebuilt_is_not_in_the_checkpoint(rebuilt: bool, checkpoint: str, tmp_path: Path) -> None:
    module = dmae(teacher=checkpoint, teacher_args=None) if rebuilt else dmae()
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, images())
    trainer.save_checkpoint(tmp_path / "dmae.ckpt")
    saved = torch.load(tmp_path / "dmae.ckpt", weights_only=True)["state_dict"]
    assert any(name.startswith("teacher.") for name in saved) != rebuilt
    again = zoo.DMAE.load_from_checkpoint(tmp_path / "dmae.ckpt")
    torch.testing.assert_close(again.state_dict(), module.state_dict(), rtol=0, atol=0)


# Errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"teacher_args": {**TEACHER, "patch_size": 8}}, "the same patches, but the student has images of"),
        ({"teacher_args": {}}, r"\(160, 160\) with \(16, 16\): give teacher_args"),
        ({"taps": [2]}, r"taps=\[2\] must be blocks from 0 to 1, or from -2 to -1"),
        ({"teacher_taps": [-5]}, r"teacher_taps=\[-5\] must be blocks from 0 to 3"),
        ({"taps": []}, r"taps=\[\] must be"),
        ({"taps": [0, 1]}, r"taps=\[0, 1\] and teacher_taps=\[2\] must have one partner each"),
        ({"head": "none"}, "compares features as they are, of 16 and 24 channels"),
        ({"head": "two"}, "head='two' must be one of 'linear', 'mlp', 'none'"),
        ({"distance": "huber"}, "distance='huber' must be one of"),
        ({"tokens": "some"}, "tokens='some' must be one of 'all', 'patch', 'cls'"),
        ({"alpha": -1.0}, "alpha=-1.0 must not be negative"),
        ({"teacher": "test_resnet", "teacher_args": {}}, "ResNet cannot be run on some patches only"),
        ({"backbone_args": {"dynamic_img_size": True}}, "give both dynamic_img_size=True"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dmae(**arguments)


def test_files_that_are_no_teacher_are_refused(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"teacher='gone.ckpt' is no file"):
        dmae(teacher="gone.ckpt")
    with pytest.raises(ValueError, match="with weights of its own: leave teacher_checkpoint out"):
        dmae(teacher=checkpoint, teacher_checkpoint=checkpoint)
    torch.save({"model": {}}, tmp_path / "plain.pth")
    with pytest.raises(ValueError, match="give the network as teacher, by its name in timm, and the file as"):
        dmae(teacher=str(tmp_path / "plain.pth"))
    with pytest.raises(ValueError, match="does not fit VisionTransformer: missing cls_token"):
        dmae(teacher_checkpoint=str(tmp_path / "plain.pth"))
