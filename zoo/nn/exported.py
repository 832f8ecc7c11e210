"""Trained networks as files that timm loads by itself."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from zoo.functional import atomic_path
from zoo.nn.weights import ENCODER, split_autoencoder

SUFFIX = ".safetensors"


def export_weights(state: Mapping[str, Tensor], path: str | Path, facts: Mapping[str, Any]) -> None:
    """Write the weights of a timm network to a file that ``timm.create_model(..., checkpoint_path=path)`` loads.

    Args:
        state: The state of the network, without a classifier.
        path: Name of the file, ending with ``.safetensors``.
        facts: What one has to know to build the network; they stand in the file's metadata, as JSON.

    Raises:
        ValueError: If the name of the file ends otherwise.
    """
    from safetensors.torch import save_file  # timm needs it too

    if Path(path).suffix != SUFFIX:
        raise ValueError(f"{path} must end with {SUFFIX}, the format that holds the weights and what they are of.")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"format": "pt"} | {name: json.dumps(value) for name, value in facts.items()})


def facts_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what one has to know to build the network of a method, of its settings.

    Args:
        settings: Hold ``backbone``, and maybe ``backbone_args``, ``mean`` and ``std``, as those of zoo's methods do.
    """
    config: Any = timm.get_pretrained_cfg(settings["backbone"])
    return {
        "backbone": settings["backbone"],
        "backbone_args": dict(settings.get("backbone_args") or {}),
        "mean": list(settings.get("mean") or config.mean),
        "std": list(settings.get("std") or config.std),
    }


def export_checkpoint(checkpoint_path: str | Path, path: str | Path) -> dict[str, Any]:
    """Write the network of a checkpoint of zoo to a file that timm loads by itself.

    Neither the method nor its teacher is built.

    Args:
        checkpoint_path: A checkpoint of a method whose network is ``backbone``.
        path: Name of the file, ending with ``.safetensors``.

    Returns:
        What one has to know to build the network: ``backbone``, its name in timm; ``backbone_args``, ``mean``, ``std``.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it holds no network that timm knows by name.
    """
    if not Path(checkpoint_path).is_file():
        raise FileNotFoundError(f"{checkpoint_path} is no file.")
    checkpoint = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
    settings, state = checkpoint.get("hyper_parameters", {}), checkpoint.get("state_dict", {})
    if not isinstance(settings.get("backbone"), str) or not any(name.startswith(ENCODER) for name in state):
        raise ValueError(
            f"{checkpoint_path} holds no network of timm: it has to be a checkpoint of a method that trains one, such "
            "as zoo.MAE or zoo.ImageClassifier. One that is frozen and can be rebuilt is not in checkpoints."
        )
    facts = facts_of(settings)
    export_weights(split_autoencoder(state)[0], path, facts)
    return facts
