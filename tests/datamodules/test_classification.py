from types import SimpleNamespace

import jsonargparse
import lightning.pytorch as L
import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import v2

from zoo.datamodules.classification import ClassificationDataModule
from zoo.datamodules.sources import CIFAR100, Digits, Source, Synthetic
from zoo.datamodules.sources.images import TensorImages


class Linear(L.LightningModule):
    """A linear classifier of pixels that knows nothing of zoo."""

    def __init__(self, num_pixels, num_classes):
        super().__init__()
        self.layer = torch.nn.Linear(num_pixels, num_classes)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch, batch_idx):
        accuracy = (self.layer(batch[0].flatten(1)).argmax(1) == batch[1]).float().mean()
        self.log("acc", accuracy, on_epoch=True, batch_size=len(batch[1]))

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return batch[1]

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


class Tensors(Source):
    """A source of given labels."""

    classes = ("a", "b", "c")

    def __init__(self, train, test):
        self.train_labels, self.test_labels = train, test

    def train(self):
        return self._images(self.train_labels)

    def test(self):
        return self._images(self.test_labels)

    def _images(self, labels):
        return TensorImages("a set", torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8), torch.tensor(labels))


def make_trainer(root, **options):
    return L.Trainer(
        accelerator="cpu",
        default_root_dir=root,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        **options,
    )


def set_up(stage="fit", **options):
    data = ClassificationDataModule(Digits(), **options)
    data.setup(stage)
    return data


def test_class_names_are_known_before_setup_and_the_default_is_digits():
    data = ClassificationDataModule()
    assert isinstance(data.source, Digits)
    assert (data.num_classes, data.class_names) == (10, [str(digit) for digit in range(10)])
    assert ClassificationDataModule(CIFAR100("nowhere")).num_classes == 100


def test_validation_images_are_held_out_of_training_class_by_class():
    data = set_up(val_fraction=0.2)
    train, val = set(data.train_set.indices.tolist()), set(data.val_set.indices.tolist())
    assert not train & val
    assert len(train | val) == len(Digits().train())
    sizes = Digits().train().targets.bincount()
    assert data.val_set.labels.bincount().tolist() == [round(0.2 * size) for size in sizes.tolist()]
    assert data.val_set.images is data.train_set.images
    assert torch.equal(data.val_set.indices, set_up(val_fraction=0.2).val_set.indices)
    assert not torch.equal(data.val_set.indices, set_up(val_fraction=0.2, seed=1).val_set.indices)


def test_evaluate_test_trains_on_all_training_images_and_measures_the_test_images():
    data = set_up(evaluate="test")
    assert len(data.train_set) == 1437
    assert len(data.val_dataloader().dataset) == 360
    assert len(set_up(evaluate="val").val_dataloader().dataset) == len(set_up().val_set) < 360


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_keep_the_contract(num_workers):
    data = set_up(batch_size=100, num_workers=num_workers)
    batches = list(data.train_dataloader())
    for images, labels in batches:
        assert images.shape[1:] == (3, 8, 8)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    stacked = torch.cat([images for images, _ in batches])
    assert (stacked.min(), stacked.max()) == (0, 1)
    labels = torch.cat([labels for _, labels in batches])
    assert torch.equal(labels.bincount(), data.train_set.labels.bincount())


def test_training_is_shuffled_by_epoch_and_evaluation_is_not():
    data = set_up(batch_size=2000)
    data.trainer = SimpleNamespace(current_epoch=0, global_rank=0, world_size=1)
    loader = data.train_dataloader()
    first, again = next(iter(loader))[1], next(iter(loader))[1]
    data.trainer.current_epoch = 1
    second = next(iter(loader))[1]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(next(iter(data.val_dataloader()))[1], data.val_set.labels)


@pytest.mark.parametrize("pad", [True, False])
def test_two_processes_share_the_images(pad):
    def draw(rank, loader_name, evaluate):
        data = set_up("fit", batch_size=71, pad=pad, evaluate=evaluate)
        data.setup("test")
        data.trainer = SimpleNamespace(current_epoch=0, global_rank=rank, world_size=2)
        loader = getattr(data, loader_name)()
        assert len(loader) == len(list(loader))
        return list(loader.sampler), len(loader)

    # Of 143 validation images one process takes 72: with batches of 71 it alone would take a second step.
    for name, size in (("val_dataloader", 143), ("test_dataloader", 360), ("predict_dataloader", 360)):
        (first, first_steps), (second, second_steps) = draw(0, name, "val"), draw(1, name, "val")
        assert sorted(first + second) == list(range(size))
        assert first_steps == second_steps
    (first, first_steps), (second, second_steps) = (draw(rank, "train_dataloader", "test") for rank in (0, 1))
    assert first_steps == second_steps
    assert set(first + second) == set(range(1437))
    assert len(first + second) == (1438 if pad else 1437)


