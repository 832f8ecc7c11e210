"""Losses and labels of pixels. 255 marks a pixel that is ignored."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255


class PseudoLabels(NamedTuple):
    """What a teacher says of unlabelled images.

    Attributes:
        labels: The likeliest class of each pixel, int64 of shape (B, H, W).
        confidence: Its probability.
        weight: How much each pixel's loss counts.
        quality: Share of the pixels that are confident, of shape (1,) or (B,).
    """

    labels: Tensor
    confidence: Tensor
    weight: Tensor
    quality: Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Return values that probabilities can be computed of: half precision becomes float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def pseudo_label(
    logits: Tensor,
    threshold: float,
    quality: Literal["batch", "image"] = "batch",
    ignore_top: int = 0,
    ignore_bottom: int = 0,
) -> PseudoLabels:
    """Return labels of a teacher's scores, weighted by how confident it is on the whole.

    All pixels keep their label. Their loss counts as much as the share of the pixels whose probability reaches the
    threshold.

    Args:
        logits: Shape (B, C, H, W).
        threshold: Probability from which a pixel is confident, inclusive.
        quality: Share over all images of the batch, as the published code, or of each image, which does not depend on
            how a batch is shared among processes.
        ignore_top: Rows at the top whose weight is 0; they count in the share.
        ignore_bottom: Rows at the bottom.

    Source:
        Tranheden et al., "DACS: Domain Adaptation via Cross-domain Mixed Sampling", WACV 2021.
    """
    confidence, labels = at_least_float32(logits).softmax(dim=1).max(dim=1)
    confident = (confidence >= threshold).to(confidence.dtype)
    share = confident.mean().reshape(1) if quality == "batch" else confident.mean(dim=(1, 2))
    weight = share.view(-1, 1, 1).expand_as(confidence).clone()
    weight[:, :ignore_top] = 0
    if ignore_bottom:
        weight[:, -ignore_bottom:] = 0
    return PseudoLabels(labels, confidence, weight, share)


def pixel_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, reduction: Literal["all", "valid"] = "valid"
) -> Tensor:
    """Return the mean cross-entropy of pixels; ignored ones contribute nothing.

    Args:
        logits: Shape (B, C, H, W).
        target: int64 of shape (B, H, W), 255 for ignored pixels.
        weight: Factor of each pixel's loss.
        reduction: "valid" divides by the number of pixels that are not ignored, "all" by the number of all pixels, as
            the recipe of domain adaptation does.

    Returns:
        A scalar; 0, with a gradient of 0, if no pixel is left.
    """
    losses = F.cross_entropy(at_least_float32(logits), target, ignore_index=IGNORE, reduction="none")
    losses = losses if weight is None else losses * weight
    count = losses.numel() if reduction == "all" else (target != IGNORE).sum().clamp(min=1)
    return losses.sum() / count


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of the classes at each pixel, of shape (B, H, W).

    Args:
        logits: Shape (B, C, H, W).
    """
    probabilities = at_least_float32(logits).softmax(dim=1)
    return -(probabilities * (probabilities + 1e-10).log()).sum(dim=1)


def drop_uncertain(target: Tensor, uncertainty: Tensor, drop_percent: float) -> Tensor:
    """Return labels without those of the most uncertain pixels, which become 255.

    Args:
        target: Labels, int64 of shape (B, H, W).
        uncertainty: Of the same shape, such as :func:`entropy`.
        drop_percent: Pixels at or above this percentile (linear, over the pixels of the batch that are not ignored) are
            dropped; at 100 the most uncertain one.
    """
    valid = target != IGNORE
    if not valid.any():
        return target
    limit = torch.quantile(uncertainty[valid], drop_percent / 100)
    return target.masked_fill(uncertainty >= limit, IGNORE)


