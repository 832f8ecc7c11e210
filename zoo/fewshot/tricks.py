"""The eight tricks, in the order of the paper's groups: stability, adaptability, training."""

from collections.abc import Iterable
from typing import Literal

Trick = Literal[
    "contrastive", "prototypes", "pseudo_classes", "finetuning", "subnet", "larger_encoder", "pretraining", "rotation"
]
TRICKS: tuple[Trick, ...] = (
    "contrastive", "prototypes", "pseudo_classes", "finetuning", "subnet", "larger_encoder", "pretraining", "rotation",
)  # fmt: skip
OF_INCREMENTS = {"finetuning", "subnet"}  # may differ from those of the base session that a run starts from


def check_tricks(tricks: Iterable[str]) -> frozenset[str]:
    """Return tricks as a set.

    Raises:
        ValueError: If there is no such trick, or one needs another.
    """
    chosen = frozenset(tricks)
    if unknown := sorted(chosen - set(TRICKS)):
        raise ValueError(f"tricks has {', '.join(unknown)}; there are {', '.join(TRICKS)}.")
    if "subnet" in chosen and "finetuning" not in chosen:
        raise ValueError("The trick subnet says what finetuning moves: add finetuning to tricks.")
    return chosen


def check_positive(**numbers: float) -> None:
    """Raise ValueError if a number is not positive."""
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name}={value} must be positive.")


def in_order(tricks: Iterable[str]) -> list[str]:
    """Return tricks in the order of the paper."""
    return [trick for trick in TRICKS if trick in set(tricks)]
