"""Some of the classes of another source."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from zoo.datamodules.sources.source import LabeledImages, Source


class ClassRange(Source):
    """Consecutive classes of another source, numbered from 0: pretrain on some, learn a stream of the others.

    Images of other classes are left out; none is copied or decoded.

    Args:
        source: The source with all classes.
        start: Number of the first class.
        stop: Number of the class behind the last one. Default: the last class of the source is the last one here.

    Raises:
        ValueError: If the range is empty or, when the classes are asked for, reaches beyond the source's.
    """

    def __init__(self, source: Source, start: int = 0, stop: int | None = None) -> None:
        if start < 0 or (stop is not None and stop <= start):
            raise ValueError(f"start={start} must be at least 0, and stop={stop} more than that.")
        self.source = source
        self.start = start
        self.stop = stop
        self.domain_names = source.domain_names

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes in the range."""
        names = self.source.classes
        if max(self.start + 1, self.stop or 0) > len(names):
            raise ValueError(
                f"start={self.start} and stop={self.stop} reach beyond the {len(names)} classes of "
                f"{type(self.source).__name__}, numbered 0 to {len(names) - 1}."
            )
        return names[self.start : self.stop]

    def prepare(self) -> None:
        """Prepare the whole source."""
        self.source.prepare()

    def train(self) -> "ImagesOfRange":
        """Return the training images of the classes."""
        return self._images(self.source.train())

    def test(self) -> "ImagesOfRange":
        """Return the test images of the classes."""
        return self._images(self.source.test())

    def _images(self, images: LabeledImages) -> "ImagesOfRange":
        return ImagesOfRange(images, self.start, self.start + len(self.classes))


class ImagesOfRange:
    """The images of consecutive classes of a data set.

    Args:
        images: All images.
        start: Number of the first class, which is label 0 here.
        stop: Number of the class behind the last one.

    Attributes:
        targets: Label of each image, int64 of shape (N,).
        indices: Its position among all images, int64 of shape (N,).
        samples: File and label of each image, where the data set has them.
        domains: Domain of each image, where the data set has them.
    """

    samples: list[tuple[str, int]]
    domains: Tensor

    def __init__(self, images: LabeledImages, start: int, stop: int) -> None:
        labels = torch.as_tensor(images.targets)
        self.images = images
        self.indices = ((labels >= start) & (labels < stop)).nonzero().flatten()
        self.targets = labels[self.indices] - start
        self.name = getattr(images, "name", type(images).__name__)
        known: Any = images  # what only some data sets have
        if hasattr(images, "samples"):
            files = [known.samples[index][0] for index in self.indices.tolist()]
            self.samples = list(zip(files, self.targets.tolist(), strict=True))
        if hasattr(images, "domains"):
            self.domains = torch.as_tensor(known.domains)[self.indices]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image | Tensor, int]:
        return self.images[int(self.indices[index])][0], int(self.targets[index])
