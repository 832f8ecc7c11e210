"""Intersection over union of a confusion matrix."""

import pytest
import torch
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from zoo.metrics import intersection_over_union, mean_iou, pixel_accuracy

MATRIX = torch.tensor([[50, 2, 3, 0], [4, 30, 1, 0], [0, 5, 20, 0], [0, 0, 0, 0]])


def test_classes_that_are_absent_are_left_out() -> None:
    values = intersection_over_union(MATRIX)
    assert values[:3].tolist() == pytest.approx([0.8474576271, 0.7142857143, 0.6896551724])
    assert values[3].isnan()
    assert mean_iou(MATRIX).item() == pytest.approx(0.7504661712727172)
    assert mean_iou(MATRIX, [0, 2, 3]).item() == pytest.approx((0.8474576271 + 0.6896551724) / 2)
    assert pixel_accuracy(MATRIX).item() == pytest.approx(100 / 115)


def test_mean_of_the_classes_of_synthia_is_computed_directly() -> None:
    """19 classes of which three are missed altogether, the others at 60 %: what 19/16 of the mean also gives."""
    matrix = torch.diag(torch.tensor([6] * 16 + [0] * 3))
    matrix[range(16), [(label + 1) % 16 for label in range(16)]] = 2  # 6 / (6 + 2 + 2)
    matrix[16:, 16:] = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    assert mean_iou(matrix).item() == pytest.approx(0.5052631578947368)
    assert mean_iou(matrix, range(16)).item() == pytest.approx(0.6)


def test_upstream_mean_is_the_same_and_its_classes_are_not() -> None:
    torch.manual_seed(0)
    predicted, truth = torch.randint(3, (2, 8, 8)), torch.randint(3, (2, 8, 8))
    truth[0, 0] = 255
    counts = MulticlassConfusionMatrix(4, ignore_index=255)
    matrix = counts(predicted, truth)
    assert matrix.sum() == 2 * 64 - 8
    assert mean_iou(matrix).item() == pytest.approx(
        MulticlassJaccardIndex(4, ignore_index=255, average="macro")(predicted, truth).item()
    )
    assert MulticlassJaccardIndex(4, ignore_index=255, average=None)(predicted, truth)[3] == 0  # where we say NaN
