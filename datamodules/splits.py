"""Labels that are checked, and stratified splits drawn from a seed alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.functional import mix_seeds


def check_labels(targets: Sequence[int] | Tensor, num_classes: int, where: str) -> Tensor:
    """Return labels as one tensor, or say what is wrong with them.

    Args:
        targets: Label of each image.
        num_classes: Labels must lie in 0..num_classes - 1.
        where: What the labels belong to, for the error text, as "the training set of Digits".

    Returns:
        The labels, int64 of shape (N,).

    Raises:
        ValueError: If there are none, if they are no integers, or if one is out of range.
    """
    labels = torch.as_tensor(targets)
    if labels.numel() == 0:
        raise ValueError(f"{where} is empty: there is no image in it.")
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(
            f"The labels of {where} are {str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}; "
            "they must be one integer for each image."
        )
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero().flatten()
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"Label {int(labels[first])} of image {first} of {where} is out of range: there are {num_classes} classes, "
            f"so labels run from 0 to {num_classes - 1} ({len(wrong)} of {len(labels)} labels are out of range)."
        )
    return labels.long()


def check_loading(batch_size: int, num_workers: int, val_fraction: float, evaluate: str) -> None:
    """Raise ValueError if an argument that all datamodules share is out of range, with the range."""
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


def hold_out(
    targets: Sequence[int] | Tensor, fraction: float, seed: int, class_names: Sequence[str] = ()
) -> tuple[Tensor, Tensor]:
    """Split positions in two, class by class, so that each side has every class in the same proportion.

    Of a class with n images, ``round(fraction * n)`` are held out, but at least one, and at least one stays. Which
    ones follows from the seed, the label and n alone, so a class keeps its split when other classes are added or left
    out. To stratify by two things at once (class and domain), give one number for each pair.

    Args:
        targets: Label of each image, not negative.
        fraction: Share to hold out, from 0 (nothing) to less than 1.
        seed: The same seed gives the same split.
        class_names: Name of each label, for the error text; labels themselves are shown if there are none.

    Returns:
        Positions that stay and positions held out, each int64, sorted.

    Raises:
        ValueError: If the fraction is out of range, or a class has fewer than two images and something is held out.
    """
    labels = torch.as_tensor(targets, dtype=torch.int64)
    if not 0 <= fraction < 1:
        raise ValueError(f"The held-out fraction is {fraction}; it must be at least 0 and less than 1.")
    if fraction == 0:
        return torch.arange(len(labels)), torch.empty(0, dtype=torch.int64)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero().flatten()
        if len(members) < 2:
            name = class_names[label] if class_names else label
            raise ValueError(
                f"Class {name} has a single image, which cannot be in both parts of a split; "
                "add images of that class or hold out nothing (a fraction of 0)."
            )
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        generator = torch.Generator().manual_seed(mix_seeds(seed, label))
        held_out[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()
