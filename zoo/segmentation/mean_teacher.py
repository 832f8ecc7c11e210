"""MeanTeacher: self-training of segmentation, in which a moving average of the student labels what has no labels.

A teacher with the student's architecture labels unlabelled images, the student learns from these labels and from the
true ones of labelled images, and the teacher follows the student as a moving average of its parameters. Which losses
and which augmentation that means is the objective's business: ``DomainMixing`` for domain adaptation,
``EntropyFiltering`` for semi-supervised learning.

Tarvainen and Valpola, "Mean teachers are better role models: Weight-averaged consistency targets improve
semi-supervised deep learning results", NeurIPS 2017, https://arxiv.org/abs/1703.01780. For segmentation as in
https://github.com/lhoyer/DAFormer (commit dc4fd9b) and https://github.com/Haochen-Wang409/U2PL (commit ab3d2be), the
two baselines that FST starts from.

What differs: the teacher moves at the start of an iteration in both recipes, where U2PL's moves at its end; the labels
are the same. Buffers of the teacher (batch statistics) are copied from the student by default. What is random follows
from (seed, iteration, process), so that a resumed run draws what an unbroken one draws.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.classification import MulticlassConfusionMatrix

from zoo.functional import ema_update_, mix_seeds, momentum_at
from zoo.metrics import intersection_over_union, mean_iou, pixel_accuracy
from zoo.nn import (
    PolyWithWarmup,
    check_state,
    create_segmentation_network,
    drop_part,
    restore_part,
    sliding_window,
)
from zoo.precision import check_average, shard
from zoo.segmentation.batches import check_batch, split
from zoo.segmentation.objectives import DomainMixing, Objective
from zoo.segmentation.students import load_student, parameter_groups

IGNORE = 255
REBUILT = "objective."  # a frozen encoder that an objective compares with


class MeanTeacher(L.LightningModule):
    """Segmentation with few labels or labels of another domain: an average of the student is its teacher.

    It needs the batches of :class:`zoo.datamodules.SemiSupervisedSegmentationDataModule` or
    :class:`zoo.datamodules.DomainAdaptationDataModule`. It optimises by hand: ``gradient_clip_val`` and
    ``accumulate_grad_batches`` of the Trainer are refused, ``gradient_clip`` and ``micro_batches`` here take their
    place.

    Args:
        num_classes: Number of classes.
        network: A name of :func:`zoo.nn.create_segmentation_network`, or a module that maps images in [0, 1] to logits
            of their size.
        network_args: Further arguments of the network.
        pretrained: Whether its encoder starts with ImageNet weights.
        mean: See :func:`zoo.nn.create_segmentation_network`, as the next one.
        std: See there.
        objective: The losses. Default: :class:`zoo.segmentation.DomainMixing` with the published settings.
        momentum: Share of the teacher that stays in an update; published: 0.999 for domain adaptation, 0.99 for
            semi-supervised learning. At 1, without the warm-up, the teacher stays what it is when self-training begins.
        momentum_warmup: Start with less: ``min(1 - 1 / (t + 1), momentum)`` in iteration t, so that the teacher begins
            as a copy of the student.
        teacher_buffers: Batch statistics of the teacher: "copy" of the student's after each iteration, "ema", an
            average with the same momentum, or "own", gathered in its own passes as in the published code.
        supervised_steps: Iterations before self-training begins, on labelled images alone; the teacher is a copy.
        start_from: A checkpoint of this class or of :class:`zoo.FST` whose student both networks start from.
        predict_with: Which network predicts: "teacher" (published for semi-supervised learning) or "student" (published
            for domain adaptation). Both are measured.
        window: Side of the windows in which larger images are evaluated; published for Cityscapes with few labels: 769.
            Default: whole images.
        gradient_clip: Largest norm of the gradient; none by default.
        micro_batches: Parts in which a batch is computed, one after another; their gradients are averaged.
        head_lr_factor: Learning rate of all that is no encoder, as a multiple of the encoder's; published: 10.
        decay_norms: Whether weight decay acts on biases and other parameters of one dimension too.
        class_subsets: Names of class lists whose mean IoU is logged too, as ``miou_<name>``: the 16 and 13 classes of
            SYNTHIA.
        seed: Of what the objective draws.
        optimizer: Makes an optimizer of parameter groups.
        schedule: Makes a schedule of an optimizer and the number of iterations of the whole fit; stepped after each.
        class_names: Name of each label, for the IoU of each class.

    Good to know:
        Logged, as fractions (higher is better): ``<split>/miou_student``, ``miou_teacher``, and ``miou`` of the one
        that predicts; ``acc_student``, ``acc_teacher`` (pixels); in ``test`` also ``test/class/<name>/iou_student`` and
        ``iou_teacher``. In training ``train/loss`` and its parts, ``train/quality`` (share of the pixels of which the
        teacher is confident, or that are kept), ``train/pseudo_acc`` and ``train/pseudo_acc_foreground`` where the
        datamodule gives the truth, ``train/teacher_distance`` (norm of the difference of the parameters) and
        ``train/gradients``, the number of gradients computed so far. A class that is neither there nor predicted is
        left out of the mean. Pixels of 255 are not counted.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Tarvainen and Valpola, "Mean teachers are better role models: Weight-averaged consistency targets improve
        semi-supervised deep learning results", NeurIPS 2017.
    """

    def __init__(
        self,
        num_classes: int,
        network: str | nn.Module = "small_unet",
        network_args: dict[str, Any] | None = None,
        pretrained: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        objective: Objective | None = None,
        momentum: float = 0.999,
        momentum_warmup: bool = True,
        teacher_buffers: Literal["copy", "ema", "own"] = "copy",
        supervised_steps: int = 0,
        start_from: str | None = None,
        predict_with: Literal["teacher", "student"] = "teacher",
        window: int | None = None,
        gradient_clip: float | None = None,
        micro_batches: int = 1,
        head_lr_factor: float = 1.0,
        decay_norms: bool = True,
        class_subsets: dict[str, list[str]] | None = None,
        seed: int = 0,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=6e-5, weight_decay=0.01),
        schedule: Callable[[Optimizer, int], LRScheduler] = PolyWithWarmup,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__()
        check_arguments(num_classes, momentum, supervised_steps, gradient_clip, micro_batches, head_lr_factor)
        check_names(num_classes, class_names, class_subsets)
        given = [] if isinstance(network, str) else ["network"]
        self.save_hyperparameters(ignore=["objective", "optimizer", "schedule", *given])
        self.automatic_optimization = False
        self.num_classes = num_classes
        self.momentum = momentum
        self.momentum_warmup = momentum_warmup
        self.teacher_buffers = teacher_buffers
        self.supervised_steps = supervised_steps
        self.start_from = start_from
        self.predict_with = predict_with
        self.window = window
        self.gradient_clip = gradient_clip
        self.micro_batches = micro_batches
        self.head_lr_factor = head_lr_factor
        self.decay_norms = decay_norms
        self.class_subsets = class_subsets or {}
        self.seed = seed
        self.optimizer = optimizer
        self.schedule = schedule
        self.class_names = class_names

        if isinstance(network, str):
            network = create_segmentation_network(
                network, num_classes, pretrained, mean, std, **dict(network_args or {})
            )
        self.student = network
        self.teacher = copy.deepcopy(network).requires_grad_(False)
        self.objective: Any = DomainMixing() if objective is None else objective
        self.objective.attach(self.student, num_classes)
        self.student_counts = confusion(num_classes)
        self.teacher_counts = confusion(num_classes)
        self.train()

    def configure_model(self) -> None:
        """Shard both networks where the strategy does so."""
        shard(self, self.student, self.teacher)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (B, C, H, W) of images in [0, 1], of the network that predicts."""
        return self.scores(self.predict_with, images)

    def scores(self, name: Literal["student", "teacher"], images: Tensor) -> Tensor:
        """Return logits of one of the two networks."""
        network = self.student if name == "student" else self.teacher
        logits: Tensor = network(images) if self.window is None else sliding_window(network, images, self.window)
        return logits

    @torch.no_grad()
    def pseudo_labels(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the teacher takes each pixel for, and with what probability, both of shape (B, H, W)."""
        confidence, labels = self.scores("teacher", images).softmax(dim=1).max(dim=1)
        return labels, confidence

    def train(self, mode: bool = True) -> "MeanTeacher":
        """Keep the teacher in evaluation mode: no dropout, no stochastic depth."""
        super().train(mode)
        self.teacher.eval()
        return self

    # Training -------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Move the teacher, take the gradient with its labels, step the student."""
        check_batch(batch)
        step = self.iteration - self.supervised_steps
        if step < 0:
            self.average(0.0)
            logs = self.compute_gradient(batch, draw=0, supervised=True)
            self.step()
        else:
            self.prepare_teacher(batch, step)
            logs = self.compute_gradient(batch, draw=0)
            self.step()
            self.follow_up(step)
        self.move_buffers(step)
        self.log_dict(
            {f"train/{name}": value for name, value in logs.items()},
            on_step=False,
            on_epoch=True,
            sync_dist=True,
            batch_size=1,
        )

    def prepare_teacher(self, batch: Any, step: int) -> None:
        """Let the teacher take in the student before it labels; what FST does otherwise."""
        self.average(self.momentum_of(self.momentum, step))

    def follow_up(self, step: int) -> None:
        """Do what comes after the student's step: nothing here."""

    @property
    def iteration(self) -> int:
        """Steps of the student so far; Lightning saves and restores the number."""
        return self.trainer.global_step

    def momentum_of(self, momentum: float, step: int) -> float:
        """Return a momentum at an iteration of self-training."""
        return momentum_at(step, momentum) if self.momentum_warmup else momentum

    def average(self, momentum: float) -> None:
        """Move the teacher's parameters towards the student's as they are now."""
        ema_update_(list(self.teacher.parameters()), list(self.student.parameters()), momentum)

    @torch.no_grad()
    def move_buffers(self, step: int) -> None:
        """Move the teacher's batch statistics, once in an iteration."""
        if self.teacher_buffers == "own" and step >= 0:
            return
        weight = 1.0
        if self.teacher_buffers == "ema" and step >= 0:
            weight = 1 - self.momentum_of(self.momentum, step)
        for mine, new in zip(self.teacher.buffers(), self.student.buffers(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(new, weight)
            else:
                mine.copy_(new)

    def compute_gradient(
        self, batch: Any, draw: int, supervised: bool = False, share: float = 1.0, add: bool = False
    ) -> dict[str, Tensor]:
        """Leave the gradient of the objective in the student's parameters, and return what is to be logged.

        Args:
            batch: Labelled and unlabelled images.
            draw: Which draws of this iteration are used; the real gradient has the first, 0.
            supervised: Whether only the labelled images count.
            share: Factor of the gradient.
            add: Add to the gradient that is there.
        """
        if not add:
            self.torch_optimizer.zero_grad()
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, self.iteration, self.global_rank, draw))
        logs: dict[str, Tensor] = {}
        for part in split(batch, self.micro_batches):
            teacher = None if supervised else self.teacher
            outcome = self.objective(self.student, teacher, part, generator, self.teacher_buffers == "own")
            self.manual_backward(outcome.loss * (share / self.micro_batches))
            for name, value in {"loss": outcome.loss.detach(), **outcome.logs}.items():
                logs[name] = logs.get(name, 0) + value / self.micro_batches
        return logs

    def step(self) -> None:
        """Step the student and its schedule."""
        optimizer: Any = self.optimizers()
        optimizer.step()
        schedule: Any = self.lr_schedulers()
        schedule.step()

    @property
    def torch_optimizer(self) -> Optimizer:
        """The optimizer itself: Lightning's wrapper counts its steps."""
        wrapper: Any = self.optimizers()
        optimizer: Optimizer = wrapper.optimizer
        return optimizer

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient, which is unscaled here."""
        self.clip()

    def clip(self) -> None:
        """Clip the gradient to the largest norm."""
        if self.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.student.parameters(), self.gradient_clip)

    @contextmanager
    def kept_statistics(self) -> Iterator[None]:
        """Put the student's buffers back at the end."""
        before = [buffer.clone() for buffer in self.student.buffers()]
        try:
            yield
        finally:
            for buffer, value in zip(self.student.buffers(), before, strict=True):
                buffer.copy_(value)

    def gradients_until(self, iteration: int) -> int:
        """Return how many gradients so many iterations take."""
        return iteration

    def on_train_epoch_end(self) -> None:
        """Log how far the two networks are apart, and the number of gradients so far."""
        pairs = zip(self.student.parameters(), self.teacher.parameters(), strict=True)
        distance = torch.stack([(mine.detach() - other).norm() for mine, other in pairs]).norm()
        if isinstance(distance, DTensor):
            distance = distance.full_tensor()
        self.log("train/teacher_distance", distance, sync_dist=True)
        self.log("train/gradients", float(self.gradients_until(self.iteration)), sync_dist=True)

    def configure_callbacks(self) -> list[L.Callback]:
        """Refuse arguments of the Trainer that manual optimisation cannot obey, before Lightning does; add nothing.

        Raises:
            ValueError: If clipping or accumulation was asked of the Trainer.
        """
        if self.trainer.gradient_clip_val:
            raise ValueError(
                f"Trainer(gradient_clip_val={self.trainer.gradient_clip_val}) cannot reach {type(self).__name__}, "
                "which optimises by hand: give gradient_clip to the method."
            )
        if self.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"Trainer(accumulate_grad_batches={self.trainer.accumulate_grad_batches}) cannot reach "
                f"{type(self).__name__}, which optimises by hand: give the datamodule larger batches, and "
                "micro_batches to the method."
            )
        return []

    def setup(self, stage: str) -> None:
        """Load the start weights; a checkpoint that is resumed replaces them afterwards."""
        if stage == "fit" and self.start_from is not None:
            load_student(self.student, self.start_from)
            self.teacher.load_state_dict(self.student.state_dict())

    def on_fit_start(self) -> None:
        """Check that averages are kept in a precision in which they move.

        Raises:
            ValueError: If parameters have half precision, or are packed.
        """
        check_average(self.teacher, self.momentum)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and the schedule.

        Raises:
            ValueError: If the Trainer does not say how long the fit is.
        """
        num_steps = self.trainer.estimated_stepping_batches
        if math.isinf(num_steps):
            raise ValueError("The schedule needs the length of the fit: give max_epochs or max_steps to the Trainer.")
        optimizer = self.optimizer(parameter_groups(self.student, self.head_lr_factor, self.decay_norms))
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("lr_scale")
        schedule = self.schedule(optimizer, int(num_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Evaluation -----------------------------------------------------------------------------------------------------

    @property
    def counts(self) -> dict[str, MulticlassConfusionMatrix]:
        """The counted pixels of both networks."""
        return {"student": self.student_counts, "teacher": self.teacher_counts}

    def on_validation_epoch_start(self) -> None:
        """Forget what an interrupted evaluation counted."""
        for counts in self.counts.values():
            counts.reset()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the pixels of both networks, at the resolution of the masks."""
        images, masks = batch
        for name, counts in self.counts.items():
            counts.update(self.predict_masks(name, images, masks.shape[-2:]), masks)

    def predict_masks(self, name: Any, images: Tensor, size: Sequence[int]) -> Tensor:
        """Return the best class of each pixel of one of the networks, at another resolution where one is asked for."""
        logits = self.scores(name, images)
        if tuple(logits.shape[-2:]) != tuple(size):
            logits = F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)
        return logits.argmax(dim=1)

    def on_validation_epoch_end(self) -> None:
        """Log IoU and accuracy of the split that was measured."""
        testing = self.trainer.testing
        split = "test" if testing else getattr(self.datamodule, "evaluate", "val")
        values: dict[str, Tensor] = {}
        for name, counts in self.counts.items():
            matrix = counts.compute()
            values[f"miou_{name}"] = mean_iou(matrix)
            values[f"acc_{name}"] = pixel_accuracy(matrix)
            for subset, members in self.class_subsets.items():
                values[f"miou_{subset}_{name}"] = mean_iou(matrix, [self.names.index(member) for member in members])
            if testing:
                of_classes = zip(self.names, intersection_over_union(matrix), strict=True)
                values |= {f"class/{label}/iou_{name}": value for label, value in of_classes if not value.isnan()}
        values["miou"] = values[f"miou_{self.predict_with}"]
        # Equal on all processes after the metrics' own reduction; sync_dist only tells Lightning so.
        self.log_dict({f"{split}/{name}": value.float() for name, value in values.items()}, sync_dist=True)

    def on_test_epoch_start(self) -> None:
        """Forget what an interrupted evaluation counted."""
        self.on_validation_epoch_start()

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the pixels of both networks."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Log IoU and accuracy, also of each class."""
        self.on_validation_epoch_end()

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return the ``mask`` of each image, uint8 of shape (B, H, W), and the mean ``confidence`` of its pixels."""
        images, size = (batch, batch.shape[-2:]) if isinstance(batch, Tensor) else (batch[0], batch[1].shape[-2:])
        logits = self(images)
        if tuple(logits.shape[-2:]) != tuple(size):
            logits = F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)
        confidence, labels = logits.softmax(dim=1).max(dim=1)
        return {"mask": labels.to(torch.uint8), "confidence": confidence.mean(dim=(1, 2))}

    @property
    def datamodule(self) -> Any:
        """The datamodule that the Trainer was given, or None."""
        return self.trainer.datamodule  # type: ignore[attr-defined]  # set by fit, validate, test and predict

    @property
    def names(self) -> list[str]:
        """Name of each label."""
        return self.class_names or [str(label) for label in range(self.num_classes)]

    # Checkpoints ----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out a frozen encoder that the objective compares with."""
        drop_part(checkpoint["state_dict"], REBUILT)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits.

        Raises:
            ValueError: If it has another number of classes, another network, or belongs to another class.
        """
        restore_part(self, checkpoint["state_dict"], REBUILT)
        check_state(self, checkpoint["state_dict"])


def confusion(num_classes: int) -> MulticlassConfusionMatrix:
    """Return a counter of pixels that leaves out those of 255."""
    return MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE, validate_args=False)


def check_arguments(
    num_classes: int,
    momentum: float,
    supervised_steps: int,
    gradient_clip: float | None,
    micro_batches: int,
    head_lr_factor: float,
) -> None:
    """Raise ValueError if an argument is out of range."""
    if not 1 <= num_classes <= IGNORE:
        raise ValueError(f"num_classes={num_classes} must be from 1 to {IGNORE}: {IGNORE} marks ignored pixels.")
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum={momentum} must be from 0 to 1.")
    if supervised_steps < 0 or micro_batches < 1:
        raise ValueError(f"supervised_steps={supervised_steps} must be at least 0, micro_batches={micro_batches} 1.")
    if (gradient_clip is not None and gradient_clip <= 0) or head_lr_factor <= 0:
        raise ValueError(f"gradient_clip={gradient_clip} and head_lr_factor={head_lr_factor} must be positive.")


def check_names(num_classes: int, names: list[str] | None, subsets: dict[str, list[str]] | None) -> None:
    """Raise ValueError if names are missing, or subsets name what is no class."""
    if names is not None and len(names) != num_classes:
        raise ValueError(f"class_names holds {len(names)} names for num_classes={num_classes}.")
    known = names or [str(label) for label in range(num_classes)]
    for subset, members in (subsets or {}).items():
        unknown = [member for member in members if member not in known]
        if unknown or not members:
            raise ValueError(f"class_subsets[{subset!r}] names {unknown or 'nothing'}; the classes are {known}.")
