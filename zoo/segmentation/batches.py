"""Batches of labelled and unlabelled images: what they look like, and how they are computed in parts."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def check_batch(batch: Any) -> None:
    """Raise ValueError if a batch is not what the two datamodules give."""
    if not isinstance(batch, dict) or not {"labeled", "unlabeled"} <= batch.keys():
        found = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
        raise ValueError(
            f"A batch must be a dict with 'labeled' and 'unlabeled', got {found}: use "
            "SemiSupervisedSegmentationDataModule or DomainAdaptationDataModule."
        )


def split(batch: dict[str, Any], parts: int) -> Iterator[dict[str, Any]]:
    """Yield parts of a batch, labelled and unlabelled images in equal shares.

    Raises:
        ValueError: If a number of images is not divisible.
    """
    if parts == 1:
        yield batch
        return
    for number in range(parts):
        yield {name: share_of(batch[name], number, parts) for name in ("labeled", "unlabeled")}


def share_of(value: Any, number: int, parts: int) -> Any:
    """Return one of the equal parts of a tensor, or of each tensor of a sequence."""
    if not isinstance(value, Tensor):
        return [share_of(entry, number, parts) for entry in value]
    if len(value) % parts:
        raise ValueError(f"micro_batches={parts} does not divide a batch of {len(value)} images.")
    return value.chunk(parts)[number]
