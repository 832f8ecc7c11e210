"""What is read off a confusion matrix of pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor


def intersection_over_union(matrix: Tensor) -> Tensor:
    """Return the intersection over union of each class; NaN for a class that is neither there nor predicted.

    Args:
        matrix: Counts of pixels of shape (C, C), a row for each true class.
    """
    matrix = matrix.double()
    inside = matrix.diagonal()
    union = matrix.sum(dim=0) + matrix.sum(dim=1) - inside
    return torch.where(union > 0, inside / union.clamp(min=1), torch.nan)


def mean_iou(matrix: Tensor, classes: Sequence[int] | None = None) -> Tensor:
    """Return the mean intersection over union of the classes that are there or predicted.

    Args:
        matrix: As of :func:`intersection_over_union`.
        classes: Of which the mean is taken, such as the 16 or 13 classes that SYNTHIA shares with Cityscapes. Default:
            all.
    """
    values = intersection_over_union(matrix)
    return values.nanmean() if classes is None else values[list(classes)].nanmean()


def pixel_accuracy(matrix: Tensor) -> Tensor:
    """Return the share of the pixels whose class is right.

    Args:
        matrix: As of :func:`intersection_over_union`.
    """
    return matrix.diagonal().sum().double() / matrix.sum().clamp(min=1)
