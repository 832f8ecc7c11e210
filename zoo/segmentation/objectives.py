"""What a student is trained on: a loss of labelled and of unlabelled images, given a teacher.

Two published recipes, each a module that a method takes as its ``objective``: ``DomainMixing`` for domain adaptation
and ``EntropyFiltering`` for semi-supervised learning. The method knows when the teacher moves and when the student
steps; the objective knows the losses.
"""

import copy
from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zoo.functional import (
    class_mix_mask,
    cut_mix_mask,
    drop_uncertain,
    entropy,
    feature_distance,
    ohem_cross_entropy,
    pixel_cross_entropy,
    pseudo_label,
    reweighted_cross_entropy,
    strong_augment,
)
from zoo.nn import freeze
from zoo.nn.segmentation import SegmentationNetwork, last_features

IGNORE = 255


class Outcome(NamedTuple):
    """What an objective returns.

    Attributes:
        loss: A scalar with a gradient.
        logs: Numbers to log, each a scalar without a gradient.
    """

    loss: Tensor
    logs: dict[str, Tensor]


class Objective(nn.Module, ABC):
    """A loss of a student, given a batch and a teacher; derive from it for losses of your own.

    :class:`DomainMixing` and :class:`EntropyFiltering` are two. The method calls ``attach`` once, and the module itself
    for each gradient.
    """

    num_classes = 0

    def attach(self, student: nn.Module, num_classes: int) -> None:
        """Learn the number of classes, and keep what is needed of the student as it is before training.

        Args:
            student: The network.
            num_classes: Number of classes.
        """
        self.num_classes = num_classes

    @abstractmethod
    def forward(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        batch: dict[str, Any],
        generator: torch.Generator,
        own_statistics: bool,
    ) -> Outcome:
        """Return the loss.

        Args:
            student: In training mode.
            teacher: In evaluation mode; None before self-training begins: the loss of the labelled images alone.
            batch: As of :class:`zoo.datamodules.SemiSupervisedSegmentationDataModule`.
            generator: What is random is drawn from it; on the CPU.
            own_statistics: Whether the teacher keeps batch statistics of its own.
        """


