"""Virtual outlier regularisation: the classes of one task learn where they end.

A linear head that only ever saw one task's classes is sure of itself everywhere. Here outliers are made up around the
outermost feature vectors of the task, and two hinges on the energy -logsumexp push samples below one threshold and
outliers above another. It needs a head and features, whatever made them, and no image of another task.

Huang, Chen, Hsu, "OVOR: OnePrompt with Virtual Outlier Regularization for Rehearsal-Free Class-Incremental Learning",
ICLR 2024, https://arxiv.org/abs/2402.04129. Official code: https://github.com/jpmorganchase/ovor at 4f59b75. The way
outliers are made is that of Tao, Du, Zhu, Li, "Non-Parametric Outlier Synthesis", ICLR 2023.

What differs: the official code finds the boundary points and never adds them, so that its outliers lie around the
origin; ``centers="origin"`` does the same. Samples fewer than it asks for are taken as they come, where it fails.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 1024  # candidates whose distances to all samples are in memory at once


class Outliers(NamedTuple):
    """Outliers in feature space.

    Attributes:
        features: Shape (M, D), the most outlying first.
        sources: Row of the sample that each was made from, int64 of shape (M,).
    """

    features: Tensor
    sources: Tensor

    def of_step(self, step: int, num_steps: int) -> Tensor:
        """Return the outliers of one of the steps of an epoch: equal shares in falling order; what is left over waits.

        Args:
            step: From 0.
            num_steps: Steps of the epoch. With fewer outliers than steps each has one, and they come round again.
        """
        share = max(1, len(self.features) // num_steps)
        return self.features[torch.arange(step * share, (step + 1) * share) % len(self.features)]


class VirtualOutliers(nn.Module):
    """Makes outliers of the features of a task, and the two hinges that a head is trained with on them.

    It has no weights. Defaults are the published ones.

    Args:
        weight: Weight λ of the two hinges beside the cross-entropy; 0 leaves the cross-entropy alone.
        sample_energy: Energy that samples are pushed below.
        outlier_energy: Energy that outliers are pushed above; ``-inf`` leaves the sample hinge alone.
        penalty: What is made of the distance to the threshold: ``"huber"`` or ``"squared"``.
        centers: Where outliers lie: around the ``"boundary"`` samples, or around the ``"origin"`` as in the official
            code.
        num_boundary: Number of boundary samples.
        num_draws: Draws of noise around each of them.
        kept_per_class: Outliers that are kept for each class of the task.
        sigma: Standard deviation of the noise, in units of the features.
        neighbor: Which nearest neighbour's distance says how outlying a vector is; a sample is its own first.
        normalize_candidates: Whether candidates are scaled to unit length before their neighbours are looked for, as in
            NPOS. Without it the longest candidates win.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Huang et al., "OVOR: OnePrompt with Virtual Outlier Regularization for Rehearsal-Free Class-Incremental
        Learning", ICLR 2024.
    """

    def __init__(
        self,
        weight: float = 0.1,
        sample_energy: float = -15.0,
        outlier_energy: float = -3.0,
        penalty: Literal["huber", "squared"] = "huber",
        centers: Literal["boundary", "origin"] = "boundary",
        num_boundary: int = 50,
        num_draws: int = 600,
        kept_per_class: int = 40,
        sigma: float = 0.1,
        neighbor: int = 50,
        normalize_candidates: bool = False,
    ) -> None:
        super().__init__()
        if weight < 0 or not sigma > 0:
            raise ValueError(f"weight={weight} must not be negative, and sigma={sigma} must be positive.")
        if min(num_boundary, num_draws, kept_per_class, neighbor) < 1:
            raise ValueError(
                f"num_boundary={num_boundary}, num_draws={num_draws}, kept_per_class={kept_per_class} and "
                f"neighbor={neighbor} must be at least 1."
            )
        if penalty not in ("huber", "squared") or centers not in ("boundary", "origin"):
            raise ValueError(
                f"penalty={penalty!r} must be 'huber' or 'squared', and centers={centers!r} 'boundary' or 'origin'."
            )
        self.weight = weight
        self.sample_energy = sample_energy
        self.outlier_energy = outlier_energy
        self.penalty = penalty
        self.centers = centers
        self.num_boundary = num_boundary
        self.num_draws = num_draws
        self.kept_per_class = kept_per_class
        self.sigma = sigma
        self.neighbor = neighbor
        self.normalize_candidates = normalize_candidates

    def synthesize(self, features: Tensor, num_classes: int, generator: torch.Generator) -> Outliers:
        """Return outliers of the features (N, D) of a task with so many classes.

        Args:
            features: All samples of the task, float32 or float64, raw.
            num_classes: Number of classes of the task.
            generator: A generator on the CPU. The noise is the same on every device.
        """
        noise = torch.randn(self.num_draws, features.shape[1], generator=generator, dtype=torch.float32)
        return synthesize_outliers(
            features,
            self.sigma * noise.to(features),
            num_kept=self.kept_per_class * num_classes,
            num_boundary=self.num_boundary,
            neighbor=self.neighbor,
            centers=self.centers,
            normalize_candidates=self.normalize_candidates,
        )

    def forward(self, sample_logits: Tensor, outlier_logits: Tensor) -> dict[str, Tensor]:
        """Return the weighted ``loss``, and what it consists of.

        Args:
            sample_logits: Logits of samples for the classes of the task, shape (B, C).
            outlier_logits: Logits of outliers for the same classes, shape (M, C).
        """
        samples, outliers = energy(sample_logits), energy(outlier_logits)
        too_high, too_low = F.relu(samples - self.sample_energy), F.relu(self.outlier_energy - outliers)
        sample_hinge, outlier_hinge = self.penalize(too_high), self.penalize(too_low)
        return {
            "loss": self.weight * (sample_hinge + outlier_hinge),
            "sample_hinge": sample_hinge,
            "outlier_hinge": outlier_hinge,
            "sample_energy": samples.mean(),
            "outlier_energy": outliers.mean(),
            "active_samples": (too_high > 0).float().mean(),
            "active_outliers": (too_low > 0).float().mean(),
        }

    def penalize(self, excess: Tensor) -> Tensor:
        """Return the mean penalty of distances beyond a threshold."""
        return excess.square().mean() if self.penalty == "squared" else F.huber_loss(excess, torch.zeros_like(excess))


def energy(logits: Tensor) -> Tensor:
    """Return the energy -logsumexp of logits (B, C), shape (B,): low where some class is likely.

    Args:
        logits: Of the classes in question only, without -inf.
    """
    return -torch.logsumexp(logits if logits.dtype == torch.float64 else logits.float(), dim=1)


@torch.no_grad()
def synthesize_outliers(
    features: Tensor,
    noise: Tensor,
    num_kept: int,
    num_boundary: int = 50,
    neighbor: int = 50,
    centers: Literal["boundary", "origin"] = "boundary",
    normalize_candidates: bool = False,
) -> Outliers:
    """Add noise to the most outlying samples, and keep the most outlying results.

    How outlying a vector is, is its distance to its k-th nearest neighbour among the samples at unit length. Numbers
    larger than what there is, of neighbours, boundary samples or outliers, are cut down to it.

    Args:
        features: Samples, shape (N, D), raw.
        noise: Shape (S, D), the same for every boundary sample.
        num_kept: Number of outliers M.
        num_boundary: Number of boundary samples.
        neighbor: k. A sample is its own first neighbour.
        centers: Whether the noise is added to the boundary samples or, as in the official code, to the origin.
        normalize_candidates: Whether candidates are scaled to unit length before their neighbours are looked for.

    Source:
        Tao et al., "Non-Parametric Outlier Synthesis", ICLR 2023, with one index and one choice for the whole task, as
        in Huang et al., "OVOR", ICLR 2024.
    """
    samples = F.normalize(features, dim=1)
    boundary = distance_to_neighbor(samples, samples, neighbor).topk(min(num_boundary, len(features))).indices
    middle = features[boundary] if centers == "boundary" else torch.zeros_like(features[boundary])
    candidates = (middle.unsqueeze(1) + noise).flatten(0, 1)
    queries = F.normalize(candidates, dim=1) if normalize_candidates else candidates
    kept = distance_to_neighbor(queries, samples, neighbor).topk(min(num_kept, len(candidates))).indices
    return Outliers(candidates[kept], boundary[kept // len(noise)])


def distance_to_neighbor(queries: Tensor, samples: Tensor, neighbor: int) -> Tensor:
    """Return the squared distance of each query (Q, D) to its k-th nearest sample (N, D), shape (Q,).

    Args:
        queries: Vectors.
        samples: Vectors.
        neighbor: k, from 1; cut down to N.
    """
    k = min(neighbor, len(samples))
    distances = [torch.cdist(chunk, samples).kthvalue(k, dim=1).values for chunk in torch.split(queries, CHUNK)]
    return torch.cat(distances).square()
