"""Somebody's module and images, which know nothing of zoo."""

from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(L.LightningModule):
    """Two layers of 64 by 64 and 32 by 64, and a head; images of 64 numbers."""

    def __init__(self, optimizer: Any = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32), nn.GELU())
        self.head = nn.Linear(32, 4)
        self.optimizer = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=0.01))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.net(images.flatten(1))).float()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).argmax(1)

    def configure_optimizers(self) -> Any:
        return self.optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])


def loader(num_images: int = 64, batch_size: int = 16) -> DataLoader[Any]:
    """Images of four classes that are easy to tell apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num_images) % 4
    centres = torch.randn(4, 64, generator=generator)
    images = centres[labels] + 0.3 * torch.randn(num_images, 64, generator=generator)
    return DataLoader(TensorDataset(images.view(-1, 1, 8, 8), labels), batch_size=batch_size)


def quiet(folder: Any, **settings: Any) -> L.Trainer:
    """A Trainer on the CPU that says nothing."""
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "max_epochs": 1,
        "devices": 1,
    }
    return L.Trainer(**{**defaults, **settings})
