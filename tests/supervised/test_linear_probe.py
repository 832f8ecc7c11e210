"""LinearProbe against scikit-learn and against the conditions of the minimum it looks for."""

from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

import zoo
from zoo.callbacks import TaskLoop
from zoo.datamodules import ClassificationDataModule, ClassIncrementalDataModule
from zoo.datamodules.sources import Digits, Synthetic
from zoo.supervised.linear_probe import fit_logistic_regression


def blobs(num_classes: int, num_images: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Return overlapping clouds of unit vectors, which no plane separates."""
    labels = torch.arange(num_images) % num_classes
    return F.normalize(torch.randn(num_images, 4) + 0.5 * F.one_hot(labels, 4)), labels


@pytest.fixture
def digits() -> ClassIncrementalDataModule:
    return ClassIncrementalDataModule(Digits(), num_tasks=1, batch_size=200)


def table(images) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pixels of each image as a row, and the labels, in stored order."""
    pixels, labels = zip(*images, strict=True)
    return torch.stack(pixels).flatten(1), torch.tensor(labels)


@pytest.mark.parametrize("num_classes", [2, 3, 4])
@pytest.mark.parametrize("regularization", [1e-3, 1e-1])
def test_gradient_of_the_penalised_mean_cross_entropy_vanishes(num_classes: int, regularization: float) -> None:
    features, labels = blobs(num_classes)
    layer = fit_logistic_regression(features.double(), labels, num_classes, regularization)
    weight, bias = (part.requires_grad_() for part in layer)
    loss = F.cross_entropy(features.double() @ weight.T + bias, labels) + regularization / 2 * weight.square().sum()
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=2e-4, rtol=0)
    assert weight.abs().max() > 0.05  # there was something to find


def test_doubled_data_give_the_same_layer() -> None:
    features, labels = blobs(3)
    once = fit_logistic_regression(features, labels, 3, 1e-2)
    twice = fit_logistic_regression(features.repeat(2, 1), labels.repeat(2), 3, 1e-2)
    torch.testing.assert_close(twice, once, atol=1e-2, rtol=0)


@pytest.mark.parametrize("classes", [[0, 3, 4], [1, 4]])
def test_class_without_an_image_never_wins(classes: list[int]) -> None:
    features, labels = blobs(len(classes))
    weight, bias = fit_logistic_regression(features, torch.tensor(classes)[labels], 5, 1e-3)
    scores = F.linear(features, weight, bias)
    assert torch.isneginf(scores).any(dim=0).nonzero().flatten().tolist() == sorted({0, 1, 2, 3, 4} - set(classes))
    assert (scores.argmax(1) == torch.tensor(classes)[labels]).float().mean() > 1.2 / len(classes)


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least two classes, got class \[1\] only"):
        fit_logistic_regression(torch.rand(4, 2), torch.ones(4, dtype=torch.long), 3, 1e-3)


@pytest.mark.parametrize(("normalize", "regularization"), [(True, 1e-3), (False, 1e-1)])
def test_stream_of_one_task_gives_what_scikit_learn_gives(
    normalize: bool, regularization: float, digits, trainer, pixels
) -> None:
    probe = zoo.LinearProbe(10, pixels, regularization, normalize)
    fit = trainer()
    fit.fit(probe, digits)
    assert pixels.forwards == 1437 + 360  # each image once

    train, train_labels = table(digits.train_set(0))
    test, test_labels = table(digits.evaluation_set(0, "test"))
    if normalize:
        train, test = F.normalize(train), F.normalize(test)
    reference = LogisticRegression(C=1 / (regularization * 1437), max_iter=1000).fit(
        train.numpy(), train_labels.numpy()
    )
    expected = torch.from_numpy(reference.predict_proba(test.numpy()))
    scores = F.linear(test, probe.weight, probe.bias)
    torch.testing.assert_close(scores.softmax(1), expected.float(), atol=2e-2, rtol=0)
    accuracy = reference.score(test.numpy(), test_labels.numpy())
    assert fit.callback_metrics["test/acc"].item() == pytest.approx(accuracy, abs=2 / 360)
    assert accuracy > 0.85


def test_works_without_a_stream(digits, trainer, pixels) -> None:
    probes = [zoo.LinearProbe(10, pixels, regularization=1e-2) for _ in range(2)]
    trainer().fit(probes[0], digits)
    plain = ClassificationDataModule(Digits(), batch_size=100, evaluate="test")
    fit = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    fit.fit(probes[1], plain)
    order = torch.tensor(digits.class_order)  # a stream counts classes in learning order
    assert (probes[1].weight[order] - probes[0].weight).norm() < 0.05 * probes[0].weight.norm()
    assert fit.callback_metrics["test/acc"] > 0.8


