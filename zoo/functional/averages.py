"""Moving averages of parameters: the teachers of self-training."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def ema_update_(averages: Sequence[Tensor], parameters: Sequence[Tensor], momentum: float) -> None:
    """Move averages towards parameters, in place: ``momentum * average + (1 - momentum) * parameter``.

    Keep averages in float32: in bfloat16 a step of 0.001 is lost to rounding, and the average stands still.

    Args:
        averages: What is moved.
        parameters: One for each, of its shape and dtype.
        momentum: Share of the average that stays, 0 to 1; at 0 the parameters are copied.

    Raises:
        ValueError: If the numbers of tensors differ.
    """
    if len(averages) != len(parameters):
        raise ValueError(f"There are {len(averages)} averages for {len(parameters)} parameters.")
    if averages:
        torch._foreach_lerp_(list(averages), [parameter.detach() for parameter in parameters], 1 - momentum)


def momentum_at(step: int, momentum: float) -> float:
    """Return the momentum of a step with the usual warm-up, ``min(1 - 1 / (step + 1), momentum)``.

    Args:
        step: From 0, at which the average is a copy.
        momentum: The final one.

    Source:
        Tarvainen and Valpola, "Mean teachers are better role models: Weight-averaged consistency targets improve
        semi-supervised deep learning results", NeurIPS 2017, whose code has this warm-up.
    """
    return min(1 - 1 / (step + 1), momentum)
