"""Try a module on images before training, and leave no trace of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn


@contextmanager
def without_trace(module: nn.Module) -> Iterator[None]:
    """Run a module in evaluation mode and give it back its modes, its buffers, and everybody the random state."""
    modes = {part: part.training for part in module.modules()}
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        with isolate_rng():
            module.eval()
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def run_once(module: nn.Module, images: Tensor, with_gradient: bool) -> None:
    """Run a module, and the gradient of its outputs if it is wanted, which ``.grad`` does not see."""
    with torch.set_grad_enabled(with_gradient):
        outputs = [tensor for tensor in tensors_of(module(images)) if tensor.requires_grad]
        learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if with_gradient and outputs and learned:
            torch.autograd.grad([output.sum() for output in outputs], learned, allow_unused=True)


def tensors_of(value: Any) -> list[Tensor]:
    """Return every tensor of nested containers."""
    found: list[Tensor] = []
    apply_to_collection(value, Tensor, found.append, allow_frozen=True)
    return found


def refusal(module: nn.Module, images: Tensor, error: Exception) -> str:
    """Return what a person can do if a module does not take a size."""
    height, width = images.shape[-2:]
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    if isinstance(error, torch.OutOfMemoryError):
        advice = "make the batch smaller"
    elif found := next(filter(None, map(cure_of_one_size, module.modules())), None):
        advice = (
            f"the network insists on one size: build it with {found} (in zoo.ImageClassifier by backbone_args), and "
            "use sizes that are multiples of its patch"
        )
    else:
        advice = (
            "choose sizes that the network's strides or windows divide (divisor, or stages of your own), or a network "
            "that takes several sizes: timm's ViT and DeiT with dynamic_img_size=True, Swin with "
            "strict_img_size=False, ConvNeXt, ResNet, EfficientNet. MaxViT, BEiT, Mixer, CaiT and LeViT take one only"
        )
    return (
        f"The network fails on images of {height} x {width}, which the curriculum asks for "
        f"({type(error).__name__}: {reason}). To cure it, {advice}. check=False leaves this trial out."
    )


def cure_of_one_size(network: nn.Module) -> str | None:
    """Return the argument with which a network of timm that takes one size only would take several."""
    if not getattr(getattr(network, "patch_embed", None), "strict_img_size", False):
        return None
    arguments = signature(type(network).__init__).parameters
    known = ("strict_img_size=False", "dynamic_img_size=True")  # Swin has both, the second in later releases
    return next((argument for argument in known if argument.partition("=")[0] in arguments), None)
