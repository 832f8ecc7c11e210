"""Networks that give each pixel a class: one small one, torchvision's, and any decoder on any timm encoder."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.backbones import first_line

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SegmentationNetwork(nn.Module):
    """A network behind its normalisation, whose scores have the size of the image.

    Args:
        model: Maps images (B, 3, H, W) to logits (B, C, h, w), or to a dict with such an entry ``"out"``, as
            torchvision's do.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel.
        multiple: The model takes sides that are multiples of so many pixels; other images are padded with the mean, on
            the right and below, and the scores are cut.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        multiple: int = 1,
    ) -> None:
        super().__init__()
        self.model = model
        self.multiple = multiple
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @property
    def encoder(self) -> nn.Module | None:
        """The part that may be pretrained, if the network has such a part."""
        return getattr(self.model, "encoder", None) or getattr(self.model, "backbone", None)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (B, C, H, W), at least float32, of images in [0, 1]."""
        height, width = images.shape[-2:]
        x = (images - self.mean) / self.std
        if width % self.multiple or height % self.multiple:
            x = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        output = self.model(x)
        logits: Tensor = output["out"] if isinstance(output, Mapping) else output
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if logits.shape[-2:] != x.shape[-2:]:
            logits = F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)
        return logits[..., :height, :width]


@contextmanager
def last_features(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what an encoder returns while it runs: its last stage, where it returns several.

    Args:
        module: The encoder.

    Yields:
        A list that grows by one feature map at each call.
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        output = list(output.values()) if isinstance(output, Mapping) else output
        seen.append(output if isinstance(output, Tensor) else output[-1])

    hook = module.register_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


class SmallUNet(nn.Module):
    """A U-shape small enough for a processor: three times halved, twice enlarged, scores at half the resolution.

    Args:
        num_classes: Number of classes.
        width: Channels of the first block. With 12, and 11 classes, it has 63,215 parameters.
    """

    def __init__(self, num_classes: int, width: int = 12) -> None:
        super().__init__()
        self.down1 = block(3, width, stride=2)
        self.down2 = nn.Sequential(block(width, 2 * width, stride=2), block(2 * width, 2 * width))
        self.down3 = nn.Sequential(block(2 * width, 4 * width, stride=2), block(4 * width, 4 * width))
        self.up2 = block(6 * width, 2 * width)
        self.up1 = block(3 * width, 2 * width)
        self.classifier = nn.Conv2d(2 * width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of half the height and width."""
        half = self.down1(images)
        quarter = self.down2(half)
        x = self.up2(torch.cat([enlarge_to(quarter, self.down3(quarter)), quarter], dim=1))
        x = self.up1(torch.cat([enlarge_to(half, x), half], dim=1))
        scores: Tensor = self.classifier(x)
        return scores


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a 3 x 3 convolution, batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def enlarge_to(like: Tensor, x: Tensor) -> Tensor:
    """Return features bilinearly enlarged to the size of others."""
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def create_segmentation_network(
    name: str,
    num_classes: int,
    pretrained: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **network_args: Any,
) -> SegmentationNetwork:
    """Build a network that gives each pixel a class.

    Args:
        name: ``"small_unet"``, :class:`SmallUNet`; ``"torchvision/<model>"``, such as
            ``"torchvision/deeplabv3_resnet101"``; or ``"smp/<architecture>/<encoder>"`` of segmentation-models-pytorch,
            such as ``"smp/deeplabv3plus/resnet101"``, with any timm encoder as ``"smp/unet/tu-convnext_tiny"``.
        num_classes: Number of classes.
        pretrained: Load ImageNet weights of the encoder, from the hub or its cache.
        mean: Mean of each channel for pixels in [0, 1]. Default: ImageNet's, for the small network 0.
        std: Standard deviation of each channel. Default: ImageNet's, for the small network 1.
        **network_args: Further arguments of the network, such as ``encoder_output_stride``.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: If there is no such network, or the small one is to be pretrained.
        ModuleNotFoundError: If segmentation-models-pytorch is needed and not installed.
        RuntimeError: If the weights cannot be downloaded.
    """
    library, _, rest = name.partition("/")
    if library == "small_unet":
        if pretrained:
            raise ValueError("small_unet has no pretrained weights: use pretrained=False.")
        return SegmentationNetwork(
            SmallUNet(num_classes, **network_args), mean or (0.0, 0.0, 0.0), std or (1.0, 1.0, 1.0)
        )
    builders = {"torchvision": from_torchvision, "smp": from_smp}
    if library not in builders or not rest:
        raise ValueError(
            f"network={name!r} is none of small_unet, torchvision/<model>, smp/<architecture>/<encoder>; for instance "
            "torchvision/deeplabv3_resnet50 or smp/deeplabv3plus/resnet101."
        )
    try:
        model: Any = builders[library](rest, num_classes, pretrained, network_args)
    except (OSError, RuntimeError) as error:  # hub and http errors are OSErrors
        if not pretrained:
            raise
        raise RuntimeError(
            f"Could not load the pretrained encoder of {name!r} ({type(error).__name__}: {first_line(error)}). Without "
            "a network use pretrained=False, or start_from=FILE of the method."
        ) from error
    # segmentation-models-pytorch refuses other sides, PASCAL VOC's and crops of 513 pixels among them.
    multiple = int(model.encoder.output_stride) if getattr(model, "requires_divisible_input_shape", False) else 1
    return SegmentationNetwork(model, mean or IMAGENET_MEAN, std or IMAGENET_STD, multiple)


