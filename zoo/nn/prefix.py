"""Prefix tuning of timm's vision transformers: learnable keys and values beside those of the tokens."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

# Newer releases of timm have it in timm.layers, all of them here.
from timm.models.vision_transformer import Attention, VisionTransformer  # type: ignore[attr-defined]
from torch import Tensor, nn


class PrefixAttention(nn.Module):
    """timm's attention, with a prefix that its keys and values may be preceded by.

    It takes over the children of the attention under their names, so that states load as before. Without a prefix it
    computes what timm does; with one, every token attends to the prefix too, and the number of tokens stays.

    Args:
        attention: The attention of a block of a vision transformer.

    Attributes:
        prefix: Keys and values, each of shape (L, D) or (B, L, D), or None. Set it by :func:`set_prefix`.

    Raises:
        ValueError: If it is another attention than timm's plain one, or a gated one.

    Source:
        Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", ACL 2021.
    """

    qkv: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    attn_drop: nn.Dropout
    norm: nn.Module
    proj: nn.Module
    proj_drop: nn.Module
    prefix: tuple[Tensor, ...] | None

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        if type(attention) is not Attention or getattr(attention, "gate", None) is not None:
            kind = "a gated attention" if type(attention) is Attention else type(attention).__name__
            raise ValueError(f"A prefix needs timm's plain Attention, got {kind}.")
        self.num_heads: int = attention.num_heads
        for name, child in attention.named_children():
            self.add_module(name, child)
        if not hasattr(self, "norm"):  # releases of timm before the normalised output
            self.norm = nn.Identity()
        self.prefix = None
        self.train(attention.training)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Return the attended tokens, shape (B, N, D).

        Args:
            x: Tokens, shape (B, N, D).
            attn_mask: Of ``scaled_dot_product_attention``, for an attention without a prefix.
            is_causal: The same.

        Raises:
            ValueError: If there are a prefix and a mask.
        """
        # (3, B, heads, N, D / heads)
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.prefix is not None:
            if attn_mask is not None or is_causal:
                raise ValueError("A prefix and an attention mask do not go together: remove one of them.")
            keys, values = (self.split_heads(part.to(k.dtype), len(x)) for part in self.prefix)
            k, v = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        dropout = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout, is_causal=is_causal)
        x = self.proj_drop(self.proj(self.norm(x.transpose(1, 2).flatten(2))))
        return x

    def split_heads(self, part: Tensor, batch_size: int) -> Tensor:
        """Return keys or values of a prefix, (L, D) or (B, L, D), as (B, heads, L, D / heads)."""
        return part.expand(batch_size, -1, -1).view(batch_size, part.shape[-2], self.num_heads, -1).transpose(1, 2)

    def __getstate__(self) -> dict[str, Any]:
        # A copy starts without a prefix: one that has a gradient's history could not be copied.
        return {**self.__dict__, "prefix": None}


def attach_prefix(model: nn.Module, blocks: Iterable[int]) -> None:
    """Let blocks of a vision transformer take a prefix, in place; weights and outputs stay as they are.

    Args:
        model: timm's ``VisionTransformer``.
        blocks: Numbers of the blocks, from 0.

    Raises:
        ValueError: If the model is another one, has no such block, or a block has another attention.
    """
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"A prefix needs timm's VisionTransformer, got {type(model).__name__}; take a vit_* model.")
    for number in blocks:
        if not 0 <= number < len(model.blocks):
            raise ValueError(f"There is no block {number}: the model has blocks 0 to {len(model.blocks) - 1}.")
        block: Any = model.blocks[number]
        if isinstance(block.attn, PrefixAttention):
            continue
        try:
            block.attn = PrefixAttention(block.attn)
        except ValueError as error:
            raise ValueError(f"Block {number} does not fit. {error}") from error


def set_prefix(model: nn.Module, prefixes: Mapping[int, Tensor]) -> None:
    """Say what the blocks of a vision transformer are prefixed with, from now on.

    Set it before each forward. It is not taken back after one: gradient checkpointing runs the blocks once more in the
    backward pass.

    Args:
        model: A model that :func:`attach_prefix` prepared.
        prefixes: For each block keys and values, stacked: shape (2, L, D) for all images, or (B, 2, L, D), one for each
            image. Blocks that are not named have none.

    Raises:
        ValueError: If a block cannot take a prefix.
    """
    blocks: Any = model.blocks
    slots = {number: block.attn for number, block in enumerate(blocks) if isinstance(block.attn, PrefixAttention)}
    if unknown := sorted(prefixes.keys() - slots.keys()):
        raise ValueError(f"Blocks {unknown} take no prefix: call attach_prefix(model, {unknown}) first.")
    for number, attention in slots.items():
        attention.prefix = tuple(prefixes[number].unbind(-3)) if number in prefixes else None


def check_class_token(model: nn.Module) -> None:
    """Raise ValueError unless the features of a model are the class token of timm's vision transformer.

    Args:
        model: Any model.
    """
    if type(model) is not VisionTransformer:  # a distilled one, say, averages two tokens
        raise ValueError(f"A class token is needed, of timm's VisionTransformer; got {type(model).__name__}.")
    if model.global_pool != "token":
        way = "backbone_args={'global_pool': 'token'}" if model.has_class_token else "a model with a class token"
        raise ValueError(f"A class token is needed, but the model pools by {model.global_pool!r}: take {way}.")
