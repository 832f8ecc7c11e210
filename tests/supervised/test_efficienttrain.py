"""The curriculum on its own host: sizes, augmentation, mixing and learning rate together, interrupted and resumed."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torchvision.transforms import v2

import zoo
from zoo.callbacks import EfficientTrain, SeedEpochs
from zoo.datamodules import ClassificationDataModule, ScheduledRandAugment
from zoo.datamodules.sources import Synthetic
from zoo.nn import CosineOverCompute


def data(num_workers: int) -> ClassificationDataModule:
    source = Synthetic(num_classes=3, image_size=32, train_per_class=6, test_per_class=2)
    transforms = [v2.RandomHorizontalFlip(), ScheduledRandAugment(image_size=32)]
    return ClassificationDataModule(source, 9, num_workers, evaluate="test", train_transform=transforms)


def classifier() -> zoo.ImageClassifier:
    torch.manual_seed(0)
    return zoo.ImageClassifier(
        3,
        "test_vit",
        backbone_args={"img_size": 32, "patch_size": 8, "dynamic_img_size": True},
        drop_path=0.2,
        mixup=0.8,
        cutmix=1.0,
        random_erasing=0.5,
        schedule=lambda optimizer, steps: CosineOverCompute(optimizer, steps, "etpp", 4, base_size=32, divisor=8),
    )


class Stop(L.Callback):
    """Ends training in the middle of an epoch, as a kill does."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            raise RuntimeError("killed")


def fit(folder, num_workers: int, *callbacks: L.Callback, **kwargs) -> zoo.ImageClassifier:
    module = classifier()
    checkpoints = ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=True)
    curriculum = EfficientTrain("etpp", total=4, base_size=32, divisor=8)
    trainer = L.Trainer(
        max_epochs=8, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[SeedEpochs(0), curriculum, *callbacks, checkpoints],
    )  # fmt: skip
    trainer.fit(module, data(num_workers), **kwargs)
    return module


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("epoch", [2, 6])
def test_interrupted_and_resumed_is_bitwise_as_unbroken(tmp_path, num_workers, epoch):
    unbroken = fit(tmp_path / "whole", num_workers)
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path / "broken", num_workers, Stop(epoch))
    resumed = fit(tmp_path / "broken", num_workers, ckpt_path=tmp_path / "broken" / "last.ckpt", weights_only=True)
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
