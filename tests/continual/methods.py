"""A vision transformer of five tokens, and every method that learns on one."""

from typing import Any

import lightning.pytorch as L
import torch

import zoo

SMALL = {"backbone": "test_vit", "backbone_args": {"img_size": 8, "patch_size": 4}, "pretrained": False}
TASKS = {"DualPrompt": {"max_tasks": 3}, "CodaPrompt": {"max_tasks": 3, "num_components": 7}}
PROMPTED = ["OnePrompt", "OVOR", "L2P", "DualPrompt", "CodaPrompt"]


def make_method(name: str, num_classes: int = 6, **kwargs: Any) -> L.LightningModule:
    """Make a method with the same weights each time, for images of 8 x 8 pixels."""
    torch.manual_seed(3)
    return getattr(zoo, name)(**{"num_classes": num_classes, **SMALL, **TASKS.get(name, {}), **kwargs})
