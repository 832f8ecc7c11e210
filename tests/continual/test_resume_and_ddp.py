"""A killed run ends as an unbroken one, and two processes as one."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

import zoo
from zoo.callbacks import TaskLoop
from zoo.continual import StreamLearner
from zoo.datamodules import ClassIncrementalDataModule
from zoo.datamodules.sources import Synthetic

KILL = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import lightning.pytorch as L
from test_resume_and_ddp import fit

class Kill(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == {epoch} and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGKILL)

fit({kind!r}, {folder!r}, {workers}, Kill())
"""


class Learner(StreamLearner):
    """Trains with dropout and momentum, so that every random number and every moment matters."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Dropout(), nn.ReLU(), nn.Linear(16, 6))

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def make(kind: str) -> L.LightningModule:
    torch.manual_seed(1)
    if kind == "nmc":
        return zoo.NMC(num_classes=6, backbone="test_efficientnet", pretrained=False)
    return Learner()


def fit(kind: str, folder: str, workers: int, *callbacks: L.Callback, resume: bool = False) -> dict[str, torch.Tensor]:
    data = ClassIncrementalDataModule(
        Synthetic(num_classes=6, image_size=8, train_per_class=7, test_per_class=3),
        num_tasks=3,
        batch_size=5,
        epochs_per_task=1 if kind == "nmc" else [1, 3, 2],
        num_workers=workers,
        train_transform=v2.Identity() if kind == "nmc" else v2.RandomCrop(8, padding=1),
    )
    module = make(kind)
    checkpoint = L.callbacks.ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=True)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[TaskLoop(), *callbacks, checkpoint],
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=os.path.join(folder, "last.ckpt") if resume else None)
    return {**module.state_dict(), **trainer.callback_metrics}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("kind", "epoch"), [("nmc", 2), ("learner", 2), ("learner", 4)])
def test_killed_and_resumed_run_is_bitwise_the_same(kind: str, epoch: int, workers: int, tmp_path: Path) -> None:
    unbroken = fit(kind, str(tmp_path / "unbroken"), workers)
    script = KILL.format(
        tests=str(Path(__file__).parent), kind=kind, epoch=epoch, folder=str(tmp_path / "killed"), workers=workers
    )
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr.decode()
    resumed = fit(kind, str(tmp_path / "killed"), workers, resume=True)
    assert resumed.keys() == unbroken.keys()
    different = [name for name in unbroken if not torch.equal(resumed[name], unbroken[name])]
    assert not different


def fit_processes(devices: int, module: L.LightningModule, folder: Path, **settings) -> dict[str, torch.Tensor]:
    """Fit 3 tasks of 9 images on one or two processes and return what the first one has."""

    class Write(L.Callback):
        def on_train_end(self, trainer, pl_module) -> None:
            metrics = {name: value.cpu() for name, value in trainer.callback_metrics.items()}
            torch.save({**pl_module.state_dict(), **metrics}, folder / f"{devices}-{trainer.global_rank}.pt")

    data = ClassIncrementalDataModule(
        Synthetic(num_classes=3, image_size=8, train_per_class=9, test_per_class=5),
        num_tasks=3,
        batch_size=4,
        **settings,
    )
    strategy = "ddp_fork" if devices > 1 else "auto"
    L.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[TaskLoop(), Write()], enable_checkpointing=False,
    ).fit(module, data)  # fmt: skip
    return torch.load(folder / f"{devices}-0.pt", weights_only=True)


def test_two_processes_give_the_means_and_accuracies_of_one(tmp_path: Path, pixels) -> None:
    # 9 training images: 5 and 4 of them, in batches of 4 that would be 2 steps and 1; 5 test images: 3 and 2.
    one = fit_processes(1, zoo.NMC(num_classes=3, backbone=pixels), tmp_path, pad=False)
    two = fit_processes(2, zoo.NMC(num_classes=3, backbone=pixels), tmp_path, pad=False)
    assert two["means.count"].tolist() == [9, 9, 9]
    torch.testing.assert_close(two, one, atol=1e-9, rtol=0)
    other = torch.load(tmp_path / "2-1.pt", weights_only=True)
    torch.testing.assert_close(other, two, atol=0, rtol=0)


def test_padded_training_is_refused_for_counts(tmp_path: Path, pixels) -> None:
    with pytest.raises(Exception, match="pad=False"):
        fit_processes(2, zoo.NMC(num_classes=3, backbone=pixels), tmp_path, pad=True)


def test_padded_training_with_gradients_keeps_processes_equal(tmp_path: Path) -> None:
    fit_processes(2, Learner(), tmp_path, pad=True)
    ranks = [torch.load(tmp_path / f"2-{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(ranks[0], ranks[1], atol=0, rtol=0)
