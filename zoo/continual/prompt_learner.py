"""What methods share that learn prompts for a frozen vision transformer, and a linear head, task after task."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.continual.learner import StreamLearner, stream_of
from zoo.continual.outlier_phase import OutlierPhase
from zoo.functional import Task, task_cross_entropy
from zoo.nn import (
    Backbone,
    VirtualOutliers,
    attach_prefix,
    check_state,
    create_backbone,
    drop_part,
    freeze,
    restore_part,
    set_prefix,
)
from zoo.nn.prefix import check_class_token
from zoo.precision import restore_quantization, save_quantization

ScheduleCallable = Callable[[Optimizer, int], LRScheduler]


class Prompts(nn.Module):
    """Learnable prefixes of some blocks.

    Attributes:
        needs_query: Whether they are chosen by what the transformer says of an image without them.
    """

    needs_query = True

    @abstractmethod
    def forward(self, query: Tensor | None, task: int | None) -> tuple[dict[int, Tensor], Tensor]:
        """Return the prefixes of the blocks, as :func:`zoo.nn.set_prefix` takes them, and a loss of their own.

        Args:
            query: Features of the images without a prefix, shape (B, D), if they are needed.
            task: The task that is being trained, None in evaluation.
        """


class PromptLearner(StreamLearner):
    """A method that trains ``self.prompts``, which a subclass makes, and a linear head; the transformer is frozen.

    Only classes of the current task compete in the loss, so the rows of all others stay as they are. The last
    ``vor_epochs`` of a task are an :class:`~zoo.continual.outlier_phase.OutlierPhase`.

    Args:
        num_classes: Number of classes of the stream.
        backbone: A timm ``VisionTransformer`` by name, or one that :func:`zoo.nn.create_backbone` made.
        layers: Blocks that have a prefix.
        optimizer: Makes the optimizer of a task from the prompts and the head.
        schedule: Makes its schedule from the optimizer and the number of epochs of the task; stepped after each epoch.
        prompt_loss_weight: Weight of the prompts' own loss.
        vor_epochs: Epochs with virtual outliers at the end of each task.
        vor: The regulariser. Default: as published.
        pretrained: See :func:`zoo.nn.create_backbone`, as the next three.
        checkpoint_path: See there.
        mean: See there.
        std: See there.
        backbone_args: Further arguments of timm's model, such as ``img_size``.
        class_names: Name of each label, for predictions.
        save_backbone: Whether checkpoints hold the backbone. Default: only if it cannot be rebuilt.
    """

    prompts: Prompts
    seen: Tensor
    max_tasks: int | None = None  # how many tasks there are prompts for; None: any number

    def __init__(
        self,
        num_classes: int,
        backbone: str | Backbone,
        layers: Sequence[int],
        optimizer: OptimizerCallable,
        schedule: ScheduleCallable,
        prompt_loss_weight: float,
        vor_epochs: int,
        vor: VirtualOutliers | None,
        pretrained: bool,
        checkpoint_path: str | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        backbone_args: dict[str, Any] | None,
        class_names: Sequence[str] | None,
        save_backbone: bool | None,
    ) -> None:
        super().__init__(class_names)
        self.not_saved = ["optimizer", "schedule", "vor", *(["backbone"] if isinstance(backbone, Backbone) else [])]
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be at least 1.")
        can_be_rebuilt = isinstance(backbone, str) and (pretrained or checkpoint_path is not None)
        if isinstance(backbone, str):
            backbone = create_backbone(backbone, pretrained, checkpoint_path, mean, std, **(backbone_args or {}))
        check_class_token(backbone.model)
        attach_prefix(backbone.model, layers)
        freeze(backbone)
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, num_classes)
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.prompt_loss_weight = prompt_loss_weight
        self.outlier_phase = OutlierPhase(vor_epochs, vor)
        self.save_backbone = not can_be_rebuilt if save_backbone is None else save_backbone

    # The classifier -------------------------------------------------------------------------------------------------

    def features(self, images: Tensor, task: int | None = None) -> tuple[Tensor, Tensor]:
        """Return features (B, D) of images in [0, 1], and the prompts' own loss; ``task`` as of :class:`Prompts`."""
        query = None
        if self.prompts.needs_query:
            set_prefix(self.backbone.model, {})
            with torch.no_grad():
                query = self.backbone(images)
        prefixes, loss = self.prompts(query, task)
        set_prefix(self.backbone.model, prefixes)
        return self.backbone(images), loss

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (B, C) of images in [0, 1], -inf for classes that were not seen yet."""
        logits: Tensor = self.head(self.features(images)[0])
        return logits.masked_fill(~self.seen, -torch.inf)

    def train(self, mode: bool = True) -> "PromptLearner":
        """Keep the backbone in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    # Training -------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check that there is a stream, and prompts for all of it."""
        if stage == "fit":
            num_tasks = len(stream_of(self).tasks)
            if self.max_tasks is not None and num_tasks > self.max_tasks:
                raise ValueError(f"max_tasks={self.max_tasks} is too small for a stream of {num_tasks} tasks.")

    def on_train_start(self) -> None:
        """Check that there is room for outliers."""
        self.outlier_phase.check(self, self.datamodule.tasks)

    def on_task_start(self, task: Task) -> None:
        """Let the classes of the task be predicted."""
        self.seen[task.classes.start : task.classes.stop] = True

    def on_train_epoch_start(self) -> None:
        """Make outliers if it is time for them."""
        values = self.outlier_phase.start_epoch(self, self.datamodule, lambda images: self.features(images)[0])
        self.log_training(values)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch: of prompts and head, or of the head beside outliers."""
        task = self.datamodule.task
        if self.outlier_phase.is_on:
            loss, values = self.outlier_phase.loss(self.head, batch_idx, task.classes)
            self.log_training(values)
            return loss
        images, labels = batch
        features, prompt_loss = self.features(images, task.index)
        loss = task_cross_entropy(self.head(features), labels, task.classes)
        self.log_training({"loss": loss.detach()})
        if not self.prompt_loss_weight:
            return loss
        self.log_training({"prompt_loss": prompt_loss.detach()})
        return loss + self.prompt_loss_weight * prompt_loss

    def log_training(self, values: dict[str, Any]) -> None:
        """Log the means over an epoch."""
        named = {f"train/{name}": value for name, value in values.items()}
        self.log_dict(named, on_step=False, on_epoch=True, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return optimizer and schedule for one task."""
        optimizer = self.make_optimizer([*self.prompts.parameters(), *self.head.parameters()])
        return [optimizer], [self.make_schedule(optimizer, self.datamodule.task.epochs)]

    # Checkpoints ----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the backbone if it can be rebuilt, and note whether it is quantised."""
        save_quantization(self, checkpoint)
        if not self.save_backbone:
            drop_part(checkpoint["state_dict"], "backbone.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits."""
        restore_quantization(self, checkpoint)
        if not self.save_backbone:
            restore_part(self, checkpoint["state_dict"], "backbone.")
        check_state(self, checkpoint["state_dict"])
