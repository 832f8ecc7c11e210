"""Masks that follow from noise: worked examples, and the numbers of patches that are cut or not."""

import pytest
import torch

from zoo.functional import count_visible, mask_from_noise

NOISE = torch.tensor([[0.7, 0.1, 0.5, 0.3, 0.9, 0.2], [0.15, 0.85, 0.25, 0.65, 0.05, 0.45]])


def test_smallest_numbers_stay_visible_in_their_order() -> None:
    masking = mask_from_noise(NOISE, 3)
    assert masking.ids_keep.tolist() == [[1, 5, 3], [4, 0, 2]]
    assert masking.ids_restore.tolist() == [[4, 0, 3, 2, 5, 1], [1, 5, 2, 4, 0, 3]]
    assert masking.mask.tolist() == [[1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]]
    assert masking.mask.dtype == torch.float32


def test_restoring_puts_visible_patches_where_they_were() -> None:
    masking = mask_from_noise(NOISE[:1], 3)
    codes = torch.cat([10 + masking.ids_keep, torch.full((1, 3), -1)], dim=1)
    assert codes.gather(1, masking.ids_restore).tolist() == [[-1, 11, -1, 13, -1, 15]]


@pytest.mark.parametrize(
    ("length", "counts"),
    [
        (196, {0.5: 98, 0.6: 78, 0.75: 49, 0.8: 39, 0.9: 19, 0.95: 9, 0.98: 3}),
        (64, {0.75: 16, 0.8: 12, 0.9: 6, 0.95: 3, 0.98: 1}),
        (49, {0.75: 12, 0.9: 4, 0.95: 2, 0.98: 1}),  # the published formula leaves none of 49
        (16, {0.75: 4, 0.9: 1, 0.95: 1}),
        (10, {0.9: 1, 0.8: 2}),  # products that a float falls short of
        (20, {0.8: 4}),
    ],
)
def test_a_fraction_of_a_patch_is_hidden_and_one_always_stays(length: int, counts: dict[float, int]) -> None:
    assert {ratio: count_visible(length, ratio) for ratio in counts} == counts


def test_number_of_patches_replaces_the_share() -> None:
    assert count_visible(196, 0.98, num_visible=4) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((196, 0.0), "mask_ratio=0.0 must be more than 0 and less than 1"),
        ((196, 1.0), "mask_ratio=1.0 must be"),
        ((1, 0.75), "mask_ratio=0.75 leaves 1 of 1 patches visible"),
        ((4, 0.75, 4), "num_visible=4 leaves 4 of 4 patches visible: at least one must be, and one hidden"),
        ((4, 0.75, 0), "num_visible=0 leaves 0 of 4"),
    ],
)
def test_masks_that_hide_nothing_or_all_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count_visible(*arguments)