class DomainMixing(Objective):
    """The recipe of DACS and DAFormer: labels of the source mixed into images of the target.

    The loss is the cross-entropy of the labelled images, plus that of mixed images: half of the classes of a labelled
    image, pasted onto an unlabelled one with the teacher's labels, jittered and blurred. The pseudo-labelled pixels
    count as much as the share of the pixels of which the teacher is confident.

    Args:
        threshold: Probability from which the teacher is confident of a pixel.
        quality: The share over the batch (published), or of each image.
        ignore_top: Rows at the top whose pseudo-labels do not count; published for Cityscapes' crops of 512: 15.
        ignore_bottom: Rows at the bottom; published: 120.
        class_mix: From which classes half is drawn: those of each image, those of the batch (as the code), or None: no
            mixing.
        jitter: Strength of the colour jitter; 0 is off.
        jitter_probability: Share of the batches that are jittered.
        blur_probability: Share of the batches that are blurred.
        reduction: Losses are means over "all" pixels, ignored ones included (published), or over "valid" ones.
        unlabeled_weight: Factor of the loss of the mixed images.
        feature_distance: Factor of the distance between the encoder's last features and those of the encoder as it was
            before training; 0 is off. Published with ImageNet weights: 0.005.
        feature_classes: Classes whose cells count in it; published: 6, 7 and 11 to 18 of Cityscapes, the things.
        feature_share: Share of a cell that its class must have.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Tranheden et al., "DACS: Domain Adaptation via Cross-domain Mixed Sampling", WACV 2021. Hoyer, Dai, Van Gool,
        "DAFormer: Improving Network Architectures and Training Strategies for Domain-Adaptive Semantic Segmentation",
        CVPR 2022.
    """

    def __init__(
        self,
        threshold: float = 0.968,
        quality: Literal["batch", "image"] = "batch",
        ignore_top: int = 0,
        ignore_bottom: int = 0,
        class_mix: Literal["image", "batch"] | None = "image",
        jitter: float = 0.2,
        jitter_probability: float = 0.8,
        blur_probability: float = 0.5,
        reduction: Literal["all", "valid"] = "all",
        unlabeled_weight: float = 1.0,
        feature_distance: float = 0.0,
        feature_classes: list[int] | None = None,
        feature_share: float = 0.75,
    ) -> None:
        super().__init__()
        check_shares(
            threshold=threshold, jitter=jitter, jitter_probability=jitter_probability,
            blur_probability=blur_probability, feature_share=feature_share,
        )  # fmt: skip
        if min(ignore_top, ignore_bottom, unlabeled_weight, feature_distance) < 0:
            raise ValueError(
                f"ignore_top={ignore_top}, ignore_bottom={ignore_bottom}, unlabeled_weight={unlabeled_weight} and "
                f"feature_distance={feature_distance} must not be negative."
            )
        if feature_distance and not feature_classes:
            raise ValueError("feature_distance needs feature_classes: the classes whose features are compared.")
        self.threshold = threshold
        self.quality: Literal["batch", "image"] = quality
        self.ignore_top = ignore_top
        self.ignore_bottom = ignore_bottom
        self.class_mix = class_mix
        self.jitter = jitter
        self.jitter_probability = jitter_probability
        self.blur_probability = blur_probability
        self.reduction: Literal["all", "valid"] = reduction
        self.unlabeled_weight = unlabeled_weight
        self.feature_distance = feature_distance
        self.feature_classes = feature_classes or []
        self.feature_share = feature_share
        self.reference: nn.Module | None = None

    def attach(self, student: nn.Module, num_classes: int) -> None:
        """Keep a frozen copy of the encoder as it is now.

        Raises:
            ValueError: If features are to be compared and the network has no encoder.
        """
        super().attach(student, num_classes)
        if self.feature_distance:
            if not isinstance(student, SegmentationNetwork) or student.encoder is None:
                raise ValueError(
                    "feature_distance compares features of an encoder, and the network has none: set it to 0."
                )
            self.reference = copy.deepcopy(student.encoder)
            freeze(self.reference)

    def train(self, mode: bool = True) -> "DomainMixing":
        """Keep the frozen encoder in evaluation mode."""
        super().train(mode)
        if self.reference is not None:
            self.reference.eval()
        return self

    def forward(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        batch: dict[str, Any],
        generator: torch.Generator,
        own_statistics: bool,
    ) -> Outcome:
        """Return the loss of both kinds of images; see :class:`Objective`."""
        images, masks = batch["labeled"]
        loss, logs = self.labeled_loss(student, images, masks)
        if teacher is None:
            return Outcome(loss, logs)
        unlabeled, truth = pair(batch["unlabeled"])
        # With statistics of its own the teacher labels by those of the batch, and gathers them on the way.
        said = pseudo_label(
            ask(teacher, unlabeled, own_statistics), self.threshold, self.quality, self.ignore_top, self.ignore_bottom
        )
        mixed, labels, weight = self.mix(images, masks, unlabeled, said.labels, said.weight, generator)
        mixed = strong_augment(mixed, generator, self.jitter, self.jitter_probability, self.blur_probability)
        mixed_loss = pixel_cross_entropy(student(mixed), labels, weight, self.reduction)
        logs |= {"loss_unlabeled": mixed_loss.detach(), "quality": said.quality.mean()} | compare(said.labels, truth)
        return Outcome(loss + self.unlabeled_weight * mixed_loss, logs)

    def labeled_loss(self, student: nn.Module, images: Tensor, masks: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of labelled images, with the distance of features where it counts."""
        if self.reference is None:
            loss = pixel_cross_entropy(student(images), masks, reduction=self.reduction)
            return loss, {"loss_labeled": loss.detach()}
        network: Any = student
        with last_features(network.encoder) as features:
            loss = pixel_cross_entropy(student(images), masks, reduction=self.reduction)
        with torch.no_grad(), last_features(self.reference) as reference:
            self.reference((images - network.mean) / network.std)
        distance = feature_distance(
            features[0], reference[0], masks, self.num_classes, self.feature_classes, self.feature_share
        )
        logs = {"loss_labeled": loss.detach(), "feature_distance": distance.detach()}
        return loss + self.feature_distance * distance, logs

    def mix(
        self,
        images: Tensor,
        masks: Tensor,
        unlabeled: Tensor,
        labels: Tensor,
        weight: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return images, labels and weights with half of the classes of each labelled image pasted in."""
        if self.class_mix is None:
            return unlabeled, labels, weight
        if images.shape != unlabeled.shape:
            raise ValueError(
                f"ClassMix pastes labelled images of shape {tuple(images.shape)} onto unlabelled ones of shape "
                f"{tuple(unlabeled.shape)}: make batches and crops of both equal, or set class_mix to null."
            )
        mask = class_mix_mask(masks, self.num_classes, generator, present=self.class_mix)
        return (
            torch.where(mask.unsqueeze(1), images, unlabeled),
            torch.where(mask, masks, labels),
            torch.where(mask, torch.ones_like(weight), weight),
        )


class EntropyFiltering(Objective):
    """The recipe of U2PL without its contrastive term: pseudo-labels where the teacher is least unsure.

    The loss is the cross-entropy of the labelled images, plus that of the unlabelled ones with the teacher's labels,
    without the pixels of the highest entropy; the fewer are left, the more each counts. The student sees both kinds of
    images in one forward pass.

    Args:
        drop_percent: Percentile of the entropy from which pixels are dropped; published: 80 for PASCAL VOC, 100 for
            Cityscapes.
        mix: What happens to unlabelled images and their labels: "cutmix" or "classmix" with the next image of the
            batch, or None.
        mix_probability: Share of the batches that are mixed.
        ohem: Whether only hard pixels of labelled images count, as published for Cityscapes.
        ohem_threshold: See :func:`zoo.functional.ohem_cross_entropy`.
        ohem_min_kept: See there.
        unlabeled_weight: Factor of the loss of the unlabelled images.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Wang et al., "Semi-Supervised Semantic Segmentation Using Unreliable Pseudo-Labels", CVPR 2022, as the official
        code of FST uses it. Its auxiliary head for Cityscapes is left out.
    """

    def __init__(
        self,
        drop_percent: float = 80.0,
        mix: Literal["cutmix", "classmix"] | None = None,
        mix_probability: float = 0.5,
        ohem: bool = False,
        ohem_threshold: float = 0.7,
        ohem_min_kept: int = 100_000,
        unlabeled_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_shares(mix_probability=mix_probability, ohem_threshold=ohem_threshold)
        if not 0 < drop_percent <= 100 or ohem_min_kept < 0 or unlabeled_weight < 0:
            raise ValueError(
                f"drop_percent={drop_percent} must be in (0, 100], ohem_min_kept={ohem_min_kept} and "
                f"unlabeled_weight={unlabeled_weight} not negative."
            )
        self.drop_percent = drop_percent
        self.mix = mix
        self.mix_probability = mix_probability
        self.ohem = ohem
        self.ohem_threshold = ohem_threshold
        self.ohem_min_kept = ohem_min_kept
        self.unlabeled_weight = unlabeled_weight

    def forward(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        batch: dict[str, Any],
        generator: torch.Generator,
        own_statistics: bool,
    ) -> Outcome:
        """Return the loss of both kinds of images; see :class:`Objective`."""
        images, masks = batch["labeled"]
        if teacher is None:
            loss = self.labeled_loss(student(images), masks)
            return Outcome(loss, {"loss_labeled": loss.detach()})
        unlabeled, truth = pair(batch["unlabeled"])
        logits = ask(teacher, unlabeled)
        labels = logits.argmax(dim=1)
        logs = compare(labels, truth)
        shown, labels = self.mixed(unlabeled, labels, generator)
        if own_statistics:  # the pass in which the teacher gathers them
            logits = ask_training(teacher, torch.cat([images, shown]))[len(images) :]
        elif shown is not unlabeled:
            logits = ask(teacher, shown)
        labels = drop_uncertain(labels, entropy(logits), self.drop_percent)

        scores = student(torch.cat([images, shown]))
        loss = self.labeled_loss(scores[: len(images)], masks)
        unlabeled_loss = reweighted_cross_entropy(scores[len(images) :], labels)
        kept = (labels != IGNORE).float().mean()
        logs |= {"loss_labeled": loss.detach(), "loss_unlabeled": unlabeled_loss.detach(), "quality": kept}
        return Outcome(loss + self.unlabeled_weight * unlabeled_loss, logs)

    def labeled_loss(self, scores: Tensor, masks: Tensor) -> Tensor:
        """Return the loss of labelled images."""
        if self.ohem:
            return ohem_cross_entropy(scores, masks, self.ohem_threshold, self.ohem_min_kept)
        return pixel_cross_entropy(scores, masks)

    def mixed(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return images and labels, mixed with the next of the batch."""
        drawn = float(torch.rand((), generator=generator))
        if self.mix is None or drawn >= self.mix_probability:
            return images, labels
        if self.mix == "cutmix":
            foreign = cut_mix_mask(len(images), images.shape[-2], images.shape[-1], generator).to(images.device)
        else:
            foreign = ~class_mix_mask(labels, self.num_classes, generator, round_up=False)
        shown = torch.where(foreign.unsqueeze(1), images.roll(-1, 0), images)
        return shown, torch.where(foreign, labels.roll(-1, 0), labels)


def pair(unlabeled: Any) -> tuple[Tensor, Tensor | None]:
    """Return unlabelled images, and their masks where the datamodule gives them to measure pseudo-labels."""
    return (unlabeled, None) if isinstance(unlabeled, Tensor) else (unlabeled[0], unlabeled[1])


@torch.no_grad()
def ask(teacher: nn.Module, images: Tensor, batch_statistics: bool = False) -> Tensor:
    """Return a teacher's logits; dropout and stochastic depth are off.

    Args:
        teacher: In evaluation mode.
        images: Shape (B, 3, H, W).
        batch_statistics: Normalise by the statistics of this batch, which the teacher's own then take in.
    """
    norms = [part for part in teacher.modules() if isinstance(part, _BatchNorm)] if batch_statistics else []
    for part in norms:
        part.train()
    logits: Tensor = teacher(images)
    for part in norms:
        part.eval()
    return logits


@torch.no_grad()
def ask_training(teacher: nn.Module, images: Tensor) -> Tensor:
    """Return a teacher's logits in training mode."""
    teacher.train()
    logits: Tensor = teacher(images)
    teacher.eval()
    return logits


def compare(labels: Tensor, truth: Tensor | None) -> dict[str, Tensor]:
    """Return the accuracy of pseudo-labels, of all pixels and of those that are no background (class 0)."""
    if truth is None:
        return {}
    right, valid = (labels == truth).float(), truth != IGNORE
    foreground = valid & (truth > 0)
    return {
        "pseudo_acc": (right * valid).sum() / valid.sum().clamp(min=1),
        "pseudo_acc_foreground": (right * foreground).sum() / foreground.sum().clamp(min=1),
    }


def check_shares(**shares: float) -> None:
    """Raise ValueError if a share or probability is not from 0 to 1."""
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} must be from 0 to 1.")
