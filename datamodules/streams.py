"""Data that arrives task after task."""

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from math import ceil
from typing import Any, Literal

import lightning.pytorch as L
import numpy as np
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
        self.source = source or Digits()
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
        """Return the label in a batch of each class of the source, int64 of shape (K,)."""
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
            check_labels(images.targets, self.num_classes, where=f"the {name} images of {type(self.source).__name__}")
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
        return self.loader(self.train_set(self.task.index), shuffle=True, pad=self.pad)

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


class ClassIncrementalDataModule(TaskStream):
    """A stream in which every task brings new classes.

    Labels of a batch are stream positions 0 to K - 1 in learning order, so the classes of a task are contiguous;
    ``class_order`` maps them to the source's classes, and ``class_names`` to names. The order of a paper is given as a
    list, or drawn from ``seed`` as ``numpy.random.RandomState(seed).permutation(K)``, the habit of the field
    (``seed=1993`` is the order that iCaRL, PILOT and many others use).

    Args:
        source: Where the images come from. Default: :class:`~zoo.datamodules.sources.Digits`.
        num_tasks: Number of tasks T; K classes are shared out evenly, the first K mod T tasks get one more.
        tasks: The classes of each task, by name or by number in the source, instead of ``num_tasks``
            and ``class_order``.
        class_order: The source's classes in learning order. Default: drawn from ``seed``.
        epochs_per_task: See :class:`TaskStream`, as all that follow.
        batch_size: See there.
        num_workers: See there.
        seed: Draws the class order too.
        evaluate: See there.
        val_fraction: See there.
        pad: See there.
        train_transform: See there.
        test_transform: See there.

    Raises:
        ValueError: If there are more tasks than classes, or a class is missing or stands twice.

    Source:
        van de Ven, Tuytelaars & Tolias, "Three types of incremental learning", Nature Machine Intelligence 2022.
    """

    def __init__(
        self,
        source: Source | None = None,
        num_tasks: int | None = None,
        tasks: list[list[int | str]] | None = None,
        class_order: list[int] | None = None,
        epochs_per_task: int | list[int] = 1,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        evaluate: Literal["test", "val"] = "test",
        val_fraction: float = 0.0,
        pad: bool = True,
        train_transform: Transform | list[Transform] | None = None,
        test_transform: Transform | list[Transform] | None = None,
    ) -> None:
        source = source or Digits()
        names = list(source.classes)
        if tasks is not None:
            if num_tasks is not None or class_order is not None:
                raise ValueError("tasks names the classes of each task: leave out num_tasks and class_order.")
            groups = [[class_number(entry, names) for entry in group] for group in tasks]
            if not all(groups):
                raise ValueError(f"task {groups.index([])} of tasks is empty; name at least one class.")
            order, sizes = [number for group in groups for number in group], [len(group) for group in groups]
        else:
            num_tasks = 5 if num_tasks is None else num_tasks
            if not 1 <= num_tasks <= len(names):
                raise ValueError(f"num_tasks={num_tasks} must be between 1 and the number of classes, {len(names)}.")
            order = class_order or np.random.RandomState(seed).permutation(len(names)).tolist()
            sizes = [len(part) for part in np.array_split(np.arange(len(names)), num_tasks)]
        check_order(order, len(names))
        super().__init__(
            source, len(sizes), epochs_per_task, batch_size, num_workers, seed, evaluate, val_fraction, pad,
            train_transform, test_transform,
        )  # fmt: skip
        self.class_order = order
        self.class_ends = list(accumulate(sizes))
        self.save_hyperparameters(ignore=["source", "train_transform", "test_transform"])
        self.hparams["class_order"] = order

    @property
    def class_names(self) -> list[str]:
        """Name of each label of a batch, in learning order."""
        return [self.source.classes[number] for number in self.class_order]

    def task_classes(self, index: int) -> range:
        """Return the labels of a task: contiguous stream positions."""
        return range(self.class_ends[index - 1] if index else 0, self.class_ends[index])

    def label_map(self) -> Tensor:
        """Return the stream position of each class of the source."""
        return torch.argsort(torch.tensor(self.class_order))

    def select(self, split: Split, index: int) -> Tensor:
        """Return the mask of the images whose class belongs to a task."""
        classes = self.task_classes(index)
        return (self.labels(split) >= classes.start) & (self.labels(split) < classes.stop)


