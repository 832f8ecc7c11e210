"""Supervised classification: all classes at once."""

from typing import Any, Literal

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader

from zoo.datamodules.loaders import EpochLoader, ShardSampler, equal_steps_batch_size
from zoo.datamodules.sources.digits import Digits
from zoo.datamodules.sources.source import Source
from zoo.datamodules.splits import check_labels, hold_out
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
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers} must be at least 0.")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction={val_fraction} must be at least 0 and less than 1.")
        if evaluate not in ("test", "val"):
            raise ValueError(f"evaluate={evaluate!r} must be 'test' or 'val'.")
        if evaluate == "val" and val_fraction == 0:
            raise ValueError("evaluate='val' needs held-out images: set val_fraction, for instance to 0.1.")
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

    def val_dataloader(self) -> EpochLoader:
        """Return the loader of the images that ``evaluate`` names."""
        return self._loader(self.val_set if self.evaluate == "val" else self.test_set, shuffle=False, pad=False)

    def test_dataloader(self) -> EpochLoader:
        """Return the loader of the test images."""
        return self._loader(self.test_set, shuffle=False, pad=False)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the test images, labels included."""
        loader = self.test_dataloader()
        # Lightning rebuilds this loader from keyword arguments to keep track of positions, so it must be a plain one.
        return DataLoader(
            self.test_set,
            batch_size=loader.batch_size,
            sampler=loader.sampler,
            num_workers=self.num_workers,
            pin_memory=loader.pin_memory,
        )

    def _loader(self, images: ImageView, shuffle: bool, pad: bool) -> EpochLoader:
        """Return the loader of this process's share of some images."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        return EpochLoader(
            images,
            sampler=ShardSampler(images, world_size, rank, shuffle=shuffle, seed=self.seed, pad=pad),
            seed=self.seed,
            epoch=lambda: self.trainer.current_epoch if self.trainer is not None else 0,
            batch_size=self.batch_size if pad else equal_steps_batch_size(len(images), self.batch_size, world_size),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )
