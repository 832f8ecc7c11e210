"""What methods share that learn from a frozen network's features, in one pass and without a gradient."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from zoo.continual.learner import StreamLearner
from zoo.functional import Task
from zoo.nn import check_state, create_backbone, drop_part, freeze, restore_part
from zoo.precision import restore_quantization, save_quantization


class FrozenBackboneLearner(StreamLearner):
    """A method that collects something of the features of a pass, and makes its classifier of it at the end.

    A subclass says what it keeps of a batch (:meth:`collect`) and what it learns from that (:meth:`learn`). An
    interrupted pass leaves nothing behind. Works in a stream, and without one.

    Args:
        num_classes: Number of classes.
        backbone: A timm model by name, or a module that maps images to features (B, D) and says ``num_features``.
        normalize: Whether features are scaled to unit length.
        pretrained: See :func:`zoo.nn.create_backbone`, as the next three.
        checkpoint_path: See there.
        mean: See there.
        std: See there.
        backbone_args: Further arguments of timm's model, such as ``img_size``.
        class_names: Name of each label, for predictions.
        save_backbone: Whether checkpoints hold the backbone. Default: only if it cannot be rebuilt, which is to say if
            it is a module of the caller's or has random weights.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str | nn.Module,
        normalize: bool,
        pretrained: bool | Literal["offline"],
        checkpoint_path: str | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        backbone_args: dict[str, Any] | None,
        class_names: Sequence[str] | None,
        save_backbone: bool | None,
    ) -> None:
        super().__init__(class_names)
        can_be_rebuilt = isinstance(backbone, str) and (bool(pretrained) or checkpoint_path is not None)
        if isinstance(backbone, str):
            backbone = create_backbone(backbone, pretrained, checkpoint_path, mean, std, **(backbone_args or {}))
        self.num_classes = num_classes
        self.normalize = normalize
        self.save_backbone = not can_be_rebuilt if save_backbone is None else save_backbone
        self.backbone = backbone
        freeze(self.backbone)
        self.num_features = int(backbone.num_features)  # type: ignore[arg-type]  # an int, see Args
        # Lightning refuses DDP, and never writes a checkpoint, for a module that trains nothing.
        self.dummy = nn.Parameter(torch.zeros(()))
        # No buffers: DDP copies the first process's buffers over those of the others at each step.
        self._collected: list[Any] = []
        self._in_stream = False

    @abstractmethod
    def collect(self, features: Tensor, labels: Tensor) -> None:
        """Add to ``self._collected`` what is kept of a batch: features (B, D) float32, labels (B,) int64."""

    @abstractmethod
    def learn(self, collected: list[Any]) -> None:
        """Make the classifier of what each process collected. All processes call it."""

    def features(self, images: Tensor) -> Tensor:
        """Return features of shape (B, D), float32, of images in [0, 1]; of unit length where ``normalize`` is set.

        Raises:
            ValueError: If they are not finite.
        """
        with torch.no_grad():
            features: Tensor = self.backbone(images).float()  # before the norm: float16 squares overflow
        # The lengths tell whether all is finite at a fraction of what looking at each number costs.
        lengths = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        if not torch.isfinite(lengths).all():
            where = "the images" if not torch.isfinite(images).all() else "the backbone; try precision='32-true'"
            raise ValueError(f"Features are not finite: look at {where}.")
        return features / lengths.clamp_min(1e-12) if self.normalize else features

    def check_labels(self, labels: Tensor) -> None:
        """Raise ValueError if a label is no class."""
        low, high = labels.aminmax()
        if low < 0 or high >= self.num_classes:
            raise ValueError(f"Labels {int(low)} to {int(high)} do not fit num_classes={self.num_classes}.")

    # One pass -------------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> "FrozenBackboneLearner":
        """Keep the backbone in evaluation mode: no dropout, no batch statistics."""
        super().train(mode)
        self.backbone.eval()
        return self

    def on_fit_start(self) -> None:
        """Start outside of a stream, until somebody calls :meth:`on_task_start`."""
        self._in_stream, self._collected = False, []

    def on_task_start(self, task: Task) -> None:
        """Check that the task is passed once."""
        self._in_stream = True
        if task.epochs != 1:
            raise ValueError(
                f"{type(self).__name__} takes one pass over a task, got epochs={task.epochs}; set epochs_per_task=1."
            )

    def on_train_epoch_start(self) -> None:
        """Check that nothing is counted twice, and forget what an interrupted pass left."""
        name = type(self).__name__
        if not self._in_stream and self.trainer.max_epochs != 1:
            raise ValueError(
                f"{name} takes one pass over the data, got max_epochs={self.trainer.max_epochs}; use max_epochs=1."
            )
        loader: Any = self.trainer.train_dataloader
        uneven = self.trainer.world_size > 1 and len(loader.dataset) % self.trainer.world_size
        if uneven and getattr(loader.sampler, "pad", True):
            raise ValueError(
                f"The sampler repeats images so that all processes have the same number, and {name} would count them "
                "twice: set pad=False of the datamodule."
            )
        self._collected = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Collect from a batch; the loss is zero."""
        images, labels = batch
        self.check_labels(labels)
        self.collect(self.features(images), labels)
        return self.dummy * 0.0

    def on_task_end(self, task: Task) -> None:
        """Learn before the task is measured."""
        self.fold()

    def on_validation_start(self) -> None:
        """Learn outside of a stream, where nobody calls :meth:`on_task_end`."""
        self.fold()

    def on_train_end(self) -> None:
        """Learn outside of a stream that has no validation."""
        self.fold()

    def fold(self) -> None:
        """Learn from what this pass collected; a second call has nothing to learn from."""
        if self._collected:
            collected, self._collected = self._collected, []
            self.learn(collected)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return an optimizer that changes nothing."""
        return torch.optim.SGD([self.dummy], lr=0.0)

    # Checkpoints ----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the backbone if it can be rebuilt, and note whether it is quantised."""
        save_quantization(self, checkpoint)
        if not self.save_backbone:
            drop_part(checkpoint["state_dict"], "backbone.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits.

        Raises:
            ValueError: If it has another number of classes or features, belongs to another class, or to features of
                another precision.
        """
        restore_quantization(self, checkpoint, exact=True)
        if not self.save_backbone:
            restore_part(self, checkpoint["state_dict"], "backbone.")
        check_state(self, checkpoint["state_dict"])
