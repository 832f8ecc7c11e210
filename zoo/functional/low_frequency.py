"""Low-frequency cropping: a small image made of the low spatial frequencies of a large one.

Wang et al., "EfficientTrain: Exploring Generalized Curriculum Learning for Training Visual Backbones", ICCV 2023,
https://arxiv.org/abs/2211.09703; official code https://github.com/LeapLabTHU/EfficientTrain, ``utils.py`` at commit
bdefd27 (removed from the later version).

The published operator takes the complex Fourier transform, cuts out the frequencies -h ... h-1 of each axis, transforms
back at the smaller size and drops the imaginary part. Two routes to the same numbers need no complex transform of the
whole image and are faster:

- two products with real matrices, C X Cᵀ, less one number per image and channel times a checkerboard: the real part of
  (C + iS) X (C + iS)ᵀ is C X Cᵀ - S X Sᵀ, and S has rank one;
- the transform of real input, which computes half of the spectrum, of which only the columns that are kept go through
  the second axis.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fft import fft, ifft, irfft, rfft

from zoo.functional.choices import check_choice

Nyquist: TypeAlias = Literal["official", "symmetric", "odd"]
Route: TypeAlias = Literal["auto", "matmul", "fft"]
Downsampling: TypeAlias = Literal["fourier", "lanczos", "bicubic", "bilinear"]

LARGEST_FOR_MATMUL = 64 * 64  # pixels of an image up to which matrices were faster than the transform on a CPU
PIXELS_IN_CACHE = 2**18  # large batches go through a CPU in parts of this many: three times as fast at 224 pixels


def low_frequency_crop(
    images: Tensor, size: int | Sequence[int], nyquist: Nyquist = "official", route: Route = "auto"
) -> Tensor:
    """Keep the lowest spatial frequencies of images and return smaller images.

    The mean of each channel is kept, and so is any wave below the cut. Values may leave the range of the input a
    little (ringing); nothing is clipped. Pixel 0 of both grids coincides, and the image counts as periodic. Linear, and
    differentiable.

    Args:
        images: Shape (..., H, W), any range. Integers are converted to float32 without scaling; float16 and bfloat16
            are computed in float32, with autocast or without.
        size: Side of the result in pixels, or height and width; at least 2 and at most that of the image.
        nyquist: What becomes of the highest frequency. "official" keeps -h without +h and drops the imaginary part, as
            published; an odd size is floored to an even one. "symmetric" averages the two, which makes the operator
            separable and differs by a checkerboard, about 1e-4 on photographs. "odd" has no such frequency: a window of
            odd size.
        route: "matmul", "fft", or "auto" for the one that was faster at this size in ``benchmarks/efficienttrain.py``.
            The result is the same up to rounding.

    Returns:
        Images of shape (..., size, size), in the dtype and memory format of the input; the input itself where the
        operator is the identity.

    Raises:
        ValueError: If the size does not fit the images or the window, there are fewer than two axes, or ``nyquist`` or
            ``route`` is none of the above.

    Source:
        Wang et al., "EfficientTrain: Exploring Generalized Curriculum Learning for Training Visual Backbones", ICCV
        2023, low-frequency cropping (Section 4.1).
    """
    check_choice("nyquist", nyquist, Nyquist)
    check_choice("route", route, Route)
    if images.ndim < 2:
        raise ValueError(f"images must have shape (..., H, W), got {tuple(images.shape)}.")
    height, width = images.shape[-2:]
    rows, columns = (size, size) if isinstance(size, int) else size
    rows, columns = check_side(rows, height, nyquist), check_side(columns, width, nyquist)
    if not images.is_floating_point():
        images = images.float()
    if (rows, columns) == (height, width):  # the operator is the identity there
        return images
    channels_last = (
        images.ndim == 4 and not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)
    )
    exact = (images if images.dtype == torch.float64 else images.float()).reshape(-1, height, width)
    on_cpu = images.device.type == "cpu"
    # An accelerator multiplies matrices faster than anything else, and some know no complex numbers.
    small = not on_cpu or height * width <= LARGEST_FOR_MATMUL or not len(exact)
    crop = by_matmul if route == "matmul" or (route == "auto" and small) else by_fft
    at_once = max(1, PIXELS_IN_CACHE // (height * width)) if on_cpu else max(1, len(exact))
    with torch.autocast(images.device.type, enabled=False):  # would round the matrices to bfloat16: errors of 1 %
        if len(exact) <= at_once:
            cropped = crop(exact, rows, columns, nyquist)
        else:  # written part by part: memory that is asked for anew costs more here than the arithmetic
            cropped = exact.new_empty(len(exact), rows, columns)
            for first in range(0, len(exact), at_once):
                part = slice(first, first + at_once)
                cropped[part] = crop(exact[part], rows, columns, nyquist)
    cropped = cropped.reshape(*images.shape[:-2], rows, columns).to(images.dtype)
    return cropped.contiguous(memory_format=torch.channels_last) if channels_last else cropped


def downsample(
    images: Tensor, size: int | Sequence[int], mode: Downsampling = "fourier", nyquist: Nyquist = "official"
) -> Tensor:
    """Make images smaller, by the low-frequency crop or by one of the filters that the field resizes with.

    EfficientTrain++ replaced the crop by Lanczos resizing of the 8-bit image; here the filter works on the float batch,
    so it neither rounds nor clips. A filter puts pixels at the centres of their squares, the crop puts pixel 0 on
    pixel 0.

    Args:
        images: Shape (B, C, H, W). Integers are converted to float32 without scaling.
        size: Side of the result in pixels, or height and width.
        mode: "fourier" is :func:`low_frequency_crop`. The others are torch's, with antialiasing; "lanczos" needs
            a torch that has it.
        nyquist: Of the crop.

    Returns:
        Images of shape (B, C, size, size), in the dtype of the input, or float32 for integers.

    Raises:
        ValueError: If the shape is another, the size does not fit the images, the mode is unknown, or torch has no such
            filter.

    Source:
        Wang et al., "EfficientTrain++: Generalized Curriculum Learning for Efficient Visual Backbone Training", TPAMI
        2024, low-frequency down-sampling.
    """
    check_choice("mode", mode, Downsampling)
    if mode == "fourier":
        return low_frequency_crop(images, size, nyquist)
    if images.ndim != 4:
        raise ValueError(f"images must have shape (B, C, H, W) for mode={mode!r}, got {tuple(images.shape)}.")
    if not images.is_floating_point():  # a filter overshoots, which 8 bits would wrap around
        images = images.float()
    rows, columns = (size, size) if isinstance(size, int) else size
    for side, limit in zip((rows, columns), images.shape[-2:], strict=True):
        check_side(side, limit, "symmetric")
    exact = images if images.dtype == torch.float64 else images.float()
    try:
        with torch.autocast(images.device.type, enabled=False):
            smaller = F.interpolate(exact, (rows, columns), mode=mode, antialias=True)
    except (NotImplementedError, ValueError) as error:
        raise ValueError(
            f"torch {torch.__version__} cannot resize with mode={mode!r} ({error}); update torch, or use 'bicubic'."
        ) from error
    return smaller.to(images.dtype)


def check_side(size: int, side: int, nyquist: Nyquist) -> int:
    """Return the side of the result in pixels, or say why there is none."""
    smallest = 1 if nyquist == "odd" else 2
    if not smallest <= size <= side:
        raise ValueError(f"size={size} does not fit images with a side of {side} pixels: use {smallest} to {side}.")
    if nyquist == "odd" and size % 2 == 0:
        raise ValueError(f"nyquist='odd' needs an odd size, got {size}: use {size - 1} or {size + 1}.")
    return size if nyquist == "odd" else size - size % 2


def by_matmul(images: Tensor, rows: int, columns: int, nyquist: Nyquist) -> Tensor:
    """Crop by two products with real matrices."""
    height, width = images.shape[-2:]
    down = crop_matrix(height, rows, nyquist, images.dtype, images.device)
    across = crop_matrix(width, columns, nyquist, images.dtype, images.device)
    cropped = down @ (images @ across.T)
    if nyquist != "official":
        return cropped
    wave_down = nyquist_wave(height, rows, images.dtype, images.device)
    wave_across = nyquist_wave(width, columns, images.dtype, images.device)
    corner = (images @ wave_across) @ wave_down
    signs = checkerboard(rows, columns, images.dtype, images.device)
    return torch.addcmul(cropped, corner[..., None, None], signs, value=-1 / (height * width))


def by_fft(images: Tensor, rows: int, columns: int, nyquist: Nyquist) -> Tensor:
    """Crop by transforms of real input: only the columns 0 ... h of the spectrum are ever needed."""
    height, width = images.shape[-2:]
    top, side = rows // 2, columns // 2
    spectrum = fft(rfft(images)[..., : side + 1], dim=-2)
    kept = torch.cat([spectrum[..., : rows - top, :], spectrum[..., height - top :, :]], dim=-2)
    if nyquist != "odd":
        # The window holds -h but not +h. Its real image has the spectrum's Hermitian part, which is the mean of both.
        kept[..., top, :] = (spectrum[..., height - top, :] + spectrum[..., top, :]) / 2
        mirrored = kept[..., side].flip(-1).roll(1, -1).conj()
        kept[..., side] = (kept[..., side] + mirrored) / 2
        if nyquist == "official":  # of the corners only (-h, -h), whose mirror image (h, h) is its conjugate
            kept[..., top, side] = spectrum[..., top, side].real.to(kept.dtype)
    scale = rows * columns / (height * width)
    cropped: Tensor = irfft(ifft(kept, dim=-2), n=columns)
    return cropped * scale


@lru_cache(maxsize=64)
def crop_matrix(
    side: int, size: int, nyquist: Nyquist, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> Tensor:
    """Return the real matrix C (D for the odd window) that crops one axis.

    Entry (m, n) is (1 / N) Σ cos(2πkθ) with θ = m/M - n/N over the window's frequencies k, where the two halves of the
    highest one of an even window count half each.

    Args:
        side: Pixels N before.
        size: Pixels M after; even unless ``nyquist`` is "odd".
        nyquist: The window.
        dtype: Of the result; it is computed in float64.
        device: Of the result.

    Returns:
        Shape (M, N). Rows sum to 1, columns to M / N.
    """
    with torch.inference_mode(False):  # what is kept must serve training too
        # 2πkθ from whole numbers: k (mN - nM) modulo MN is exact, where sines of large angles are not.
        steps = torch.arange(size)[:, None] * side - torch.arange(side) * size
        matrix = torch.ones(size, side, dtype=torch.float64)
        for k in range(1, (size + 1) // 2):
            matrix += 2 * cosine(steps * k, size * side)
        if nyquist != "odd":
            matrix += cosine(steps * (size // 2), size * side)
        return (matrix / side).to(device, dtype)


@lru_cache(maxsize=64)
def nyquist_wave(
    side: int, size: int, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> Tensor:
    """Return v of the imaginary part S = u vᵀ / N with u = (1, -1, 1, ...): v_n = sin(2πhn / N), shape (N,).

    Args:
        side: Pixels N before.
        size: Pixels 2h after.
        dtype: Of the result; it is computed in float64.
        device: Of the result.
    """
    with torch.inference_mode(False):
        turns = torch.arange(side) * (size // 2) % side
        wave = torch.sin(2 * torch.pi / side * turns.double())
        wave[2 * turns % side == 0] = 0  # sin(π) in floating point is not
        return wave.to(device, dtype)


@lru_cache(maxsize=64)
def checkerboard(
    rows: int, columns: int, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> Tensor:
    """Return u uᵀ with u = (1, -1, 1, ...), shape (rows, columns)."""
    with torch.inference_mode(False):
        return (1.0 - 2 * ((torch.arange(rows)[:, None] + torch.arange(columns)) % 2)).to(device, dtype)


def cosine(steps: Tensor, period: int) -> Tensor:
    """Return cos(2π steps / period) of whole numbers, float64."""
    return torch.cos(2 * torch.pi / period * (steps % period).double())
