"""EfficientTrain before the first step: the trial at every size, and plans that do not fit."""

import copy
import warnings
from dataclasses import dataclass

import pytest
import timm
import torch
from strangers import IMAGES, LABELS, TWO_BATCHES_AN_EPOCH, Stranger, efficient, loader, make_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from zoo.callbacks import EfficientTrain
from zoo.functional import Stage

# The trial before the first step -----------------------------------------------------------------------------------


def test_the_trial_keeps_buffers_modes_gradients_and_random_state():
    class Watched(Stranger):
        def __init__(self):
            layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            super().__init__(nn.Sequential(*layers, nn.Linear(4, 3)))
            self.sizes = []

        def forward(self, images):
            self.sizes.append((images.shape[-1], self.training))
            return super().forward(images)

    def fit(check) -> Watched:
        torch.manual_seed(0)
        module = Watched()
        make_trainer(efficient(check=check)).fit(module, loader())
        return module

    plain, forward, backward = fit(False), fit("forward"), fit("backward")
    assert plain.sizes[0] == (24, True)
    trial = [(32, False), (28, False), (24, False)]
    assert forward.sizes == backward.sizes == trial + plain.sizes
    for name, value in plain.state_dict().items():
        assert torch.equal(value, forward.state_dict()[name]), name
        assert torch.equal(value, backward.state_dict()[name]), name


def test_the_trial_runs_in_the_precision_of_the_fit():
    class Watched(Stranger):
        def __init__(self):
            super().__init__()
            self.types = []

        def forward(self, images):
            out = super().forward(images)
            self.types.append(out.dtype)
            return out

    module = Watched()
    make_trainer(efficient(), precision="bf16-mixed").fit(module, loader())
    assert module.types == [torch.bfloat16] * (3 + 10)  # float32 would take more memory than the fit does


def test_the_trial_with_gradient_leaves_no_gradient():
    module, callback = Stranger(), efficient(check="backward")
    trainer = make_trainer(callback)
    callback.stages = callback.plan(trainer)
    callback.dry_run(trainer, module, [IMAGES, LABELS])
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("vit_tiny_patch16_224", {"dynamic_img_size": True, "depth": 1}),
        ("deit_tiny_distilled_patch16_224", {"dynamic_img_size": True, "depth": 1, "embed_dim": 48}),
        ("swin_tiny_patch4_window7_224", {"strict_img_size": False, "depths": (1, 1), "num_heads": (1, 1)}),
        ("test_convnext", {}),
        ("test_resnet", {}),
        ("test_efficientnet", {}),
    ],
)  # fmt: skip
def test_networks_of_timm_at_several_sizes(name, kwargs):
    side = 64
    if "vit" in name or "deit" in name or "swin" in name:
        kwargs = {**kwargs, "img_size": side}
    module = Stranger(timm.create_model(name, num_classes=3, **kwargs))
    stages = [Stage(32, 1), Stage(64, 1)]
    data = DataLoader(TensorDataset(torch.rand(4, 3, side, side), LABELS[:4]), batch_size=4)
    callback = EfficientTrain(stages, base_size=side, check="backward")
    trainer = make_trainer(callback, max_epochs=2)
    before = copy.deepcopy(module.net.state_dict())
    trainer.fit(module, data)
    assert module.seen["train"] == [32, 64]
    assert any(not torch.equal(value, before[key]) for key, value in module.net.state_dict().items())


ONE_SIZE_ONLY = r"fails on images of 96 x 96.* BEiT, Mixer, CaiT and LeViT take one only"


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("vit_tiny_patch16_224", {"depth": 1}, r"fails on images of 96 x 96.*build it with dynamic_img_size=True"),
        (
            "swin_tiny_patch4_window7_224",
            {"depths": (1, 1), "num_heads": (1, 1)},
            r"fails on images of 96 x 96.*build it with strict_img_size=False",
        ),
        ("beit_base_patch16_224", {"depth": 1}, ONE_SIZE_ONLY),
        ("mixer_s32_224", {}, ONE_SIZE_ONLY),
    ],
)
def test_networks_of_one_size_are_refused_before_the_first_step(name, kwargs, message):
    module = Stranger(timm.create_model(name, num_classes=3, img_size=128, **kwargs))
    data = DataLoader(TensorDataset(torch.rand(2, 3, 128, 128), LABELS[:2]), batch_size=2)
    with pytest.raises(ValueError, match=message):
        make_trainer(EfficientTrain([Stage(96, 1), Stage(128, 1)], base_size=128), max_epochs=2).fit(module, data)
    assert module.seen["train"] == []


