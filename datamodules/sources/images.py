"""Data sets of images that several sources share: in memory, and in files."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image
from torch import Tensor

# What PIL raises for a file that is no image, is damaged or was cut short.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class TensorImages:
    """Images held in memory as one tensor.

    Args:
        name: What error texts call the set, as "the test set of Digits".
        images: uint8 of shape (N, C, H, W).
        targets: int64 of shape (N,).
    """

    def __init__(self, name: str, images: Tensor, targets: Tensor) -> None:
        self.name = name
        self.images = images
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.targets[index])


class ImageFiles:
    """Images that stay in their files until they are asked for.

    Args:
        samples: Path and label of each image.
        domains: Domain of each image, int64 of shape (N,), if the source knows domains.

    Attributes:
        targets: Label of each image, int64 of shape (N,).
        domains: As given; the attribute is missing where there are none.
    """

    domains: Tensor

    def __init__(self, samples: Sequence[tuple[str, int]], domains: Tensor | None = None) -> None:
        self.samples = samples
        self.targets = torch.tensor([label for _, label in samples], dtype=torch.int64)
        if domains is not None:
            self.domains = domains

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.samples[index]
        with Image.open(path) as image:
            image.load()
        return image, label


def verify_image_files(paths: Sequence[str]) -> None:
    """Decode every file once, in threads.

    Args:
        paths: Image files.

    Raises:
        ValueError: If any of them cannot be decoded to its end; names them, the first ten if there are more.
    """
    with ThreadPoolExecutor() as pool:
        broken = [problem for problem in pool.map(_problem, paths) if problem is not None]
    if broken:
        listed = "\n  ".join(broken[:10]) + ("\n  ..." if len(broken) > 10 else "")
        raise ValueError(
            f"{len(broken)} of {len(paths)} image files cannot be read; replace or remove them:\n  {listed}"
        )


def _problem(path: str) -> str | None:
    """Return what is wrong with an image file, or None."""
    try:
        with Image.open(path) as image:
            image.draft(
                "RGB", (1, 1)
            )  # a JPEG is read to its end, but its pixels are computed at an eighth of the side
            image.load()
    except UNREADABLE as error:
        return f"{path}: {error}"
    return None
