"""Masked autoencoders small enough to train in a moment, and what they are trained on."""

from typing import Any

import lightning.pytorch as L
import torch

import zoo
from zoo.datamodules import ClassificationDataModule
from zoo.datamodules.sources import Synthetic

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "dynamic_img_size": False}
TINY = {"backbone": "test_vit", "decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2}


def mae(kind: type[zoo.MAE] = zoo.MAE, **kwargs: Any) -> Any:
    """Make a tiny autoencoder; arguments override."""
    torch.manual_seed(0)
    kwargs["backbone_args"] = {**VIT, **kwargs.get("backbone_args", {})}
    return kind(**{**TINY, **kwargs})


def images(batch_size: int = 8, **kwargs: Any) -> ClassificationDataModule:
    """Return 24 training and 15 test images of 16 pixels."""
    source = Synthetic(num_classes=3, image_size=16, train_per_class=8, test_per_class=5)
    return ClassificationDataModule(source, batch_size=batch_size, evaluate="test", **kwargs)


def make_trainer(*callbacks: L.Callback, **kwargs: Any) -> L.Trainer:
    """Return a quiet Trainer of two epochs; arguments override."""
    settings = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "max_epochs": 2,
    }  # fmt: skip
    return L.Trainer(callbacks=list(callbacks), **{**settings, **kwargs})
