"""Trick A1: a few careful epochs on the shots of a session, instead of prototypes alone.

What moves is the classifier's new rows and, much more slowly, the last stage of the encoder. Everything else, the rows
of old classes and the statistics of batch normalisation included, stays as it is, bit for bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def last_stage(model: nn.Module, name: str | None = None) -> nn.Module:
    """Return the part of a timm model that is tuned.

    Args:
        model: The model.
        name: Its name, such as "layer4". Default: what timm lists as the last stage; the last convolution of a model
            without stages.

    Raises:
        ValueError: If there is no such part; names those there are.
    """
    if name is not None:
        parts: dict[str, nn.Module] = dict(model.named_modules())
        if not name or name not in parts:
            known = ", ".join(dict(model.named_children()))
            raise ValueError(f"tuned_stage={name!r} is no part of the backbone; it has {known}, and their parts.")
        return parts[name]
    stages: Any = getattr(model, "feature_info", None)
    if stages:
        stage: nn.Module = model.get_submodule(stages[-1]["module"])
        return stage
    convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    if not convolutions:
        raise ValueError(f"{type(model).__name__} has neither stages nor convolutions: give tuned_stage.")
    return convolutions[-1]


def tuned_parameters(model: nn.Module, neck: nn.Module, stage: str | None = None) -> dict[str, nn.Parameter]:
    """Return what moves beside the new rows: the last stage of an encoder, and the neck, by name.

    Args:
        model: The timm model.
        neck: What stands between its features and the classifier.
        stage: See :func:`last_stage`.
    """
    return {
        f"{name}.{key}": parameter
        for name, part in (("stage", last_stage(model, stage)), ("neck", neck))
        for key, parameter in part.named_parameters()
    }


@contextmanager
def moving_only(tunable: Sequence[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Let an optimizer step move some entries only; the others are bit for bit what they were.

    Whatever the optimizer does, weight decay and momentum included.

    Args:
        tunable: Parameters, and a bool mask, which is broadcast, of the entries that may move.
    """
    before = [parameter.detach().clone() for parameter, _ in tunable]
    yield
    with torch.no_grad():
        for (parameter, mask), old in zip(tunable, before, strict=True):
            parameter.copy_(torch.where(mask, parameter, old))
