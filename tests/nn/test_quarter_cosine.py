"""The schedule against its worked example."""

import pytest
import torch

from zoo.nn import QuarterCosine


@pytest.mark.parametrize(
    ("num_epochs", "expected"),
    [
        (
            50,
            {
                0: 1e-3,
                1: 9.994964396401e-4,
                25: 7.014171912528e-4,
                39: 3.269486208854e-4,
                40: 2.967966905512e-4,
                49: 1.570731731182e-5,
            },
        ),
        (
            20,
            {
                0: 1e-3,
                1: 9.966524236485e-4,
                10: 6.833408430916e-4,
                15: 3.364033038492e-4,
                16: 2.582866294183e-4,
                19: 1.570731731182e-5,
            },
        ),
        (1, {0: 1e-3}),
    ],
)
def test_rate_of_each_epoch(num_epochs: int, expected: dict[int, float]) -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = QuarterCosine(optimizer, num_epochs)
    rates = []
    for _ in range(num_epochs):
        rates += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    assert {epoch: rates[epoch] for epoch in expected} == pytest.approx(expected, rel=1e-11)
