"""Residual networks for images of 32 pixels, under names that timm knows after this import.

They begin with a 3 x 3 convolution of stride 1 and no pooling, where the networks for ImageNet shrink an image to a
quarter of its side before the first block. Everything else is timm's.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

# Of CIFAR-100's training images.
CONFIG = {
    "input_size": (3, 32, 32), "mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761),
    "num_classes": 100, "pool_size": None, "interpolation": "bilinear", "crop_pct": 1.0, "first_conv": "conv1",
    "classifier": "fc",
}  # fmt: skip
default_cfgs = generate_default_cfgs({"cifar_resnet18": CONFIG, "cifar_resnet20": CONFIG})  # timm looks for this name


def small_stem(model: Any, width: int) -> Any:
    """Give a ResNet a first layer that keeps the size of the image."""
    in_chans = next(part for part in model.modules() if isinstance(part, nn.Conv2d)).in_channels
    model.conv1 = nn.Conv2d(in_chans, width, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


@register_model
def cifar_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with a first layer for images of 32 pixels; 512 features.

    Args:
        pretrained: There are no weights: False.
        **kwargs: Of timm's ``ResNet``.

    Source:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """
    settings = {"block": BasicBlock, "layers": (2, 2, 2, 2), **kwargs}
    model: nn.Module = small_stem(build_model_with_cfg(ResNet, "cifar_resnet18", pretrained, **settings), width=64)
    return model


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-20: three stages of 16, 32 and 64 channels; 64 features, 0.27 million weights.

    Shortcuts that change the width are convolutions (timm's), not the padding of the paper.

    Args:
        pretrained: There are no weights: False.
        **kwargs: Of timm's ``ResNet``.

    Source:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.
    """
    # timm takes the width behind the stem, 16, from a deep stem only, which is replaced.
    stages = {"layers": (3, 3, 3), "channels": (16, 32, 64), "stem_type": "deep", "stem_width": 8}
    settings = {"block": BasicBlock, **stages, **kwargs}
    model: Any = small_stem(build_model_with_cfg(ResNet, "cifar_resnet20", pretrained, **settings), width=16)
    model.layer4 = nn.Identity()  # which timm's forward pass calls
    network: nn.Module = model
    return network