def from_torchvision(name: str, num_classes: int, pretrained: bool, network_args: dict[str, Any]) -> nn.Module:
    """Return a segmentation model of torchvision."""
    from torchvision.models import get_model, list_models, segmentation

    known = list_models(module=segmentation)
    if name not in known:
        raise ValueError(f"torchvision has no segmentation model {name!r}; it has {', '.join(known)}.")
    weights = "DEFAULT" if pretrained else None
    model: nn.Module = get_model(name, weights=None, weights_backbone=weights, num_classes=num_classes, **network_args)
    return model


def from_smp(name: str, num_classes: int, pretrained: bool, network_args: dict[str, Any]) -> nn.Module:
    """Return a model of segmentation-models-pytorch."""
    try:
        import segmentation_models_pytorch as smp
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"network='smp/{name}' needs segmentation-models-pytorch: pip install 'lightning-zoo[segmentation]'."
        ) from error
    architecture, _, encoder = name.partition("/")
    try:
        model: nn.Module = smp.create_model(
            architecture,
            encoder_name=encoder or "resnet34",
            encoder_weights="imagenet" if pretrained else None,
            classes=num_classes,
            **network_args,
        )
    except KeyError as error:  # an architecture or an encoder it does not know; the text lists those it does
        raise ValueError(f"segmentation-models-pytorch has no network {name!r}: {error}") from error
    return model


def sliding_window(network: nn.Module, images: Tensor, size: int, stride: int | None = None) -> Tensor:
    """Return the logits of images that are larger than what a network was trained on, averaged where windows overlap.

    Args:
        network: Maps images (B, 3, h, w) to logits (B, C, h, w).
        images: Shape (B, 3, H, W).
        size: Side of a window in pixels; smaller images are one window.
        stride: From one window to the next. Default: two thirds of the side, rounded up. The last window ends with the
            image.
    """
    stride = math.ceil(size * 2 / 3) if stride is None else stride
    height, width = images.shape[-2:]
    total, count = torch.zeros(()), torch.zeros(height, width, device=images.device)
    for top in window_starts(height, size, stride):
        for left in window_starts(width, size, stride):
            logits = network(images[..., top : top + size, left : left + size])
            if total.ndim == 0:
                total = logits.new_zeros(len(images), logits.shape[1], height, width)
            total[..., top : top + size, left : left + size] += logits
            count[top : top + size, left : left + size] += 1
    return total / count


def window_starts(length: int, size: int, stride: int) -> list[int]:
    """Return where windows begin along one side."""
    last = max(0, length - size)
    return [*range(0, last, stride), last]
