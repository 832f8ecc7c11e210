"""Random masks of patches that follow from noise alone."""

from typing import NamedTuple

import torch
from torch import Tensor


class Masking(NamedTuple):
    """Which patches of each image are visible.

    Attributes:
        ids_keep: Positions of the visible patches in the order they are processed in, shape (B, V), int64.
        ids_restore: For each patch its place in the order "visible ones, then hidden ones", shape (B, L), int64.
        mask: 0 for a visible patch and 1 for a hidden one, shape (B, L), float32.
    """

    ids_keep: Tensor
    ids_restore: Tensor
    mask: Tensor


def count_visible(length: int, mask_ratio: float, num_visible: int | None = None) -> int:
    """Return how many of an image's patches stay visible: a fraction of a patch is hidden, one patch always stays.

    Args:
        length: Number of patches L.
        mask_ratio: Share that is hidden, 0 to 1 (exclusive).
        num_visible: The number itself, instead of the share.

    Raises:
        ValueError: If none would be hidden, or a number is out of range.
    """
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio={mask_ratio} must be more than 0 and less than 1, for instance 0.75.")
    # 10 * (1 - 0.9) is 0.9999...: its whole part would be none.
    count = max(1, int(length * (1 - mask_ratio) + 1e-6)) if num_visible is None else num_visible
    if not 1 <= count < length:
        given = f"mask_ratio={mask_ratio}" if num_visible is None else f"num_visible={num_visible}"
        raise ValueError(f"{given} leaves {count} of {length} patches visible: at least one must be, and one hidden.")
    return count


def mask_from_noise(noise: Tensor, num_visible: int) -> Masking:
    """Hide all patches but those with the smallest numbers.

    Args:
        noise: One number for each patch, shape (B, L), usually uniform in [0, 1).
        num_visible: Number V of patches of each image that stay visible.

    Source:
        He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022.
    """
    ids_shuffle = noise.argsort(dim=1)
    ids_restore = ids_shuffle.argsort(dim=1)
    mask = (ids_restore >= num_visible).to(torch.float32)
    return Masking(ids_shuffle[:, :num_visible], ids_restore, mask)
