"""Weights of a small network, as a file."""

from pathlib import Path

import pytest
import timm
import torch
from classifiers import VIT


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """Write an encoder without a classifier."""
    torch.manual_seed(7)
    path = tmp_path / "encoder.pt"
    torch.save(timm.create_model("test_vit", num_classes=0, **VIT["backbone_args"]).state_dict(), path)
    return str(path)
