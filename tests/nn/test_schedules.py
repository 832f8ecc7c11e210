"""The cosine schedule against values worked by hand from the formula that MAE states."""

import io

import pytest
import torch

from zoo.functional import Stage, curriculum
from zoo.nn import CosineOverCompute, CosineWithWarmup, cosine_with_warmup


def rates(peak: float, num_steps: int, **kwargs: float) -> list[float]:
    """Return the learning rate of each step and one beyond the end."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = CosineWithWarmup(optimizer, num_steps, **kwargs)
    seen = []
    for _ in range(num_steps + 2):
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return seen


def test_fine_tuning_of_mae() -> None:
    # 100 epochs of 2 steps, 5 of them warm-up, from 2e-3 to 1e-6; steps 5 and 199 are epochs 2.5 and 99.5.
    seen = rates(2e-3, 200, warmup_share=0.05, final_ratio=5e-4)
    expected = {0: 0.0, 5: 1e-3, 10: 2e-3, 100: 1.0830380558e-3, 199: 1.136626660027e-6, 200: 1e-6, 201: 1e-6}
    assert {step: seen[step] for step in expected} == pytest.approx(expected, rel=1e-9)


def test_pretraining_of_mae() -> None:
    expected = {0: 0.0, 0.5: 6e-5, 10: 1.2e-3, 20: 2.4e-3, 50: 1.659220118838e-3, 60: 1.2e-3, 99.99: 9.252754002986e-11}
    seen = {epoch: 2.4e-3 * cosine_with_warmup(epoch / 100, warmup_share=0.2) for epoch in expected}
    assert seen == pytest.approx(expected, rel=1e-6)


def test_final_ratio_of_one_is_constant_after_the_warmup() -> None:
    assert rates(0.5, 8, warmup_share=0.5, final_ratio=1.0) == pytest.approx([0, 0.125, 0.25, 0.375, *[0.5] * 6])


def test_groups_keep_their_ratio_and_a_resumed_schedule_goes_on() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": parameters[:1], "lr": 1.0}, {"params": parameters[1:], "lr": 0.25}])
    schedule = CosineWithWarmup(optimizer, 10, warmup_share=0.0)
    assert schedule.get_last_lr() == [1.0, 0.25]
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.5, 0.125])

    again = CosineWithWarmup(optimizer, 10, warmup_share=0.0)
    again.load_state_dict(schedule.state_dict())
    for one in (schedule, again):
        one.step()
    assert again.get_last_lr() == schedule.get_last_lr()
    assert all(not callable(value) for value in schedule.state_dict().values())  # loads with weights_only=True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup_share": 1.0}, r"warmup_share=1.0 must be at least 0 and less than 1"),
        ({"warmup_share": 5}, "a share of all steps"),
        ({"final_ratio": -0.1}, r"final_ratio=-0.1 must be from 0 to 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rates(1.0, 5, **arguments)


def over_compute(name, total: float, steps: int = 10, **kwargs) -> list[float]:
    """Return the learning rate of each step of a curriculum, peak 4e-3 as published."""
    epochs = sum(stage.epochs for stage in curriculum(name, total))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=4e-3)
    schedule = CosineOverCompute(optimizer, epochs * steps, name, total, **kwargs)
    seen = []
    for _ in range(epochs * steps + 1):
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return seen


def test_the_scripts_of_efficienttrain_plus_plus_to_the_digit() -> None:
    """At the first step of an epoch of the whole run; past the warm-up the steps of an epoch do not matter."""
    seen = over_compute("etpp", 200, exact=True)
    expected = {
        108: 3.93338262e-3, 217: 3.76489559e-3, 256: 3.36580148e-3, 295: 2.81993574e-3, 335: 2.16915996e-3,
        374: 1.65329047e-3, 394: 1.00075000e-3, 414: 4.68794136e-4, 434: 1.21584605e-4,
    }  # fmt: skip
    assert {epoch: seen[epoch * 10] for epoch in expected} == pytest.approx(expected, rel=1e-8)
    assert seen[217 * 10 - 1] < expected[217]  # the jump at the change of size
    # Warm-up: j / (20 steps - 1), endpoint included.
    assert seen[:3] == pytest.approx([0, 4e-3 / 199, 8e-3 / 199])
    assert seen[199] == pytest.approx(4e-3)
    seen = over_compute("etpp-deit", 200, exact=True)
    expected = {
        256: 3.84970525e-3, 295: 3.42141517e-3, 335: 2.76105255e-3, 374: 2.00050000e-3, 401: 1.24198477e-3,
        428: 6.14671819e-4,
    }  # fmt: skip
    assert {epoch: seen[epoch * 10] for epoch in expected} == pytest.approx(expected, rel=1e-8)
    shortest = over_compute("etpp", 20, exact=True)  # whose last stage is all warm-up
    assert shortest[-2] == pytest.approx(4e-3)


@pytest.mark.parametrize(("name", "share"), [("etpp", 20 / 1088), ("etpp-deit", 0.2), ("etpp-convnext", 20 / 392)])
def test_over_compute_without_jumps(name, share) -> None:
    seen, exact = over_compute(name, 200), over_compute(name, 200, exact=True)
    stages = curriculum(name, 200)
    total = sum(stage.epochs * stage.size**2 for stage in stages)
    spent, expected = 0.0, []
    for stage in stages:
        for _ in range(stage.epochs * 10):
            expected.append(4e-3 * cosine_with_warmup(spent / total, share, 2.5e-4))
            spent += stage.size**2 / 10
    assert seen[:-1] == pytest.approx(expected)
    assert seen[-1] == pytest.approx(1e-6)
    peak = seen.index(max(seen))
    assert all(later <= earlier for earlier, later in zip(seen[peak:], seen[peak + 1 :], strict=False))
    # It differs from the scripts by less than their jumps (largest at 96 to 160 and 160 to 224 pixels).
    assert max(abs(a - b) for a, b in zip(seen[400:], exact[400:], strict=True)) < 2.6e-4


def test_over_compute_of_stages_of_ones_own_resumes_and_loads() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    stages = [Stage(16, 2), Stage(32, 2)]
    schedule = CosineOverCompute(optimizer, 8, stages, base_size=32, warmup_share=0.0, final_ratio=0.0)
    costs = [0, 128, 256, 384, 512, 1024, 1536, 2048, 2560]  # of 2560, by step
    for cost in costs:
        assert schedule.get_last_lr()[0] == pytest.approx(cosine_with_warmup(cost / 2560))
        if cost == 512:
            file = io.BytesIO()
            torch.save(schedule.state_dict(), file)
        optimizer.step()
        schedule.step()
    again = CosineOverCompute(optimizer, 8, stages, base_size=32, warmup_share=0.0, final_ratio=0.0)
    again.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    again.step()
    assert again.get_last_lr()[0] == pytest.approx(cosine_with_warmup(1024 / 2560))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"curriculum": "etpp"}, "every named one needs it"),
        ({"curriculum": [Stage(224, 1)], "total": 2}, "total=2 belongs to a named curriculum"),
        ({"total": 9, "exact": True}, "a total of at least 20"),
        ({"total": 9, "warmup_share": 1}, "warmup_share=1 must be"),
        ({"total": 9, "final_ratio": 2}, "final_ratio=2 must be"),
        ({"curriculum": "ex", "total": 9}, "'ex' is unknown"),
    ],
)
def test_bad_arguments_over_compute(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        CosineOverCompute(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), 10, **arguments)
