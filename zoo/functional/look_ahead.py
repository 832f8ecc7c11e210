"""Optimizer steps that are computed and not taken: where the parameters would be in the future.

A step of SGD or Adam is a function of parameters, gradients and moments. So the future parameters can be had, or
averaged into a teacher, without a second network and without a trace in the optimizer.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

Moments = dict[str, Any]


class LookAhead(Protocol):
    """Virtual steps of an optimizer, taken from the gradients at hand; the parameters are put back at the end.

    The methods use up the gradients: their content is undefined afterwards.
    """

    def step_(self) -> None:
        """Move the parameters to where one step leads them, in place."""
        ...

    def lerp_into_(self, averages: Mapping[Tensor, Tensor], weight: float) -> None:
        """Move averages towards where one step would lead their parameters, in place.

        Args:
            averages: The average of every parameter; of parameters without a gradient too, which stay where they are.
            weight: Share of the future parameter, 0 to 1.
        """
        ...

    def __enter__(self) -> "LookAhead": ...

    def __exit__(self, *error: object) -> None: ...


def has_functional_form(optimizer: Optimizer) -> bool:
    """Say whether steps of an optimizer can be computed without taking them: SGD, Adam and AdamW of torch.

    Args:
        optimizer: The optimizer itself, not a wrapper; a subclass may step otherwise, so it does not count.
    """
    return type(optimizer) in (SGD, Adam, AdamW)


def virtual_step(optimizer: Optimizer, grads: Mapping[Tensor, Tensor] | None = None) -> list[Tensor]:
    """Return where the next step of an optimizer would lead its parameters; nothing is changed.

    Args:
        optimizer: SGD, Adam or AdamW of torch.
        grads: Gradient of each parameter. Default: ``parameter.grad``. A parameter without one stays.

    Returns:
        One new tensor for each parameter, in the order of the groups.

    Raises:
        TypeError: If it is another optimizer.
    """
    known = gradients(optimizer) if grads is None else grads
    used = {parameter: grad.clone() for parameter, grad in known.items()}
    future = {
        parameter: parameter.detach().clone() for group in optimizer.param_groups for parameter in group["params"]
    }
    for step in steps(optimizer, used, {}, keep=False):
        moved = [future[parameter] for parameter in step.parameters]
        torch._foreach_mul_(moved, step.shrink)
        torch._foreach_add_(moved, step.directions, alpha=-step.rate)
    return list(future.values())


class VirtualSteps:
    """Steps of SGD, Adam or AdamW in functional form: the optimizer is read and never written.

    A single look ahead writes nothing at all: ``lerp_into_`` adds the step to the averages, in the memory of the
    gradients (Adam needs as much again for a moment). With ``step_`` the parameters do move; then one backup of those
    that train and new moments are held until the end.

    Args:
        optimizer: The optimizer itself, not a wrapper.

    Raises:
        TypeError: If it is another optimizer.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        check(optimizer)
        self.optimizer = optimizer
        self.moments: dict[Tensor, Moments] = {}
        self.backup: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step_(self) -> None:
        """Move the parameters to where one step leads them, in place."""
        grads = gradients(self.optimizer)
        for parameter in grads:
            if parameter not in self.backup:
                self.backup[parameter] = parameter.detach().clone()
        for step in steps(self.optimizer, grads, self.moments, keep=True):
            torch._foreach_mul_(step.parameters, step.shrink)
            torch._foreach_add_(step.parameters, step.directions, alpha=-step.rate)
            self.moments.update(zip(step.parameters, step.moments, strict=True))

    @torch.no_grad()
    def lerp_into_(self, averages: Mapping[Tensor, Tensor], weight: float) -> None:
        """Move averages towards where one step would lead their parameters, in place."""
        torch._foreach_lerp_(list(averages.values()), [parameter.detach() for parameter in averages], weight)
        for step in steps(self.optimizer, gradients(self.optimizer), self.moments, keep=False):
            moved = [averages[parameter] for parameter in step.parameters]
            if step.shrink != 1:
                torch._foreach_add_(moved, step.parameters, alpha=weight * (step.shrink - 1))
            torch._foreach_add_(moved, step.directions, alpha=-weight * step.rate)

    def __enter__(self) -> "VirtualSteps":
        return self

    def __exit__(self, *error: object) -> None:
        restore(self.backup)
        self.moments.clear()


