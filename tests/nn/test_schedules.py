"""The cosine schedule against values worked by hand from the formula that MAE states."""

import pytest
import torch

from zoo.nn import CosineWithWarmup, cosine_with_warmup


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
