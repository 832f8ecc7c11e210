"""The decoder of a masked autoencoder."""

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from zoo.functional import position_table
from zoo.nn.visible_patches import TOKEN_STD, start_layer


class MAEDecoder(nn.Module):
    """A small transformer that predicts all patches of an image from the encoder's tokens of the visible ones.

    A learned token stands where a patch is hidden. Positions are a fixed table, one for each size of images that comes,
    which is not saved.

    Args:
        embed_dim: Length of the encoder's tokens.
        patch_dim: Numbers to predict for each patch: pixels times channels.
        dim: Length of the decoder's tokens, a multiple of 4.
        depth: Number of blocks, at least 1.
        num_heads: Attention heads of a block; they divide ``dim``.

    Raises:
        ValueError: If a number does not fit.

    Source:
        He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022.
    """

    def __init__(self, embed_dim: int, patch_dim: int, dim: int = 512, depth: int = 8, num_heads: int = 16) -> None:
        super().__init__()
        if dim % 4 or dim % num_heads:
            raise ValueError(f"decoder_dim={dim} must be a multiple of 4 and of decoder_heads={num_heads}.")
        if depth < 1:
            raise ValueError(f"decoder_depth={depth} must be at least 1.")
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.embed = nn.Linear(embed_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.blocks = nn.Sequential(
            *(Block(dim, num_heads, mlp_ratio=4, qkv_bias=True, norm_layer=norm) for _ in range(depth))  # type: ignore[arg-type]
        )
        self.norm = norm(dim)
        self.pred = nn.Linear(dim, patch_dim)
        self.apply(start_layer)
        nn.init.normal_(self.mask_token, std=TOKEN_STD)
        # No buffers: what averages or exchanges buffers expects their shapes to stay.
        self._tables: dict[tuple[Any, ...], Tensor] = {}

    def forward(self, tokens: Tensor, ids_restore: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the prediction for every patch, shape (B, L, patch_dim).

        Args:
            tokens: Of the encoder, the class token first, then those of V visible patches: (B, 1 + V, embed_dim).
            ids_restore: Place of each patch in the order "visible ones, then hidden ones", (B, L).
            grid: Number of patches from top to bottom and from left to right; their product is L.
        """
        tokens = self.embed(tokens)
        hidden = self.mask_token.expand(len(tokens), ids_restore.shape[1] + 1 - tokens.shape[1], -1)
        patches = torch.cat([tokens[:, 1:], hidden], dim=1)
        patches = patches.gather(1, ids_restore.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
        tokens = torch.cat([tokens[:, :1], patches], dim=1)
        predicted: Tensor = self.pred(self.norm(self.blocks(tokens + self.positions(grid, tokens))))
        return predicted[:, 1:]

    def positions(self, grid: tuple[int, int], tokens: Tensor) -> Tensor:
        """Return the table of a grid, (1 + L, dim), of the type and on the device of some tokens."""
        key = (grid, tokens.dtype, tokens.device)
        if key not in self._tables:
            self._tables[key] = position_table(tokens.shape[-1], grid).to(tokens.device, tokens.dtype)
        return self._tables[key]