def reweighted_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy of the pixels that are left, times all pixels over those that are left.

    The fewer are left the more each counts.

    Args:
        logits: Shape (B, C, H, W).
        target: int64 of shape (B, H, W), 255 for dropped pixels.

    Returns:
        A scalar; 0, with a gradient of 0, if none is left.

    Source:
        Wang et al., "Semi-Supervised Semantic Segmentation Using Unreliable Pseudo-Labels", CVPR 2022, of which FST
        takes the loss without the contrastive term.
    """
    left = (target != IGNORE).sum().clamp(min=1)
    return pixel_cross_entropy(logits, target) * target.numel() / left


def ohem_cross_entropy(logits: Tensor, target: Tensor, threshold: float = 0.7, min_kept: int = 100_000) -> Tensor:
    """Return the mean cross-entropy of hard pixels.

    Args:
        logits: Shape (B, C, H, W).
        target: int64 of shape (B, H, W), 255 for ignored pixels.
        threshold: Pixels count whose probability of the true class is at most this.
        min_kept: At least so many of the hardest count; all, where there are fewer; 0 turns the selection off.

    Source:
        Shrivastava, Gupta, Girshick, "Training Region-based Object Detectors with Online Hard Example Mining", CVPR
        2016, for pixels as in U2PL's code.
    """
    valid = target != IGNORE
    if min_kept == 0 or int(valid.sum()) <= min_kept:
        return pixel_cross_entropy(logits, target)
    with torch.no_grad():
        probabilities = at_least_float32(logits).softmax(dim=1)
        of_truth = probabilities.gather(1, target.masked_fill(~valid, 0).unsqueeze(1)).squeeze(1)
        limit = of_truth[valid].kthvalue(min_kept).values.clamp(min=threshold)
        kept = target.masked_fill(of_truth > limit, IGNORE)
    return pixel_cross_entropy(logits, kept)


def majority_labels(target: Tensor, num_classes: int, scale: int, min_share: float) -> Tensor:
    """Return the class of each cell of ``scale x scale`` pixels, 255 where none has a large enough share.

    Args:
        target: int64 of shape (B, H, W), 255 for ignored pixels, which have a share of their own.
        num_classes: Number of classes.
        scale: Side of a cell in pixels.
        min_share: Share of the pixels that the class of a cell must have, inclusive.

    Returns:
        int64 of shape (B, H // scale, W // scale).
    """
    one_hot = F.one_hot(target.masked_fill(target == IGNORE, num_classes), num_classes + 1)
    shares, labels = F.avg_pool2d(one_hot.permute(0, 3, 1, 2).float(), scale).max(dim=1)
    return labels.masked_fill((shares < min_share) | (labels == num_classes), IGNORE)


def feature_distance(
    features: Tensor, reference: Tensor, target: Tensor, num_classes: int, classes: list[int], min_share: float = 0.75
) -> Tensor:
    """Return how far features are from those of a frozen network, where the labels show certain classes.

    Args:
        features: Shape (B, D, h, w).
        reference: Features of the frozen network, of the same shape.
        target: int64 of shape (B, H, W), 255 for ignored pixels.
        num_classes: Number of classes.
        classes: Those that count: things, which ImageNet knows.
        min_share: See :func:`majority_labels`.

    Returns:
        Mean Euclidean distance over the cells of these classes; 0, with a gradient of 0, if there are none.

    Source:
        Hoyer, Dai, Van Gool, "DAFormer: Improving Network Architectures and Training Strategies for Domain-Adaptive
        Semantic Segmentation", CVPR 2022, ImageNet feature distance.
    """
    cells = majority_labels(target, num_classes, target.shape[-1] // features.shape[-1], min_share)
    chosen = torch.isin(cells, torch.tensor(classes, device=cells.device))
    difference = at_least_float32(features) - at_least_float32(reference)
    # The norm has no gradient at 0, where a network is compared with itself before its first step.
    distance = (difference.square().sum(dim=1) + 1e-24).sqrt()
    return (distance * chosen).sum() / chosen.sum().clamp(min=1)
