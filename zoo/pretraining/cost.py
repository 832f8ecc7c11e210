"""What a step of a masked autoencoder costs, in multiply-accumulates for each image.

Norms, softmax, biases and activations are left out; one multiply-accumulate is two floating-point operations. A
backward pass costs twice a forward pass.
"""

from typing import Any


def block_macs(num_tokens: int, dim: int, hidden_dim: int | None = None) -> int:
    """Return the cost of a transformer block.

    Args:
        num_tokens: Number of tokens T.
        dim: Their length D.
        hidden_dim: Width of the two-layer network. Default: 4 D.
    """
    hidden_dim = 4 * dim if hidden_dim is None else hidden_dim
    return num_tokens * dim * (4 * dim + 2 * hidden_dim) + 2 * num_tokens**2 * dim


def encoder_macs(
    num_patches: int, num_visible: int, dim: int, depth: int, patch_dim: int, hidden_dim: int | None = None
) -> int:
    """Return the cost of an encoder: all patches are embedded, the visible ones and a class token pass the blocks.

    Args:
        num_patches: Number of patches L.
        num_visible: Number of visible patches V.
        dim: Length of a token.
        depth: Number of blocks.
        patch_dim: Numbers in a patch.
        hidden_dim: As of :func:`block_macs`.
    """
    return num_patches * patch_dim * dim + depth * block_macs(num_visible + 1, dim, hidden_dim)


def decoder_macs(num_patches: int, num_visible: int, embed_dim: int, dim: int, depth: int, patch_dim: int) -> int:
    """Return the cost of a decoder.

    Args:
        num_patches: Number of patches L.
        num_visible: Number of visible patches V.
        embed_dim: Length of the encoder's tokens.
        dim: Length of the decoder's tokens.
        depth: Number of blocks.
        patch_dim: Numbers in a patch.
    """
    embedding = (num_visible + 1) * embed_dim * dim
    return embedding + depth * block_macs(num_patches + 1, dim) + (num_patches + 1) * dim * patch_dim


def transformer_macs(model: Any, num_visible: int, depth: int | None = None) -> int:
    """Return the cost of timm's vision transformer as :func:`zoo.nn.encode_visible` runs it.

    Args:
        model: The transformer.
        num_visible: Number of visible patches.
        depth: Number of blocks. Default: all.
    """
    return encoder_macs(
        model.patch_embed.num_patches,
        num_visible,
        model.embed_dim,
        len(model.blocks) if depth is None else depth,
        model.patch_embed.proj.weight[0].numel(),
        model.blocks[0].mlp.fc1.out_features,
    )
