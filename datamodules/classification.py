"""Supervised classification: all classes at once."""

from typing import Literal

import lightning.pytorch as L
import torch

from zoo.datamodules.loaders import EpochLoader, shard_loader
from zoo.datamodules.sources.digits import Digits
from zoo.datamodules.sources.source import Source
from zoo.datamodules.splits import check_labels, check_loading, hold_out
from zoo.datamodules.views import ImageView, Transform, compose


class ClassificationDataModule(L.LightningDataModule):
    """All images of a source, shuffled, for methods that learn every class at once.

    Batches are ``(images, labels)``: float of shape (B, 3, H, W) in [0, 1] and int64 of shape (B,). Images are not
    normalised: the method does that. Order, shards and worker seeds follow from (seed, epoch, process) alone, so a
    resumed run sees what an unbroken one sees. Under several processes each evaluation image is counted once.

    Args:
        source: Where the images come from. Default: :class:`~zoo.datamodules.sources.Digits`.
        batch_size: Images in a batch and process. A batch may be slightly smaller where images are shared exactly among
            processes, so that all take the same number of steps.
        num_workers: Loader processes.
        seed: Draws validation images, sample order and worker seeds.
        val_fraction: Share of each class's training images, 0 to 1, that is held out for validation if ``evaluate`` is
            "val".
        evaluate: What ``fit`` and ``validate`` measure: "val", images held out of training (to choose
            hyper-parameters), or "test", the source's test images, while training takes all training images (for a
            final run; choose nothing by it). ``test`` and ``predict`` always take the test images.
        train_transform: One torchvision v2 transform, or several, for training images (RGB; PIL or uint8).
        test_transform: The same for validation and test images.
        pad: Repeat training images so that all processes have the same number, as torch does. False shares them
            exactly, which methods that count images need.

    Attributes:
        num_classes: Number of classes of the source.
        class_names: Name of each label.

    Raises:
        ValueError: If an argument is out of range; in ``setup``, if a label is out of range or a set is empty.
    """

    def __init__(
        self,
        source: Source | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        val_fraction: float = 0.1,
        evaluate: Literal["test", "val"] = "val",
        train_transform: Transform | list[Transform] | None = None,
        test_transform: Transform | list[Transform] | None = None,
        pad: bool = True,
    ) -> None:
        super().__init__()
        check_loading(batch_size, num_workers, val_fraction, evaluate)
        # The source and the transforms are objects: a checkpoint that held them would not load with weights_only=True.
        self.save_hyperparameters(ignore=["source", "train_transform", "test_transform"])
        self.source = Digits() if source is None else source
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.val_fraction = val_fraction
        self.evaluate = evaluate
        self.train_transform = compose(train_transform)
        self.test_transform = compose(test_transform)
        self.pad = pad

    @property
    def num_classes(self) -> int:
        """Number of classes of the source."""
        return len(self.class_names)

    @property
    def class_names(self) -> list[str]:
        """Name of each label."""
        return list(self.source.classes)

    def prepare_data(self) -> None:
        """Download and check the source."""
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """Open the source, check its labels and hold out the validation images. Decodes no image.

        Args:
            stage: "fit", "validate", "test" or "predict".
        """
        name = type(self.source).__name__
        if stage in ("fit", "validate"):
            images = self.source.train()
            labels = check_labels(images.targets, self.num_classes, f"the training set of {name}")
            fraction = self.val_fraction if self.evaluate == "val" else 0
            kept, held_out = hold_out(labels, fraction, self.seed, self.class_names)
            self.train_set = ImageView(images, kept, labels[kept], self.train_transform)
            self.val_set = ImageView(images, held_out, labels[held_out], self.test_transform)
        if stage in ("test", "predict") or self.evaluate == "test":
            images = self.source.test()
            labels = check_labels(images.targets, self.num_classes, f"the test set of {name}")
            self.test_set = ImageView(images, torch.arange(len(labels)), labels, self.test_transform)

    def train_dataloader(self) -> EpochLoader:
        """Return the loader of the training images."""
        return self._loader(self.train_set, shuffle=True, pad=self.pad)

    def plain_train_dataloader(self) -> EpochLoader:
        """Return the loader of the training images as evaluation shows images: in order and with its transform."""
        if not hasattr(self, "train_set"):  # in test
            self.setup("validate")
        images = self.train_set
        plain = ImageView(images.images, images.indices, images.labels, self.test_transform)
        return self._loader(plain, shuffle=False, pad=False)

    def val_dataloader(self) -> EpochLoader:
        """Return the loader of the images that ``evaluate`` names."""
        return self._loader(self.val_set if self.evaluate == "val" else self.test_set, shuffle=False, pad=False)

    def test_dataloader(self) -> EpochLoader:
        """Return the loader of the test images."""
        return self._loader(self.test_set, shuffle=False, pad=False)

    def predict_dataloader(self) -> EpochLoader:
        """Return the loader of the test images, labels included."""
        return self.test_dataloader()

    def _loader(self, images: ImageView, shuffle: bool, pad: bool) -> EpochLoader:
        """Return the loader of this process's share of some images."""
        return shard_loader(
            images,
            self.trainer,
            epoch=lambda: self.trainer.current_epoch if self.trainer is not None else 0,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            seed=self.seed,
            shuffle=shuffle,
            pad=pad,
        )
