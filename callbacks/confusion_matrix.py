"""Which classes are taken for which: a picture and a table."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from lightning.pytorch import Callback
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DistributedSampler
from torchmetrics.classification import MulticlassConfusionMatrix

from zoo.callbacks.run_files import run_folder, save_figure
from zoo.callbacks.stream_figures import GREY
from zoo.functional import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED = 25  # up to so many classes, numbers fit into the cells
NAMED = 150  # up to so many classes, names fit beside the cells
LONGEST_NAME = 24  # letters


class ConfusionMatrix(Callback):
    """Counts which class was predicted for images of which class, and shows it.

    After ``trainer.validate``, after ``trainer.test``, and at the end of fit, for its last validation, the run's folder
    holds ``confusion_matrix_<split>.png`` and ``.csv``. The table has the counts: a row for each true class, a column
    for each predicted one. The picture also goes to every logger whose ``experiment`` has ``add_figure``, such as
    TensorBoard. ``<split>`` is "test" in a test, else what the datamodule says as ``evaluate``, else "val". Several
    loaders are counted together. With ``fast_dev_run`` nothing is written.

    It works with any module. What was predicted is, in this order:

    1. what ``predict`` returns, if it is given;
    2. entries of the dict that ``validation_step`` or ``test_step`` returns: ``preds`` or ``scores``, and ``targets``;
    3. ``module(batch[0])`` with the targets ``batch[1]``: one more forward pass on each evaluation batch.

    Predictions are labels with the shape of the targets, or scores with the classes in dimension 1. Under several
    processes each image is counted once: those that a ``DistributedSampler`` repeats to make shares equal are left out.

    Args:
        normalize: What the picture shows: "true", percent of each true class, or None, counts.
        class_names: Name of each label. Default: the ``class_names`` of the datamodule, else the labels.
        predict: Called with module and batch; returns predictions and targets.
        ignore_index: Target that is not counted, as the border in segmentation.
        directory: Where to write. Default: the Trainer's ``log_dir``.

    Attributes:
        matrix: Counts of the last evaluation, int64 of shape (C, C) on the CPU, or None.

    Raises:
        ValueError: If nobody says how many classes there are: predictions are labels, and neither ``class_names`` nor
            the datamodule's ``class_names`` or ``num_classes`` is there.
    """

    def __init__(
        self,
        normalize: Literal["true"] | None = "true",
        class_names: Sequence[str] | None = None,
        predict: Callable[[Any, Any], tuple[Tensor, Tensor]] | None = None,
        ignore_index: int | None = None,
        directory: str | None = None,
    ) -> None:
        self.normalize = normalize
        self.class_names = class_names
        self.predict = predict
        self.ignore_index = ignore_index
        self.directory = directory
        self.matrix: Tensor | None = None
        self._counts: MulticlassConfusionMatrix | None = None
        self._seen: Counter[int] = Counter()

    # Lightning's hooks ----------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget another run's matrix."""
        self.matrix = None

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Start at zero."""
        self._counts = None
        self._seen.clear()

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count a batch."""
        if trainer.sanity_checking:
            return
        predictions, targets = self._predictions(trainer, pl_module, outputs, batch)
        if self._counts is None:
            num_classes = self._num_classes(trainer, predictions, targets)
            self._counts = MulticlassConfusionMatrix(num_classes, ignore_index=self.ignore_index).to(targets.device)
        labels = predictions.argmax(dim=1) if predictions.ndim > targets.ndim else predictions
        fresh = self._fresh(trainer, dataloader_idx, len(targets))
        self._counts.update(labels[:fresh], targets[:fresh])

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Sum over the processes."""
        if self._counts is not None:
            self.matrix = self._counts.compute().cpu()
            self._counts = None

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Write after ``trainer.validate``; fit writes once, at its end."""
        if trainer.state.fn != "fit":
            self._write(trainer)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Write what the last validation counted."""
        self._write(trainer)

    def on_test_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Start at zero."""
        self.on_validation_epoch_start(trainer, pl_module)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count a batch."""
        self.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Sum over the processes."""
        self.on_validation_epoch_end(trainer, pl_module)

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Write."""
        self._write(trainer)

    # Parts ----------------------------------------------------------------------------------------------------------

    def _predictions(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """Return predictions and targets of a batch."""
        if self.predict is not None:
            return self.predict(pl_module, batch)
        if isinstance(outputs, Mapping) and "targets" in outputs:
            for name in ("preds", "scores"):
                if name in outputs:
                    return outputs[name], outputs["targets"]
        with trainer.precision_plugin.val_step_context():
            return pl_module(batch[0]), batch[1]

    def _num_classes(self, trainer: Any, predictions: Tensor, targets: Tensor) -> int:
        """Return the number of classes, from whoever knows it."""
        names = self._names(trainer)
        num_classes = len(names) if names is not None else getattr(trainer.datamodule, "num_classes", None)
        if num_classes is None and predictions.ndim > targets.ndim:
            num_classes = predictions.shape[1]
        if num_classes is None:
            raise ValueError(
                "ConfusionMatrix does not know how many classes there are: predictions are labels, and "
                f"{type(trainer.datamodule).__name__} has neither class_names nor num_classes. Give the names, "
                "ConfusionMatrix(class_names=...)."
            )
        return int(num_classes)

    def _names(self, trainer: Any) -> Sequence[str] | None:
        return self.class_names if self.class_names is not None else getattr(trainer.datamodule, "class_names", None)

    def _fresh(self, trainer: Any, dataloader_idx: int, number: int) -> int:
        """Return how many images of a batch, from its start, are no repeats."""
        loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        sampler = getattr(CombinedLoader(loaders, "sequential").flattened[dataloader_idx], "sampler", None)
        before = self._seen[dataloader_idx]
        self._seen[dataloader_idx] += number
        if not isinstance(sampler, DistributedSampler):
            return number
        # It repeats images behind the last one and deals all out in turn, so the repeats come last on every process.
        own = len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]
        return max(0, min(number, own - before))

    def _write(self, trainer: Any) -> None:
        """Write picture and table."""
        folder = run_folder(trainer, self.directory)
        if self.matrix is None or trainer.fast_dev_run or not trainer.is_global_zero:
            return
        split = "test" if trainer.state.fn == "test" else getattr(trainer.datamodule, "evaluate", "val")
        name = f"confusion_matrix_{split}"
        counts = self.matrix.numpy()
        names = [str(item) for item in self._names(trainer) or range(len(counts))]
        write_atomically(folder / f"{name}.csv", to_csv(counts, names))
        save_figure(trainer, folder, name, draw_confusion(counts, names, percent=self.normalize == "true"))


def to_csv(counts: "np.ndarray[Any, Any]", names: Sequence[str]) -> str:
    """Return counts as a table: true classes in the first column, predicted ones in the first row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true class", *names])
    writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
    return text.getvalue()


