"""Data that arrives task after task."""

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from math import ceil
from typing import Any, Literal

import lightning.pytorch as L
import torch
from torch import Tensor

from zoo.datamodules.loaders import EpochLoader, equal_steps_batch_size, shard_loader
from zoo.datamodules.sources import Digits, Source
from zoo.datamodules.sources.source import LabeledImages
from zoo.datamodules.splits import check_labels, check_loading, hold_out
from zoo.datamodules.views import ImageView, Transform, compose, is_fixed
from zoo.functional import Task

Split = Literal["train", "val", "test"]


class TaskStream(L.LightningDataModule):
    """What every stream shares: tasks, epochs, sample order, and the loaders of the current task.

    One ``trainer.fit`` with the callback ``TaskLoop`` is one stream. The training loader holds the current task; the
    evaluation loaders are one for each task seen so far. Order, shards and worker seeds follow from (seed, epoch,
    process), so a resumed run sees what an unbroken one sees. Batches are ``(images, labels)``: float of shape
    (B, 3, H, W) in [0, 1] and int64 of shape (B,).

    A subclass says which images a task has (:meth:`select`) and which classes (:meth:`task_classes`).

    Args:
        source: Where the images come from.
        num_tasks: Number of tasks T.
        epochs_per_task: Passes over each task: one number for all or one for each.
        batch_size: Images in a batch and process. Under several processes with ``pad=False``, and in evaluation, a
            batch may be slightly smaller so that all take the same number of steps.
        num_workers: Loader processes.
        seed: Draws sample order, validation images and worker seeds.
        evaluate: Which images are measured after each task: the source's test images (as papers report) or the held-out
            validation images (to choose hyper-parameters). Metrics are logged under this name.
        val_fraction: Part of each class's training images, 0 to 1, that is held out for validation.
        pad: Repeat samples so that all processes have the same number (gradient methods may keep it). False shares the
            images exactly, which counting methods such as NMC need.
        train_transform: One torchvision v2 transform, or several, for training images (RGB; PIL or uint8).
        test_transform: The same for evaluation.

    Raises:
        ValueError: If an argument is out of range, with the range.
    """

    def __init__(
        self,
        source: Source | None,
        num_tasks: int,
        epochs_per_task: int | Sequence[int],
        batch_size: int,
        num_workers: int,
        seed: int,
        evaluate: Literal["test", "val"],
        val_fraction: float,
        pad: bool,
        train_transform: Transform | Sequence[Transform] | None,
        test_transform: Transform | Sequence[Transform] | None,
    ) -> None:
        super().__init__()
        self.source = source if source is not None else Digits()
        self.num_tasks = num_tasks
        epochs = [epochs_per_task] * num_tasks if isinstance(epochs_per_task, int) else list(epochs_per_task)
        if len(epochs) != num_tasks or min(epochs) < 1:
            raise ValueError(
                f"epochs_per_task={epochs_per_task} must be a positive number, or one for each of {num_tasks} tasks."
            )
        check_loading(batch_size, num_workers, val_fraction, evaluate)
        self.epochs = epochs
        self.ends = list(accumulate(epochs))
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.evaluate = evaluate
        self.val_fraction = val_fraction
        self.pad = pad
        self.train_transform = compose(train_transform)
        self.test_transform = compose(test_transform)
        self._images: dict[str, LabeledImages] = {}
        self._labels: dict[str, Tensor] = {}
        self._indices: dict[str, Tensor] = {}
        self._num_train: list[int] = []
        self._restored_epoch = 0

    # What a stream says of itself -----------------------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        """Number of classes of the whole stream."""
        return len(self.class_names)

    @property
    def class_names(self) -> list[str]:
        """Name of each label of a batch."""
        return list(self.source.classes)

    @property
    def num_epochs(self) -> int:
        """Epochs of the whole stream."""
        return self.ends[-1]

    @property
    def epoch(self) -> int:
        """Epoch of the stream, from 0. The Trainer says 0 until it has restored its loops, and in a fresh ``test``."""
        current = self.trainer.current_epoch if self.trainer is not None else 0
        return max(current, self._restored_epoch)

    @property
    def task(self) -> Task:
        """The current task, or the last one after the stream."""
        return self.describe_task(min(bisect_right(self.ends, self.epoch), self.num_tasks - 1))

    @property
    def tasks(self) -> list[Task]:
        """All tasks of the stream."""
        return [self.describe_task(index) for index in range(self.num_tasks)]

    def describe_task(self, index: int) -> Task:
        """Return what a method may know of a task. Before ``setup`` the number of steps is 0."""
        return Task(index, self.task_classes(index), self.epochs[index], self.steps_per_epoch(index))

    @property
    def fixed_evaluation(self) -> bool:
        """Whether evaluation shows the very same images each time, so that features of a frozen network may be kept."""
        return is_fixed(self.test_transform)

    def starts_task(self) -> bool:
        """Say whether the current epoch is the first of a task."""
        return self.epoch == 0 or self.epoch in self.ends

    def ends_task(self) -> bool:
        """Say whether the current epoch is the last of a task."""
        return self.epoch + 1 in self.ends

    # What a subclass says -------------------------------------------------------------------------------------------

    @abstractmethod
    def task_classes(self, index: int) -> range:
        """Return the labels of a task."""

    @abstractmethod
    def select(self, split: Split, index: int) -> Tensor:
        """Return which images of a split belong to a task, as a bool mask over ``self.labels(split)``."""

    def label_map(self) -> Tensor:
        """Return the label in a batch of each class of the source, int64; -1 for a class that the stream leaves out."""
        return torch.arange(self.num_classes)

    def strata(self, images: LabeledImages) -> Tensor:
        """Return what held-out images are drawn evenly from: the class of each image."""
        return torch.as_tensor(images.targets)

    def num_evaluation_sets(self, split: Split, index: int) -> int:
        """Return how many sets are evaluated after a task: one for each task so far."""
        return index + 1

    # Lightning's hooks ----------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Download and check the source."""
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """Open the source, check its labels and hold out the validation images. Decodes no image."""
        if self._images:
            return
        train, test = self.source.train(), self.source.test()
        for name, images in (("training", train), ("test", test)):
            where = f"the {name} images of {type(self.source).__name__}"
            check_labels(images.targets, len(self.source.classes), where)
        self._images = {"train": train, "val": train, "test": test}
        kept, held_out = hold_out(self.strata(train), self.val_fraction, self.seed)
        self._indices = {"train": kept, "val": held_out, "test": torch.arange(len(test))}
        label_map = self.label_map()
        self._labels = {
            split: label_map[torch.as_tensor(self._images[split].targets)[indices]]
            for split, indices in self._indices.items()
        }
        self._num_train = self.count_images("train", self.num_tasks)
        self.count_images(self.evaluate, self.num_evaluation_sets(self.evaluate, self.num_tasks - 1))

    def count_images(self, split: Split, num_sets: int) -> list[int]:
        """Return the number of images of each task.

        Raises:
            ValueError: If a task has none.
        """
        counts = [int(self.select(split, index).sum()) for index in range(num_sets)]
        for index in (index for index, count in enumerate(counts) if count == 0):
            names = ", ".join(self.class_names[label] for label in self.task_classes(index))
            raise ValueError(f"Task {index} (classes {names}) has no {split} image.")
        return counts

    def labels(self, split: Split) -> Tensor:
        """Return the label of each image of a split, int64 of shape (N,)."""
        return self._labels[split]

    def view(self, split: Split, mask: Tensor) -> ImageView:
        """Return the images of a split that a mask selects, with the transform of the split."""
        transform = self.train_transform if split == "train" else self.test_transform
        return ImageView(self._images[split], self._indices[split][mask], self._labels[split][mask], transform)

    def train_set(self, index: int) -> ImageView:
        """Return the training images of a task."""
        return self.view("train", self.select("train", index))

    def evaluation_set(self, index: int, split: Split) -> ImageView:
        """Return the images on which a task is measured."""
        return self.view(split, self.select(split, index))

    def train_dataloader(self) -> EpochLoader:
        """Return the loader of the current task."""
        if self.trainer is not None and self.trainer.reload_dataloaders_every_n_epochs != 1:  # type: ignore[attr-defined]
            raise ValueError(
                "A stream needs the callback TaskLoop: without it the whole fit would train on the first task. "
                "Use Trainer(callbacks=[zoo.callbacks.TaskLoop(), ...])."
            )
        return self.train_loader(self.task.index)

    def train_loader(self, index: int) -> EpochLoader:
        """Return the loader of a task: this process's share of its images, in the order of the epoch."""
        return self.loader(self.train_set(index), shuffle=True, pad=self.pad)

    def plain_train_dataloader(self) -> EpochLoader:
        """Return the current task's images as evaluation shows images: each once, in order, with its transform."""
        images = self.train_set(self.task.index)
        plain = ImageView(images.images, images.indices, images.labels, self.test_transform)
        return self.loader(plain, shuffle=False, pad=False)

    def val_dataloader(self) -> list[EpochLoader]:
        """Return a loader for each task seen so far, over the images that ``evaluate`` names."""
        return self.evaluation_loaders(self.evaluate)

    def test_dataloader(self) -> list[EpochLoader]:
        """Return a loader for each task seen so far, over the test images."""
        return self.evaluation_loaders("test")

    def predict_dataloader(self) -> EpochLoader:
        """Return one loader over the test images of all tasks seen so far."""
        masks = [self.select("test", index) for index in range(self.num_evaluation_sets("test", self.task.index))]
        return self.loader(self.view("test", torch.stack(masks).any(dim=0)), shuffle=False, pad=False)

    def evaluation_loaders(self, split: Split) -> list[EpochLoader]:
        """Return a loader for each evaluation set of the tasks seen so far."""
        count = self.num_evaluation_sets(split, self.task.index)
        return [self.loader(self.evaluation_set(index, split), shuffle=False, pad=False) for index in range(count)]

    def loader(self, images: ImageView, shuffle: bool, pad: bool) -> EpochLoader:
        """Return the loader of this process's share of some images."""
        return shard_loader(
            images,
            self.trainer,
            epoch=lambda: self.epoch,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            seed=self.seed,
            shuffle=shuffle,
            pad=pad,
        )

    def steps_per_epoch(self, index: int) -> int:
        """Return the number of training batches of a task, the same on every process; 0 before ``setup``."""
        if not self._num_train:
            return 0
        num_images, world_size = self._num_train[index], self.trainer.world_size if self.trainer is not None else 1
        batch_size = self.batch_size if self.pad else equal_steps_batch_size(num_images, self.batch_size, world_size)
        return ceil(ceil(num_images / world_size) / batch_size)

    # What a checkpoint keeps ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and what the stream consists of."""
        return {"epoch": self.epoch, "ends": self.ends, "class_names": self.class_names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the epoch.

        Raises:
            ValueError: If the checkpoint comes from another stream: labels would mean other classes.
        """
        own = self.state_dict()
        for name, what in (("class_names", "classes, or an order of the classes,"), ("ends", "numbers of epochs")):
            if state_dict[name] != own[name]:
                raise ValueError(
                    f"The checkpoint comes from a stream with other {what} than this one: {state_dict[name]} there, "
                    f"{own[name]} here. Use the settings of that run (its config.yaml)."
                )
        self._restored_epoch = state_dict["epoch"]
