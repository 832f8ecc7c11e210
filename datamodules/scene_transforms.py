"""Transforms of an image together with its mask, as recipes of segmentation use them; the rest is torchvision's."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from zoo.datamodules.sources.segmentation import IGNORE


class ResizeImage(v2.Resize):  # type: ignore[misc]  # torchvision has no types
    """torchvision's ``Resize`` of the image alone: for evaluation at the resolution of the mask.

    The method enlarges its scores to the mask.

    Args:
        size: Height and width in pixels.
    """

    _transformed_types: ClassVar = (tv_tensors.Image,)

    def __init__(self, size: list[int]) -> None:
        super().__init__(size)


class RandomScale(v2.Transform):  # type: ignore[misc]
    """Scale image and mask by a random factor; half of the draws shrink.

    Args:
        low: Smallest factor, at most 1.
        high: Largest factor, at least 1.

    Raises:
        ValueError: If a factor is out of range.
    """

    def __init__(self, low: float = 0.5, high: float = 2.0) -> None:
        super().__init__()
        if not 0 < low <= 1 <= high:
            raise ValueError(f"low={low} and high={high} must hold 0 < low <= 1 <= high.")
        self.low = low
        self.high = high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factor."""
        shrinks, share = torch.rand(2).tolist()
        factor = self.low + (1 - self.low) * share if shrinks < 0.5 else 1 + (self.high - 1) * share
        height, width = v2.functional.get_size(flat_inputs[0])
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize an image smoothly, a mask by the nearest pixel."""
        return v2.functional.resize(inpt, params["size"], antialias=True)


class SceneCrop(v2.Transform):  # type: ignore[misc]
    """Cut a random square out of image and mask; what is missing is padded with black and with 255.

    Args:
        size: Side in pixels.
        max_class_share: A crop in which one class takes a larger share of the labelled pixels is drawn again, up to ten
            times; 1 is off. Published for domain adaptation: 0.75.
        pad_label: Label of the padding. The official code of FST for semi-supervised learning pads with 0, which is a
            class.

    Raises:
        ValueError: If an argument is out of range.
    """

    TRIES = 10

    def __init__(self, size: int, max_class_share: float = 1.0, pad_label: int = IGNORE) -> None:
        super().__init__()
        if size < 1 or not 0 < max_class_share <= 1:
            raise ValueError(f"size={size} must be at least 1, max_class_share={max_class_share} in (0, 1].")
        self.size = size
        self.max_class_share = max_class_share
        self.pad_label = pad_label

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the place."""
        height, width = v2.functional.get_size(flat_inputs[0])
        masks = [entry for entry in flat_inputs if isinstance(entry, tv_tensors.Mask)]
        place = (0, 0)
        for _ in range(self.TRIES if masks and self.max_class_share < 1 else 1):
            top = int(torch.randint(max(1, height - self.size + 1), ()))
            left = int(torch.randint(max(1, width - self.size + 1), ()))
            place = top, left
            if not masks or largest_share(masks[0][..., top : top + self.size, left : left + self.size]) <= (
                self.max_class_share
            ):
                break
        return {"place": place, "padding": [0, 0, max(0, self.size - width), max(0, self.size - height)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Pad right and below, and crop."""
        if any(params["padding"]):
            fill = self.pad_label if isinstance(inpt, tv_tensors.Mask) else 0
            inpt = v2.functional.pad(inpt, params["padding"], fill=fill)
        return v2.functional.crop(inpt, *params["place"], self.size, self.size)


def largest_share(mask: Tensor) -> float:
    """Return the share of the most frequent class among the labelled pixels of a mask; 0 if there are none."""
    counts = torch.bincount(mask[mask != IGNORE].flatten().long())
    return float(counts.max() / counts.sum()) if len(counts) else 0.0
