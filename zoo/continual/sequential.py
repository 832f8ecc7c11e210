"""SequentialFineTuning: train on one task after another and do nothing against forgetting.

The lower reference of every table of continual learning. On a stream of one task it is joint training, the upper
reference. With a frozen network it is a linear head alone: what prompts have to improve on.

McCloskey, Cohen, "Catastrophic Interference in Connectionist Networks: The Sequential Learning Problem", Psychology of
Learning and Motivation 1989, which showed that this forgets.
"""

from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from zoo.continual.learner import StreamLearner, stream_of
from zoo.continual.prompt_learner import ScheduleCallable
from zoo.functional import Task, task_cross_entropy
from zoo.nn import QuarterCosine, check_state, create_backbone, freeze
from zoo.precision import restore_quantization, save_quantization


class SequentialFineTuning(StreamLearner):
    """A network and a linear head, trained on one task after another.

    Args:
        num_classes: Number of classes of the stream.
        backbone: A timm model by name, or a module that maps images to features (B, D) and says ``num_features``.
        compete: Which classes compete in the loss: all that were ``"seen"``, or those of the ``"task"`` only. The
            latter leaves the head's rows of other tasks alone.
        train_backbone: Whether the network is trained too, or only the head.
        optimizer: Makes the optimizer of a task. The default's rate of 0.001 is too high for most pretrained networks.
        schedule: Makes its schedule from the optimizer and the number of epochs of the task; stepped after each epoch.
        pretrained: See :func:`zoo.nn.create_backbone`, as the next three.
        checkpoint_path: See there.
        mean: See there.
        std: See there.
        backbone_args: Further arguments of timm's model, such as ``img_size``.
        class_names: Name of each label, for predictions.

    Good to know:
        Logged beside the metrics of :class:`~zoo.continual.learner.StreamLearner`: ``train/loss`` (lower is better).
        Checkpoints hold the whole network.

    Raises:
        ValueError: If an argument is out of range, or timm does not know the backbone.

    Source:
        McCloskey and Cohen, "Catastrophic Interference in Connectionist Networks: The Sequential Learning Problem",
        Psychology of Learning and Motivation 1989.
    """

    seen: Tensor

    def __init__(
        self,
        num_classes: int,
        backbone: str | nn.Module = "vit_base_patch16_224.augreg_in21k_ft_in1k",
        compete: Literal["seen", "task"] = "seen",
        train_backbone: bool = True,
        optimizer: OptimizerCallable = torch.optim.Adam,
        schedule: ScheduleCallable = QuarterCosine,
        pretrained: bool | Literal["offline"] = True,
        checkpoint_path: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        backbone_args: dict[str, Any] | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__(class_names)
        if num_classes < 1 or compete not in ("seen", "task"):
            raise ValueError(f"num_classes={num_classes} must be at least 1, and compete={compete!r} 'seen' or 'task'.")
        self.not_saved = ["optimizer", "schedule", *(["backbone"] if isinstance(backbone, nn.Module) else [])]
        self.save_hyperparameters(ignore=self.not_saved)
        if isinstance(backbone, str):
            backbone = create_backbone(backbone, pretrained, checkpoint_path, mean, std, **(backbone_args or {}))
        self.backbone = backbone
        self.compete = compete
        self.train_backbone = train_backbone
        self.head = nn.Linear(int(backbone.num_features), num_classes)  # type: ignore[arg-type]  # an int, see Args
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        if not train_backbone:
            freeze(self.backbone)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (B, C) of images in [0, 1], -inf for classes that were not seen yet."""
        logits: Tensor = self.head(self.backbone(images))
        return logits.masked_fill(~self.seen, -torch.inf)

    def train(self, mode: bool = True) -> "SequentialFineTuning":
        """Keep a frozen network in evaluation mode."""
        super().train(mode)
        if not self.train_backbone:
            self.backbone.eval()
        return self

    def setup(self, stage: str) -> None:
        """Check that there is a stream."""
        if stage == "fit":
            stream_of(self)

    def on_task_start(self, task: Task) -> None:
        """Let the classes of the task be predicted."""
        self.seen[task.classes.start : task.classes.stop] = True

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch."""
        images, labels = batch
        classes = self.datamodule.task.classes
        competing = classes if self.compete == "task" else range(classes.stop)
        loss = task_cross_entropy(self.head(self.backbone(images)), labels, competing)
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, sync_dist=True, batch_size=len(images))
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return optimizer and schedule for one task."""
        optimizer = self.make_optimizer(parameter for parameter in self.parameters() if parameter.requires_grad)
        return [optimizer], [self.make_schedule(optimizer, self.datamodule.task.epochs)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note whether the network is quantised."""
        save_quantization(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits."""
        restore_quantization(self, checkpoint)
        check_state(self, checkpoint["state_dict"])
