"""The eight tricks, in the order of the paper's groups: stability, adaptability, training."""

from collections.abc import Iterable, Sequence
from typing import Literal

from zoo.functional import Task

Trick = Literal[
    "contrastive", "prototypes", "pseudo_classes", "finetuning", "subnet", "larger_encoder", "pretraining", "rotation"
]
TRICKS: tuple[Trick, ...] = (
    "contrastive", "prototypes", "pseudo_classes", "finetuning", "subnet", "larger_encoder", "pretraining", "rotation",
)  # fmt: skip
OF_INCREMENTS = {"finetuning", "subnet"}  # may differ from those of the base session that a run starts from
OF_ENCODER = {"contrastive", "finetuning", "subnet", "pretraining", "rotation"}  # train it


def check_tricks(tricks: Iterable[str], train_backbone: bool = True) -> frozenset[str]:
    """Return tricks as a set.

    Args:
        tricks: Their names.
        train_backbone: Whether the encoder is trained.

    Raises:
        ValueError: If there is no such trick, one needs another, or an encoder that is trained.
    """
    chosen = frozenset(tricks)
    if unknown := sorted(chosen - set(TRICKS)):
        raise ValueError(f"tricks has {', '.join(unknown)}; there are {', '.join(TRICKS)}.")
    if "subnet" in chosen and "finetuning" not in chosen:
        raise ValueError("The trick subnet says what finetuning moves: add finetuning to tricks.")
    if not train_backbone and chosen & OF_ENCODER:
        raise ValueError(
            f"The tricks {', '.join(in_order(chosen & OF_ENCODER))} train the encoder: leave them out, or give "
            "train_backbone=True."
        )
    return chosen


def check_same_tricks(tricks: frozenset[str], saved: Iterable[str], in_base_session: bool) -> None:
    """Check that a run may go on from a checkpoint.

    Args:
        tricks: Of the run.
        saved: Of the checkpoint.
        in_base_session: Whether it is one of the base session, after which those of the increments may be chosen anew.

    Raises:
        ValueError: If other tricks differ.
    """
    different = tricks ^ set(saved)
    if in_base_session:
        different -= OF_INCREMENTS
    if different:
        raise ValueError(
            f"The checkpoint was trained with tricks={in_order(saved)}, this run has {in_order(tricks)}: "
            f"{', '.join(in_order(different))} cannot be changed any more."
        )


def check_same_backbone(trains: bool, trained: bool) -> None:
    """Check that a run may go on from a checkpoint of the base session.

    Args:
        trains: Whether the run trains its encoder.
        trained: Whether the one of the checkpoint did.

    Raises:
        ValueError: If one does and the other does not: the base session's optimizer and class means do not fit.
    """
    if trains != trained:
        raise ValueError(
            f"The checkpoint is of a base session with train_backbone={trained}, this run has {trains}. To go on from "
            "a trained encoder that is frozen, give the file as checkpoint_path of the model instead, and learn the "
            "base session's class means anew (base_epochs=1)."
        )


def check_sessions(tasks: Sequence[Task], num_classes: int, pretraining_epochs: int) -> None:
    """Check that a stream is one of sessions with new classes each.

    Args:
        tasks: Its sessions.
        num_classes: Number of classes that they are to bring.
        pretraining_epochs: First epochs of the base session that train no classifier.

    Raises:
        ValueError: If classes are missing or come twice, or pretraining takes up the base session.
    """
    if [label for task in tasks for label in task.classes] != list(range(num_classes)):
        raise ValueError(
            f"Each session must bring new classes, num_classes={num_classes} in all, but the stream has "
            f"{[(task.classes.start, task.classes.stop) for task in tasks]}."
        )
    if tasks[0].epochs <= pretraining_epochs:
        raise ValueError(
            f"pretraining_epochs={pretraining_epochs} must be fewer than the {tasks[0].epochs} epochs of the base "
            "session, of which they are the first: raise base_epochs of the datamodule."
        )


def check_positive(**numbers: float) -> None:
    """Raise ValueError if a number is not positive."""
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name}={value} must be positive.")


def in_order(tricks: Iterable[str]) -> list[str]:
    """Return tricks in the order of the paper."""
    return [trick for trick in TRICKS if trick in set(tricks)]
