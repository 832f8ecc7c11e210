"""Strong augmentation of images and their labels, on their device, with draws from a generator that one can seed."""

import math
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as V

IGNORE = 255


def class_mix_mask(
    labels: Tensor,
    num_classes: int,
    generator: torch.Generator,
    present: Literal["image", "batch"] = "image",
    round_up: bool = True,
) -> Tensor:
    """Return where an image shows half of its classes, drawn without replacement.

    Args:
        labels: int64 of shape (B, H, W), 255 for ignored pixels, which are never chosen.
        num_classes: Number of classes.
        generator: On the CPU.
        present: Which classes are drawn from: those of each image, or those of the whole batch, ignored pixels among
            them as if they were a class, as in DACS's code.
        round_up: Of n classes ceil(n / 2) are chosen, else floor(n / 2).

    Returns:
        bool of shape (B, H, W); nothing where there is no class to choose.

    Source:
        Olsson et al., "ClassMix: Segmentation-Based Data Augmentation for Semi-Supervised Learning", WACV 2021.
    """
    flat = labels.flatten(1).masked_fill(labels.flatten(1) == IGNORE, num_classes)
    there = torch.zeros(len(labels), num_classes + 1, dtype=torch.bool, device=labels.device).scatter_(1, flat, True)
    if present == "batch":
        there = there.any(dim=0, keepdim=True).expand_as(there)
    else:
        there[:, num_classes] = False
    keys = torch.rand(there.shape, generator=generator).to(labels.device)
    rank = keys.masked_fill(~there, 2.0).argsort(dim=1).argsort(dim=1)  # absent classes come last
    count = there.sum(dim=1, keepdim=True)
    chosen = rank < (count + round_up) // 2
    return chosen.gather(1, flat).view(labels.shape)


def cut_mix_mask(batch: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return a rectangle for each image, half of its area, on the CPU.

    Args:
        batch: Number of images.
        height: Of an image in pixels.
        width: Of an image in pixels.
        generator: On the CPU.

    Returns:
        bool of shape (B, H, W), True inside.

    Source:
        French et al., "Semi-supervised semantic segmentation needs strong, varied perturbations", BMVC 2020; bounds as
        in U2PL's code.
    """
    mask = torch.zeros(batch, height, width, dtype=torch.bool)
    low = width // 2 + 1
    for rectangle in mask:
        across = int(torch.randint(low, max(low + 1, width), (), generator=generator))
        down = rectangle_height(height, width, across)
        top = int(torch.randint(height - down + 1, (), generator=generator))
        left = int(torch.randint(width - across + 1, (), generator=generator))
        rectangle[top : top + down, left : left + across] = True
    return mask


def rectangle_height(height: int, width: int, across: int) -> int:
    """Return how high a rectangle of a width is that covers half of an image."""
    return min(height, round(height * width / 2 / across))


def color_jitter(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue, in an order and by factors drawn for each image.

    Args:
        images: Shape (B, 3, H, W), in [0, 1].
        strength: Factors are drawn from ``1 - strength`` to ``1 + strength``, the hue's shift from minus to plus it.
        generator: On the CPU.
    """
    changes = (V.adjust_brightness, V.adjust_contrast, V.adjust_saturation, V.adjust_hue)
    changed = []
    for image in images:
        order = torch.randperm(4, generator=generator).tolist()
        shifts = ((torch.rand(4, generator=generator) * 2 - 1) * strength).tolist()
        for index in order:
            image = changes[index](image, shifts[index] if index == 3 else 1 + shifts[index])
        changed.append(image)
    return torch.stack(changed)


def blur_side(size: int) -> int:
    """Return the side of the blur's kernel for a side of an image: a tenth, made odd as in DACS's code."""
    tenth = math.ceil(0.1 * size)
    return math.floor(tenth - 0.5 + tenth % 2)


def gaussian_blur(images: Tensor, generator: torch.Generator, low: float = 0.15, high: float = 1.15) -> Tensor:
    """Blur each image with a standard deviation of its own; images of up to 20 pixels stay as they are.

    Args:
        images: Shape (B, 3, H, W).
        generator: On the CPU.
        low: Smallest standard deviation in pixels.
        high: Largest.
    """
    sides = [blur_side(images.shape[-1]), blur_side(images.shape[-2])]
    if max(sides) <= 1:
        return images
    sigmas = (low + (high - low) * torch.rand(len(images), generator=generator)).tolist()
    blurred = [V.gaussian_blur(image, sides, [sigma]) for image, sigma in zip(images, sigmas, strict=True)]
    return torch.stack(blurred)


def strong_augment(
    images: Tensor,
    generator: torch.Generator,
    jitter: float = 0.2,
    jitter_probability: float = 0.8,
    blur_probability: float = 0.5,
) -> Tensor:
    """Jitter colours and blur, each for all images of a batch or for none.

    Args:
        images: Shape (B, 3, H, W), in [0, 1].
        generator: On the CPU.
        jitter: See :func:`color_jitter`.
        jitter_probability: DACS's code calls 0.2 a probability and uses it as a threshold, so it jitters with 0.8.
        blur_probability: See :func:`gaussian_blur`.

    Source:
        Tranheden et al., "DACS: Domain Adaptation via Cross-domain Mixed Sampling", WACV 2021. Its jitter is kornia's;
        this one is torchvision's: brightness is multiplied, contrast is about the mean grey.
    """
    jitters, blurs = torch.rand(2, generator=generator).tolist()
    if jitters < jitter_probability and jitter:
        images = color_jitter(images, jitter, generator)
    if blurs < blur_probability:
        images = gaussian_blur(images, generator)
    return images
