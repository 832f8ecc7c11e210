"""What a moving average of weights asks of their precision."""

import torch
from torch import nn

from zoo.precision.frozen import QuantizedLinear


def check_average(average: nn.Module, momentum: float, name: str = "teacher") -> None:
    """Raise ValueError unless a moving average of weights can move; for ``on_fit_start`` of a method that has one.

    Args:
        average: The network whose parameters are averages.
        momentum: Share of the average that stays at each step, 0 to 1.
        name: What to call it.

    Raises:
        ValueError: If its parameters have half precision, in which small updates are lost, or weights are packed.
    """
    if any(isinstance(part, QuantizedLinear) for part in average.modules()):
        raise ValueError(
            f"The {name} is quantised, and as an average of weights it has to move: leave QuantizeFrozen out."
        )
    coarse = next((p.dtype for p in average.parameters() if p.dtype in (torch.float16, torch.bfloat16)), None)
    if coarse is not None:
        raise ValueError(
            f"The {name}'s parameters are {coarse}, in which an update by {1 - momentum:g} is lost to rounding: use "
            "precision='bf16-mixed' or '16-mixed', which keep parameters in float32."
        )