def draw_confusion(counts: "np.ndarray[Any, Any]", names: Sequence[str], percent: bool) -> "Figure":
    """Draw a confusion matrix as a heat map: right answers in blue, mistakes in orange.

    Args:
        counts: Shape (C, C), a row for each true class.
        names: Of the classes.
        percent: Show percent of each true class instead of counts; a class without images stays blank.

    Returns:
        A figure that is readable from 2 to about 150 classes; with more, names are left out.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    number, total = len(counts), counts.sum(axis=1, keepdims=True)
    values = np.where(total > 0, 100 * counts / np.maximum(total, 1), np.nan) if percent else counts.astype(float)
    diagonal = np.eye(number, dtype=bool)
    cell = 0.45 if number <= NUMBERED else 0.14 if number <= NAMED else 16 / number  # inches
    side = max(2.5, cell * number)
    figure = Figure(figsize=(side + 3.0, side + 1.8), layout="constrained")
    figure.set_facecolor("white")
    axes = figure.add_subplot()
    axes.set_aspect("equal")
    # The square root lets a mistake that is made once in a hundred be seen.
    norm = PowerNorm(0.5, vmin=0, vmax=100 if percent else max(1, counts.max()))
    for mask, colors, title in ((~diagonal, "Blues", "right"), (diagonal, "Oranges", "mistaken")):
        image = axes.pcolormesh(np.ma.masked_where(mask | np.isnan(values), values), cmap=colors, norm=norm)
        bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, pad=0.02)
        bar.set_label(title, size=8, color=GREY)
        bar.ax.tick_params(length=0, labelsize=7, colors=GREY)
        bar.outline.set_visible(False)
    if number <= NUMBERED:
        for row, column in zip(*np.nonzero(np.nan_to_num(values)), strict=True):
            value = values[row, column]
            text = f"{value:.0f}" if value >= 9.95 or not percent else f"{value:.1f}"
            color = "white" if norm(value) > 0.6 else "#202124"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=color, size=8)
    ticks = np.arange(number) + 0.5 if number <= NAMED else np.array([])
    shown = [name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…" for name in names[: len(ticks)]]
    flat = number <= NUMBERED and max(map(len, shown), default=0) <= 4
    axes.set_xticks(ticks, shown, rotation=0 if flat else 90)
    axes.set_yticks(ticks, shown)
    axes.tick_params(length=0, colors=GREY, labelsize=8 if number <= NUMBERED else 6.5)
    axes.set_ylim(number, 0)
    axes.set_xlabel("predicted", color=GREY, size=9)
    axes.set_ylabel("true", color=GREY, size=9)
    accuracy = 100 * counts.trace() / max(1, counts.sum())
    title = f"{'Percent of each true class' if percent else 'Images'}; accuracy {accuracy:.2f} %"
    axes.set_title(title, loc="left", size=10, weight="bold", color="#202124")
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure
