"""The contract between a data set on disk and every datamodule."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from PIL import Image
from torch import Tensor


@runtime_checkable
class LabeledImages(Protocol):
    """A map-style data set of images and labels without a transform, as torchvision's classification data sets are.

    Attributes:
        targets: Label of every image, known without decoding one.
    """

    @property
    def targets(self) -> Sequence[int] | Tensor:
        """Return the label of every image."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int) -> tuple[Image.Image | Tensor, int]:
        """Return a PIL image, or a uint8 tensor of shape (C, H, W), and its label."""
        ...


class Source(ABC):
    """Where labelled images come from.

    A source knows files and formats, and nothing of tasks, batches or transforms: those belong to the datamodule. To
    add a data set, write the four methods below; torchvision's own data sets do the reading where there is one.
    ``__init__`` keeps the arguments and leaves the disk alone, and every method gives the same on each process.

    A source that knows domains (sessions, styles, cameras) returns data sets with a further attribute ``domains``, one
    int an image, and lists their names in the attribute ``domain_names``.
    """

    domain_names: Sequence[str] = ()

    @property
    @abstractmethod
    def classes(self) -> Sequence[str]:
        """Names of the classes; the position is the label."""

    def prepare(self) -> None:  # noqa: B027  # not abstract: a source that has its images at hand prepares nothing
        """Download what is missing and check what is there. Called by one process on each machine, before the rest."""

    @abstractmethod
    def train(self) -> LabeledImages:
        """Return the training images."""

    @abstractmethod
    def test(self) -> LabeledImages:
        """Return the test images."""
