"""Some classes of another source: some to pretrain on, say, and the others for a stream."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from zoo.datamodules.sources.source import LabeledImages, Source


class ClassSubset(Source):
    """The classes ``start`` to ``stop`` - 1 of a source, as labels from 0.

    Two subsets without a common class share no image: a network pretrained on one has seen nothing of the other.

    Args:
        source: Where the images come from.
        start: First class, by its label in the source.
        stop: Class after the last one. Default: all that the source has.

    Raises:
        ValueError: If the source has no such classes.
    """

    def __init__(self, source: Source, start: int = 0, stop: int | None = None) -> None:
        number = len(source.classes)
        stop = number if stop is None else stop
        if not 0 <= start < stop <= number:
            raise ValueError(
                f"start={start} and stop={stop} must be 0 <= start < stop <= {number}: {type(source).__name__} has "
                f"{number} classes."
            )
        self.source = source
        self.labels = range(start, stop)
        self.domain_names = source.domain_names

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""
        return list(self.source.classes)[self.labels.start : self.labels.stop]

    def prepare(self) -> None:
        """Prepare the whole source."""
        self.source.prepare()

    def train(self) -> "SubsetImages":
        """Return the training images of the classes."""
        return SubsetImages(self.source.train(), self.labels)

    def test(self) -> "SubsetImages":
        """Return the test images of the classes."""
        return SubsetImages(self.source.test(), self.labels)


class SubsetImages:
    """The images of some classes, in their order.

    Args:
        images: Those of all classes.
        labels: The classes to keep.

    Attributes:
        targets: Label of each image that is kept, from 0.
        domains: Domain of each, if the images have domains.
        samples: File and label of each, if the images are files.
    """

    domains: Tensor
    samples: list[tuple[str, int]]

    def __init__(self, images: LabeledImages, labels: range) -> None:
        targets = torch.as_tensor(images.targets)
        self.images = images
        self.name = getattr(images, "name", type(images).__name__)
        self.indices = ((targets >= labels.start) & (targets < labels.stop)).nonzero().flatten()
        self.targets = targets[self.indices] - labels.start
        known: Any = images
        if hasattr(images, "domains"):
            self.domains = torch.as_tensor(known.domains)[self.indices]
        if hasattr(images, "samples"):
            kept = zip(self.indices.tolist(), self.targets.tolist(), strict=True)
            self.samples = [(known.samples[index][0], label) for index, label in kept]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image | Tensor, int]:
        return self.images[int(self.indices[index])][0], int(self.targets[index])
