"""What a method may know of a stream."""

from typing import NamedTuple


class Task(NamedTuple):
    """One stretch of a stream, handed to ``on_task_start`` and ``on_task_end`` of a method.

    Attributes:
        index: Position in the stream, from 0.
        classes: Labels of the task. In a class-incremental stream labels are stream positions in learning order, so the
            classes of a task are contiguous; in a domain-incremental stream every task holds all of them.
        epochs: Passes over the task's training data.
        steps_per_epoch: Batches per pass and process, the same on every process.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs of a task
    classes: range
    epochs: int
    steps_per_epoch: int
