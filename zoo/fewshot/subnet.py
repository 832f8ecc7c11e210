"""Trick A2: of the weights that fine-tuning would move, only a sub-network moves.

The weights that matter least (the smallest ones) learn the new classes, the others keep the old ones.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

SubnetScore = Literal["magnitude", "random"]
SubnetPart = Literal["minor", "major"]


def minor_mask(scores: Tensor, fraction: float) -> Tensor:
    """Return which entries of a tensor have the lowest scores.

    With n entries the threshold is the score number ``1 + round(fraction (n - 1))`` from below (a half is rounded to
    the even number), and an entry is minor if it is below the threshold: equal scores are not.

    Args:
        scores: Any shape.
        fraction: Share of the entries, 0 to 1.

    Returns:
        A bool mask of the same shape.

    Source:
        Yoon et al., "On the Soft-Subnetwork for Few-shot Class Incremental Learning", ICLR 2023 (SoftNet), its code.
    """
    threshold = scores.flatten().kthvalue(1 + round(fraction * (scores.numel() - 1))).values
    return scores < threshold


class Subnet(nn.Module):
    """Masks of the weights that may move, chosen once after the base session and kept in the checkpoint.

    Only matrices and convolution kernels take part, without those of shortcuts ("downsample"): biases and normalisation
    stay.

    Args:
        weights: The tunable parameters by name.
        fraction: Share c of each tensor that is minor.
        score: By what an entry is judged: "magnitude" |w|, or "random", which shows whether the choice matters.
        part: Which part moves: the "minor" one, as in SoftNet, or the "major" one.
    """

    def __init__(
        self, weights: Mapping[str, nn.Parameter], fraction: float, score: SubnetScore, part: SubnetPart
    ) -> None:
        super().__init__()
        if not 0 < fraction <= 1:
            raise ValueError(f"subnet_fraction={fraction} must be more than 0 and at most 1.")
        self.names = [name for name, weight in weights.items() if weight.ndim > 1 and "downsample" not in name]
        self.fraction = fraction
        self.score = score
        self.part = part
        for name in self.names:
            self.register_buffer(key_of(name), torch.zeros_like(weights[name], dtype=torch.bool))

    def choose(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Choose the sub-network by the weights as they are."""
        generator = torch.Generator().manual_seed(0)
        for name in self.names:
            scores = weights[name].detach().abs()
            if self.score == "random":
                scores = torch.rand(scores.shape, generator=generator).to(scores.device)
            minor = minor_mask(scores, self.fraction)
            self.get_buffer(key_of(name)).copy_(minor if self.part == "minor" else ~minor)

    def tunable(self, weights: Mapping[str, nn.Parameter]) -> list[tuple[nn.Parameter, Tensor]]:
        """Return the parameters that move, each with its mask."""
        return [(weights[name], self.get_buffer(key_of(name))) for name in self.names]


def key_of(name: str) -> str:
    """Return the name of a parameter as a buffer may be called."""
    return name.replace(".", "/")
