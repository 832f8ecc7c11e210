"""The last epochs of a task, in which the head alone is trained, beside virtual outliers."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors

from zoo.functional import Task, mix_seeds, task_cross_entropy
from zoo.nn import Outliers, VirtualOutliers


class OutlierPhase(nn.Module):
    """Epochs of a task in which a linear head learns from features and outliers that are made of them.

    At the start of each such epoch one pass over the training data collects the features, without a gradient; outliers
    are made of all of them, on any number of processes. Each step then takes the features of one batch, and the next
    share of the outliers. Nothing of it lives longer than the epoch, so a run resumes at any of them.

    It serves any method whose module has a linear head on features that rest by then. Such a method calls
    :meth:`check` when training starts, :meth:`start_epoch` in ``on_train_epoch_start``, and :meth:`loss` instead of its
    own in ``training_step`` while :attr:`is_on`.

    Args:
        epochs: Number of epochs at the end of each task.
        vor: The regulariser. Default: as published.

    Raises:
        ValueError: If ``epochs`` is negative.
    """

    def __init__(self, epochs: int, vor: VirtualOutliers | None = None) -> None:
        super().__init__()
        if epochs < 0:
            raise ValueError(f"vor_epochs={epochs} must be at least 0.")
        self.epochs = epochs
        self.vor = vor if vor is not None else VirtualOutliers()
        self._collected: list[tuple[Tensor, Tensor]] = []  # features and labels of each batch
        self._outliers: Outliers | None = None

    @property
    def is_on(self) -> bool:
        """Whether the current epoch belongs to the phase."""
        return self._outliers is not None

    def check(self, module: L.LightningModule, tasks: list[Task]) -> None:
        """Raise ValueError unless every task has an epoch before the phase, and DDP lets parameters rest."""
        fewest = min(task.epochs for task in tasks)
        if fewest <= self.epochs:
            raise ValueError(
                f"vor_epochs={self.epochs} are the last ones of a task, but one has {fewest} epochs: set "
                "epochs_per_task of the datamodule to more."
            )
        if self.epochs and not getattr(module.trainer.model, "find_unused_parameters", True):
            raise ValueError(
                f"All but the head rests for vor_epochs={self.epochs}: set the Trainer's strategy to "
                "'ddp_find_unused_parameters_true'."
            )

    def start_epoch(
        self, module: L.LightningModule, stream: Any, features: Callable[[Tensor], Tensor]
    ) -> dict[str, float]:
        """Collect features and make outliers if the epoch belongs to the phase.

        Args:
            module: What is trained.
            stream: Its datamodule: ``task``, ``tasks`` and ``seed`` are read.
            features: Returns features (B, D) of images, as in evaluation.

        Returns:
            What is worth logging of the outliers.
        """
        self._collected, self._outliers = [], None
        task, epoch = stream.task, module.trainer.current_epoch
        if epoch < sum(earlier.epochs for earlier in stream.tasks[: task.index]) + task.epochs - self.epochs:
            return {}
        self._collected = collect(module.trainer, features)
        samples = torch.cat([part for part, _ in self._collected])
        if module.trainer.world_size > 1:
            samples = torch.cat(gather_all_tensors(samples))
        generator = torch.Generator().manual_seed(mix_seeds(stream.seed, epoch))  # equal on all processes
        self._outliers = self.vor.synthesize(samples, len(task.classes), generator)
        return {"vor_boundary_points": float(len(torch.unique(self._outliers.sources)))}

    def loss(self, head: nn.Linear, step: int, classes: range) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a step, and what it consists of.

        Args:
            head: The classifier of all classes.
            step: Number of the batch in the epoch; its features are those that were collected at this place.
            classes: Labels of the task.
        """
        assert self._outliers is not None, "call start_epoch first"
        features, labels = self._collected[step]
        outliers = self._outliers.of_step(step, len(self._collected))
        logits, outlier_logits = (head(part.to(head.weight.dtype)) for part in (features, outliers))
        loss = task_cross_entropy(logits, labels, classes)
        parts = self.vor(*(part[:, classes.start : classes.stop] for part in (logits, outlier_logits)))
        total: Tensor = loss + parts.pop("loss")
        return total, {"loss": loss.detach()} | {f"vor_{name}": value.detach() for name, value in parts.items()}


@torch.no_grad()
def collect(trainer: L.Trainer, features: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return features (B, D), float32, and labels (B,) of each training batch of the epoch.

    Args:
        trainer: Has the loader, and moves and casts batches as in a training step.
        features: Returns features of images.
    """
    collected = []
    loader: Any = trainer.train_dataloader
    for _, batch in zip(range(int(trainer.num_training_batches)), loader, strict=False):
        images, labels = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
        with trainer.precision_plugin.forward_context():
            collected.append((features(images).float(), labels))
    return collected
