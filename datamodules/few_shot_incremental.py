"""A stream that begins with many images of many classes and goes on with a few images of a few new ones."""

from math import ceil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.datamodules.class_incremental import check_order, class_number
from zoo.datamodules.index_lists import locate, positions_by_name, read_list, write_list
from zoo.datamodules.loaders import EpochLoader, shard_loader
from zoo.datamodules.sources import Source
from zoo.datamodules.streams import Split, TaskStream
from zoo.datamodules.views import Transform
from zoo.functional import mix_seeds


class FewShotIncrementalDataModule(TaskStream):
    """A base session with all images of many classes, then sessions of N new classes with k images each (N-way k-shot).

    The published settings: CIFAR-100 and miniImageNet 60 base classes and 8 sessions, 5-way 5-shot; CUB-200 100 base
    classes and 10 sessions, 10-way 5-shot. Labels of a batch are stream positions, base classes first. Which images are
    the shots is read from published lists (``index_dir``) or drawn from ``seed``: for session t a generator is seeded
    with (seed, t) and gives, class by class, the first k of a random permutation.

    The images of a few-shot session are never split: every process trains on all of them.

    Args:
        source: Where the images come from.
        base_classes: Number of classes of the base session, session 0.
        ways: New classes N of each later session.
        shots: Training images k of each new class.
        num_sessions: Number of sessions after the base session; further classes are left out. Default: as many as use
            up the classes.
        index_dir: Folder with ``session_1.txt`` (the base session), ``session_2.txt``, ... Each line is the position of
            an image among the source's training images, or a path of which the last two parts, folder of the class and
            file, are compared.
        class_order: The source's classes in learning order, by number or name. Default: as the source lists them, which
            is the published order; only shots are drawn.
        joint: One session with all base images and all shots: the upper reference that forgets nothing.
        base_epochs: Passes over the base session.
        session_epochs: Passes over each later session.
        batch_size: See :class:`TaskStream`, as all that follow.
        num_workers: See there.
        seed: Draws the shots too.
        evaluate: See there.
        val_fraction: See there; not with ``index_dir``.
        pad: See there; of the base session.
        train_transform: See there.
        test_transform: See there.

    Raises:
        ValueError: If an argument is out of range or classes are left over; in ``setup``, if a class has fewer images
            than ``shots``, a list does not fit, or a class stands in two sessions.
        FileNotFoundError: In ``setup``, if a list is missing or names an image that is not there.

    Source:
        Tao et al., "Few-Shot Class-Incremental Learning", CVPR 2020. The lists: code of Zhang et al., "Few-Shot
        Incremental Learning with Continually Evolved Classifiers", CVPR 2021.
    """

    def __init__(
        self,
        source: Source,
        base_classes: int = 60,
        ways: int = 5,
        shots: int = 5,
        num_sessions: int | None = None,
        index_dir: str | None = None,
        class_order: list[int | str] | None = None,
        joint: bool = False,
        base_epochs: int = 1,
        session_epochs: int = 1,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        evaluate: Literal["test", "val"] = "test",
        val_fraction: float = 0.0,
        pad: bool = True,
        train_transform: Transform | list[Transform] | None = None,
        test_transform: Transform | list[Transform] | None = None,
    ) -> None:
        names = list(source.classes)
        num_sessions = check_sessions(len(names), base_classes, ways, shots, num_sessions)
        if index_dir is not None and val_fraction:
            raise ValueError(f"val_fraction={val_fraction} would hold out images that the lists of index_dir name.")
        order = (
            list(range(len(names))) if class_order is None else [class_number(entry, names) for entry in class_order]
        )
        check_order(order, len(names))
        epochs = [base_epochs] if joint else [base_epochs] + [session_epochs] * num_sessions
        super().__init__(
            source, len(epochs), epochs, batch_size, num_workers, seed, evaluate, val_fraction, pad,
            train_transform, test_transform,
        )  # fmt: skip
        self.base_classes = base_classes
        self.ways = ways
        self.shots = shots
        self.num_sessions = num_sessions
        self.index_dir = Path(index_dir) if index_dir is not None else None
        self.class_order = order[: base_classes + ways * num_sessions]
        self.joint = joint
        self._members: list[Tensor] = []
        self.save_hyperparameters(ignore=["source", "train_transform", "test_transform"])
        self.hparams["class_order"] = order

    @property
    def class_names(self) -> list[str]:
        """Name of each label of a batch, in learning order."""
        return [self.source.classes[number] for number in self.class_order]

    def session_classes(self, index: int) -> range:
        """Return the labels that a session brings."""
        start = self.base_classes + self.ways * (index - 1)
        return range(start, start + self.ways) if index else range(self.base_classes)

    def task_classes(self, index: int) -> range:
        """Return the labels of a task: those of the session, or all in joint training."""
        return range(len(self.class_order)) if self.joint else self.session_classes(index)

    def label_map(self) -> Tensor:
        """Return the stream position of each class of the source, -1 for one that is left out."""
        labels = torch.full((len(self.source.classes),), -1)
        labels[torch.tensor(self.class_order)] = torch.arange(len(self.class_order))
        return labels

    # Which images ---------------------------------------------------------------------------------------------------

    def select(self, split: Split, index: int) -> Tensor:
        """Return the mask of a session's images: all of its classes, or its shots."""
        labels = self.labels(split)
        if split != "train":
            classes = self.task_classes(index)
            return (labels >= classes.start) & (labels < classes.stop)
        chosen = torch.cat(self.members) if self.joint else self.members[index]
        mask = torch.zeros(len(labels), dtype=torch.bool)
        mask[chosen] = True
        return mask

    @property
    def members(self) -> list[Tensor]:
        """The training images of each session, as positions in the training split; known after ``setup``."""
        if not self._members:
            sessions = range(self.num_sessions + 1)
            self._members = [self.read(index) if self.index_dir else self.draw(index) for index in sessions]
            if self.index_dir:
                self.check_lists()
        return self._members

    def draw(self, index: int) -> Tensor:
        """Return the images of a session: all of the base classes, or shots drawn from the seed."""
        labels, classes = self.labels("train"), self.session_classes(index)
        if index == 0:
            return (labels.ge(0) & labels.lt(classes.stop)).nonzero().flatten()
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, index))
        chosen = []
        for label in classes:
            own = (labels == label).nonzero().flatten()
            if len(own) < self.shots:
                raise ValueError(
                    f"Class {self.class_names[label]} has {len(own)} training images, fewer than shots={self.shots}; "
                    "lower shots or leave the class out."
                )
            chosen.append(own[torch.randperm(len(own), generator=generator)[: self.shots]])
        return torch.cat(chosen)

    def list_path(self, index: int, folder: Path) -> Path:
        """Return the file of a session's list; the base session is number 1."""
        return folder / f"session_{index + 1}.txt"

    def read(self, index: int) -> Tensor:
        """Return the images that the list of a session names."""
        assert self.index_dir is not None
        images, path = self._images["train"], self.list_path(index, self.index_dir)
        return locate(read_list(path), images, positions_by_name(images), path)

    def check_lists(self) -> None:
        """Raise ValueError unless each list holds the classes of its session, and a later one their shots."""
        targets, names = torch.as_tensor(self._images["train"].targets), self.source.classes
        found = [targets[members].tolist() for members in self._members]  # by the source's numbers of the classes
        order = [list(dict.fromkeys(session)) for session in found]
        for index, session in enumerate(order):
            expected = [self.class_order[label] for label in self.session_classes(index)]
            for earlier in range(index):
                if both := set(session) & set(order[earlier]):
                    raise ValueError(
                        f"Class {names[min(both)]} stands in session_{earlier + 1}.txt and in session_{index + 1}.txt; "
                        "a class belongs to one session."
                    )
            if set(session) != set(expected):
                raise ValueError(
                    f"session_{index + 1}.txt holds {len(session)} classes, {names[session[0]]} first; by "
                    f"base_classes, ways and class_order it should hold {len(expected)}, {names[expected[0]]} first. "
                    f"The lists have sessions of {[len(part) for part in order]} classes, in the order "
                    f"{[number for part in order for number in part]}: give those."
                )
            for number in session if index else []:
                if (count := found[index].count(number)) != self.shots:
                    raise ValueError(
                        f"session_{index + 1}.txt holds {count} images of class {names[number]}; shots={self.shots}."
                    )

    def write_lists(self, folder: str | Path) -> None:
        """Write which images the sessions hold, in the form that ``index_dir`` reads.

        Args:
            folder: Where ``session_1.txt`` and so on go.
        """
        for index, members in enumerate(self.members):
            positions = self._indices["train"][members].tolist()
            write_list(self.list_path(index, Path(folder)), positions, self._images["train"])

    # Loaders --------------------------------------------------------------------------------------------------------

    def train_loader(self, index: int) -> EpochLoader:
        """Return the loader of a session: a share of the base session, or all shots, on every process."""
        if index == 0:
            return super().train_loader(index)
        return shard_loader(
            self.train_set(index),
            trainer=None,  # one share for all: a share of 25 images would be repeated to fill the others
            epoch=lambda: self.epoch,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            seed=self.seed,
            shuffle=True,
            pad=False,
        )

    def steps_per_epoch(self, index: int) -> int:
        """Return the number of training batches of a session, the same on every process; 0 before ``setup``."""
        if index == 0 or not self._num_train:
            return super().steps_per_epoch(index)
        return ceil(self._num_train[index] / self.batch_size)

    # What a checkpoint keeps ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what a stream keeps, and the images of each later session."""
        chosen = [self._indices["train"][members].tolist() for members in self.members[1:]] if self._images else []
        return {**super().state_dict(), "shots": chosen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the epoch. What a checkpoint has not seen yet may be another one here.

        So increments can start from the checkpoint of a base session with other shots and other numbers of epochs.

        Raises:
            ValueError: If the sessions that the checkpoint has seen had other classes, shots or epochs.
        """
        starts = [0, *self.ends[:-1]]
        begun = sum(start < state_dict["epoch"] for start in starts)
        if state_dict["ends"][:begun] == self.ends[:begun]:
            state_dict = {**state_dict, "ends": self.ends}
        super().load_state_dict(state_dict)
        seen = max(0, begun - 1)
        own = self.state_dict()["shots"]
        if own and state_dict["shots"] and state_dict["shots"][:seen] != own[:seen]:
            raise ValueError(
                "The checkpoint has learned other shots than those of this stream: use the seed, or the lists, of that "
                "run (its config.yaml)."
            )


def check_sessions(num_classes: int, base_classes: int, ways: int, shots: int, num_sessions: int | None) -> int:
    """Return the number of sessions after the base session.

    Raises:
        ValueError: If a number is out of range, or classes are left over.
    """
    for name, value in (("base_classes", base_classes), ("ways", ways), ("shots", shots)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if base_classes > num_classes:
        raise ValueError(f"base_classes={base_classes} is more than the {num_classes} classes of the source.")
    if num_sessions is None:
        num_sessions, left = divmod(num_classes - base_classes, ways)
        if left:
            raise ValueError(
                f"{num_classes - base_classes} classes after base_classes={base_classes} do not make sessions of "
                f"ways={ways}: {left} would be left over. Give num_sessions={num_sessions} to leave them out."
            )
    if num_sessions < 0 or base_classes + ways * num_sessions > num_classes:
        raise ValueError(
            f"num_sessions={num_sessions} of ways={ways} after base_classes={base_classes} must be from 0 to "
            f"{(num_classes - base_classes) // ways} for {num_classes} classes."
        )
    return num_sessions
