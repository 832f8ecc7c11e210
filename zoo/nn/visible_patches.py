"""timm's vision transformer on some of an image's patches, and as a masked autoencoder starts it."""

from collections.abc import Collection
from typing import Any

import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed  # type: ignore[attr-defined]  # timm exports few names
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.functional import position_table

TOKEN_STD = 0.02


def check_transformer(model: nn.Module) -> None:
    """Raise unless a network can be run on some of the patches of an image.

    Args:
        model: It has to be timm's ``VisionTransformer`` with one class token and a table of positions.

    Raises:
        ValueError: If it is another network, or built in a way that this does not hold.
    """
    if not isinstance(model, VisionTransformer) or not isinstance(model.patch_embed, PatchEmbed):
        raise ValueError(
            f"{type(model).__name__} cannot be run on some patches only: use a plain vision transformer of timm, such "
            "as vit_base_patch16_224.mae."
        )
    if model.pos_embed is None:
        raise ValueError("The transformer has no table of positions, so patches have no place: leave pos_embed out.")
    if model.num_prefix_tokens != 1 or model.cls_token is None:
        raise ValueError(
            f"The transformer has {model.num_prefix_tokens} tokens beside the patches, and has to have one class token."
        )
    if not isinstance(model.patch_drop, nn.Identity):
        raise ValueError("patch_drop_rate hides patches a second time: leave it out.")


def check_final_norm(model: nn.Module) -> None:
    """Raise ValueError unless a transformer normalises all its tokens at the end."""
    if isinstance(model.norm, nn.Identity):
        raise ValueError(
            "The transformer has no last normalisation of its tokens, because timm puts it behind the mean with "
            "global_pool='avg': leave that out, or add fc_norm=False."
        )


def encode_visible(
    model: nn.Module, images: Tensor, ids_keep: Tensor, taps: Collection[int] = ()
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run timm's vision transformer on some of the patches of each image, by its own parts.

    With all patches in order the result is that of ``model.forward_features``. Images of another size than the model's
    need ``dynamic_img_size=True``; positions are interpolated then, as timm does.

    Args:
        model: The transformer; see :func:`check_transformer`. Blocks that were cut off do not run.
        images: Shape (B, C, H, W), normalised.
        ids_keep: Positions of V patches of each image, shape (B, V); their order is kept.
        taps: Numbers of blocks, from 0, whose output is wanted.

    Returns:
        Tokens of shape (B, 1 + V, D), the class token first, after the last normalisation; and the outputs of the
        blocks asked for, before it.
    """
    vit: Any = model
    patches = vit.patch_embed(images)
    grid = list(patches.shape[1:3]) if vit.dynamic_img_size else vit.patch_embed.grid_size
    num_prefix = 0 if vit.no_embed_class else 1
    positions = vit.pos_embed
    if vit.dynamic_img_size:
        positions = resample_abs_pos_embed(positions, grid, vit.patch_embed.grid_size, num_prefix)
    patches = patches.flatten(1, -2) + positions[:, num_prefix:]
    patches = patches.gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
    first = vit.cls_token + positions[:, :num_prefix] if num_prefix else vit.cls_token
    tokens = vit.norm_pre(vit.pos_drop(torch.cat([first.expand(len(images), -1, -1), patches], dim=1)))
    tapped = {}
    for index, block in enumerate(vit.blocks):
        recompute = vit.grad_checkpointing and tokens.requires_grad
        tokens = checkpoint(block, tokens, use_reentrant=False) if recompute else block(tokens)
        if index in taps:
            tapped[index] = tokens
    return vit.norm(tokens), tapped


@torch.no_grad()
def start_transformer(model: nn.Module) -> None:
    """Give a transformer the first weights of a masked autoencoder, in place.

    Args:
        model: The transformer; see :func:`check_transformer`.

    Source:
        He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, and its code.
    """
    vit: Any = model
    vit.apply(start_layer)
    weight = vit.patch_embed.proj.weight
    weight.copy_(nn.init.xavier_uniform_(weight.new_empty(len(weight), weight[0].numel())).view(weight.shape))
    nn.init.normal_(vit.cls_token, std=TOKEN_STD)
    num_prefix = 0 if vit.no_embed_class else 1
    vit.pos_embed.copy_(position_table(vit.embed_dim, vit.patch_embed.grid_size, num_prefix))


def start_layer(module: nn.Module) -> None:
    """Give a linear layer or a normalisation its first weights."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
