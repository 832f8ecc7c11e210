"""The student of self-training: which of its parameters learn how fast, and what it starts from."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.nn import SegmentationNetwork, check_state


def parameter_groups(network: nn.Module, head_lr_factor: float, decay_norms: bool) -> list[dict[str, Any]]:
    """Return groups of the parameters that train, with ``lr_scale`` and, where nothing decays, ``weight_decay`` 0.

    Raises:
        ValueError: If heads are to have another rate and the network has no encoder.
    """
    encoder = network.encoder if isinstance(network, SegmentationNetwork) else None
    if encoder is None and head_lr_factor != 1:
        raise ValueError(
            f"head_lr_factor={head_lr_factor} is for all that is no encoder, and the network has none: set it to 1."
        )
    of_encoder = set(encoder.parameters()) if encoder is not None else set(network.parameters())
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            key = parameter in of_encoder, decay_norms or parameter.ndim > 1
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": members, "lr_scale": 1.0 if encodes else head_lr_factor} | ({} if decays else {"weight_decay": 0.0})
        for (encodes, decays), members in groups.items()
    ]


def load_student(student: nn.Module, path: str) -> None:
    """Load the student of a checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no student, or another one.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"start_from={path!r} is no file.")
    state = torch.load(path, map_location="cpu", weights_only=True).get("state_dict", {})
    weights = {name.removeprefix("student."): value for name, value in state.items() if name.startswith("student.")}
    if not weights:
        raise ValueError(f"start_from={path!r} holds no student: it is no checkpoint of MeanTeacher or FST.")
    check_state(student, weights)
    student.load_state_dict(weights)
