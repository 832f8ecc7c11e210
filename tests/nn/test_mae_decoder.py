"""The decoder: where tokens go, tables that follow the grid, and what is refused."""

import pytest
import torch

from zoo.functional import mask_from_noise, position_table
from zoo.nn import MAEDecoder


def decoder(**kwargs) -> MAEDecoder:
    return MAEDecoder(**{"embed_dim": 6, "patch_dim": 5, "dim": 8, "depth": 1, "num_heads": 2, **kwargs})


def test_each_patch_is_predicted_at_its_own_place() -> None:
    """Without blocks the output tells what stood where: a visible patch's token or the mask token, and its position."""
    module = decoder()
    module.blocks = module.norm = module.pred = torch.nn.Identity()
    masking = mask_from_noise(torch.rand(2, 6), 2)
    tokens = torch.rand(2, 3, 6)
    out = module(tokens, masking.ids_restore, (2, 3))
    positions = position_table(8, (2, 3)).float()[1:]
    for row in range(2):
        for patch in range(6):
            order = masking.ids_keep[row].tolist()
            token = module.embed(tokens[row, 1 + order.index(patch)]) if patch in order else module.mask_token[0, 0]
            torch.testing.assert_close(out[row, patch], token + positions[patch])


def test_table_follows_the_grid_and_is_not_saved() -> None:
    module = decoder()
    for grid in ((2, 2), (3, 2), (2, 2)):
        length = grid[0] * grid[1]
        noise = torch.rand(1, length)
        assert module(torch.rand(1, 2, 6), mask_from_noise(noise, 1).ids_restore, grid).shape == (1, length, 5)
        torch.testing.assert_close(module.positions(grid, torch.rand(1, 8)), position_table(8, grid).float())
    assert not list(module.buffers())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_table_has_the_precision_of_the_tokens(dtype: torch.dtype) -> None:
    module = decoder().to(dtype)
    restore = mask_from_noise(torch.rand(1, 4), 1).ids_restore
    assert module(torch.rand(1, 2, 6, dtype=dtype), restore, (2, 2)).dtype == dtype


def test_every_parameter_gets_a_gradient() -> None:
    module = decoder(depth=2)
    masking = mask_from_noise(torch.rand(2, 4), 2)
    module(torch.rand(2, 3, 6), masking.ids_restore, (2, 2)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 24, "num_heads": 16}, "decoder_dim=24 must be a multiple of 4 and of decoder_heads=16"),
        ({"dim": 6, "num_heads": 3}, "decoder_dim=6 must be a multiple of 4"),
        ({"depth": 0}, "decoder_depth=0 must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoder(**arguments)
