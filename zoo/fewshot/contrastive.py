"""Trick S1: a contrastive loss beside the classifier's, by which images of one class draw together.

Form "in_batch" compares all views of a batch (SupCon). Form "queue" compares each image with a second encoder's keys of
many earlier batches (SAVC). With every image a class of its own the first is NT-Xent, the loss of SimCLR.
"""

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from zoo.fewshot.pseudo_classes import PseudoClasses
from zoo.nn import freeze

Gather = Callable[[Tensor], Tensor]  # the rows of all processes, with gradients

# Of the small crops: share of the image's side, share of its area, number, and the weights of large and small crops
# (SAVC's for CIFAR-100).
SMALL_SIDE, SMALL_SCALE, NUM_SMALL = 18 / 32, (0.2, 0.7), 4
LARGE_WEIGHT, SMALL_WEIGHT = 0.2, 0.8


def supervised_contrastive_loss(projections: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    """Return the mean over anchors of minus the mean log-probability of their positives.

    ``l_i = -1/|P(i)| sum_{q in P(i)} [ z_i z_q / t - log sum_{a != i} exp(z_i z_a / t) ]``, where P(i) are the others
    of the same label; anchors without a positive are left out. No further factor: the reference code multiplies by
    t / 0.07.

    Args:
        projections: Unit vectors of shape (N, P); the views of a batch one after the other.
        labels: int64 of shape (N,).
        temperature: t, positive.

    Returns:
        A scalar, float32; zero, with a gradient of zero, if no anchor has a positive.

    Source:
        Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, eq. 2.
    """
    z = projections if projections.dtype == torch.float64 else projections.float()  # exp(1 / t) overflows float16
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (labels[:, None] == labels) & ~itself
    similarity = z @ z.T / temperature
    log_probability = similarity - similarity.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
    count = positive.sum(dim=1)
    has_positive = count > 0
    if not has_positive.any():
        return z.sum() * 0.0
    losses = -log_probability.masked_fill(~positive, 0.0).sum(dim=1) / count.clamp(min=1)
    return losses[has_positive].mean()


def queue_contrastive_loss(
    queries: Tensor, keys: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor, temperature: float = 0.07
) -> Tensor:
    """Return the loss of queries against their own keys and a bank of earlier ones.

    The positives of a query are its key and the bank's keys of its label. Each is compared with the negatives only:
    ``l_i = 1/|P| sum_{q in P} log(1 + exp(-s_q) sum_{n not in P} exp(s_n))``, ``s = cosine / t``.

    Args:
        queries: Unit vectors of shape (B, P).
        keys: Of the same images, shape (B, P).
        labels: int64 of shape (B,).
        bank: Unit vectors of shape (Q, P).
        bank_labels: int64 of shape (Q,); -1 where the bank is still empty.
        temperature: t, positive.

    Returns:
        The mean over queries, a scalar.

    Source:
        Song et al., "Learning with Fantasy: Semantic-Aware Virtual Contrastive Constraint for Few-Shot
        Class-Incremental Learning", CVPR 2023 (SAVC), its code.
    """
    q = queries if queries.dtype == torch.float64 else queries.float()
    own = (q * keys.to(q)).sum(dim=1, keepdim=True)
    similarity = torch.cat([own, q @ bank.to(q).T], dim=1) / temperature
    positive = torch.cat([torch.ones_like(own, dtype=torch.bool), labels[:, None] == bank_labels], dim=1)
    negatives = similarity.masked_fill(positive, -torch.inf).logsumexp(dim=1, keepdim=True)
    losses = F.softplus(negatives - similarity).masked_fill(~positive, 0.0)
    return (losses.sum(dim=1) / positive.sum(dim=1)).mean()


class Projector(nn.Module):
    """Linear, ReLU, linear, unit length: where contrastive losses compare features, and what is dropped afterwards.

    Args:
        num_features: Length D of a feature vector.
        size: Length P of a projection.
    """

    def __init__(self, num_features: int, size: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(num_features, num_features), nn.ReLU(), nn.Linear(num_features, size))

    def forward(self, features: Tensor) -> Tensor:
        """Return projections of unit length, float32 of shape (B, P), of features (B, D)."""
        return F.normalize(self.layers(features).float(), dim=1)


class StrongViews:
    """Random crop, flip, colours and grey, drawn anew for each image; on images in [0, 1], on any device.

    Args:
        scale: Smallest and largest share of the area that a crop keeps.
        flip: Whether images may be mirrored; not where that makes another class of them.

    Source:
        Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, without blur.
    """

    def __init__(self, scale: tuple[float, float] = (0.2, 1.0), flip: bool = True) -> None:
        self.scale = scale
        self.flip = flip

    def __call__(self, images: Tensor, scale: tuple[float, float] | None = None, side: float = 1.0) -> Tensor:
        """Return a view of each image, of shape (B, C, side H, side W)."""
        size = (round(side * images.shape[-2]), round(side * images.shape[-1]))
        transform = strong_view(size, scale or self.scale, self.flip)
        return torch.stack([transform(image) for image in images])


@lru_cache
def strong_view(size: tuple[int, int], scale: tuple[float, float], flip: bool) -> v2.Transform:
    """Return the transform of one image."""
    return v2.Compose([
        v2.RandomResizedCrop(size, scale=scale, antialias=True),
        v2.RandomHorizontalFlip(0.5 if flip else 0.0),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
    ])  # fmt: skip


class BatchContrast(nn.Module):
    """The loss among several strong views of each image of a batch.

    Args:
        num_features: Length of a feature vector.
        size: Length of a projection.
        temperature: See :func:`supervised_contrastive_loss`.
        views: Draws a view of each image.
        num_views: Views V of each image.
    """

    def __init__(
        self, num_features: int, size: int, temperature: float, views: StrongViews, num_views: int = 2
    ) -> None:
        super().__init__()
        if num_views < 2:
            raise ValueError(f"num_views={num_views} must be at least 2: an image is compared with its other views.")
        self.projector = Projector(num_features, size)
        self.temperature = temperature
        self.views = views
        self.num_views = num_views

    def forward(
        self, backbone: nn.Module, images: Tensor, labels: Tensor, pseudo: PseudoClasses, gather: Gather
    ) -> Tensor:
        """Return the loss of images (B, C, H, W), each of whose views has all pseudo-classes."""
        views = [pseudo.expand_images(self.views(images)) for _ in range(self.num_views)]
        projections = self.projector(backbone(torch.cat(views)))
        expanded = pseudo.expand_labels(labels).repeat(self.num_views)
        return supervised_contrastive_loss(gather(projections), gather(expanded), self.temperature)


class QueueContrast(nn.Module):
    """The loss of large and small crops against keys of a slowly moving copy of the encoder.

    Args:
        backbone: The encoder, which is copied.
        size: Length of a projection.
        temperature: See :func:`queue_contrastive_loss`.
        views: Draws a view of each image.
        queue_size: Number Q of keys that are remembered.
        momentum: By how much the copy stays as it is at each step, 0 to 1.
    """

    keys: Tensor
    labels: Tensor
    pointer: Tensor

    def __init__(
        self, backbone: Any, size: int, temperature: float, views: StrongViews, queue_size: int, momentum: float
    ) -> None:
        super().__init__()
        self.projector = Projector(backbone.num_features, size)
        self.key_encoder = copy.deepcopy(nn.Sequential(backbone, self.projector))
        freeze(self.key_encoder)
        self.temperature = temperature
        self.views = views
        self.momentum = momentum
        self.register_buffer("keys", F.normalize(torch.randn(queue_size, size), dim=1))
        self.register_buffer("labels", torch.full((queue_size,), -1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def forward(
        self, backbone: nn.Module, images: Tensor, labels: Tensor, pseudo: PseudoClasses, gather: Gather
    ) -> Tensor:
        """Return the loss of images (B, C, H, W), each of whose crops has all pseudo-classes, and take the keys in."""
        expanded = pseudo.expand_labels(labels)
        with torch.no_grad():
            ema_update(self.key_encoder, nn.Sequential(backbone, self.projector), self.momentum)
            keys = self.key_encoder(pseudo.expand_images(self.views(images)))

        def loss(crops: Tensor) -> Tensor:
            queries = self.projector(backbone(pseudo.expand_images(crops)))
            return queue_contrastive_loss(queries, keys, expanded, self.keys, self.labels, self.temperature)

        small = [loss(self.views(images, SMALL_SCALE, SMALL_SIDE)) for _ in range(NUM_SMALL)]
        total = LARGE_WEIGHT * loss(self.views(images)) + SMALL_WEIGHT * torch.stack(small).mean()
        # The bank is replaced, not written to: the backward pass still needs what was compared with.
        self.keys, self.labels, self.pointer = enqueue(
            self.keys, self.labels, self.pointer, gather(keys).detach(), gather(expanded)
        )
        return total


def enqueue(
    bank: Tensor, bank_labels: Tensor, pointer: Tensor, keys: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a ring of keys, its labels and its pointer after some more keys were written over the oldest ones."""
    keys, labels = keys[-len(bank) :], labels[-len(bank) :]
    places = (pointer + torch.arange(len(labels), device=pointer.device)) % len(bank)
    return (
        bank.index_copy(0, places, keys.to(bank)),
        bank_labels.index_copy(0, places, labels),
        (pointer + len(labels)) % len(bank),
    )


@torch.no_grad()
def ema_update(average: nn.Module, current: nn.Module, momentum: float) -> None:
    """Move each parameter of one module towards another's: ``a = m a + (1 - m) c``."""
    for slow, fast in zip(average.parameters(), current.parameters(), strict=True):
        slow.lerp_(fast.detach().to(slow), 1 - momentum)
