"""Every method that trains: a killed run ends as an unbroken one, and two processes end as one."""

import multiprocessing
import os
import signal
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from methods import PROMPTED, make_method
from torchvision.transforms import v2

from zoo.callbacks import TaskLoop
from zoo.datamodules import ClassIncrementalDataModule
from zoo.datamodules.sources import Synthetic
from zoo.nn import VirtualOutliers

REPLAY = {"memory_size": 6, "replay_batch_size": 2}
ACTIVE = {"outlier_energy": 2.0, "sigma": 1.0}  # thresholds that these small networks do not meet by themselves
# OnePrompt is OVOR before its last epochs.
RUNS = {name: {"vor_epochs": 2, "vor": VirtualOutliers(**ACTIVE)} for name in PROMPTED[2:]} | {
    "OVOR": {"vor_epochs": 2, **ACTIVE},
    "SequentialFineTuning": {},
    "ExperienceReplay": REPLAY,
}


class Kill(L.Callback):
    """Ends the process without a word in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(name: str, folder: Path, *callbacks: L.Callback, resume: bool = False) -> dict[str, torch.Tensor]:
    data = ClassIncrementalDataModule(
        Synthetic(num_classes=4, image_size=8, train_per_class=4, test_per_class=2),
        num_tasks=2,
        batch_size=4,
        epochs_per_task=3,
        train_transform=v2.RandomCrop(8, padding=1),
    )
    module = make_method(name, num_classes=4, **RUNS[name])
    checkpoint = L.callbacks.ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=True)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[TaskLoop(), *callbacks, checkpoint],
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=folder / "last.ckpt" if resume else None)
    memory = module.memory.state_dict() if name == "ExperienceReplay" else {}
    memory = {name: torch.as_tensor(value) for name, value in memory.items()}
    # Other metrics may be of an epoch before the kill.
    measured = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
    return {**module.state_dict(), **measured, **memory}


@pytest.mark.parametrize("name", RUNS)
def test_killed_and_resumed_run_is_bitwise_the_same(name: str, tmp_path: Path) -> None:
    """Killed in the middle of a task or, with outliers, in their second epoch."""
    unbroken, folder = fit(name, tmp_path / "unbroken"), tmp_path / "killed"
    kill = Kill(5 if "vor_epochs" in RUNS[name] else 3)
    killed = multiprocessing.get_context("fork").Process(target=fit, args=(name, folder, kill))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    resumed = fit(name, folder, resume=True)
    assert resumed.keys() == unbroken.keys()
    assert not [key for key in unbroken if not torch.equal(resumed[key], unbroken[key])]


TWO = [("OnePrompt", {}), ("L2P", {}), ("DualPrompt", {}), ("CodaPrompt", {}), ("CodaPrompt", {"vor_epochs": 1})]
TWO += [("OVOR", {"vor_epochs": 1, **ACTIVE}), ("SequentialFineTuning", {}), ("ExperienceReplay", REPLAY)]


def fit_processes(devices: int, name: str, arguments: dict, strategy: str, folder: Path) -> dict[str, torch.Tensor]:
    """Fit 2 tasks of 8 images on one or two processes, and return what the first one has."""

    class Write(L.Callback):
        def on_train_end(self, trainer, pl_module) -> None:
            state = {key: value for key, value in pl_module.state_dict().items() if not key.startswith("backbone.")}
            memory = pl_module.memory.images if name == "ExperienceReplay" else torch.zeros(0)
            metrics = {key: value.cpu() for key, value in trainer.callback_metrics.items()}
            torch.save({**state, **metrics, "memory": memory}, folder / f"{devices}-{trainer.global_rank}.pt")

    data = ClassIncrementalDataModule(
        Synthetic(num_classes=4, image_size=8, train_per_class=4, test_per_class=2),
        num_tasks=2,
        batch_size=4 // devices,
        epochs_per_task=2,
    )
    if name == "ExperienceReplay":
        arguments = arguments | {"replay_batch_size": arguments["replay_batch_size"] // devices}
    # Adam's first steps are signs of the gradient: rounding would decide where it is zero.
    module = make_method(name, 4, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **arguments)
    L.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy if devices > 1 else "auto", logger=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[TaskLoop(), Write()],
        enable_checkpointing=False,
    ).fit(module, data)  # fmt: skip
    return torch.load(folder / f"{devices}-0.pt", weights_only=True)


@pytest.mark.parametrize(("name", "arguments"), TWO)
def test_two_processes_end_as_one(name: str, arguments: dict, tmp_path: Path) -> None:
    strategy = "ddp_fork_find_unused_parameters_true" if arguments.get("vor_epochs") else "ddp_fork"
    one, two = (fit_processes(devices, name, arguments, strategy, tmp_path) for devices in (1, 2))
    assert one.get("train/vor_active_outliers", 1) > 0 or name != "OVOR"
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-4)
    other = torch.load(tmp_path / "2-1.pt", weights_only=True)
    torch.testing.assert_close(other, two, atol=0, rtol=0)


def test_a_strategy_that_expects_all_gradients_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="ddp_find_unused_parameters_true"):
        fit_processes(2, "OVOR", {"vor_epochs": 1}, "ddp_fork", tmp_path)
