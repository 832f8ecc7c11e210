"""Learning rates over the steps of a fit."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from zoo.functional.curriculum import PRESETS, Scale, Stage, compute_spans, curriculum, with_epochs

# Share of the training in which the rate rises, of the published lengths (300 epochs, 200 equivalent epochs).
WARMUP_SHARES = {"et": 20 / 300, "etpp": 20 / 1088, "etpp-deit": 0.2, "etpp-convnext": 20 / 392}
WARMUP_EPOCHS = 20  # of the scripts, whatever the length


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


class CosineOverCompute(LRScheduler):
    """Linear warm-up and half a cosine over the computation of a curriculum instead of over its steps.

    EfficientTrain++ has many cheap epochs of small images. Its learning rate depends on the share of the computation
    that is spent, so that it falls slowly while images are small. Give it the curriculum of
    :class:`zoo.callbacks.EfficientTrain`. The plain EfficientTrain uses :class:`CosineWithWarmup`.

    Args:
        optimizer: Its groups keep their ratios: each has its own peak.
        num_steps: Optimizer steps of the whole fit, the same number in every epoch.
        curriculum: As of the callback: a name, or stages.
        total: As of the callback; equivalent epochs for "etpp...". Left out for stages.
        base_size: As of the callback.
        scale: As of the callback.
        divisor: As of the callback.
        warmup_share: Share of the computation, at least 0 and less than 1, in which the rate rises. Default: as
            published for the named curriculum, 0.05 for stages.
        final_ratio: Last learning rate as a share of the peak; published: 1e-6 of 4e-3.
        exact: Follow the scripts to the digit, in which each stage is a run of its own and the rate jumps up a little
            where the size changes, because the warm-up of 20 epochs is a smaller share of a run with more epochs (for
            "etpp-deit" it is 0.2 of the epochs). Of named curricula and totals of at least 20 only.
        last_epoch: As of torch's schedules: the last step that was done, -1 for none.

    Raises:
        ValueError: If an argument is out of range, or the curriculum impossible.

    Source:
        Wang et al., "EfficientTrain++: Generalized Curriculum Learning for Efficient Visual Backbone Training", TPAMI
        2024; the restated form without jumps is ours.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        num_steps: int,
        curriculum: str | list[Stage] = "etpp",
        total: float | None = None,
        base_size: int = 224,
        scale: Scale = "all",
        divisor: int | None = None,
        warmup_share: float | None = None,
        final_ratio: float = 2.5e-4,
        exact: bool = False,
        last_epoch: int = -1,
    ) -> None:
        name = curriculum if isinstance(curriculum, str) else None
        if warmup_share is None:
            warmup_share = WARMUP_SHARES.get(name or "", 0.05)
        if not 0 <= warmup_share < 1:
            raise ValueError(f"warmup_share={warmup_share} must be at least 0 and less than 1: a share of all compute.")
        if not 0 <= final_ratio <= 1:
            raise ValueError(f"final_ratio={final_ratio} must be from 0 to 1: a share of the optimizer's lr.")
        if (name is None) == (total is not None):
            raise ValueError(f"total={total} belongs to a named curriculum, and every named one needs it.")
        if exact and (name is None or total is None or total < WARMUP_EPOCHS):
            raise ValueError(
                f"exact=True needs a named curriculum and a total of at least {WARMUP_EPOCHS}: the scripts warm up for "
                f"{WARMUP_EPOCHS} epochs. Got curriculum={curriculum!r}, total={total}."
            )
        stages = planned(curriculum, total, base_size, scale, divisor)
        # All attributes are saved with the schedule, so they are plain numbers.
        self.sizes = [stage.size for stage in stages]
        self.lengths = [stage.epochs or 0 for stage in stages]
        self.total = total
        self.name = name
        self.base_size = base_size
        self.warmup_share = warmup_share
        self.final_ratio = final_ratio
        self.exact = exact
        self.ends = list(accumulate(self.lengths))
        self.costs = [0, *accumulate(n * size**2 for n, size in zip(self.lengths, self.sizes, strict=True))]
        self.steps_per_epoch = max(1.0, num_steps / self.ends[-1])
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each group at this step."""
        epoch = self.last_epoch / self.steps_per_epoch
        index = min(bisect_right(self.ends, epoch), len(self.ends) - 1)
        into_stage = epoch - (self.ends[index] - self.lengths[index])
        if self.exact:
            factor = self.exact_factor(index, into_stage)
        else:
            spent = self.costs[index] + into_stage * self.sizes[index] ** 2
            factor = cosine_with_warmup(spent / self.costs[-1], self.warmup_share, self.final_ratio)
        return [factor * rate for rate in self.base_lrs]

    def exact_factor(self, index: int, into_stage: float) -> float:
        """Return the scripts' learning rate, as a share of its peak.

        Args:
            index: Number of the stage.
            into_stage: Epochs since it began.
        """
        assert self.name is not None
        assert self.total is not None
        if PRESETS[self.name].by_compute:
            spans = compute_spans(self.total, self.sizes, self.base_size)
            start, _, length = spans[index]
        else:
            start, length = self.ends[index] - self.lengths[index], int(self.total)
        warmup = int(0.2 * length) if self.name == "etpp-deit" else WARMUP_EPOCHS
        step, rising = (start + into_stage) * self.steps_per_epoch, warmup * self.steps_per_epoch
        if step < rising - 1e-9:
            return step / max(1.0, rising - 1)
        falling = max(1.0, (length - warmup) * self.steps_per_epoch)  # 0 where the last stage is all warm-up
        fall = min(1.0, (step - rising) / falling)
        return self.final_ratio + (1 - self.final_ratio) * 0.5 * (1 + math.cos(math.pi * fall))


def planned(
    stages: str | Sequence[Stage], total: float | None, base_size: int, scale: Scale, divisor: int | None
) -> list[Stage]:
    """Return a curriculum, named or not, with whole epochs."""
    if isinstance(stages, str):
        return curriculum(stages, total or 0, base_size, scale, divisor)
    return with_epochs(stages, base_size)


class QuarterCosine(LambdaLR):
    """The first quarter of a cosine, from the full rate down to 0.0157 of it in the last epoch.

    Of K epochs, epoch e from 0 has the rate ``lr cos(99 π e / (200 (K - 1)))``; a single epoch has the full one.

    Args:
        optimizer: Its groups are scheduled alike.
        num_epochs: Number of epochs K. Step once after each.

    Source:
        Smith et al., "CODA-Prompt: COntinual Decomposed Attention-based Prompting for Rehearsal-Free Continual
        Learning", CVPR 2023, by its official code.
    """

    def __init__(self, optimizer: Optimizer, num_epochs: int) -> None:
        last = max(1, num_epochs - 1)
        super().__init__(optimizer, lambda epoch: math.cos(99 * math.pi * epoch / (200 * last)))


class PolyWithWarmup(LRScheduler):
    """A power of what is left of the training, with a linear warm-up as a factor; call ``step`` after each step.

    The rate of step i of n is the peak times ``(1 - i / n) ** power``, and in the first w steps also times
    ``1 - (1 - i / w) * (1 - warmup_ratio)``. With ``hold_steps`` the fall begins after so many steps, so that what
    comes before does not depend on the length of the fit.

    Args:
        optimizer: Its groups keep their ratios: each has its own peak.
        num_steps: Optimizer steps of the whole fit; afterwards the rate is 0.
        power: 1 is a straight line; 0.9 is usual for semi-supervised segmentation.
        warmup_steps: Steps in which the rate rises.
        warmup_ratio: Factor of the first step.
        hold_steps: Steps before the fall begins.
        last_epoch: As of torch's schedules: the last step that was done, -1 for none.

    Raises:
        ValueError: If an argument is negative.

    Source:
        Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully
        Connected CRFs", TPAMI 2018; the warm-up is that of DAFormer's recipe.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        num_steps: int,
        power: float = 1.0,
        warmup_steps: int = 0,
        warmup_ratio: float = 1e-6,
        hold_steps: int = 0,
        last_epoch: int = -1,
    ) -> None:
        if min(power, warmup_steps, warmup_ratio, hold_steps) < 0:
            raise ValueError(
                f"power={power}, warmup_steps={warmup_steps}, warmup_ratio={warmup_ratio} and hold_steps={hold_steps} "
                "must not be negative."
            )
        self.num_steps = num_steps
        self.power = power
        self.warmup_steps = warmup_steps
        self.warmup_ratio = warmup_ratio
        self.hold_steps = hold_steps
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each group at this step."""
        step = self.last_epoch
        fallen = max(0, step - self.hold_steps) / max(1, self.num_steps - self.hold_steps)
        factor = max(0.0, 1 - fallen) ** self.power
        if step < self.warmup_steps:
            factor *= 1 - (1 - step / self.warmup_steps) * (1 - self.warmup_ratio)
        return [factor * rate for rate in self.base_lrs]
