"""ImageClassifier: runs that must agree, interrupted, averaged, on two processes, compiled, in other precision."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from classifiers import REGULARISED, classifier, images, make_trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from zoo.callbacks import SeedEpochs


def fit(folder: Path, *callbacks: L.Callback, resume: bool = False, **kwargs: Any) -> tuple[dict[str, Any], L.Trainer]:
    """Fit three epochs with all that is random, and return weights and metrics."""
    module = classifier(**{**REGULARISED, **kwargs})
    checkpoint = ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=True)
    trainer = make_trainer(SeedEpochs(), *callbacks, checkpoint, max_epochs=3, enable_checkpointing=True)
    trainer.fit(module, images(), ckpt_path=folder / "last.ckpt" if resume else None)
    return {**module.state_dict(), **trainer.callback_metrics}, trainer


class Interrupt(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.current_epoch == 2 and batch_idx == 1:
            raise InterruptedError


@pytest.mark.parametrize("averaging", [False, True])
@pytest.mark.parametrize("probe", [False, True])
def test_resumed_run_ends_bitwise_as_an_unbroken_one(
    averaging: bool, probe: bool, weights: str, tmp_path: Path
) -> None:
    def average() -> list[L.Callback]:
        return [EMAWeightAveraging(decay=0.8)] if averaging else []

    kwargs = {"mode": "linear_probe", "checkpoint_path": weights, "drop_path": 0.0} if probe else {}
    unbroken, _ = fit(tmp_path / "unbroken", *average(), **kwargs)
    with pytest.raises(InterruptedError):
        fit(tmp_path / "broken", Interrupt(), *average(), **kwargs)
    saved = torch.load(tmp_path / "broken" / "last.ckpt", weights_only=True)
    assert saved["epoch"] == 1
    states = [saved[name] for name in ("state_dict", "current_model_state") if name in saved]
    assert len(states) == 1 + averaging
    assert all(any(name.startswith("backbone.") for name in state) != probe for state in states)
    resumed, _ = fit(tmp_path / "broken", *average(), resume=True, **kwargs)
    assert resumed.keys() == unbroken.keys()
    assert not [name for name in unbroken if not torch.equal(resumed[name], unbroken[name])]


def test_averaged_weights_are_those_that_are_validated(tmp_path: Path) -> None:
    class Validated(L.Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
            self.head = pl_module.head.weight.detach().clone()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            self.current = pl_module.head.weight.detach().clone()
            self.average = self.current if not hasattr(self, "average") else 0.8 * self.average + 0.2 * self.current

    # A learning rate of zero in the first step of the warm-up: the average starts there.
    watch = Validated()
    state, _ = fit(tmp_path, EMAWeightAveraging(decay=0.8), watch)
    torch.testing.assert_close(watch.head, watch.average)
    assert (watch.head - watch.current).norm() > 1e-3
    torch.testing.assert_close(state["head.weight"], watch.average)


def fit_processes(devices: int, folder: Path) -> dict[str, torch.Tensor]:
    """Fit on one or two processes with the same images in each step, and return what each measured."""

    class Write(L.Callback):
        def on_train_end(self, trainer, pl_module) -> None:
            metrics = {name: value.cpu() for name, value in trainer.callback_metrics.items()}
            torch.save({**pl_module.state_dict(), **metrics}, folder / f"{devices}-{trainer.global_rank}.pt")

    trainer = make_trainer(Write(), devices=devices, strategy="ddp_fork" if devices > 1 else "auto")
    sgd = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.05)}
    trainer.fit(classifier(**sgd), images(batch_size=8 // devices))
    return torch.load(folder / f"{devices}-0.pt", weights_only=True)


def test_two_processes_learn_and_measure_as_one(tmp_path: Path) -> None:
    one, two = fit_processes(1, tmp_path), fit_processes(2, tmp_path)  # 15 test images: 8 and 7
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.load(tmp_path / "2-1.pt", weights_only=True), two, atol=0, rtol=0)
    assert (one["head.weight"] - classifier().head.weight).norm() > 1e-2


def test_mixed_precision_stays_near() -> None:
    full, half = (make_trainer(precision=precision) for precision in ("32-true", "bf16-mixed"))
    modules = [classifier(), classifier()]
    for trainer, module in zip((full, half), modules, strict=True):
        trainer.fit(module, images())
    assert modules[1].head.weight.dtype == torch.float32
    assert half.callback_metrics["train/loss"] == pytest.approx(full.callback_metrics["train/loss"].item(), rel=0.05)
    assert half.callback_metrics["train/loss"] != full.callback_metrics["train/loss"]


def test_compiled_module_learns_the_same_and_is_compiled_once() -> None:
    graphs, after_epoch = [], []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.extend([graph] * (len(graph.graph.nodes) > 50))  # not the small ones of Lightning's log
        return graph.forward

    class Count(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            after_epoch.append(len(graphs))

    modules = [classifier(mixup=0.8, random_erasing=0.5) for _ in range(2)]
    for module in (modules[0], torch.compile(modules[1], backend=backend)):
        make_trainer(SeedEpochs(0), Count()).fit(module, images(batch_size=5))
    torch.testing.assert_close(modules[0].state_dict(), modules[1].state_dict())
    assert after_epoch[2] > 0
    assert after_epoch[3] == after_epoch[2]


def test_accumulated_batches_learn_as_one() -> None:
    sgd = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1)}
    whole, halves = classifier(**sgd), classifier(**sgd)
    make_trainer().fit(whole, images(batch_size=8))
    make_trainer(accumulate_grad_batches=2).fit(halves, images(batch_size=4))
    torch.testing.assert_close(halves.state_dict(), whole.state_dict())