class DomainIncrementalDataModule(TaskStream):
    """A stream in which every task shows the same classes in a new domain.

    Labels are the source's own. If the source's test images have domains too, each task is measured on those of its
    domain; if not (CORe50), one fixed test set is measured after every task.

    Args:
        source: A source whose training images have ``domains``, such as :class:`~zoo.datamodules.sources.CORe50`.
        domain_order: The source's domains in learning order. Default: as the source lists them.
        epochs_per_task: See :class:`TaskStream`, as all that follow.
        batch_size: See there.
        num_workers: See there.
        seed: See there.
        evaluate: See there.
        val_fraction: See there.
        pad: See there.
        train_transform: See there.
        test_transform: See there.

    Raises:
        TypeError: If the source has no domains.
        ValueError: If a domain is missing or stands twice.

    Source:
        van de Ven, Tuytelaars & Tolias, "Three types of incremental learning", Nature Machine Intelligence 2022.
    """

    def __init__(
        self,
        source: Source,
        domain_order: list[int] | None = None,
        epochs_per_task: int | list[int] = 1,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        evaluate: Literal["test", "val"] = "test",
        val_fraction: float = 0.0,
        pad: bool = True,
        train_transform: Transform | list[Transform] | None = None,
        test_transform: Transform | list[Transform] | None = None,
    ) -> None:
        if not source.domain_names:
            raise TypeError(
                f"{type(source).__name__} has no domains; use a source with domains (CORe50), or a "
                "class-incremental stream."
            )
        order = domain_order or list(range(len(source.domain_names)))
        if sorted(order) != list(range(len(source.domain_names))):
            raise ValueError(f"domain_order={order} must hold each of 0 to {len(source.domain_names) - 1} once.")
        super().__init__(
            source, len(order), epochs_per_task, batch_size, num_workers, seed, evaluate, val_fraction, pad,
            train_transform, test_transform,
        )  # fmt: skip
        self.domain_order = order
        self.save_hyperparameters(ignore=["source", "train_transform", "test_transform"])
        self.hparams["domain_order"] = order

    def task_classes(self, index: int) -> range:
        """Return all classes: every domain shows them."""
        return range(self.num_classes)

    def select(self, split: Split, index: int) -> Tensor:
        """Return the mask of the images of a task's domain."""
        domains = getattr(self._images[split], "domains", None)
        if domains is None:
            return torch.ones(len(self._indices[split]), dtype=torch.bool)
        return torch.as_tensor(domains)[self._indices[split]] == self.domain_order[index]

    def strata(self, images: LabeledImages) -> Tensor:
        """Return one number for each pair of class and domain."""
        domains = torch.as_tensor(images.domains)  # type: ignore[attr-defined]  # the contract of a source with domains
        return super().strata(images) * self.num_tasks + domains

    def num_evaluation_sets(self, split: Split, index: int) -> int:
        """Return one where the test images have no domains, else one for each task so far."""
        return index + 1 if hasattr(self._images[split], "domains") else 1


def class_number(entry: int | str, names: Sequence[str]) -> int:
    """Return the number of a class given by number or name.

    Raises:
        ValueError: If there is no such name.
    """
    if isinstance(entry, str):
        if entry not in names:
            raise ValueError(f"class {entry!r} is not among the source's classes: {', '.join(names)}.")
        return names.index(entry)
    return entry


def check_order(order: Sequence[int], num_classes: int) -> None:
    """Raise ValueError unless an order holds each class once."""
    if outside := sorted({number for number in order if not 0 <= number < num_classes}):
        raise ValueError(
            f"classes {outside} are not among the source's {num_classes}, numbered 0 to {num_classes - 1}."
        )
    if twice := sorted({number for number in order if order.count(number) > 1}):
        raise ValueError(f"classes {twice} stand more than once in the stream; each may appear in one task only.")
    if missing := sorted(set(range(num_classes)) - set(order)):
        raise ValueError(f"classes {missing} are in no task; a stream holds each of the source's classes once.")
