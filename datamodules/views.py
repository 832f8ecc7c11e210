"""From a source's images to the batches that every method is promised."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from zoo.datamodules.sources.images import UNREADABLE
from zoo.datamodules.sources.source import LabeledImages

# In Python any callable will do. The command line takes classes of this type, not any callable: jsonargparse 4.52 and
# 4.53 write a list of callables into config.yaml as a text that cannot be read back.
Transform: TypeAlias = v2.Transform

# Transforms that give the same result for the same image. Any other one counts as random.
FIXED_TRANSFORMS = (
    v2.CenterCrop, v2.Compose, v2.ConvertImageDtype, v2.Grayscale, v2.Identity, v2.Normalize, v2.Pad,
    v2.PILToTensor, v2.Resize, v2.RGB, v2.ToDtype, v2.ToImage, v2.ToPILImage, v2.ToPureTensor,
)  # fmt: skip


def compose(transform: Transform | Sequence[Transform] | None) -> Transform | None:
    """Return one transform for one, several or none."""
    if transform is None or callable(transform):
        return transform
    return v2.Compose(list(transform)) if transform else None


def is_fixed(transform: Transform | None) -> bool:
    """Say whether a transform is known to give the same result each time; an unknown one is not."""
    if transform is None:
        return True
    if isinstance(transform, v2.Compose):
        return all(is_fixed(part) for part in transform.transforms)
    return type(transform) in FIXED_TRANSFORMS


class ImageView(Dataset[tuple[Tensor, int]]):
    """Some of a source's images, under other labels and with a transform. Copies no image.

    Each image is made RGB, goes through ``transform``, and leaves as a float tensor of shape (3, H, W) in [0, 1].

    Args:
        images: The source's data set.
        indices: Which of its images, int64 of shape (N,).
        labels: The label of each, int64 of shape (N,).
        transform: What happens to an RGB PIL image or uint8 tensor; any torchvision v2 transform.
    """

    def __init__(self, images: LabeledImages, indices: Tensor, labels: Tensor, transform: Transform | None) -> None:
        self.images = images
        self.indices = indices
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        index = int(self.indices[position])
        try:
            image, _ = self.images[index]
        except UNREADABLE as error:
            raise ValueError(f"Cannot read {self.describe(index)}: {error}") from error
        image = self.to_rgb(image, index)
        if self.transform is not None:
            image = self.transform(image)
        return self.unit_range(image, index), int(self.labels[position])

    def to_rgb(self, image: Image.Image | Tensor, index: int) -> Image.Image | Tensor:
        """Return an image with three channels, or say why it has none."""
        if isinstance(image, Tensor):
            if image.ndim != 3 or image.shape[0] not in (1, 3):
                raise ValueError(
                    f"{self.describe(index)} has shape {tuple(image.shape)}; it must be (1, H, W) or (3, H, W)."
                )
            return image.expand(3, -1, -1)
        if image.mode.startswith(("I", "F")):  # PIL would clip such values at 255: an almost white image
            raise ValueError(
                f"{self.describe(index)} has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits."
            )
        return image.convert("RGB")

    def unit_range(self, image: Any, index: int) -> Tensor:
        """Return a plain float tensor of shape (3, H, W) in [0, 1], or say what the transform did wrong."""
        tensor: Tensor = v2.functional.to_dtype(v2.functional.to_image(image), torch.float32, scale=True)
        if tensor.ndim != 3 or tensor.shape[0] != 3:
            raise ValueError(
                f"{self.describe(index)} has shape {tuple(tensor.shape)} after the transform, but images must have "
                "three channels, (3, H, W): a Grayscale, say, needs num_output_channels=3."
            )
        low, high = tensor.aminmax()
        # A resize by bicubic interpolation of a float image may overshoot a little; a normalised image leaves by far.
        # Written so that NaN fails too.
        if not (low >= -0.5 and high <= 1.5):
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{self.describe(index)} has values that are not finite after the transform.")
            raise ValueError(
                f"{self.describe(index)} has values in [{low:.3g}, {high:.3g}] after the transform, but images must "
                "stay in [0, 1]: remove Normalize from the transforms, because the method normalises (arguments mean "
                "and std)."
            )
        return tensor.as_subclass(Tensor)

    def describe(self, index: int) -> str:
        """Return the file name of an image where there is one, else its position."""
        samples = getattr(self.images, "samples", None)
        if samples is not None:
            return str(samples[index][0])
        return f"image {index} of {getattr(self.images, 'name', type(self.images).__name__)}"
