"""What few-shot papers report, against numbers worked by hand."""

import math

import pytest
import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from zoo.metrics import few_shot_curves, few_shot_figures, few_shot_summary, harmonic_mean

NAN = float("nan")
# Published by the authors of NC-FSCIL for CIFAR-100: accuracy over all classes after sessions 0 to 8.
NC_CIFAR = [82.52, 76.82, 73.34, 69.68, 66.19, 62.85, 60.96, 59.02, 56.11]


def same_row(values: list[float]) -> list[list[float]]:
    """A matrix whose pooled accuracy after session t is ``values[t]``, whatever the sizes."""
    return [[value if j <= t else NAN for j in range(len(values))] for t, value in enumerate(values)]


@pytest.mark.parametrize(
    ("accuracies", "average", "drop"),
    [([0.80, 0.70, 0.64, 0.60], 0.685, 0.20), (NC_CIFAR, 67.498888889, 26.41)],
)
def test_average_and_performance_drop(accuracies, average, drop) -> None:
    summary = few_shot_summary(same_row(accuracies))
    assert summary["average_accuracy"] == pytest.approx(average, rel=1e-8)
    assert summary["performance_drop"] == pytest.approx(drop, rel=1e-8)
    assert summary["last_accuracy"] == pytest.approx(accuracies[-1])


def test_curves_weigh_sessions_by_their_images() -> None:
    matrix = [[90, NAN, NAN], [80, 50, NAN], [75, 40, 20]]
    curves = few_shot_curves(matrix, test_sizes=[60, 10, 30])
    assert curves["all"] == pytest.approx([90, (60 * 80 + 10 * 50) / 70, (60 * 75 + 10 * 40 + 30 * 20) / 100])
    assert curves["base"] == [90, 80, 75]
    assert math.isnan(curves["novel"][0])
    assert curves["novel"][1:] == pytest.approx([50, (10 * 40 + 30 * 20) / 40])
    assert math.isnan(curves["harmonic_mean"][0])
    assert curves["harmonic_mean"][1:] == pytest.approx([2 * 80 * 50 / 130, 2 * 75 * 25 / 100])
    summary = few_shot_summary(matrix, [60, 10, 30])
    assert summary["base_accuracy"] == 75
    assert summary["novel_accuracy"] == pytest.approx(25)
    assert summary["harmonic_mean"] == pytest.approx(37.5)
    assert summary["average_harmonic_mean"] == pytest.approx((2 * 80 * 50 / 130 + 37.5) / 2)


def test_base_session_alone_has_no_novel_class() -> None:
    summary = few_shot_summary([[90.0]])
    assert summary["last_accuracy"] == summary["base_accuracy"] == 90
    assert summary["performance_drop"] == 0
    assert all(math.isnan(summary[name]) for name in ("novel_accuracy", "harmonic_mean", "average_harmonic_mean"))


def test_harmonic_mean() -> None:
    assert harmonic_mean(0.85, 0.40) == pytest.approx(0.544)
    assert harmonic_mean(60, 0) == 0
    assert harmonic_mean(0, 0) == 0
    assert math.isnan(harmonic_mean(0.9, NAN))


def test_figures_count_images_and_average_classes() -> None:
    confusion = torch.tensor([[9, 1, 0, 0], [0, 8, 2, 0], [2, 0, 3, 0], [0, 4, 0, 1]])
    figures = few_shot_figures(confusion, num_base=2)
    expected = {
        "acc": 0.70, "acc_base": 0.85, "acc_novel": 0.40, "harmonic_mean": 0.544, "acc_class_mean": 0.625,
        "acc_base_class_mean": 0.85, "acc_novel_class_mean": 0.40,
    }  # fmt: skip
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-12)


def test_figures_say_which_group_is_taken_for_the_other() -> None:
    confusion = torch.tensor([[8, 1, 1, 0], [0, 9, 0, 1], [2, 0, 3, 0], [1, 1, 1, 2]])
    figures = few_shot_figures(confusion, num_base=2)
    assert figures["novel_as_base"] == pytest.approx(0.40)
    assert figures["base_as_novel"] == pytest.approx(0.10)
    assert figures["acc"] == pytest.approx(0.733333333, rel=1e-8)


def test_count_over_batches_is_exact() -> None:
    counts = MulticlassConfusionMatrix(2)
    for right, number in ((90, 100), (80, 100), (2, 10)):  # the mean of the batches' accuracies is 0.633
        labels = torch.zeros(number, dtype=torch.int64)
        counts.update((torch.arange(number) >= right).long(), labels)
    assert few_shot_figures(counts.compute(), 1)["acc"] == pytest.approx(0.819048, abs=1e-6)


def test_what_is_undefined_is_nan_and_classes_without_images_are_left_out() -> None:
    figures = few_shot_figures(torch.tensor([[3, 1, 0], [0, 0, 0], [0, 0, 0]]), num_base=2)
    assert figures["acc"] == figures["acc_base_class_mean"] == 0.75
    undefined = ("acc_novel", "acc_novel_class_mean", "harmonic_mean", "novel_as_base")
    assert all(math.isnan(figures[name]) for name in undefined)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: few_shot_figures(torch.zeros(2, 3), 1), r"shape \(2, 3\); it must be \(C, C\)"),
        (lambda: few_shot_figures(torch.zeros(2, 2), 3), "num_base=3 must be from 1 to the number of classes, 2"),
        (lambda: few_shot_summary([[1.0, 2.0]]), r"shape \(1, 2\); it must be \(T, T\)"),
        (lambda: few_shot_summary([[1.0]], [1, 2]), "test_sizes has 2 values for 1 sessions"),
    ],
)
def test_bad_input_is_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
