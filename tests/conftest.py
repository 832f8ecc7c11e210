"""What all tests share: one thread, seeds, and a stream small enough to run in a second."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test never asks the network; read when timm is imported
os.environ["OMP_NUM_THREADS"] = "1"  # here and in child processes: sums are bitwise the same, small ones faster

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job, whose children ignore Ctrl-C too
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

import zoo
from zoo.callbacks import TaskLoop
from zoo.datamodules import ClassIncrementalDataModule
from zoo.datamodules.sources import Synthetic


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Pixels(nn.Module):
    """A frozen network whose features are known by hand: the pixels."""

    def __init__(self, num_features: int = 3 * 8 * 8) -> None:
        super().__init__()
        self.num_features = num_features
        self.forwards = 0

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += len(images)
        return images.flatten(1)


@pytest.fixture
def pixels() -> Pixels:
    return Pixels()


@pytest.fixture
def stream() -> Callable[..., ClassIncrementalDataModule]:
    """Make a stream of 3 tasks over 6 synthetic classes; arguments override."""

    def make(**kwargs: Any) -> ClassIncrementalDataModule:
        source = Synthetic(num_classes=6, image_size=8, train_per_class=7, test_per_class=3)
        return ClassIncrementalDataModule(**{"source": source, "num_tasks": 3, "batch_size": 5, **kwargs})

    return make


@pytest.fixture
def trainer(tmp_path: Any) -> Callable[..., L.Trainer]:
    """Make a quiet Trainer on the CPU with what a stream needs."""

    def make(*callbacks: L.Callback, **kwargs: Any) -> L.Trainer:
        checkpoint = ModelCheckpoint(tmp_path / "checkpoints", save_last=True, save_on_train_epoch_end=True)
        settings = {
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
            "callbacks": [TaskLoop(), *callbacks, checkpoint],
        }
        return L.Trainer(**{**settings, **kwargs})

    return make


@pytest.fixture
def nmc(pixels: Pixels) -> zoo.NMC:
    return zoo.NMC(num_classes=6, backbone=pixels)
