"""The low-frequency crop as a module and as a transform."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from zoo.functional.low_frequency import Downsampling, Nyquist, downsample


class LowFrequencyCrop(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """Make images smaller by keeping their low frequencies; a torchvision v2 transform, so an ``nn.Module`` too.

    It takes one image or a batch, alone or in a sample with labels, and works without gradient. It holds no parameter
    and no buffer; ``size`` may be changed at any time.

    Args:
        size: Side of the result in pixels, or height and width.
        nyquist: See :func:`zoo.functional.low_frequency_crop`.
        mode: See :func:`zoo.functional.downsample`.

    Raises:
        TypeError: When it is called with a PIL image: put ``v2.ToImage`` and ``v2.ToDtype(torch.float32, scale=True)``
            before it.
        ValueError: When it is called, if the size does not fit the image.

    Source:
        Wang et al., "EfficientTrain: Exploring Generalized Curriculum Learning for Training Visual Backbones", ICCV
        2023, low-frequency cropping (Section 4.1).
    """

    _transformed_types: ClassVar = (v2.functional.is_pure_tensor, tv_tensors.Image, tv_tensors.Video, Image.Image)

    def __init__(
        self, size: int | Sequence[int], nyquist: Nyquist = "official", mode: Downsampling = "fourier"
    ) -> None:
        super().__init__()
        self.size = size
        self.nyquist = nyquist
        self.mode = mode

    @torch.no_grad()
    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop one image or a batch of them; torchvision calls this for whatever is an image."""
        if not isinstance(inpt, Tensor):
            raise TypeError(
                f"LowFrequencyCrop needs a tensor, got {type(inpt).__name__}: put v2.ToImage and "
                "v2.ToDtype(torch.float32, scale=True) before it."
            )
        batch = inpt.as_subclass(Tensor)  # of a tv_tensor, whose kind is kept below
        batch = batch.reshape(-1, *batch.shape[-3:])
        smaller = downsample(batch, self.size, self.mode, self.nyquist)
        return tv_tensors.wrap(smaller.reshape(*inpt.shape[:-2], *smaller.shape[-2:]), like=inpt)

    def extra_repr(self) -> str:
        """Return what ``print`` shows."""
        return f"size={self.size}, nyquist={self.nyquist!r}, mode={self.mode!r}"
