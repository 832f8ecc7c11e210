"""Patches and positions: worked examples, and a loop over pixels."""

import pytest
import torch

from zoo.functional import patchify, position_table, unpatchify


def counting(channels: int, height: int, width: int) -> torch.Tensor:
    """Return an image whose pixel (c, i, j) is 100 c + 10 i + j."""
    c, i, j = torch.meshgrid(*(torch.arange(side) for side in (channels, height, width)), indexing="ij")
    return (100 * c + 10 * i + j)[None]


def test_channel_runs_fastest_then_column_then_row() -> None:
    assert patchify(counting(3, 4, 4), (2, 2))[0].tolist() == [
        [0, 100, 200, 1, 101, 201, 10, 110, 210, 11, 111, 211],
        [2, 102, 202, 3, 103, 203, 12, 112, 212, 13, 113, 213],
        [20, 120, 220, 21, 121, 221, 30, 130, 230, 31, 131, 231],
        [22, 122, 222, 23, 123, 223, 32, 132, 232, 33, 133, 233],
    ]
    assert patchify(counting(1, 2, 4), (2, 2))[0].tolist() == [[0, 1, 10, 11], [2, 3, 12, 13]]


def test_patches_that_are_no_squares_equal_a_loop() -> None:
    images, (p, q) = torch.rand(2, 3, 6, 8), (3, 2)
    patches = patchify(images, (p, q))
    for row in range(2):
        for column in range(4):
            cut = images[:, :, row * p : (row + 1) * p, column * q : (column + 1) * q]
            assert torch.equal(patches[:, row * 4 + column], cut.permute(0, 2, 3, 1).flatten(1))
    assert torch.equal(unpatchify(patches, (p, q), (2, 4)), images)


def test_size_that_patches_do_not_cover_is_refused() -> None:
    with pytest.raises(ValueError, match=r"225 x 224 pixels are not covered by patches of 16 x 16.*to 224 x 224"):
        patchify(torch.rand(1, 3, 225, 224), (16, 16))


def test_position_is_sines_and_cosines_of_column_then_row() -> None:
    table = position_table(8, (3, 3))
    place = [0.9092974268, 0.0199986667, -0.4161468365, 0.9998000067]
    place += [0.8414709848, 0.0099998333, 0.5403023059, 0.99995]
    torch.testing.assert_close(table[6], torch.tensor(place, dtype=torch.float64), atol=1e-9, rtol=0)
    assert table.sum().item() == pytest.approx(35.428034328392, abs=1e-11)
    assert table.square().sum().item() == pytest.approx(36, abs=1e-12)
    assert not table[0].any()

    small = position_table(12, (2, 2), num_prefix=0)
    half = [0.8414709848, 0.0463992235, 0.0021544330, 0.5403023059, 0.9989229760, 0.9999976792]
    torch.testing.assert_close(small[3], torch.tensor(half * 2, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(
        small[2], torch.tensor([0, 0, 0, 1, 1, 1, *half], dtype=torch.float64), atol=1e-9, rtol=0
    )


def test_positions_of_a_base_transformer() -> None:
    table = position_table(768, (14, 14))
    expected = {
        (0, 0): 0, (1, 192): 1, (2, 0): 0.841470984808, (2, 191): 0.000104913973, (2, 192): 0.540302305868,
        (15, 0): 0, (15, 384): 0.841470984808, (196, 383): 0.999999069914, (196, 767): 0.999999069914,
    }  # fmt: skip
    assert {place: table[place].item() for place in expected} == pytest.approx(expected, abs=1e-12)


def test_positions_follow_a_grid_that_is_no_square() -> None:
    table, square = (position_table(8, grid, 0) for grid in ((2, 4), (4, 4)))
    assert torch.equal(table, square[:8])


def test_width_without_quarters_is_refused() -> None:
    with pytest.raises(ValueError, match="dim=10 must be a multiple of 4"):
        position_table(10, (2, 2))
