"""Trick S2: each class, those to come included, has a place of its own from the start, far from all others.

The encoder learns to send a class to a fixed unit vector instead of a classifier that moves. The vectors are those of a
simplex, in which any two are equally far apart, or found by pushing random ones apart.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PrototypeKind = Literal["etf", "optimized"]


def simplex_from_basis(basis: Tensor) -> Tensor:
    """Return K unit vectors with pairwise cosine -1 / (K - 1): a simplex equiangular tight frame.

    Args:
        basis: Orthonormal columns, shape (D, K).

    Returns:
        The vectors as columns, ``sqrt(K / (K - 1)) U (I - 1 1^T / K)``, shape (D, K).

    Source:
        Papyan, Han and Donoho, "Prevalence of neural collapse during the terminal phase of deep learning training",
        PNAS 2020; as classifier of a few-shot stream: Yang et al., "Neural Collapse Inspired Feature-Classifier
        Alignment for Few-Shot Class-Incremental Learning", ICLR 2023 (NC-FSCIL).
    """
    num = basis.shape[1]
    return math.sqrt(num / (num - 1)) * (basis - basis.mean(dim=1, keepdim=True))


def simplex_prototypes(num: int, size: int, seed: int = 0) -> Tensor:
    """Return the vectors of a simplex, in a place drawn from a seed.

    Args:
        num: Number K of vectors, at least 2.
        size: Their length D, at least K.
        seed: Draws the basis.

    Returns:
        Unit vectors as rows, shape (K, D).

    Raises:
        ValueError: If K vectors of this kind do not fit into D dimensions.
    """
    if not 2 <= num <= size:
        raise ValueError(
            f"A simplex of {num} vectors, one for each class and pseudo-class, needs as many dimensions, got {size}: "
            "use prototype_kind='optimized', fewer pseudo-classes or a larger embedding_size."
        )
    matrix = torch.rand(size, num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return simplex_from_basis(torch.linalg.qr(matrix).Q).T.float()


def frame_energy(vectors: Tensor, temperature: float = 1.0) -> Tensor:
    """Return how close unit vectors (R, D) are to each other: ``mean_i log sum_j exp(t_i t_j / temperature)``."""
    return (vectors @ vectors.T / temperature).logsumexp(dim=1).mean()


def push_apart(vectors: Tensor, steps: int = 1000, lr: float = 1.0) -> Tensor:
    """Move unit vectors apart by gradient descent on :func:`frame_energy`, and back to unit length after each step.

    For up to D + 1 vectors it ends at a simplex; it also places more than fit into one.

    Args:
        vectors: Shape (R, D).
        steps: Number of steps.
        lr: Length of a step.

    Returns:
        Unit vectors, shape (R, D).

    Source:
        Ahmed et al., "OrCo: Towards Better Generalization via Orthogonality and Contrast for Few-Shot Class-Incremental
        Learning", CVPR 2024. Its code adds up the gradients of all steps; here each step has its own.
    """
    for _ in range(steps):
        point = vectors.detach().requires_grad_()
        # Of the directions alone: a step along the vector itself would be undone.
        (gradient,) = torch.autograd.grad(frame_energy(F.normalize(point, dim=1)), point)
        vectors = F.normalize(point.detach() - lr * gradient, dim=1)
    return vectors


def match(means: Tensor, prototypes: Tensor) -> Tensor:
    """Return which prototype each mean takes, no two the same, so that the sum of cosines is largest.

    Args:
        means: Shape (N, D).
        prototypes: Shape (R, D), R at least N.

    Returns:
        Rows of ``prototypes``, int64 of shape (N,).

    Source:
        Kuhn, "The Hungarian method for the assignment problem", Naval Research Logistics Quarterly 1955; SciPy's.
    """
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    cosines = F.normalize(means.double(), dim=1) @ F.normalize(prototypes.double(), dim=1).T
    return torch.from_numpy(linear_sum_assignment(cosines.cpu().numpy(), maximize=True)[1])


def dot_regression_loss(embeddings: Tensor, targets: Tensor, weight: float = 10.0) -> Tensor:
    """Return ``weight / 2 mean (e h - 1)^2``: it pulls to the own prototype and pushes from none.

    Args:
        embeddings: Unit vectors h of shape (B, D).
        targets: The prototype e of each, shape (B, D).
        weight: Factor.

    Source:
        Yang et al., NC-FSCIL, ICLR 2023.
    """
    return weight / 2 * ((embeddings * targets).sum(dim=1) - 1).square().mean()


class Neck(nn.Module):
    """Three linear layers beside a linear skip, between the encoder's features and the prototypes.

    Args:
        num_features: Length D of a feature vector.
        size: Length of an embedding.

    Source:
        Code of NC-FSCIL.
    """

    def __init__(self, num_features: int, size: int) -> None:
        super().__init__()
        hidden = 2 * num_features
        self.layers = nn.Sequential(
            nn.Linear(num_features, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(0.1),
            nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(0.1),
            nn.Linear(hidden, size, bias=False),
        )  # fmt: skip
        self.skip = nn.Linear(num_features, size, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return embeddings, not of unit length, shape (B, size), of features (B, D)."""
        embeddings: Tensor = self.layers(features) + self.skip(features)
        return embeddings


class AssignedPrototypes(nn.Module):
    """One unit vector for each class of the whole stream, and which class has which.

    Args:
        num_rows: Number of classes, pseudo-classes included.
        size: Length of a vector.
        kind: "etf" is a simplex, "optimized" pushes random vectors apart, for more classes than dimensions.

    Attributes:
        vectors: Shape (K, size); part of a checkpoint.
        assignment: Row of ``vectors`` of each class, int64 of shape (K,), -1 where it has none yet.
    """

    vectors: Tensor
    assignment: Tensor

    def __init__(self, num_rows: int, size: int, kind: PrototypeKind) -> None:
        super().__init__()
        if kind == "etf":
            vectors = simplex_prototypes(num_rows, size)
        else:
            start = torch.randn(num_rows, size, generator=torch.Generator().manual_seed(0))
            vectors = push_apart(F.normalize(start, dim=1))
        self.register_buffer("vectors", vectors)
        self.register_buffer("assignment", torch.full((num_rows,), -1))

    def assign(self, rows: range, means: Tensor | None = None) -> None:
        """Give each of some classes a vector that is free: those nearest to their means, or one by one.

        Args:
            rows: The classes.
            means: Their means, shape (N, size).
        """
        taken = self.assignment[self.assignment >= 0]
        free = torch.ones(len(self.vectors), dtype=torch.bool, device=self.vectors.device)
        free[taken] = False
        places = free.nonzero().flatten()
        chosen = match(means, self.vectors[places]).to(places.device) if means is not None else slice(len(rows))
        self.assignment[rows.start : rows.stop] = places[chosen]

    def of(self, labels: Tensor) -> Tensor:
        """Return the vectors of labels, shape (B, size)."""
        return self.vectors[self.assignment[labels].clamp(min=0)]
