"""Class means as sums and counts, and the classifiers that follow from them."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

Rule = Literal["euclidean", "euclidean_raw", "cosine"]


class ClassMeans(nn.Module):
    """Running sum and count of feature vectors for each class.

    Data may come in any order, in any split and from any number of processes: sums and counts add up to the same means.
    The sum stays float64 whatever precision plugin or ``.to(dtype)`` converts the module around it, because a bfloat16
    sum of ones stops growing at 256 and a float32 sum drifts in its fifth digit after 1e5 additions.

    Args:
        num_classes: Number of classes C, seen or not.
        num_features: Length D of a feature vector.
    """

    sum: Tensor
    count: Tensor

    def __init__(self, num_classes: int, num_features: int) -> None:
        super().__init__()
        self.register_buffer("sum", torch.zeros(num_classes, num_features, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ClassMeans":
        # `.to(dtype)`, which the true-half precision plugins call, casts every floating buffer. The integer count is
        # moved and never cast, so it tells the device. MPS has no float64: the sum stays on the CPU there.
        kept = self.sum
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if kept.is_meta:  # built without memory and now given some
            kept = torch.zeros(
                kept.shape, dtype=torch.float64, device="cpu" if self.count.is_meta else self.count.device
            )
            kept = kept.to("meta") if self.count.is_meta else kept
        self.sum = kept if self.count.device.type == "mps" else kept.to(self.count.device)
        return self

    @property
    def seen(self) -> Tensor:
        """Classes with at least one sample, bool of shape (C,)."""
        return self.count > 0

    def means(self) -> Tensor:
        """Return the means, float64 of shape (C, D); zero where no sample was seen."""
        return self.sum / self.count.clamp(min=1).to(self.sum.device).unsqueeze(1)

    @torch.no_grad()
    def merge(self, sum: Tensor, count: Tensor) -> None:
        """Add sums and counts, for instance of another process or of one more task.

        Args:
            sum: Sums of features, shape (C, D).
            count: Numbers of features, int64 of shape (C,).
        """
        self.sum += sum.to(self.sum)
        self.count += count.to(self.count)

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add samples.

        Args:
            features: Shape (N, D).
            labels: Their classes, int64 of shape (N,).
        """
        self.sum.index_add_(0, labels.to(self.sum.device), features.to(self.sum))
        self.count += torch.bincount(labels, minlength=len(self.count)).to(self.count)

    @torch.no_grad()
    def subtract(self, features: Tensor, labels: Tensor) -> None:
        """Remove samples, exactly as if they had never been added (up to the rounding of float64).

        Args:
            features: The very features that were added, shape (N, D).
            labels: Their classes, int64 of shape (N,).

        Raises:
            ValueError: If a class has fewer samples than are to be removed.
        """
        removed = torch.bincount(labels, minlength=len(self.count)).to(self.count)
        if (removed > self.count).any():
            label = int((removed > self.count).nonzero()[0])
            raise ValueError(
                f"class {label} has {int(self.count[label])} samples, but {int(removed[label])} are to be removed."
            )
        self.count -= removed
        self.sum.index_add_(0, labels.to(self.sum.device), -features.to(self.sum))
        self.sum[self.count.to(self.sum.device) == 0] = 0.0  # no rounding error of a class that is gone

    @torch.no_grad()
    def forget(self, label: int) -> None:
        """Remove a class: it counts as never seen."""
        self.sum[label] = 0.0
        self.count[label] = 0


def linear_from_means(means: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Return the linear layer that predicts the nearest class mean.

    For the euclidean rules ``weight @ u + bias = |u|^2 - |u - mean|^2``: the same order of the classes, and the same
    softmax, as the negative squared distance.

    Args:
        means: Class means, shape (C, D): of unit features for ``"euclidean"``, else of raw features.
        rule: ``"euclidean"`` and ``"cosine"`` expect a unit feature u, ``"euclidean_raw"`` a raw one.

    Returns:
        Weight of shape (C, D) and bias of shape (C,), in the dtype of ``means``.
    """
    if rule == "cosine":
        return nn.functional.normalize(means, dim=1), means.new_zeros(len(means))
    return 2.0 * means, -means.square().sum(dim=1)
