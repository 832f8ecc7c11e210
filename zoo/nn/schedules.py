"""Learning rates over the steps of a fit."""

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def cosine_with_warmup(progress: float, warmup_share: float = 0.0, final_ratio: float = 0.0) -> float:
    """Return the learning rate at a moment of training, as a share of its peak.

    It rises linearly from 0 to 1 and falls along half a cosine to ``final_ratio``.

    Args:
        progress: Share of the training that is done, 0 to 1; beyond 1 the rate stays at its end.
        warmup_share: Share of the training in which the rate rises.
        final_ratio: Where it ends.

    Source:
        Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, without restarts.
        Warm-up: Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017.
    """
    if progress < warmup_share:
        return progress / warmup_share
    fall = min(1.0, (progress - warmup_share) / (1 - warmup_share))
    return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * fall))


class CosineWithWarmup(LRScheduler):
    """Linear warm-up from zero, then half a cosine; call ``step`` after each optimizer step.

    As the schedule of a method it is given the first two arguments, so a recipe writes the others only.

    Args:
        optimizer: Its groups keep their ratios: each has its own peak.
        num_steps: Optimizer steps of the whole fit; afterwards the rate stays at its end.
        warmup_share: Share of these steps, at least 0 and less than 1, in which the rate rises; 5 of 100 epochs are
            0.05.
        final_ratio: Last learning rate as a share of the peak, 0 to 1; at 1 the rate is constant after the warm-up.
        last_epoch: As of torch's schedules: the last step that was done, -1 for none.

    Raises:
        ValueError: If a share is out of range.

    Source:
        As of :func:`cosine_with_warmup`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        num_steps: int,
        warmup_share: float = 0.05,
        final_ratio: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if not 0 <= warmup_share < 1:
            raise ValueError(f"warmup_share={warmup_share} must be at least 0 and less than 1: a share of all steps.")
        if not 0 <= final_ratio <= 1:
            raise ValueError(f"final_ratio={final_ratio} must be from 0 to 1: a share of the optimizer's lr.")
        self.num_steps = num_steps
        self.warmup_share = warmup_share
        self.final_ratio = final_ratio
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each group at this step."""
        progress = self.last_epoch / max(1, self.num_steps)
        factor = cosine_with_warmup(progress, self.warmup_share, self.final_ratio)
        return [factor * rate for rate in self.base_lrs]
