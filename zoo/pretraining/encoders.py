"""The networks of masked autoencoders: timm's vision transformers, trained or frozen."""

from typing import Any

from torch import Tensor

from zoo.nn import Backbone, create_backbone
from zoo.nn.visible_patches import check_transformer
from zoo.nn.weights import load_weights


def build_encoder(
    name: str,
    pretrained: bool,
    checkpoint_path: str | None,
    mean: list[float] | None,
    std: list[float] | None,
    backbone_args: dict[str, Any] | None,
) -> tuple[Backbone, dict[str, Tensor]]:
    """Return a vision transformer that can be run on some patches, and the decoder's tensors that its file has too.

    Args:
        name: A timm model by name.
        pretrained: Whether to download weights; a file has precedence.
        checkpoint_path: A file of weights, see :func:`zoo.nn.weights.load_weights`.
        mean: See :func:`zoo.nn.create_backbone`, as the next.
        std: See there.
        backbone_args: More arguments of ``timm.create_model``.

    Raises:
        ValueError: If the network or an argument does not fit.
    """
    arguments = dict(backbone_args or {})
    reserved = {"num_classes", "pretrained", "checkpoint_path"} & arguments.keys()
    if reserved:
        raise ValueError(f"backbone_args holds {sorted(reserved)}: use the arguments of the method for that.")
    backbone = create_backbone(name, pretrained and checkpoint_path is None, None, mean, std, **arguments)
    check_transformer(backbone.model)
    channels: int = backbone.model.patch_embed.proj.in_channels  # type: ignore[union-attr,assignment]
    for label, values in (("mean", backbone.mean), ("std", backbone.std)):
        if len(values) != channels:
            raise ValueError(
                f"{label} holds {len(values)} numbers, and the images have {channels} channels: give one for each."
            )
    decoder = {} if checkpoint_path is None else load_weights(backbone.model, checkpoint_path)
    return backbone, decoder
