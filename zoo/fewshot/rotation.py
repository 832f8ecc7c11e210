"""Trick T3: an additional learning signal. The encoder also has to say by how much an image was turned."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RotationHead(nn.Linear):
    """A linear head on the features that tells four rotations apart.

    Args:
        num_features: Length of a feature vector.

    Source:
        Gidaris, Singh and Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations", ICLR 2018.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, 4)

    def loss(self, backbone: nn.Module, images: Tensor) -> Tensor:
        """Return the cross-entropy over all rotations of the first half of some square images."""
        some = images[: max(1, len(images) // 2)]
        turned = torch.cat([torch.rot90(some, turns, dims=(2, 3)) for turns in range(4)])
        turns = torch.arange(4, device=images.device).repeat_interleave(len(some))
        return F.cross_entropy(self(backbone(turned)).float(), turns)
