"""Files of weights for networks without a classifier."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import load_checkpoint
from torch import Tensor, nn

ENCODER = "backbone.model."  # where zoo's methods have their timm network
DECODER = "decoder."


def load_weights(model: nn.Module, path: str) -> dict[str, Tensor]:
    """Load a file of weights into a timm model that was built without a classifier.

    The file may hold a classifier, which is left out, or belong to another image size, for which timm resamples tables
    of positions. It may come from a transformer that pools by its class token where the model takes the mean of the
    patches: then the last normalisation starts anew, because timm's stands behind the mean. It may be a checkpoint of a
    method of zoo, or the published file of a whole masked autoencoder: then their encoder is loaded.

    Args:
        model: The timm model, with ``num_classes=0``.
        path: A file that timm can read: a state, alone or under ``state_dict`` or ``model``, or safetensors.

    Returns:
        The tensors of a masked autoencoder's decoder, by the names of :class:`~zoo.nn.MAEDecoder`, if the file has one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If anything else is missing or unknown.
        RuntimeError: If a tensor has another shape.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint_path={path!r} is no file.")
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)  # timm's name in each family
    decoder: dict[str, Tensor] = {}

    def take(state: dict[str, Tensor], model: Any) -> Any:
        encoder, rest = split_autoencoder(state)
        decoder.update(rest)
        return adapt(encoder, model) if adapt is not None else encoder

    result: Any = load_checkpoint(model, path, strict=False, filter_fn=take)
    if result is None:  # a file of numpy arrays, which the model reads by itself
        return decoder
    classifiers: Any = model.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr,operator]  # a dict
    left_out = [classifiers] if isinstance(classifiers, str) else list(classifiers)
    new = []
    if any(name.startswith("fc_norm.") for name in result.missing_keys):
        left_out, new = [*left_out, "norm"], ["fc_norm"]
    missing, unknown = without(result.missing_keys, new), without(result.unexpected_keys, left_out)
    if missing or unknown:
        raise ValueError(
            f"{path} does not fit {type(model).__name__}: missing {', '.join(missing[:3]) or 'nothing'}; unknown "
            f"{', '.join(unknown[:3]) or 'nothing'}. Are the weights of another network?"
        )
    return decoder


def split_autoencoder(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the encoder by timm's names, and the decoder by those of :class:`~zoo.nn.MAEDecoder`.

    Args:
        state: Of a method of zoo, of the official code of masked autoencoders, or of the encoder alone.
    """
    if any(name.startswith(ENCODER) for name in state):
        parts = [
            {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            for prefix in (ENCODER, DECODER)
        ]
        return parts[0], parts[1]
    if "decoder_embed.weight" not in state:
        return dict(state), {}
    of_decoder = {name for name in state if name.startswith("decoder_") or name == "mask_token"}
    decoder = {name.removeprefix("decoder_"): state[name] for name in of_decoder - {"decoder_pos_embed"}}
    return {name: tensor for name, tensor in state.items() if name not in of_decoder}, decoder


def without(names: list[str], parts: list[str]) -> list[str]:
    """Return the names of tensors that belong to none of some parts of a module."""
    return [name for name in names if not any(name.startswith(f"{part}.") for part in parts)]
