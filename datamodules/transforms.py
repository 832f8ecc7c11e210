"""Training transforms whose strength can change while loader workers live on."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from zoo.functional.choices import check_choice

IMAGENET_MEAN = (0.485, 0.456, 0.406)
LARGEST_MAGNITUDE = 10.0  # timm's scale

Interpolation: TypeAlias = Literal["random", "bilinear", "bicubic"]
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class SharedValue:
    """A number that the main process writes and all loader workers read, whenever they were started.

    A worker has a copy of the data set from the moment it was started; with ``persistent_workers=True`` it never sees
    an attribute that changed since. This number lies in shared memory, and a copy of it is the same number.

    Args:
        value: What it is at first.
    """

    def __init__(self, value: float) -> None:
        self._memory = torch.tensor([value], dtype=torch.float64)
        self._memory.share_memory_()  # type: ignore[no-untyped-call]  # torch has no types here

    def get(self) -> float:
        """Return the number."""
        return float(self._memory.item())

    def set(self, value: float) -> None:
        """Write the number."""
        self._memory.fill_(value)

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedValue":
        return self  # a copied tensor would not be shared any more, without a word


class ScheduledRandAugment(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """timm's RandAugment, with a strength that can be set while workers run; a torchvision v2 transform.

    Where timm writes ``rand-m9-mstd0.5-inc1``, this is ``ScheduledRandAugment(9)``, and with
    ``interpolation="bicubic"`` that of training scripts with ``train_interpolation="bicubic"``: equal images for equal
    random states. It takes PIL images and tensors of 8 bits; masks, boxes and labels pass.
    :class:`zoo.callbacks.EfficientTrain` finds it among the training transforms and sets its strength.

    Strength 0 is not off: some operations (equalise, invert, contrast by histogram) have no strength, and half of the
    images still change.

    Args:
        magnitude: Strength, 0 to 10, until it is set.
        num_ops: Operations an image.
        probability: Chance of each operation to be applied.
        magnitude_std: Spread of the strength from one operation to the next. The published 0.5 is timm's, not the
            paper's of RandAugment.
        image_size: Side of the images in pixels, which bounds translations to 0.45 of it.
        mean: Colour, in [0, 1], of what a translated or rotated image leaves free.
        interpolation: Of rotated, sheared and translated images; "random" draws one of the two for each.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: When it is called with a float image: it works on 8 bits, so before ``v2.ToDtype``.

    Source:
        Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", NeurIPS 2020;
        the variant with increasing severity and random magnitude is timm's (Wightman, "PyTorch Image Models", 2019).
    """

    _transformed_types: ClassVar = (v2.functional.is_pure_tensor, tv_tensors.Image, Image.Image)

    def __init__(
        self,
        magnitude: float = 9,
        num_ops: int = 2,
        probability: float = 0.5,
        magnitude_std: float = 0.5,
        image_size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        interpolation: Interpolation = "random",
    ) -> None:
        super().__init__()
        check_choice("interpolation", interpolation, Interpolation)
        if num_ops < 1 or not 0 <= probability <= 1 or magnitude_std < 0 or image_size < 1:
            raise ValueError(
                f"num_ops={num_ops} and image_size={image_size} must be at least 1, probability={probability} in "
                f"[0, 1], magnitude_std={magnitude_std} not negative."
            )
        self._magnitude = SharedValue(0)
        self.set_magnitude(magnitude)
        settings: dict[str, Any] = {
            "translate_const": int(0.45 * image_size),
            "img_mean": tuple(min(255, round(255 * value)) for value in mean),
        }
        if interpolation != "random":
            settings["interpolation"] = INTERPOLATIONS[interpolation]
        name = f"rand-n{num_ops}-p{probability}-mstd{magnitude_std}-inc1"
        self._augment = rand_augment_transform(name, settings)
        for operation in self._augment.ops:
            if operation.name == "PosterizeIncreasing":
                operation.level_fn = partial(at_least_one_bit, operation.level_fn)

    @property
    def magnitude(self) -> float:
        """The strength, 0 to 10, in this and in every loader process."""
        return self._magnitude.get()

    def set_magnitude(self, magnitude: float) -> None:
        """Set the strength for all images from now on; what workers have fetched already stays.

        Args:
            magnitude: 0 to 10.

        Raises:
            ValueError: If it is out of range.
        """
        if not 0 <= magnitude <= LARGEST_MAGNITUDE:
            raise ValueError(f"magnitude={magnitude} must be in [0, {LARGEST_MAGNITUDE:g}].")
        self._magnitude.set(magnitude)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Augment one image; torchvision calls this for whatever is an image."""
        if isinstance(inpt, Tensor):
            if inpt.dtype != torch.uint8:
                raise TypeError(f"ScheduledRandAugment works on 8 bits, got {inpt.dtype}: put it before v2.ToDtype.")
            image = self.transform(v2.functional.to_pil_image(inpt), params)
            return tv_tensors.wrap(v2.functional.pil_to_tensor(image), like=inpt)
        magnitude = self.magnitude
        for operation in self._augment.ops:
            operation.magnitude = magnitude
        return self._augment(inpt)

    def extra_repr(self) -> str:
        """Return what ``print`` shows."""
        return f"magnitude={self.magnitude:g}, num_ops={self._augment.num_layers}"


def at_least_one_bit(level_fn: Callable[..., tuple[int]], level: float, settings: dict[str, Any]) -> tuple[int]:
    """Return how many bits posterising keeps: at strength 10 timm asks for none, at which Pillow 13 raises an error.

    Earlier versions of Pillow made a black image of it. With strength 9 and spread 0.5 it meets one in 500 images.
    """
    return (max(1, level_fn(level, settings)[0]),)
