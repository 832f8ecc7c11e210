"""The contract between images with a class for each pixel and the datamodules of segmentation."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from PIL import Image
from torch import Tensor

from zoo.functional import color_map

IGNORE = 255  # a pixel without a class: rim, void, padding

Color = tuple[int, int, int]


@runtime_checkable
class LabeledScenes(Protocol):
    """A map-style data set of images and masks, without a transform.

    One whose images are slow to decode may also have ``mask(index)``, which returns the mask alone.

    Attributes:
        names: Name of every scene, as a list of a split gives it; a predicted mask's file is called so.
    """

    @property
    def names(self) -> Sequence[str]:
        """Return the name of every scene."""
        ...

    def __len__(self) -> int:
        """Return the number of scenes."""
        ...

    def __getitem__(self, index: int) -> tuple[Image.Image | Tensor, Tensor]:
        """Return an image and its mask.

        The image is a PIL image, or a tensor of shape (3, H, W), uint8 or float in [0, 1]. The mask is uint8 of shape
        (H, W): a class, or 255.
        """
        ...


class SegmentationSource(ABC):
    """Where images with a class for each pixel come from.

    As :class:`~zoo.datamodules.sources.Source`, but an item is an image and a mask, and data sets have ``names``
    instead of ``targets``. ``__init__`` keeps the arguments and leaves the disk alone.
    """

    @property
    @abstractmethod
    def classes(self) -> Sequence[str]:
        """Names of the classes; the position is the label."""

    @property
    def palette(self) -> Sequence[Color]:
        """Colour of each class; by default PASCAL VOC's."""
        return color_map(len(self.classes))

    def prepare(self) -> None:  # noqa: B027  # not abstract: a source that has its images at hand prepares nothing
        """Check what is there. Called by one process on each machine, before the rest."""

    @abstractmethod
    def train(self) -> LabeledScenes:
        """Return the training scenes."""

    @abstractmethod
    def test(self) -> LabeledScenes:
        """Return the scenes that are measured."""


class SceneTensors:
    """Scenes held in memory.

    Args:
        images: float in [0, 1] or uint8, of shape (N, 3, H, W).
        masks: uint8 of shape (N, H, W).
        names: Name of each scene.
    """

    def __init__(self, images: Tensor, masks: Tensor, names: Sequence[str]) -> None:
        self.images = images
        self.masks = masks
        self.names = names

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.masks[index]

    def mask(self, index: int) -> Tensor:
        """Return the mask of a scene alone."""
        return self.masks[index]