def test_modules_that_cannot_be_tried_are_trained_all_the_same():
    class NoForward(Stranger):
        def forward(self, images, labels):
            return self.net(images)

        def training_step(self, batch, batch_idx):
            self.seen["train"].append(batch[0].shape[-1])
            return nn.functional.cross_entropy(self(*batch), batch[1])

    module = NoForward()
    with pytest.warns(UserWarning, match="cannot try the sizes"):
        make_trainer(efficient()).fit(module, loader())
    assert module.seen["train"] == TWO_BATCHES_AN_EPOCH


def test_modules_that_take_something_else_are_trained_all_the_same():
    @dataclass(frozen=True)
    class Answer:
        scores: torch.Tensor

    class OfBatches(Stranger):
        def forward(self, batch):
            images, _ = batch
            return Answer(self.net(images))

        def training_step(self, batch, batch_idx):
            self.seen["train"].append(batch[0].shape[-1])
            return nn.functional.cross_entropy(self(batch).scores, batch[1])

    module = OfBatches()
    with pytest.warns(UserWarning, match=r"does not take images as they are \(ValueError: too many values"):
        make_trainer(efficient()).fit(module, loader())
    assert module.seen["train"] == TWO_BATCHES_AN_EPOCH

    class OfImages(Stranger):
        def forward(self, images):
            return Answer(self.net(images))

        def training_step(self, batch, batch_idx):
            self.seen["train"].append(batch[0].shape[-1])
            return nn.functional.cross_entropy(self(batch[0]).scores, batch[1])

    module = OfImages()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*cannot try the sizes")
        make_trainer(efficient(check="backward")).fit(module, loader())
    assert module.seen["train"] == TWO_BATCHES_AN_EPOCH


# Plans that do not fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "trainer", "message"),
    [
        ({"base_size": 64}, {}, r"no images with a side of base_size=64 .* float32 \(4, 3, 32, 32\), int64 \(4,\)"),
        (
            {"curriculum": "etpp", "total": 9},
            {},
            r"has 2\d epochs, but the Trainer has max_epochs=5: use max_epochs=2\d",
        ),
        ({"curriculum": [Stage(16, 1), Stage(32, 2)]}, {}, "has 3 epochs, but the Trainer has max_epochs=5"),
        ({}, {"max_epochs": -1, "max_steps": 3}, "max_epochs=-1 of the Trainer says no length"),
        ({"base_size": 30}, {}, "base_size=30 is no multiple of divisor=4"),
        ({"base_size": 21, "divisor": 7}, {}, "divisor=7 makes an odd size of 192, 21: use an even divisor"),
    ],
)
def test_plans_that_do_not_fit(kwargs, trainer, message):
    module = Stranger()
    with pytest.raises(ValueError, match=message):
        make_trainer(efficient(**kwargs), **trainer).fit(module, loader())
    assert module.seen["train"] == []


def test_uint8_images_are_named():
    data = DataLoader(TensorDataset((IMAGES * 255).to(torch.uint8), LABELS), batch_size=4)
    with pytest.raises(ValueError, match=r"uint8 \(4, 3, 32, 32\).*float images"):
        make_trainer(efficient()).fit(Stranger(), data)


def test_another_length_of_efficienttrain_is_a_warning():
    module = Stranger()
    with pytest.warns(UserWarning, match="has 3 epochs, but the Trainer has max_epochs=5"):
        make_trainer(efficient(total=3)).fit(module, loader())
    assert module.seen["train"] == [24, 24, 28, 28, 32, 32, 32, 32, 32, 32]


def test_bad_arguments():
    with pytest.raises(ValueError, match="'et2' is unknown; known are et, etpp"):
        EfficientTrain("et2")
    with pytest.raises(ValueError, match="belongs to a named curriculum"):
        EfficientTrain([Stage(16, 1)], total=3)
    with pytest.raises(ValueError, match="has no set_magnitude"):
        EfficientTrain(augment="m9")
    for name, value in (
        ("evaluation", "stages"),
        ("positions", "resampled"),
        ("check", "backwards"),
        ("mode", "cubic"),
    ):
        with pytest.raises(ValueError, match=f"{name}='{value}' is unknown: use one of"):
            EfficientTrain(**{name: value})
    with pytest.raises(ValueError, match="nyquist='odd' is unknown: use one of 'official', 'symmetric'"):
        EfficientTrain(nyquist="odd")  # the published sizes are even


def test_the_plan_is_printed():
    callback = efficient()
    callback.stages = callback.plan(make_trainer())
    lines = callback.describe().splitlines()
    assert lines[1].split() == ["0", "to", "0", "24", "1", "0.56"]
    assert lines[-1] == "5 epochs cost 3.45 epochs of full-size images."


def test_stages_from_the_command_line_are_dicts():
    callback = efficient(curriculum=[{"size": 16, "equivalent_epochs": 1}, {"size": 32, "epochs": 1}])
    assert callback.plan(make_trainer()) == [Stage(16, 4), Stage(32, 1)]
