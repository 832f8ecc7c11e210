"""Images as rows of patches, and where a patch lies."""

import torch
from torch import Tensor


def grid_of(images: Tensor, patch_size: tuple[int, int]) -> tuple[int, int]:
    """Return how many patches cover images from top to bottom and from left to right.

    Args:
        images: Shape (..., H, W).
        patch_size: Height and width of a patch in pixels.

    Raises:
        ValueError: If the sides of the images are no multiples of those of a patch.
    """
    (height, width), (p, q) = images.shape[-2:], patch_size
    if height % p or width % q or not height or not width:
        raise ValueError(
            f"Images of {height} x {width} pixels are not covered by patches of {p} x {q}: crop or resize them, for "
            f"instance to {max(1, height // p) * p} x {max(1, width // q) * q}."
        )
    return height // p, width // q


def patchify(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Cut images into patches, row by row; within a patch by pixel row, pixel column, and channel, which runs fastest.

    Args:
        images: Shape (B, C, H, W).
        patch_size: Height p and width q of a patch in pixels.

    Returns:
        Shape (B, L, p q C), with L patches an image.

    Raises:
        ValueError: If the sides of the images are no multiples of those of a patch.
    """
    (batch, channels), (p, q), (rows, columns) = images.shape[:2], patch_size, grid_of(images, patch_size)
    cells = images.reshape(batch, channels, rows, p, columns, q)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, p * q * channels)


def unpatchify(patches: Tensor, patch_size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Put patches together again, the inverse of :func:`patchify`.

    Args:
        patches: Shape (B, L, p q C).
        patch_size: Height p and width q of a patch in pixels.
        grid: Number of patches from top to bottom and from left to right; their product is L.

    Returns:
        Images of shape (B, C, H, W).
    """
    (batch, _, values), (p, q), (rows, columns) = patches.shape, patch_size, grid
    cells = patches.reshape(batch, rows, columns, p, q, values // (p * q))
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * p, columns * q)


def position_table(dim: int, grid: tuple[int, int], num_prefix: int = 1) -> Tensor:
    """Return fixed position embeddings of a grid: sines, then cosines, of the column, then the same of the row.

    With w_k = 10000^(-4k/D), k from 0 to D/4 - 1, a position x is sin(x w_0), sin(x w_1) … cos(x w_0), cos(x w_1) …

    Args:
        dim: Length D, a multiple of 4.
        grid: Number of patches from top to bottom and from left to right.
        num_prefix: Rows of zeros in front, for tokens that have no place in the image.

    Returns:
        Shape (num_prefix + L, D), float64, on the CPU.

    Raises:
        ValueError: If D is no multiple of 4.

    Source:
        He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022; its code puts the column first.
    """
    if dim % 4:
        raise ValueError(f"dim={dim} must be a multiple of 4: a quarter each for sine and cosine of column and row.")
    rates = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [places.reshape(-1, 1) * rates for places in (columns, rows)]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([table.new_zeros(num_prefix, dim), table])
