"""The classifier of a few-shot stream: the cosine between a feature and one row for each class."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cosine_logits(features: Tensor, rows: Tensor, scale: float) -> Tensor:
    """Return scaled cosines, float32 (float64 of float64), of shape (B, K).

    Args:
        features: Shape (B, D).
        rows: Shape (K, D).
        scale: Factor.
    """
    if features.dtype != torch.float64:
        features = features.float()
    with torch.autocast(features.device.type, enabled=False):  # bfloat16 would not tell neighbours apart
        return scale * F.linear(F.normalize(features, dim=1), F.normalize(rows.to(features), dim=1))


class CosineClassifier(nn.Module):
    """A row for each class of the whole stream: trained in the base session, then replaced by the mean of the class.

    Args:
        num_rows: Number of classes, pseudo-classes included.
        num_features: Length of a feature vector.
    """

    def __init__(self, num_rows: int, num_features: int) -> None:
        super().__init__()
        bound = num_features**-0.5  # as of torch's linear layers
        self.weight = nn.Parameter(torch.empty(num_rows, num_features).uniform_(-bound, bound))

    def rows(self, known: int, fixed: int = 0) -> Tensor:
        """Return the first ``known`` rows, of which the first ``fixed`` get no gradient."""
        return torch.cat([self.weight[:fixed].detach(), self.weight[fixed:known]])
