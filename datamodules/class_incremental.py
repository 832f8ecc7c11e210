"""A stream in which every task brings new classes."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from zoo.datamodules.sources import Digits, Source
from zoo.datamodules.streams import Split, TaskStream
from zoo.datamodules.views import Transform


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
        source = source if source is not None else Digits()
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
            order = (
                class_order if class_order is not None else np.random.RandomState(seed).permutation(len(names)).tolist()
            )
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
