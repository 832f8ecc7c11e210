"""What the tests of EfficientTrain share: a module that knows nothing of zoo, its images and its Trainer."""

from typing import Any

import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from zoo.callbacks import EfficientTrain

IMAGES = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3


class Stranger(L.LightningModule):
    """A module that knows nothing of zoo."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net or nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
        self.seen: dict[str, list[int]] = {"train": [], "val": [], "test": []}

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        images, labels = self.unpack(batch)
        self.seen["train"].append(images.shape[-1])
        return nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(self.unpack(batch)[0].shape[-1])

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(self.unpack(batch)[0].shape[-1])

    def unpack(self, batch):
        return batch

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(collate=None, **kwargs: Any) -> DataLoader:
    return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4, collate_fn=collate, **kwargs)


def make_trainer(*callbacks, base=L, **kwargs: Any):
    settings = {"max_epochs": 5, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return base.Trainer(callbacks=list(callbacks), **{**settings, **quiet, **kwargs})


def efficient(**kwargs: Any) -> EfficientTrain:
    return EfficientTrain(**{"base_size": 32, "augment": False, **kwargs})


TWO_BATCHES_AN_EPOCH = [24, 24, 24, 24, 24, 24, 28, 28, 32, 32]
