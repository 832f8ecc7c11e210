"""FST: future self-training, a mean teacher that has seen where the student goes.

A mean teacher averages past students, so it labels with yesterday's knowledge. FST takes the student one or more
virtual steps ahead, lets the teacher average the future students, and only then asks it for the labels of the real
step, which the student takes from where it was.

Du, Shen, Wang, Fei, Li, Wu, Zhao, Fu, Liu, "Learning from Future: A Novel Self-Training Framework for Semantic
Segmentation", NeurIPS 2022, https://arxiv.org/abs/2209.06993. Official code: https://github.com/usr922/FST (commit
5b44c01).

What differs from the code: virtual steps are computed from parameters, gradients and moments and are not taken, so the
optimizer's state is untouched, where the code keeps what virtual steps leave in it (``optimizer_state="carried"`` does
as the code). The student's batch statistics are put back. The warm-up of the momentum counts iterations, not gradients.
Labels of the supervised phase come from nobody, where the code lets the student label in the first epoch.
"""

from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import SGD

from zoo.functional import LiteralSteps, LookAhead, VirtualSteps, ema_update_, has_functional_form
from zoo.segmentation.batches import check_batch
from zoo.segmentation.mean_teacher import MeanTeacher


class FST(MeanTeacher):
    """Future self-training for segmentation: the teacher averages students of the future.

    As :class:`zoo.MeanTeacher`, whose arguments it takes too, with virtual steps before each real one. An iteration
    computes ``ahead_steps + 1`` gradients and takes that many times as long as one of the mean teacher. An iteration of
    the deep variant also moves the teacher ``ahead_steps + 1`` times, so its effective momentum is
    ``momentum ** (ahead_steps + 1)``: compare with a mean teacher of that momentum too.

    Args:
        num_classes: Number of classes.
        ahead_steps: Virtual steps K, one after another, or N, side by side; published: 3. With 0 it is a mean teacher.
        variant: "deep": K consecutive steps on the batch at hand. "wide": N steps from where the student is, each on a
            batch of its own, averaged; the datamodule needs ``future: N``.
        optimizer_state: "restored": the optimizer does not notice the virtual steps. "carried": it keeps the moments
            and the count of steps that they leave, as the published code does.
        future_momentum: Momentum of the last update before the labels, which takes in the future student. Default: as
            ``momentum``.
        ema_real: Whether the teacher takes in the real student too: at the start of an iteration, in the wide variant
            at its end.
        ema_last: Whether it takes in the real student once more after the real step, as the published code for
            semi-supervised learning does.
        same_augmentation: Whether virtual steps mix, jitter and blur as the real one. Published: anew each time.
        start_step: Iterations of self-training without virtual steps; published: 1. Adam's first step is a full one for
            every weight.
        **mean_teacher: Arguments of :class:`zoo.MeanTeacher`.

    Good to know:
        SGD, Adam and AdamW of torch look ahead in functional form: with one virtual step, and in the wide variant with
        SGD, no copy of the student exists. Two or more deep steps hold one backup of the trained parameters and the
        virtual moments while an iteration lasts. Any other optimizer steps itself, and everything is put back.

    Raises:
        ValueError: If an argument is out of range; in training, if the wide variant lacks its batches.

    Source:
        Du et al., "Learning from Future: A Novel Self-Training Framework for Semantic Segmentation", NeurIPS 2022.
    """

    def __init__(
        self,
        num_classes: int,
        ahead_steps: int = 1,
        variant: Literal["deep", "wide"] = "deep",
        optimizer_state: Literal["restored", "carried"] = "restored",
        future_momentum: float | None = None,
        ema_real: bool = True,
        ema_last: bool = False,
        same_augmentation: bool = False,
        start_step: int = 1,
        **mean_teacher: Any,
    ) -> None:
        super().__init__(num_classes, **mean_teacher)
        if ahead_steps < 0 or start_step < 0:
            raise ValueError(f"ahead_steps={ahead_steps} and start_step={start_step} must be at least 0.")
        if variant not in ("deep", "wide") or optimizer_state not in ("restored", "carried"):
            raise ValueError(
                f"variant={variant!r} must be 'deep' or 'wide', and optimizer_state={optimizer_state!r} 'restored' or "
                "'carried'."
            )
        if future_momentum is not None and not 0 <= future_momentum <= 1:
            raise ValueError(f"future_momentum={future_momentum} must be from 0 to 1.")
        self.ahead_steps = ahead_steps
        self.variant = variant
        self.optimizer_state = optimizer_state
        self.future_momentum = self.momentum if future_momentum is None else future_momentum
        self.ema_real = ema_real
        self.ema_last = ema_last
        self.same_augmentation = same_augmentation
        self.start_step = start_step

    def on_fit_start(self) -> None:
        """Say so where the optimizer has no functional form."""
        super().on_fit_start()
        if self.optimizer_state == "restored" and not has_functional_form(optimizer := self.torch_optimizer):
            rank_zero_warn(
                f"{type(optimizer).__name__} has no functional form here, so virtual steps are taken and put back, "
                "with a copy of parameters and moments. SGD, Adam and AdamW of torch need none."
            )

    def looks_ahead(self, step: int) -> bool:
        """Say whether an iteration of self-training has virtual steps."""
        return self.ahead_steps > 0 and step >= self.start_step

    def prepare_teacher(self, batch: Any, step: int) -> None:
        """Let the teacher take in future students before it labels."""
        momentum = self.momentum_of(self.momentum, step)
        future_momentum = self.momentum_of(self.future_momentum, step)
        if not self.looks_ahead(step):
            self.average(momentum)
        elif self.variant == "deep":
            self.look_deep(batch, momentum, future_momentum)
        else:
            self.look_wide(batch, future_momentum)

    def look_deep(self, batch: Any, momentum: float, future_momentum: float) -> None:
        """Take consecutive virtual steps on one batch; the teacher takes in each student on the way."""
        if self.ema_real:
            self.average(momentum)
        with self.virtual_steps() as future, self.kept_statistics():
            for number in range(1, self.ahead_steps + 1):
                if number > 1:
                    self.average(momentum)
                finite = self.virtual_gradient(batch, number)
                if number < self.ahead_steps:
                    if finite:
                        future.step_()
                else:
                    self.take_in(future, self.pairs(), 1 - future_momentum, finite)

    def look_wide(self, batch: Any, future_momentum: float) -> None:
        """Take virtual steps side by side, each on a batch of its own; the teacher takes in their mean."""
        batches = self.future_batches(batch)
        weight = 1 - future_momentum
        with self.kept_statistics():
            if self.mean_gradient_suffices():
                for number, other in enumerate(batches, start=1):
                    self.compute_gradient(other, self.draw(number), share=1 / len(batches), add=number > 1)
                with self.virtual_steps() as future:
                    self.take_in(future, self.pairs(), weight, self.unscale())
                return
            mean: dict[Tensor, Tensor] = {param: torch.zeros_like(param) for param in self.student.parameters()}
            for number, other in enumerate(batches, start=1):
                with self.virtual_steps() as future:
                    self.take_in(future, mean, 1 / number, self.virtual_gradient(other, number))
            ema_update_(list(self.teacher.parameters()), list(mean.values()), future_momentum)

    def follow_up(self, step: int) -> None:
        """Let the teacher take in the real student after its step, where that is asked for."""
        wide = self.variant == "wide" and self.looks_ahead(step)
        if (wide and self.ema_real) or self.ema_last:
            self.average(self.momentum_of(self.momentum, step))

    def virtual_gradient(self, batch: Any, number: int) -> bool:
        """Compute the gradient of a virtual step, unscaled and clipped as a real one. False if it is not finite."""
        self.compute_gradient(batch, self.draw(number))
        finite = self.unscale()
        self.clip()
        return finite

    def draw(self, number: int) -> int:
        """Return which draws a virtual step uses."""
        return 0 if self.same_augmentation else number

    @torch.no_grad()
    def unscale(self) -> bool:
        """Divide the gradient by the loss scale of float16, without telling the scaler. False if it is not finite."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        grads = [parameter.grad for parameter in self.student.parameters() if parameter.grad is not None]
        if scaler is None or not scaler.is_enabled() or not grads:
            return True
        torch._foreach_mul_(grads, 1 / scaler.get_scale())
        return bool(torch.stack([grad.isfinite().all() for grad in grads]).all())

    def virtual_steps(self) -> LookAhead:
        """Return what looks ahead: in functional form where that is the same."""
        optimizer = self.torch_optimizer
        if self.optimizer_state == "restored" and has_functional_form(optimizer):
            return VirtualSteps(optimizer)
        return LiteralSteps(optimizer, keep_state=self.optimizer_state == "carried")

    def mean_gradient_suffices(self) -> bool:
        """Say whether the mean of the virtual students is the virtual student of the mean gradient.

        It is for SGD with restored state, whose step is linear in the gradient, unless each gradient is clipped.
        """
        return type(self.torch_optimizer) is SGD and self.optimizer_state == "restored" and self.gradient_clip is None

    def take_in(self, future: LookAhead, averages: dict[Tensor, Tensor], weight: float, finite: bool) -> None:
        """Move averages towards the future student; towards the present one if its gradient is not finite."""
        if finite:
            future.lerp_into_(averages, weight)
        else:
            ema_update_(list(averages.values()), list(averages), 1 - weight)

    def pairs(self) -> dict[Tensor, Tensor]:
        """Return the teacher's parameter of each of the student's."""
        return dict(zip(self.student.parameters(), self.teacher.parameters(), strict=True))

    def future_batches(self, batch: Any) -> list[Any]:
        """Return the batches of the wide variant.

        Raises:
            ValueError: If there are not as many as virtual steps.
        """
        batches = batch.get("future", [])
        if len(batches) != self.ahead_steps:
            raise ValueError(
                f"variant='wide' with ahead_steps={self.ahead_steps} needs as many further batches in each step, got "
                f"{len(batches)}: give future={self.ahead_steps} to the datamodule."
            )
        for other in batches:
            check_batch(other)
        return list(batches)

    def gradients_until(self, iteration: int) -> int:
        """Return how many gradients so many iterations take."""
        ahead = max(0, iteration - self.supervised_steps - self.start_step)
        return iteration + self.ahead_steps * ahead