def test_several_tasks_are_refused(stream, trainer, pixels) -> None:
    with pytest.raises(ValueError, match=r"all classes at once, got a stream of 3 tasks; set num_tasks=1"):
        trainer().fit(zoo.LinearProbe(6, pixels), stream())


def test_two_passes_are_refused(stream, trainer, pixels) -> None:
    with pytest.raises(ValueError, match="LinearProbe takes one pass over a task, got epochs=2"):
        trainer().fit(zoo.LinearProbe(6, pixels), stream(num_tasks=1, epochs_per_task=2))


def test_scores_before_the_fit_are_refused(pixels) -> None:
    with pytest.raises(ValueError, match="seen no class"):
        zoo.LinearProbe(6, pixels)(torch.rand(1, 3, 8, 8))


def test_interrupted_pass_restarts(stream, trainer, pixels) -> None:
    class Interrupt(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            if batch_idx == 3:
                raise InterruptedError

    unbroken, probe = (zoo.LinearProbe(6, pixels, regularization=1e-2) for _ in range(2))
    trainer(num_sanity_val_steps=0).fit(unbroken, stream(num_tasks=1))
    with pytest.raises(InterruptedError):
        trainer(Interrupt(), num_sanity_val_steps=0).fit(probe, stream(num_tasks=1))
    trainer(num_sanity_val_steps=0).fit(probe, stream(num_tasks=1))
    assert torch.equal(probe.weight, unbroken.weight)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_checkpoint_holds_the_layer_and_resumes(precision: str, stream, trainer, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save(zoo.nn.create_backbone("test_efficientnet", pretrained=False).model.state_dict(), weights)
    settings = {"num_classes": 6, "backbone": "test_efficientnet", "checkpoint_path": str(weights)}
    probe = zoo.LinearProbe(**settings)
    trainer(precision=precision).fit(probe, stream(num_tasks=1))
    path = tmp_path / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert sorted(saved) == ["bias", "dummy", "weight"]
    assert saved["weight"].dtype == torch.float32
    loaded = zoo.LinearProbe.load_from_checkpoint(path)
    assert torch.equal(loaded.weight, probe.weight)
    if precision == "32-true":
        images = torch.rand(4, 3, 8, 8)
        torch.testing.assert_close(loaded.eval()(images), probe.eval()(images), rtol=0, atol=0)

    resumed = zoo.LinearProbe(**settings)
    trainer(precision=precision).fit(resumed, stream(num_tasks=1), ckpt_path=path)  # nothing is left to do
    torch.testing.assert_close(resumed.weight.float(), probe.weight, atol=0, rtol=0 if precision == "32-true" else 8e-3)


def test_two_processes_give_the_layer_of_one(tmp_path: Path, pixels) -> None:
    class Write(L.Callback):
        def on_validation_start(self, trainer, pl_module) -> None:  # DDP copies the first process's layer afterwards
            self.layer = pl_module.weight.clone(), pl_module.bias.clone()

        def on_train_end(self, trainer, pl_module) -> None:
            name = f"{trainer.world_size}-{trainer.global_rank}.pt"
            torch.save((*self.layer, trainer.callback_metrics["test/acc"]), tmp_path / name)

    for devices in (1, 2):
        # 3 x 9 images: 14 and 13 of them.
        source = Synthetic(num_classes=3, image_size=8, train_per_class=9, test_per_class=5)
        L.Trainer(
            accelerator="cpu", devices=devices, strategy="ddp_fork" if devices > 1 else "auto", logger=False,
            enable_progress_bar=False, enable_checkpointing=False, callbacks=[TaskLoop(), Write()],
        ).fit(
            zoo.LinearProbe(3, pixels, regularization=1e-2),
            ClassIncrementalDataModule(source, num_tasks=1, batch_size=4, pad=False),
        )  # fmt: skip
    one, two, other = (torch.load(tmp_path / name, weights_only=True) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    torch.testing.assert_close(two, one, atol=1e-3, rtol=0)
    torch.testing.assert_close(other, two, atol=0, rtol=0)
    assert one[0].abs().max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "num_classes=1 must be at least 2"),
        ({"regularization": 0.0}, r"regularization=0.0 must be positive"),
        ({"max_iter": 0}, "max_iter=0 must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, pixels) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.LinearProbe(**{"num_classes": 3, "backbone": pixels, **arguments})
