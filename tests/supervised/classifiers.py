"""What the tests of ImageClassifier share: a small network, images, a quiet Trainer."""

from typing import Any

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader, TensorDataset

import zoo
from zoo.datamodules import ClassificationDataModule
from zoo.datamodules.sources import Synthetic

VIT = {"backbone": "test_vit", "backbone_args": {"img_size": 16, "patch_size": 8, "depth": 2}}
REGULARISED = {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.5, "drop_path": 0.3, "label_smoothing": 0.1}


def classifier(num_classes: int = 3, **kwargs: Any) -> zoo.ImageClassifier:
    torch.manual_seed(0)
    return zoo.ImageClassifier(num_classes, **{**VIT, **kwargs})


def images(per_class: int = 8, batch_size: int = 8, **kwargs: Any) -> ClassificationDataModule:
    source = Synthetic(num_classes=3, image_size=16, train_per_class=per_class, test_per_class=5)
    return ClassificationDataModule(source, batch_size=batch_size, evaluate="test", **kwargs)


def make_trainer(*callbacks: L.Callback, **kwargs: Any) -> L.Trainer:
    settings = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "max_epochs": 2,
    }  # fmt: skip
    return L.Trainer(callbacks=list(callbacks), **{**settings, **kwargs})


def loader(pictures: torch.Tensor, labels: torch.Tensor, batch_size: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(pictures, labels), batch_size=batch_size)


class Inputs(L.Callback):
    """Keeps what the network is given and what it answers."""

    def on_fit_start(self, trainer, pl_module) -> None:
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        pl_module.backbone.register_forward_hook(lambda module, args, output: self.seen.append((args[0], output)))
