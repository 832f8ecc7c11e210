"""What the tricks do to real images: orderings with wide margins, on characters that fonts draw. Minutes, so slow."""

import copy
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

import zoo
from zoo.callbacks import TaskLoop
from zoo.datamodules import FewShotIncrementalDataModule
from zoo.datamodules.sources import Glyphs
from zoo.datamodules.sources.glyphs import PACKAGES

MISSING = [package for package, folder in PACKAGES.items() if not Path("/usr/share/fonts", folder).is_dir()]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.filterwarnings("ignore:Glyphs rendered"),
]

LARGE = 1e-2  # rate of the encoder at which plain finetuning forgets the base classes
NETWORK = {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 64], "stem_type": "deep", "stem_width": 8}


class Curve(L.Callback):
    """Accuracy after each session, on all, base and novel classes."""

    def __init__(self) -> None:
        self.values = {"acc": [], "acc_base": [], "acc_novel": []}

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            for name, values in self.values.items():
                values.append(float(trainer.callback_metrics.get(f"test/{name}", torch.nan)))


class Pixels(nn.Module):
    num_features = 32 * 32

    def forward(self, images):
        return images.mean(dim=1).flatten(1)


def data(root: Path, base_epochs: int = 24, session_epochs: int = 1, augment: bool = True, **kwargs):
    affine = v2.RandomAffine(14, translate=(0.12, 0.12), scale=(0.85, 1.15)) if augment else None
    return FewShotIncrementalDataModule(
        Glyphs(root),
        base_epochs=base_epochs,
        session_epochs=session_epochs,
        batch_size=64,
        train_transform=affine,
        **kwargs,
    )


def fit(module, stream, ckpt_path: Path | None = None, folder: Path | None = None) -> dict[str, list[float]]:
    curve = Curve()
    every = {"filename": "{epoch}", "save_top_k": -1, "save_on_train_epoch_end": True}
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=folder is not None,
        callbacks=[TaskLoop(), curve, *([L.callbacks.ModelCheckpoint(folder, **every)] if folder else [])],
    )  # fmt: skip
    trainer.fit(module, stream, ckpt_path=ckpt_path)
    return copy.deepcopy(curve.values)


def module(*tricks: str, **kwargs) -> zoo.FewShotClassIncremental:
    torch.manual_seed(0)
    return zoo.FewShotClassIncremental(
        100, list(tricks), "resnet18", backbone_args=NETWORK, mean=[0.085] * 3, std=[0.254] * 3,
        schedule=lambda optimizer, num_steps: zoo.nn.CosineWithWarmup(optimizer, num_steps, warmup_share=0.0), **kwargs,
    )  # fmt: skip


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> tuple[Path, dict[str, list[float]]]:
    """The baseline's checkpoint after the base session, and its curve."""
    folder = tmp_path_factory.mktemp("base")
    curve = fit(module(), data(folder), folder=folder)
    return folder, curve


def test_pixels_are_below_features_and_features_below_those_of_prototypes(base) -> None:
    folder, baseline = base
    nearest = zoo.NMC(100, backbone=Pixels(), rule="cosine")
    pixels = fit(nearest, data(folder, base_epochs=1, augment=False, pad=False))
    assert pixels["acc"][0] == pytest.approx(0.739, abs=0.02)  # measured apart from this code
    assert mean(pixels["acc"]) == pytest.approx(0.676, abs=0.02)
    assert mean(baseline["acc"]) > mean(pixels["acc"]) + 0.05
    prototypes = fit(module("prototypes"), data(folder))
    assert mean(prototypes["acc"]) > mean(baseline["acc"]) + 0.005


def test_finetuning_helps_new_classes_at_a_small_rate_and_a_subnet_saves_old_ones_at_a_large_one(base) -> None:
    folder, baseline = base
    start = folder / "epoch=23.ckpt"
    runs = {
        "small": fit(module("finetuning"), data(folder, session_epochs=10), start),
        "large": fit(module("finetuning", encoder_lr=LARGE), data(folder, session_epochs=10), start),
        "subnet": fit(
            module("finetuning", "subnet", encoder_lr=LARGE, subnet_fraction=0.1),
            data(folder, session_epochs=10),
            start,
        ),
    }
    assert runs["small"]["acc_novel"][-1] >= baseline["acc_novel"][-1] - 0.005
    assert runs["subnet"]["acc"][-1] > runs["large"]["acc"][-1] + 0.1
