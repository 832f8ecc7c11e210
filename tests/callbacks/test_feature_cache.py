"""FeatureCache: the same numbers, fewer forwards, and nothing kept that may have changed."""

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

import zoo
from zoo.callbacks import FeatureCache

ALL = 6 * 7 + 6 * 3  # training and test images of the stream
AGAIN = 6 * 7 + (2 + 4 + 6) * 3  # with tasks evaluated again after each later one


def test_each_image_is_seen_once_and_numbers_are_the_same(stream, trainer, pixels) -> None:
    results = []
    for callbacks, forwards in (((FeatureCache(),), ALL), ((), AGAIN)):
        pixels.forwards = 0
        fit = trainer(*callbacks, num_sanity_val_steps=0)
        nmc = zoo.NMC(num_classes=6, backbone=pixels)
        fit.fit(nmc, stream())
        assert pixels.forwards == forwards
        results.append({name: value.item() for name, value in fit.callback_metrics.items()})
    assert results[0] == results[1]
    assert "forward" not in vars(pixels)  # its own again


def test_off_where_transforms_are_random(stream, trainer, pixels) -> None:
    nmc = zoo.NMC(num_classes=6, backbone=pixels)
    trainer(FeatureCache(), num_sanity_val_steps=0).fit(nmc, stream(test_transform=v2.RandomHorizontalFlip()))
    assert pixels.forwards == AGAIN


def test_pixels_are_compared_even_if_the_user_says_fixed(stream, trainer, pixels) -> None:
    nmc = zoo.NMC(num_classes=6, backbone=pixels)
    noise = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.GaussianNoise(sigma=0.1)])
    trainer(FeatureCache(fixed=True), num_sanity_val_steps=0).fit(nmc, stream(test_transform=noise))
    assert pixels.forwards == AGAIN


def test_a_part_that_trains_or_changes_is_computed_anew(stream, trainer) -> None:
    class Learner(zoo.NMC):
        def on_task_start(self, task) -> None:
            super().on_task_start(task)
            with torch.no_grad():
                self.backbone.layer.weight += 1.0

    class Linear(nn.Module):
        num_features = 5

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(192, 5)
            self.forwards = 0

        def forward(self, images):
            self.forwards += len(images)
            return self.layer(images.flatten(1))

    backbone = Linear()
    trainer(FeatureCache(), num_sanity_val_steps=0).fit(Learner(num_classes=6, backbone=backbone), stream())
    assert backbone.forwards == AGAIN

    class Trains(L.Callback):
        def on_validation_epoch_start(self, trainer, pl_module) -> None:
            pl_module.backbone.requires_grad_(True)

    backbone = Linear()
    trainer(FeatureCache(), Trains(), num_sanity_val_steps=0).fit(zoo.NMC(6, backbone=backbone), stream())
    assert backbone.forwards == AGAIN


@pytest.mark.parametrize("write", ["data.mul_", "data =", "parameter ="])
def test_every_way_to_change_weights_is_noticed(write, stream, trainer) -> None:
    class Teacher(nn.Module):
        num_features = 192

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(192))
            self.forwards = 0

        def forward(self, images):
            self.forwards += len(images)
            return images.flatten(1) * self.scale

    class Average(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args) -> None:
            part = pl_module.backbone
            if write == "data.mul_":
                part.scale.data.mul_(0.5)
            elif write == "data =":
                part.scale.data = part.scale.data * 0.5
            else:
                part.scale = nn.Parameter(part.scale.data * 0.5, requires_grad=False)

    backbone = Teacher()
    trainer(FeatureCache(), Average(), num_sanity_val_steps=0).fit(zoo.NMC(6, backbone=backbone), stream())
    assert backbone.forwards == AGAIN


def test_a_forward_of_the_users_is_given_back(stream, trainer, pixels) -> None:
    own = pixels.forward
    pixels.forward = lambda images: own(images) * 2.0
    mine = pixels.forward
    trainer(FeatureCache()).fit(zoo.NMC(6, backbone=pixels), stream())
    assert pixels.forward is mine


def test_unknown_part(stream, trainer, nmc) -> None:
    with pytest.raises(AttributeError, match="encoder"):
        trainer(FeatureCache("encoder")).fit(nmc, stream())
