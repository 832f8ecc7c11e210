"""SelfDistillation: the loss on whole images, the start it shares with its teacher, and further rounds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_autoencoders import images, mae, make_trainer

import zoo
from zoo.pretraining.self_distillation import representation_loss


@pytest.fixture
def start(tmp_path: Path) -> dict[str, str]:
    """Write the weights that all start from, and the teacher that was trained on from there."""
    trainer = make_trainer(max_epochs=1)
    trainer.fit(mae(), images())
    paths = {name: str(tmp_path / f"{name}.ckpt") for name in ("checkpoint_path", "teacher")}
    trainer.save_checkpoint(paths["checkpoint_path"])
    fast = {"optimizer": lambda groups: torch.optim.AdamW(groups, lr=3e-3)}
    trainer = make_trainer(max_epochs=2)
    trainer.fit(mae(checkpoint_path=paths["checkpoint_path"], **fast), images())
    trainer.save_checkpoint(paths["teacher"])
    return paths


def student(start: dict[str, str], **kwargs: Any) -> zoo.SelfDistillation:
    return mae(zoo.SelfDistillation, **{**start, **kwargs})


def test_worked_example_of_the_loss() -> None:
    i, d = torch.arange(2.0).double()[:, None], torch.arange(3.0).double()
    mine, theirs = (i + 2 * d).sin().requires_grad_(), (i - d).cos()
    loss = representation_loss(mine, theirs)
    assert loss.item() == pytest.approx(2.164130715319, abs=1e-11)  # a third of it as a mean over all
    loss.backward()
    assert mine.grad[0].tolist() == pytest.approx([-1, 0.368995120958, -0.340655658761], abs=1e-11)


@pytest.mark.parametrize("tokens", ["cls", "all"])
def test_losses_are_those_of_the_published_code(tokens: str, start: dict[str, str]) -> None:
    module = student(start, weight=0.25, tokens=tokens).eval()
    elder = zoo.MAE.load_from_checkpoint(start["teacher"]).eval()
    batch, noise = torch.rand(3, 3, 16, 16), torch.rand(3, 16)
    mine, theirs = (one.backbone.model.forward_features(one.backbone.normalize(batch)) for one in (module, elder))
    distance = (mine - theirs).square().sum(-1)
    expected = distance[:, 0].mean() if tokens == "cls" else distance.mean()
    losses = module.losses(batch, noise)
    plain = zoo.MAE.load_from_checkpoint(start["checkpoint_path"]).eval().losses(batch, noise)["loss"]
    torch.testing.assert_close(losses["loss_pixel"], plain.detach())
    torch.testing.assert_close(losses["loss_feature"], expected.detach())
    torch.testing.assert_close(losses["loss"], plain + 0.25 * expected)


def test_student_starts_where_the_teacher_started(start: dict[str, str]) -> None:
    module = student(start)
    saved = torch.load(start["checkpoint_path"], weights_only=True)["state_dict"]
    state = {name: value for name, value in module.state_dict().items() if not name.startswith("teacher.")}
    torch.testing.assert_close(state, saved, rtol=0, atol=0)
    assert not torch.equal(module.teacher.model.cls_token, module.backbone.model.cls_token)


def test_student_is_drawn_to_the_teacher_and_teaches_in_the_next_round(start: dict[str, str], tmp_path: Path) -> None:
    module = student(start, optimizer=lambda groups: torch.optim.AdamW(groups, lr=2e-3))
    before = {name: value.clone() for name, value in module.teacher.state_dict().items()}
    trainer = make_trainer(max_epochs=8)
    (first,) = trainer.validate(module, images(), verbose=False)
    trainer.fit(module, images())
    assert set(first) == {"test/loss", "test/loss_pixel", "test/loss_feature"}
    assert trainer.callback_metrics["test/loss_feature"] < 0.8 * first["test/loss_feature"]
    torch.testing.assert_close(module.teacher.state_dict(), before, rtol=0, atol=0)
    assert not module.train().teacher.training

    trainer.save_checkpoint(tmp_path / "round1.ckpt")
    saved = torch.load(tmp_path / "round1.ckpt", weights_only=True)["state_dict"]
    assert not any(name.startswith("teacher.") for name in saved)
    again = zoo.SelfDistillation.load_from_checkpoint(tmp_path / "round1.ckpt")
    torch.testing.assert_close(again.state_dict(), module.state_dict(), rtol=0, atol=0)
    second = student({**start, "teacher": str(tmp_path / "round1.ckpt")})
    torch.testing.assert_close(second.teacher.state_dict(), module.backbone.state_dict(), rtol=0, atol=0)


def test_rate_falls_linearly_to_zero(start: dict[str, str]) -> None:
    rates = []

    class Watch(zoo.SelfDistillation):
        def on_train_batch_end(self, *args: Any) -> None:
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    make_trainer().fit(mae(Watch, **start), images())  # six steps
    assert rates == pytest.approx([1.5e-4 * left / 6 for left in (5, 4, 3, 2, 1, 0)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": "patch"}, "tokens='patch' must be 'cls' or 'all'"),
        ({"weight": -1.0}, "weight=-1.0 must not be negative"),
        (
            {"checkpoint_path": None, "backbone_args": {"embed_dim": 24}},
            "The teacher has 16 features and the student 24",
        ),
        ({"checkpoint_path": None, "backbone_args": {"patch_size": 8}}, "must see the same patches"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str, start: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=message):
        student(start, **arguments)
