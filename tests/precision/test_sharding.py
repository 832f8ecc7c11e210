"""FSDP2 on two processes: every method that trains a network ends as it does under DDP."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from processes import in_two_processes
from projects import quiet
from torch import nn
from torch.distributed.fsdp import FSDPModule

import zoo
from zoo.datamodules import ClassificationDataModule, SemiSupervisedSegmentationDataModule
from zoo.datamodules.sources import Synthetic, SyntheticScenes

TINY: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
ENCODER = {
    "backbone": "test_vit", "decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2,
    "backbone_args": TINY | {"dynamic_img_size": False},
}  # fmt: skip
EXPERT = {"teacher": "test_vit", "teacher_pretrained": False, "teacher_args": TINY | {"embed_dim": 32}}


def sgd(parameters: Any) -> Any:
    """Adam's first steps are signs of the gradient: rounding would decide where it is zero."""
    return torch.optim.SGD(parameters, lr=0.05)


def pixels() -> nn.Module:
    """A network without batch statistics, which each process has of its own under FSDP2."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Sequential(nn.Conv2d(8, 4, 3, padding=1)))


def make(name: str, folder: Path) -> L.LightningModule:
    torch.manual_seed(1)
    if name == "ImageClassifier":
        return zoo.ImageClassifier(3, "test_vit", backbone_args=TINY, optimizer=sgd)
    if name in ("MeanTeacher", "FST"):
        ahead = {"ahead_steps": 2, "start_step": 0} if name == "FST" else {}
        return getattr(zoo, name)(4, network=pixels(), momentum=0.9, optimizer=sgd, gradient_clip=1.0, **ahead)
    own = {"DMAE": EXPERT, "SelfDistillation": {"teacher": str(folder / "elder.ckpt")}}.get(name, {})
    return getattr(zoo, name)(**ENCODER, optimizer=sgd, **own)


def data(name: str) -> L.LightningDataModule:
    if name in ("MeanTeacher", "FST"):
        scenes = SyntheticScenes(image_size=8, num_train=12)
        return SemiSupervisedSegmentationDataModule(scenes, labeled=4, batch_size=2, steps_per_epoch=3)
    images = Synthetic(num_classes=3, image_size=16, train_per_class=4, test_per_class=2)
    return ClassificationDataModule(images, batch_size=2)


def whole(parameter: torch.Tensor) -> torch.Tensor:
    return getattr(parameter, "full_tensor", lambda: parameter)().detach()


def fit_twice(name: str, folder: Path) -> dict[str, Any]:
    """Return what is learned under DDP and under FSDP2."""
    found: dict[str, Any] = {}
    for strategy in ("ddp", ModelParallelStrategy(2, 1, save_distributed_checkpoint=False)):
        module = make(name, folder)
        trainer = quiet(folder, strategy=strategy, devices=2, max_epochs=2, enable_checkpointing=False)
        trainer.fit(module, data(name))
        sharded = any(isinstance(part, FSDPModule) for part in module.modules())
        assert sharded == (strategy != "ddp")
        key = "fsdp2" if sharded else "ddp"
        found[key] = {name: whole(parameter) for name, parameter in module.named_parameters()}
        found[f"{key}/losses"] = {name: v for name, v in trainer.callback_metrics.items() if "loss" in name}
        trainer.save_checkpoint(folder / f"{key}.ckpt")
    return found


@pytest.mark.parametrize("name", ["ImageClassifier", "MAE", "DMAE", "SelfDistillation", "MeanTeacher", "FST"])
@pytest.mark.filterwarnings("ignore")
def test_shards_learn_what_copies_learn_and_the_file_is_plain(name: str, tmp_path: Path) -> None:
    if name == "SelfDistillation":
        trainer = quiet(tmp_path, max_steps=1, enable_checkpointing=False)
        trainer.fit(make("MAE", tmp_path), data("MAE"))
        trainer.save_checkpoint(tmp_path / "elder.ckpt")
    first, second = in_two_processes(fit_twice, name, tmp_path)
    torch.testing.assert_close(first["fsdp2"], second["fsdp2"], atol=0, rtol=0)
    torch.testing.assert_close(first["fsdp2"], first["ddp"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first["fsdp2/losses"], first["ddp/losses"], atol=1e-4, rtol=1e-3)
    start = dict(make(name, tmp_path).named_parameters())
    moved = [key for key, value in first["fsdp2"].items() if not torch.equal(value, start[key])]
    assert len(moved) > len(start) // 2 - 1
    one, two = (torch.load(tmp_path / f"{key}.ckpt", weights_only=True)["state_dict"] for key in ("fsdp2", "ddp"))
    assert one.keys() == two.keys()
    assert not any(hasattr(value, "full_tensor") for value in one.values())


def with_batch_norm(folder: Path) -> None:
    quiet(folder, strategy=ModelParallelStrategy(2, 1), devices=2, sync_batchnorm=True).fit(
        make("MAE", folder), data("")
    )


def with_scaler(folder: Path) -> None:
    plugin = MixedPrecision("16-mixed", "cpu")
    trainer = quiet(folder, strategy=ModelParallelStrategy(2, 1), devices=2, plugins=plugin)
    trainer.fit(make("MAE", folder), data("MAE"))


def test_a_loss_scale_for_each_process_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="overflow in its own part of the gradient"):
        in_two_processes(with_scaler, tmp_path)


def test_common_batch_statistics_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="FSDP2 ignores sync_batchnorm"):
        in_two_processes(with_batch_norm, tmp_path)
