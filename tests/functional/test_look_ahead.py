"""Virtual steps: equal to the optimizer's own, by hand and literally, and without a trace in it."""

import copy
import math
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, AdamW, RMSprop

from zoo.functional import LiteralSteps, VirtualSteps, ema_update_, has_functional_form, momentum_at, virtual_step

I = torch.arange(3.0, dtype=torch.float64)  # noqa: E741  # the index of the worked examples
ADAM = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.01}
SGDM = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


def close(value: torch.Tensor, expected: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(value, torch.as_tensor(expected, dtype=value.dtype), rtol=0, atol=tolerance)


def worked(kind: Any, **options: Any) -> tuple[torch.nn.Parameter, Any]:
    """Make the state of the worked example: a parameter, its gradient, moments that are not empty."""
    parameter = torch.nn.Parameter(I.cos())
    parameter.grad = (2 + I).sin()
    optimizer = kind([parameter], **options)
    first, second = 0.1 * (I + 1).cos(), 0.01 * (1 + I)
    optimizer.state[parameter] = (
        {"momentum_buffer": first}
        if kind is SGD
        else {"step": torch.tensor(7.0), "exp_avg": first, "exp_avg_sq": second, "max_exp_avg_sq": 2 * second}
    )
    return parameter, optimizer


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        (SGD, SGDM, [0.9032075366, 0.5293953243, -0.3311405077]),
        (SGD, {**SGDM, "nesterov": True}, [0.8209570402, 0.5158337193, -0.2635447442]),
        (AdamW, ADAM, [0.9484709983, 0.5478169584, -0.3730060371]),
    ],
)
def test_one_step_is_that_of_the_worked_example_and_changes_nothing(kind, options, expected) -> None:
    parameter, optimizer = worked(kind, **options)
    before, state = (parameter.clone(), parameter.grad.clone()), copy.deepcopy(optimizer.state_dict())
    (future,) = virtual_step(optimizer)
    close(future, expected)
    assert torch.equal(parameter, before[0])
    assert torch.equal(parameter.grad, before[1])
    assert str(optimizer.state_dict()) == str(state)


def test_folding_into_a_teacher_is_that_of_the_worked_example() -> None:
    parameter, optimizer = worked(SGD, **SGDM)
    teacher = (I / 2).sin()
    with VirtualSteps(optimizer) as future:
        future.lerp_into_({parameter: teacher}, 1 - 0.8)
    close(teacher, [0.1806415073, 0.4894194957, 0.6069486863])
    close(parameter.detach(), I.cos(), 0)


def test_mean_of_wide_steps_is_the_step_of_the_mean_gradient_for_sgd_only() -> None:
    grads = [(1 + I).sin(), (2 * I).cos()]
    for kind, options, mean_of_steps, step_of_mean in (
        (SGD, SGDM, [0.9020637300, 0.5188497956, -0.3811945766], [0.9020637300, 0.5188497956, -0.3811945766]),
        (AdamW, ADAM, [0.9484280125, 0.5451216745, -0.3846992588], [0.9483478157, 0.5441332856, -0.3835957041]),
    ):
        parameter, optimizer = worked(kind, **options)
        futures = [virtual_step(optimizer, {parameter: grad})[0] for grad in grads]
        close((futures[0] + futures[1]) / 2, mean_of_steps)
        close(virtual_step(optimizer, {parameter: (grads[0] + grads[1]) / 2})[0], step_of_mean)


OPTIMIZERS = [
    (SGD, {"lr": 0.1}),
    (SGD, {"lr": 0.1, "weight_decay": 0.1}),
    (SGD, {**SGDM, "dampening": 0.3}),
    (SGD, {**SGDM, "nesterov": True}),
    (SGD, {**SGDM, "maximize": True}),
    (AdamW, ADAM),
    (AdamW, {**ADAM, "amsgrad": True}),
    (AdamW, {**ADAM, "maximize": True}),
    (Adam, ADAM),
    (Adam, {**ADAM, "amsgrad": True}),
]


