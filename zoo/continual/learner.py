"""Evaluation and prediction, the same for every method that learns a stream."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
from torch import Tensor

from zoo.metrics import TaskAccuracy
from zoo.precision.sharding import refuse_sharding


class StreamLearner(L.LightningModule):
    """A method whose ``forward`` returns scores for all classes of a stream, -inf for those not seen yet.

    It measures each task seen so far without telling the method which task an image belongs to, and, beside it, with
    the task known. It reads two things of the datamodule, and does without them where they are absent: ``evaluate``,
    the name of the split that is measured during fit, and ``tasks``, for the classes of each task.

    Logged (fractions, higher is better): ``<split>/task00/acc``, ``<split>/task00/acc_task_known``, ... and
    ``<split>/acc``, pooled over all images of the tasks seen.

    Args:
        class_names: Name of each label, for predictions. Default: the labels themselves.
    """

    def __init__(self, class_names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.class_names = list(class_names) if class_names is not None else None
        self.task_accuracy = TaskAccuracy()

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return scores of shape (B, C) of images in [0, 1]."""

    def configure_model(self) -> None:
        """Refuse to be sharded."""
        refuse_sharding(self, "a stream renews its optimizer, and may grow its classifier, at every task")

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the right answers on one task's images."""
        if self.trainer.sanity_checking:  # before training there is no class to choose from
            return
        images, labels = batch
        self.count(self(images), labels, dataloader_idx)

    def count(self, scores: Tensor, labels: Tensor, dataloader_idx: int) -> None:
        """Count the right answers among scores of shape (B, C)."""
        self.task_accuracy.update(scores, labels, dataloader_idx, self.known_classes(dataloader_idx))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the right answers on one task's images."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the accuracies of the split that was measured."""
        if self.trainer.sanity_checking:
            return
        split = "test" if self.trainer.testing else getattr(self.datamodule, "evaluate", "val")
        # Equal on all processes after the metric's own reduction; sync_dist only tells Lightning so.
        self.log_dict(
            {f"{split}/{name}": value for name, value in self.task_accuracy.compute().items()}, sync_dist=True
        )
        self.task_accuracy.reset()

    def on_test_epoch_end(self) -> None:
        """Log the accuracies on the test images."""
        self.on_validation_epoch_end()

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return ``scores`` (B, C), the best ``label`` (B,) and its ``class_name``, of images."""
        scores = self(batch if isinstance(batch, Tensor) else batch[0])
        labels = scores.argmax(dim=1)
        return {"scores": scores, "label": labels, "class_name": [self.name_of(label) for label in labels.tolist()]}

    @property
    def datamodule(self) -> Any:
        """The datamodule that the Trainer was given, or None."""
        return self.trainer.datamodule  # type: ignore[attr-defined]  # set by fit, validate, test and predict

    def name_of(self, label: int) -> str:
        """Return the name of a label."""
        return self.class_names[label] if self.class_names is not None else str(label)

    def known_classes(self, index: int) -> range | None:
        """Return the classes of a task, or None where all tasks share them or nobody says."""
        tasks = getattr(self.datamodule, "tasks", None)
        if tasks is None or all(task.classes == tasks[0].classes for task in tasks):
            return None
        classes: range = tasks[index].classes
        return classes


def stream_of(learner: StreamLearner) -> Any:
    """Return the stream that a method is fitted to.

    Raises:
        ValueError: If its data are none.
    """
    if not hasattr(learner.datamodule, "tasks"):
        raise ValueError(
            f"{type(learner).__name__} learns a stream of tasks, got {type(learner.datamodule).__name__}: give a "
            "datamodule such as ClassIncrementalDataModule."
        )
    return learner.datamodule
