"""Labels, losses and mixing of pixels, against worked examples."""

import numpy as np
import pytest
import torch

from zoo.functional import (
    class_mix_mask,
    color_jitter,
    cut_mix_mask,
    drop_uncertain,
    entropy,
    feature_distance,
    gaussian_blur,
    majority_labels,
    ohem_cross_entropy,
    pixel_cross_entropy,
    pseudo_label,
    reweighted_cross_entropy,
    strong_augment,
)
from zoo.functional.mixing import blur_side, rectangle_height


def grid(*shape: int) -> list[torch.Tensor]:
    return list(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij"))


def teacher_logits() -> torch.Tensor:
    b, c, i, j = grid(2, 3, 2, 3)
    return 3 * (1 + 2 * b + 1.7 * c + 0.9 * i + 0.4 * j).sin()


def target() -> torch.Tensor:
    b, i, j = grid(2, 2, 3)
    labels = (b + i + j).long() % 3
    labels[0, 0, 0] = labels[1, 1, 2] = 255
    return labels


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


PROBABILITIES = [
    0.7731927724, 0.9420299295, 0.9778962866, 0.9800812614, 0.9694732156, 0.8499025384,
    0.5098011772, 0.8931490957, 0.9747686431, 0.9788165692, 0.9750275446, 0.9259115553,
]  # fmt: skip
ENTROPIES = [
    0.5537337984, 0.2315485226, 0.1161327078, 0.1086299524, 0.1563360031, 0.4684396234,
    0.7655513548, 0.3786741252, 0.1349957060, 0.1172171898, 0.1264051045, 0.2750605226,
]  # fmt: skip


def test_pseudo_labels_and_quality() -> None:
    said = pseudo_label(teacher_logits(), 0.9)
    assert said.confidence.flatten().tolist() == pytest.approx(PROBABILITIES, abs=1e-9)
    assert said.labels.flatten().tolist() == [0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2]
    assert said.quality.tolist() == pytest.approx([2 / 3])
    assert said.weight.eq(said.quality).all()
    logits = teacher_logits()
    logits[1] = 0
    by_image = pseudo_label(logits, 0.9, quality="image")
    assert by_image.quality.tolist() == pytest.approx([4 / 6, 0])
    assert by_image.weight[0].eq(by_image.quality[0]).all()
    assert pseudo_label(logits, 0.9).quality.item() == pytest.approx(1 / 3)


def test_rows_at_the_border_have_no_weight_and_count_in_the_share() -> None:
    logits = torch.zeros(1, 2, 5, 4)
    logits[:, 1] = 9
    said = pseudo_label(logits, 0.968, ignore_top=1, ignore_bottom=2)
    assert said.weight[0, :, 0].tolist() == [0, 1, 1, 0, 0]
    assert said.labels.eq(1).all()
    assert pseudo_label(logits, 0.968).weight.eq(1).all()


def test_equality_with_the_threshold_counts() -> None:
    assert pseudo_label(torch.zeros(1, 2, 1, 1), 0.5).quality.item() == 1


def test_cross_entropy_over_all_and_over_valid_pixels() -> None:
    logits, labels = teacher_logits(), target()
    _, i, j = grid(2, 2, 3)
    weight = 0.5 + 0.1 * (i + j)
    for given, reduction, expected in (
        (None, "all", 2.5805562614701754),
        (None, "valid", 3.09666751376421),
        (weight, "all", 1.6793609285033069),
        (weight, "valid", 2.0152331142039683),
    ):
        assert pixel_cross_entropy(logits, labels, given, reduction).item() == pytest.approx(expected, abs=1e-12)


def test_losses_of_no_pixel_are_zero_and_keep_the_graph() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    nothing = torch.full((1, 2, 2), 255)
    features = torch.zeros(1, 4, 1, 1, requires_grad=True)
    losses = [
        pixel_cross_entropy(logits, nothing),
        reweighted_cross_entropy(logits, drop_uncertain(nothing, torch.rand(1, 2, 2), 80)),
        ohem_cross_entropy(logits, nothing),
        feature_distance(features, torch.ones(1, 4, 1, 1), nothing, 3, [1]),
    ]
    for loss in losses:
        assert loss.item() == 0
        loss.backward()
    assert logits.grad.eq(0).all()
    assert features.grad.eq(0).all()


def test_uncertain_pixels_are_dropped_and_the_others_count_more() -> None:
    logits = teacher_logits()
    b, c, i, j = grid(2, 3, 2, 3)
    student = 2 * (0.5 + b + 0.8 * c + 1.1 * i + 0.3 * j).cos()
    uncertainty = entropy(logits)
    assert uncertainty.flatten().tolist() == pytest.approx(ENTROPIES, abs=1e-9)
    assert torch.quantile(uncertainty, 0.8).item() == pytest.approx(0.4504865237229973)
    kept = drop_uncertain(logits.argmax(1), uncertainty, 80)
    assert (kept != 255).sum() == 9
    assert reweighted_cross_entropy(student, kept).item() == pytest.approx(0.8654596789336264, abs=1e-12)
    assert (drop_uncertain(logits.argmax(1), uncertainty, 100) == 255).sum() == 1  # only the most uncertain one


@pytest.mark.parametrize(
    ("threshold", "min_kept", "expected"),
    [
        (0.7, 4, 4.381375538540915),
        (0.05, 4, 4.629717222425401),
        (0.7, 9, 3.438362679790444),
        (0.7, 11, 3.09666751376421),
        (0.7, 0, 3.09666751376421),
    ],
)
def test_hard_pixels_are_chosen(threshold: float, min_kept: int, expected: float) -> None:
    loss = ohem_cross_entropy(teacher_logits(), target(), threshold, min_kept)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_feature_distance_counts_cells_of_chosen_classes() -> None:
    i, j = grid(4, 4)
    labels = torch.where((j < 2) & (i + j < 4), 11, 0)[None]
    assert majority_labels(labels, 19, 2, 0.75).flatten().tolist() == [11, 0, 11, 0]
    assert majority_labels(labels, 19, 2, 0.76).flatten().tolist() == [11, 0, 255, 0]
    d, h, w = grid(3, 2, 2)
    features, reference = (d + 2 * h + w).sin()[None], (d - h + w).cos()[None]
    distance = 0.005 * feature_distance(features, reference, labels, 19, [11])
    assert distance.item() == pytest.approx(0.008215756587721706, abs=1e-12)
    ignored = torch.full((1, 4, 4), 255)
    assert majority_labels(ignored, 19, 2, 0.75).eq(255).all()


# Mixing --------------------------------------------------------------------------------------------------------------


def test_class_mix_of_the_worked_example() -> None:
    i, j = grid(4, 4)
    labels, said = ((2 * i + j) % 4).long()[None], ((i + 3 * j) % 4).long()[None]
    generators = (seeded(seed) for seed in range(100))
    masks = (class_mix_mask(labels, 4, generator) for generator in generators)
    mask = next(mask for mask in masks if set(labels[mask].tolist()) == {1, 2})  # these two classes of four are drawn
    assert mask.flatten().long().tolist() == [0, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1, 0, 0, 1]
    mixed = torch.where(mask, labels, said)
    assert mixed.flatten().tolist() == [0, 1, 2, 1, 2, 0, 3, 1, 2, 1, 2, 3, 2, 2, 1, 1]
    assert torch.where(mask, 1.0, 0.25).sum().item() == 10.0
    image = torch.where(mask[0], (i + j).sin(), (i - j).cos())
    assert image.sum().item() == pytest.approx(2.8800796716561163)


def test_half_of_the_classes_of_each_image_are_chosen() -> None:
    for number, up, down in zip(range(1, 7), [1, 1, 2, 2, 3, 3], [0, 1, 1, 2, 2, 3], strict=True):
        labels = torch.arange(number).repeat(2, 1).view(2, 1, number)
        for round_up, expected in ((True, up), (False, down)):
            mask = class_mix_mask(labels, 9, seeded(), round_up=round_up)
            assert mask.sum(dim=(1, 2)).tolist() == [expected, expected]


def test_classes_of_an_image_or_of_the_batch() -> None:
    labels = torch.tensor([[[0, 0, 255, 255]], [[1, 2, 3, 4]]])
    for seed in range(20):
        mask = class_mix_mask(labels, 5, seeded(seed))
        assert mask[0].tolist() == [[True, True, False, False]]  # its one class, and never what is ignored
        assert mask[1].sum() == 2
    assert not class_mix_mask(torch.full((1, 2, 2), 255), 5, seeded()).any()
    counts = {tuple(class_mix_mask(labels, 5, seeded(s), present="batch")[0, 0].tolist()) for s in range(20)}
    assert len(counts) == 4  # as in the published code: any of 0 and 255, both, or none


def test_rectangles_cover_half_of_an_image() -> None:
    assert [rectangle_height(64, 64, width) for width in (33, 40, 50, 63)] == [62, 51, 41, 33]
    masks = cut_mix_mask(200, 64, 64, seeded())
    widths = masks.any(dim=1).sum(dim=1)
    assert widths.min() == 33
    assert widths.max() == 63
    assert torch.equal(masks.sum(dim=(1, 2)), widths * masks.any(dim=2).sum(dim=1))
    assert (masks.float().mean(dim=(1, 2)) - 0.5).abs().max() < 0.02
    for width in (1, 2, 3, 5):  # sizes at which bounds meet
        assert cut_mix_mask(3, 2, width, seeded()).shape == (3, 2, width)


def test_blur_is_a_gaussian_of_the_published_sides() -> None:
    sides = {32: 3, 64: 7, 128: 13, 256: 25, 512: 51, 513: 51, 640: 63, 769: 77}
    assert {size: blur_side(size) for size in sides} == sides
    impulse = torch.zeros(1, 3, 64, 64)
    impulse[..., 32, 32] = 1
    blurred = gaussian_blur(impulse, seeded(), 0.65, 0.65)
    row = blurred[0, 0].sum(dim=0)[29:36].double()
    near = np.exp(-0.5 * (np.arange(-3, 4) / 0.65) ** 2)
    assert row.tolist() == pytest.approx((near / near.sum()).tolist(), abs=1e-6)
    assert row[1:6].tolist() == pytest.approx(
        [0.0053947345, 0.1878641794, 0.6134821721, 0.1878641794, 0.0053947345], abs=3e-5
    )  # of five taps; seven differ by the two outer ones
    small = torch.rand(2, 3, 20, 20)
    assert torch.equal(gaussian_blur(small, seeded()), small)


def test_jitter_draws_for_each_image_and_stays_in_range() -> None:
    images = torch.rand(1, 3, 8, 8).repeat(3, 1, 1, 1)
    jittered = color_jitter(images, 0.2, seeded())
    assert jittered.min() >= 0
    assert jittered.max() <= 1
    assert not torch.equal(jittered[0], jittered[1])
    assert torch.equal(jittered, color_jitter(images, 0.2, seeded()))
    torch.testing.assert_close(color_jitter(images, 0.0, seeded()), images, atol=1e-5, rtol=0)


def test_batches_are_jittered_and_blurred_as_often_as_published() -> None:
    images = torch.rand(2, 3, 32, 32)
    changed = blurred = 0
    for seed in range(300):
        changed += not torch.equal(strong_augment(images, seeded(seed), blur_probability=0.0), images)
        blurred += not torch.equal(strong_augment(images, seeded(seed), jitter=0.0), images)
    assert changed / 300 == pytest.approx(0.8, abs=0.07)
    assert blurred / 300 == pytest.approx(0.5, abs=0.09)