def test_transforms_differ_between_training_and_evaluation():
    data = set_up(train_transform=v2.Resize(6), test_transform=[v2.Resize(16), v2.CenterCrop(12)])
    assert data.train_set[0][0].shape == (3, 6, 6)
    assert data.val_set[0][0].shape == (3, 12, 12)
    data.setup("test")
    assert data.test_set[0][0].shape == (3, 12, 12)


def test_a_linear_classifier_learns_digits_and_the_checkpoint_loads_as_plain_weights(tmp_path):
    L.seed_everything(0)
    trainer, model = make_trainer(tmp_path, max_epochs=8), Linear(3 * 64, 10)
    data = ClassificationDataModule(Digits(), seed=3, train_transform=v2.Identity())
    trainer.fit(model, data)
    assert trainer.callback_metrics["acc"] > 0.9
    assert trainer.test(model, data, verbose=False)[0]["acc"] > 0.8
    assert torch.equal(torch.cat(trainer.predict(model, data)), Digits().test().targets)
    path = trainer.checkpoint_callback.best_model_path
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["datamodule_hyper_parameters"]["seed"] == 3
    loaded = ClassificationDataModule.load_from_checkpoint(path, source=Synthetic())
    assert (loaded.seed, type(loaded.source)) == (3, Synthetic)


def test_synthetic_images_are_learnt(tmp_path):
    L.seed_everything(0)
    data = ClassificationDataModule(Synthetic(image_size=8, train_per_class=20), batch_size=16, evaluate="test")
    trainer, model = make_trainer(tmp_path, max_epochs=5, enable_checkpointing=False), Linear(3 * 64, 10)
    trainer.fit(model, data)
    assert trainer.callback_metrics["acc"] > 0.9


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"num_workers": -1}, {"val_fraction": 1.0}, {"val_fraction": -0.1}, {"evaluate": "train"}],
)
def test_arguments_out_of_range_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value!r} must be"):
        ClassificationDataModule(**options)


def test_validation_without_held_out_images_is_refused():
    with pytest.raises(ValueError, match="evaluate='val' needs held-out images"):
        ClassificationDataModule(val_fraction=0)
    ClassificationDataModule(val_fraction=0, evaluate="test")


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            [0, 0, 1, 1, 3],
            [0],
            "Label 3 of image 4 of the training set of Tensors is out of range: there are 3 classes",
        ),
        ([0, 0], [0, -1], "Label -1 of image 1 of the test set of Tensors"),
        ([], [0], "the training set of Tensors is empty"),
        ([0, 0], [], "the test set of Tensors is empty"),
        ([0, 0, 1], [0], "Class b has a single image"),
    ],
)
def test_bad_labels_are_refused_before_training(train, test, message):
    data = ClassificationDataModule(Tensors(train, test))
    with pytest.raises(ValueError, match=message):
        [data.setup(stage) for stage in ("fit", "test")]


def test_more_processes_than_validation_images_are_refused():
    data = ClassificationDataModule(Tensors([0, 0], [0]))
    data.setup("fit")
    data.trainer = SimpleNamespace(current_epoch=0, global_rank=0, world_size=2)
    with pytest.raises(ValueError, match="1 samples cannot be shared by 2 processes"):
        data.val_dataloader()


def parse(*arguments):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.LightningDataModule, "data")
    config = parser.parse_args(["--data", "ClassificationDataModule", *arguments])
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # the new name, or the old
    return instantiate(config).data


def test_sources_and_transforms_are_named_on_the_command_line():
    data = parse(
        "--data.source=CIFAR100",
        "--data.source.root=somewhere",
        "--data.train_transform=torchvision.transforms.v2.Resize",
        "--data.train_transform.size=8",
    )
    assert (type(data.source), str(data.source.root), data.source.download) == (CIFAR100, "somewhere", False)
    assert data.train_transform.size == [8]
    assert isinstance(parse().source, Digits)
    assert parse("--data.source=Synthetic", "--data.source.num_classes=3").num_classes == 3


def test_several_transforms_are_listed_on_the_command_line():
    resize = {"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": 16}}
    crop = {"class_path": "torchvision.transforms.v2.CenterCrop", "init_args": {"size": 12}}
    data = parse(f"--data.test_transform={[resize, crop]}")
    assert [type(part) for part in data.test_transform.transforms] == [v2.Resize, v2.CenterCrop]


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_plain_training_images_come_in_order_under_the_test_transform(stage):
    flip = v2.RandomHorizontalFlip(p=1.0)
    plain = set_up(stage, train_transform=flip, test_transform=v2.Resize(4), val_fraction=0.5).plain_train_dataloader()
    trained = set_up(train_transform=v2.Resize(4), val_fraction=0.5).train_set
    images, labels = (torch.cat(parts) for parts in zip(*plain, strict=True))
    assert torch.equal(labels, trained.labels)
    assert torch.equal(images, torch.stack([trained[index][0] for index in range(len(trained))]))