def network(kind: Any, options: dict[str, Any], trained: int) -> tuple[list[torch.nn.Parameter], Any]:
    """Make four parameters in two groups, one of them never with a gradient, and an optimizer after some steps."""
    torch.manual_seed(1)
    parameters = [torch.nn.Parameter(torch.randn(size, dtype=torch.float64)) for size in (3, 2, 4, 2)]
    groups = [{"params": parameters[:2], "lr": 0.05}, {"params": parameters[2:], "weight_decay": 0.0}]
    optimizer = kind(groups, **options)
    for number in range(trained):
        fill(parameters, number)
        optimizer.step()
    return parameters, optimizer


def fill(parameters: list[torch.nn.Parameter], number: int) -> None:
    """Give gradients that depend on where the parameters are."""
    for index, parameter in enumerate(parameters[:-1]):
        parameter.grad = (parameter.detach() * (index + 1) + number).sin()


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
@pytest.mark.parametrize("trained", [0, 2])
@pytest.mark.parametrize("ahead", [1, 3])
def test_virtual_steps_equal_the_literal_copy(kind, options, trained: int, ahead: int) -> None:
    results = []
    for make in (VirtualSteps, lambda optimizer: LiteralSteps(optimizer, keep_state=False)):
        parameters, optimizer = network(kind, options, trained)
        before = [parameter.detach().clone() for parameter in parameters]
        state = str(optimizer.state_dict())
        teacher = {parameter: torch.ones_like(parameter) for parameter in parameters}
        with make(optimizer) as future:
            path = []
            for number in range(ahead - 1):
                fill(parameters, number)
                future.step_()
                path.append(torch.cat([parameter.detach().clone() for parameter in parameters]))
            fill(parameters, ahead)
            future.lerp_into_(teacher, 0.25)
        assert str(optimizer.state_dict()) == state
        for parameter, value in zip(parameters, before, strict=True):
            assert torch.equal(parameter, value)
        results.append(torch.cat([*path, *teacher.values()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_the_function_equals_a_step_of_a_copied_optimizer(kind, options) -> None:
    parameters, optimizer = network(kind, options, trained=1)
    fill(parameters, 5)
    future = virtual_step(optimizer)
    optimizer.step()
    for value, parameter in zip(future, parameters, strict=True):
        torch.testing.assert_close(value, parameter.detach(), rtol=1e-14, atol=1e-14)


def test_parameters_are_put_back_after_an_error() -> None:
    for keep_state in (None, False, True):
        parameters, optimizer = network(AdamW, ADAM, trained=1)
        before = [parameter.detach().clone() for parameter in parameters]
        steps = VirtualSteps(optimizer) if keep_state is None else LiteralSteps(optimizer, keep_state)
        fill(parameters, 0)
        with pytest.raises(KeyboardInterrupt):
            interrupt_ahead(steps, parameters[0], before[0])
        assert all(torch.equal(parameter, value) for parameter, value in zip(parameters, before, strict=True))


def interrupt_ahead(steps: Any, parameter: torch.Tensor, before: torch.Tensor) -> None:
    with steps:
        steps.step_()
        assert not torch.equal(parameter, before)
        raise KeyboardInterrupt


def test_kept_state_is_kept() -> None:
    parameters, optimizer = network(AdamW, ADAM, trained=1)
    fill(parameters, 0)
    with LiteralSteps(optimizer, keep_state=True) as future:
        future.step_()
    assert float(optimizer.state[parameters[0]]["step"]) == 2


def test_a_single_look_ahead_of_sgd_allocates_no_copy() -> None:
    """The directions are written into the gradients; the averages are moved in place."""
    parameters, optimizer = network(SGD, SGDM, trained=1)
    fill(parameters, 0)
    memory = {id(parameter.grad): parameter.grad.data_ptr() for parameter in parameters[:-1]}
    teacher = {parameter: torch.zeros_like(parameter) for parameter in parameters}
    future = VirtualSteps(optimizer)
    future.lerp_into_(teacher, 0.1)
    assert not future.backup
    assert not future.moments
    assert {id(parameter.grad): parameter.grad.data_ptr() for parameter in parameters[:-1]} == memory


def test_other_optimizers_are_refused_by_the_functional_form_and_work_literally() -> None:
    parameters, optimizer = network(RMSprop, {"lr": 0.1}, trained=1)
    assert not has_functional_form(optimizer)
    with pytest.raises(TypeError, match="RMSprop has no functional form"):
        VirtualSteps(optimizer)
    twin, twins_optimizer = network(RMSprop, {"lr": 0.1}, trained=1)
    fill(parameters, 3)
    fill(twin, 3)
    teacher = {parameter: torch.zeros_like(parameter) for parameter in parameters}
    state = str(optimizer.state_dict())
    with LiteralSteps(optimizer, keep_state=False) as future:
        future.lerp_into_(teacher, 1.0)
    twins_optimizer.step()
    assert str(optimizer.state_dict()) == state
    for average, parameter in zip(teacher.values(), twin, strict=True):
        torch.testing.assert_close(average, parameter.detach())


# Averages ------------------------------------------------------------------------------------------------------------


def test_average_moves_by_the_momentum() -> None:
    average = torch.tensor([1.0, 2.0])
    ema_update_([average], [torch.tensor([3.0, 0.0])], 0.75)
    assert average.tolist() == [1.5, 1.5]
    ema_update_([average], [torch.tensor([math.pi, 0.1])], 0.0)
    assert torch.equal(average, torch.tensor([math.pi, 0.1]))
    with pytest.raises(ValueError, match="1 averages for 0"):
        ema_update_([average], [], 0.5)


def test_momentum_warms_up() -> None:
    steps = [0, 1, 2, 50, 98, 99, 100]
    expected = [0.0, 0.5, 0.66666667, 0.98039216, 0.98989899, 0.99, 0.99]
    assert [momentum_at(step, 0.99) for step in steps] == pytest.approx(expected, abs=1e-8)


def test_effective_momentum_and_weights_of_the_deep_teacher() -> None:
    """The unrolled teacher after K + 1 updates: old one, then the students v_0 to v_3."""
    teacher = torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64)
    for k in range(4):
        ema_update_([teacher], [torch.eye(5, dtype=torch.float64)[k + 1]], 0.999)
    close(
        teacher,
        [0.996005996001, 0.0009970029990000009, 0.000998001000000001, 0.000999000000000001, 0.0010000000000000009],
        1e-15,
    )
    assert [0.999**power for power in (1, 2, 4, 5)] == pytest.approx([0.999, 0.998001, 0.996005996, 0.99500999])
    assert pytest.approx(0.9509900498999999) == 0.99**5


@pytest.mark.parametrize(
    ("momentum", "ahead", "last", "future_momentum", "lag"),
    [
        (0.999, 0, False, None, 999.0),
        (0.999, 1, False, None, 498.74987494),
        (0.999, 3, False, None, 247.87406203),
        (0.998001, 0, False, None, 499.25012506),
        (0.996005996001, 0, False, None, 249.37531266),
        (0.99, 0, False, None, 99.0),
        (0.99, 1, False, None, 48.74874372),
        (0.99, 3, False, None, 22.86557808),
        (0.96059601, 0, False, None, 24.37814064),
        (0.99, 3, True, None, 18.18791996),
        (0.99, 3, False, 0.5, -2.00019326),  # ahead of the student
        (0.99**5, 0, False, None, 19.40401996),
    ],
)
def test_lag_of_the_teacher_behind_a_student_that_moves_steadily(momentum, ahead, last, future_momentum, lag) -> None:
    teacher = labels = 0.0
    for step in range(20_000):
        for k in range(ahead + 1):
            rate = future_momentum if future_momentum is not None and k == ahead else momentum
            teacher = rate * teacher + (1 - rate) * (step + k)
        labels = teacher
        if last:
            teacher = momentum * teacher + (1 - momentum) * (step + 1)
    assert step - labels == pytest.approx(lag, abs=2e-5)