class LiteralSteps:
    """Steps that the optimizer takes itself, after which the parameters are put back. For any optimizer.

    Args:
        optimizer: The optimizer itself, not a wrapper that counts steps.
        keep_state: Whether the optimizer keeps the moments that these steps leave, as the official code of FST does.
            If not, they are copied before and put back too.
    """

    def __init__(self, optimizer: Optimizer, keep_state: bool) -> None:
        self.optimizer = optimizer
        self.keep_state = keep_state
        self.backup: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step_(self) -> None:
        """Let the optimizer step."""
        for parameter in gradients(self.optimizer):
            if parameter not in self.backup:
                self.backup[parameter] = parameter.detach().clone()
        self.optimizer.step()

    @torch.no_grad()
    def lerp_into_(self, averages: Mapping[Tensor, Tensor], weight: float) -> None:
        """Let the optimizer step, and move averages towards the parameters, in place."""
        self.step_()
        torch._foreach_lerp_(list(averages.values()), [parameter.detach() for parameter in averages], weight)

    def __enter__(self) -> "LiteralSteps":
        if not self.keep_state:
            self.state = copy_state(self.optimizer)
            self.options = [
                {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
                for group in self.optimizer.param_groups
            ]
        return self

    def __exit__(self, *error: object) -> None:
        restore(self.backup)
        if not self.keep_state:
            self.optimizer.state.clear()
            self.optimizer.state.update(self.state)
            for group, options in zip(self.optimizer.param_groups, self.options, strict=True):
                group.update(options)


@torch.no_grad()
def restore(backup: dict[Tensor, Tensor]) -> None:
    """Put parameters back, and forget the backup."""
    for parameter, value in backup.items():
        parameter.copy_(value)
    backup.clear()


def copy_state(optimizer: Optimizer) -> dict[Tensor, Moments]:
    """Return a copy of an optimizer's state."""
    return {
        parameter: {
            name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value) for name, value in state.items()
        }
        for parameter, state in optimizer.state.items()
    }


def gradients(optimizer: Optimizer) -> dict[Tensor, Tensor]:
    """Return the gradient of each parameter that has one."""
    return {
        parameter: parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    }


def check(optimizer: Optimizer) -> None:
    """Raise TypeError if an optimizer has no functional form here."""
    if not has_functional_form(optimizer):
        raise TypeError(
            f"{type(optimizer).__name__} has no functional form here, only SGD, Adam and AdamW of torch: use "
            "LiteralSteps, which lets the optimizer step and puts everything back."
        )


class Step(NamedTuple):
    """One step of some parameters: ``shrink * parameter - rate * direction``.

    Attributes:
        parameters: Which move.
        directions: One for each.
        shrink: What decoupled weight decay leaves.
        rate: The learning rate.
        moments: New moments of each; empty if they were not to be kept.
    """

    parameters: list[Tensor]
    directions: list[Tensor]
    shrink: float
    rate: float
    moments: list[Moments]


@torch.no_grad()
def steps(
    optimizer: Optimizer, grads: Mapping[Tensor, Tensor], virtual: Mapping[Tensor, Moments], keep: bool
) -> Iterator[Step]:
    """Yield one step of each group, computed in the memory of the gradients; without ``keep`` moments get lost.

    Args:
        optimizer: SGD, Adam or AdamW.
        grads: Gradients; their content is undefined afterwards.
        virtual: Moments that replace the optimizer's own.
        keep: Whether to return new moments.
    """
    check(optimizer)
    rule = sgd_step if isinstance(optimizer, SGD) else adam_step
    decoupled = type(optimizer) is AdamW  # older releases of torch do not say it in the group
    for group in ({"decoupled_weight_decay": decoupled, **group} for group in optimizer.param_groups):
        moments = {
            parameter: virtual.get(parameter, optimizer.state.get(parameter, {}))
            for parameter in group["params"]
            if parameter in grads
        }
        # Parameters that have not been stepped yet have no moments: their first step is another one.
        for fresh in (False, True):
            chosen = [parameter for parameter, state in moments.items() if is_fresh(state) == fresh]
            if chosen:
                used = [grads[parameter] for parameter in chosen]
                if group["maximize"]:
                    torch._foreach_neg_(used)
                yield rule(group, chosen, used, [moments[parameter] for parameter in chosen], fresh, keep)


