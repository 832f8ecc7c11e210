"""Trick S3: every class becomes several, one for each of a few fixed transforms of the image.

Features learn finer differences than the classes ask for, and leave room between classes for those to come. At
inference an image is shown in all its transforms, and the score of a class is the mean over them.
"""

from itertools import product
from typing import Literal

import torch
from torch import Tensor

PseudoClassName = Literal[
    "none", "rotation2", "rotation", "color_perm3", "color_perm", "rot_color_perm6", "rot_color_perm12",
    "rot_color_perm24",
]  # fmt: skip

CYCLES = ("RGB", "GBR", "BRG")
ORDERS = ("RGB", "RBG", "GRB", "GBR", "BRG", "BGR")
# Quarter turns and orders of the channels; of each pair of lists, all combinations, turns outermost.
TRANSFORMS: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
    "none": ((0,), ("RGB",)),
    "rotation2": ((0, 2), ("RGB",)),
    "rotation": ((0, 1, 2, 3), ("RGB",)),
    "color_perm3": ((0,), CYCLES),
    "color_perm": ((0,), ORDERS),
    "rot_color_perm6": ((0, 2), CYCLES),
    "rot_color_perm12": ((0, 1, 2, 3), CYCLES),
    "rot_color_perm24": ((0, 1, 2, 3), ORDERS),
}


class PseudoClasses:
    """The transforms that make m classes of each class.

    Image b in transform j is row ``b m + j`` of an expanded batch, and its label is ``y m + j``.

    Args:
        name: Which transforms; "none" leaves everything as it is (m = 1).

    Raises:
        ValueError: If there is no such name.

    Source:
        Song et al., "Learning with Fantasy: Semantic-Aware Virtual Contrastive Constraint for Few-Shot
        Class-Incremental Learning", CVPR 2023 (SAVC).
    """

    def __init__(self, name: PseudoClassName) -> None:
        if name not in TRANSFORMS:
            raise ValueError(f"pseudo_classes={name!r} must be one of {', '.join(TRANSFORMS)}.")
        turns, orders = TRANSFORMS[name]
        self.transforms = [(turn, ["RGB".index(c) for c in order]) for turn, order in product(turns, orders)]

    def __len__(self) -> int:
        return len(self.transforms)

    def expand_images(self, images: Tensor) -> Tensor:
        """Return all transforms of images, shape (B m, C, H, W).

        Raises:
            ValueError: If images that are to be turned by 90 degrees are not square.
        """
        if len(self) == 1:
            return images
        if images.shape[-1] != images.shape[-2] and any(turn % 2 for turn, _ in self.transforms):
            raise ValueError(
                f"Images of {images.shape[-2]} x {images.shape[-1]} pixels cannot be turned by 90 degrees and stay in "
                "one batch: make them square, or use rotation2."
            )
        views = [torch.rot90(images[:, order], turn, dims=(2, 3)) for turn, order in self.transforms]
        return torch.stack(views, dim=1).flatten(0, 1)

    def expand_labels(self, labels: Tensor) -> Tensor:
        """Return the labels of all transforms, int64 of shape (B m,)."""
        return (labels[:, None] * len(self) + torch.arange(len(self), device=labels.device)).flatten()

    def rows(self, classes: range) -> range:
        """Return the pseudo-classes of a range of classes."""
        return range(classes.start * len(self), classes.stop * len(self))

    def aggregate(self, scores: Tensor) -> Tensor:
        """Return the mean score of each class over the transforms, shape (B, K), of scores (B m, K m).

        Transform j of an image is compared with transform j of a class only.
        """
        m = len(self)
        return scores.view(-1, m, scores.shape[1] // m, m).diagonal(dim1=1, dim2=3).mean(dim=-1)