def is_fresh(state: Moments) -> bool:
    """Say whether there are no moments yet."""
    return state.get("momentum_buffer") is None and "exp_avg" not in state


def sgd_step(
    group: dict[str, Any],
    parameters: list[Tensor],
    grads: list[Tensor],
    moments: list[Moments],
    fresh: bool,
    keep: bool,
) -> Step:
    """Return a step of SGD."""
    momentum, rate = group["momentum"], float(group["lr"])
    if group["weight_decay"]:
        torch._foreach_add_(grads, parameters, alpha=group["weight_decay"])
    if momentum == 0:
        return Step(parameters, grads, 1.0, rate, [{} for _ in grads])
    damped = 1 - group["dampening"]
    if not keep:  # all in place: a single vector of directions, and nothing else
        old = [] if fresh else [state["momentum_buffer"] for state in moments]
        if group["nesterov"]:
            torch._foreach_mul_(grads, 1 + momentum)  # torch allows no dampening with Nesterov
            if old:
                torch._foreach_add_(grads, old, alpha=momentum**2)
        elif old:
            torch._foreach_mul_(grads, damped)
            torch._foreach_add_(grads, old, alpha=momentum)
        return Step(parameters, grads, 1.0, rate, [])
    if fresh:
        buffers = [grad.clone() for grad in grads]
    else:
        buffers = list(torch._foreach_mul([state["momentum_buffer"] for state in moments], momentum))
        torch._foreach_add_(buffers, grads, alpha=damped)
    directions = list(torch._foreach_add(grads, buffers, alpha=momentum)) if group["nesterov"] else buffers
    return Step(parameters, directions, 1.0, rate, [{"momentum_buffer": buffer} for buffer in buffers])


def adam_step(
    group: dict[str, Any],
    parameters: list[Tensor],
    grads: list[Tensor],
    moments: list[Moments],
    fresh: bool,
    keep: bool,
) -> Step:
    """Return a step of Adam or AdamW."""
    rate, eps, (beta1, beta2) = float(group["lr"]), group["eps"], map(float, group["betas"])
    decoupled = group["decoupled_weight_decay"]
    if group["weight_decay"] and not decoupled:
        torch._foreach_add_(grads, parameters, alpha=group["weight_decay"])
    counts = [1.0] * len(grads) if fresh else [count + 1 for count in read_steps(moments)]

    if fresh:
        second = list(torch._foreach_mul(grads, grads))
        torch._foreach_mul_(second, 1 - beta2)
    else:
        second = list(torch._foreach_mul([state["exp_avg_sq"] for state in moments], beta2))
        torch._foreach_addcmul_(second, grads, grads, value=1 - beta2)
    torch._foreach_mul_(grads, 1 - beta1)  # from here on the gradients are the first moment
    if not fresh:
        torch._foreach_add_(grads, [state["exp_avg"] for state in moments], alpha=beta1)
    first = [grad.clone() for grad in grads] if keep else []

    largest = second
    if group["amsgrad"] and not fresh:
        largest = list(torch._foreach_maximum(second, [state["max_exp_avg_sq"] for state in moments]))
    root = list(torch._foreach_sqrt(largest)) if keep else largest
    if not keep:
        torch._foreach_sqrt_(root)
    torch._foreach_div_(root, [math.sqrt(1 - beta2**count) for count in counts])
    torch._foreach_add_(root, eps)
    torch._foreach_div_(grads, root)
    torch._foreach_div_(grads, [1 - beta1**count for count in counts])

    kept = [
        {"step": counts[i], "exp_avg": first[i], "exp_avg_sq": second[i], "max_exp_avg_sq": largest[i]}
        for i in range(len(first))
    ]
    return Step(parameters, grads, 1 - rate * group["weight_decay"] if decoupled else 1.0, rate, kept)


def read_steps(moments: list[Moments]) -> list[float]:
    """Return how many steps each parameter has seen, in one transfer where a GPU counts them."""
    counts = [state["step"] for state in moments]
    if all(isinstance(count, Tensor) for count in counts):
        return [float(count) for count in torch.stack([count.reshape(()) for count in counts]).tolist()]
    return [float(count) for count in counts]
