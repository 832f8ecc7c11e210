"""What a person wants to know of a fit: how long training took, the curves, and one file of results at the end."""

import json
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback
from rich import get_console

from zoo.callbacks.run_files import run_folder, run_settings, save_figure, to_plain
from zoo.callbacks.stream_figures import GREY
from zoo.functional import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = Mapping[int, Mapping[str, float]]
"""The last value of each metric in each epoch."""

TIME = "time/train_seconds"
FORKS = ("step", "epoch")


class TrainingReport(Callback):
    """Measures the training time, and writes curves and results at the end of fit.

    It works with any module and reads nothing of it but what it logs::

        trainer = Trainer(callbacks=[TrainingReport()], ...)

    ``time/train_seconds`` is logged with every validation and at the end of each epoch: the seconds spent so far in
    training batches and in loading them. Validation, the sanity check and the writing of checkpoints do not count. So a
    row of a logger's table has an accuracy beside the time that it took.

    At the end of fit the run's folder holds ``curves.png`` (losses and accuracies by epoch) and ``results.json``:

    * ``final``: each metric as it was logged last, under its name;
    * ``best``: of metrics whose name begins with "val", the highest accuracy and the lowest loss of an epoch;
    * ``train_seconds``, ``wall_seconds`` (from the start of fit to its end), settings, versions, commits.

    A metric is an accuracy if the last part of its name contains "acc" or "iou" or is "knn", a loss if it contains
    "loss".
    Logged accuracies are fractions, those in file and picture are percent. Everything is saved in the checkpoint, so
    that a resumed run ends with whole curves and times; work after the last checkpoint of a killed run is missing from
    them. The picture also goes to every logger whose ``experiment`` has ``add_figure``, such as TensorBoard. With
    ``fast_dev_run`` nothing is written.

    Args:
        directory: Where to write. Default: the Trainer's ``log_dir``.
        plots: Draw the picture.
        scale: What turns a logged accuracy into percent: 100 for fractions, 1 where percent is logged.
    """

    def __init__(self, directory: str | None = None, plots: bool = True, scale: float = 100.0) -> None:
        self.directory = directory
        self.plots = plots
        self.scale = scale
        self._clear()

    def _clear(self) -> None:
        self.history: dict[int, dict[str, float]] = {}
        self._epoch = 0
        self._seen: dict[str, Any] = {}
        self._training, self._wall = Stopwatch(), Stopwatch()

    # Lightning's hooks ----------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget another run's curves; a checkpoint brings its own afterwards."""
        if stage == "fit" and trainer.current_epoch == 0:
            self._clear()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock and learn where to write."""
        self._wall.start()
        self._folder = run_folder(trainer, self.directory)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Learn where a resumed run goes on."""
        self._epoch = trainer.current_epoch

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Go on measuring; what the module logged at the end of the last epoch is known now."""
        self._read(trainer)
        self._epoch = trainer.current_epoch
        self._training.start()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Go on measuring after a validation or a checkpoint in the middle of an epoch."""
        self._training.start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop after the last batch, before the loaders of the validation are made."""
        if trainer.is_last_batch:
            self._pause(trainer)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Stop for a validation in the middle of an epoch."""
        self._pause(trainer)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the time beside what the validation measured."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._log_time(pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Note what the validation measured, before a checkpoint is written."""
        self._read(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the time, also where nothing is validated."""
        self._pause(trainer)  # an epoch may be left before its last batch
        self._log_time(pl_module)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Leave the writing out of the time, and save what the module logged at the end of the epoch.

        Lightning asks for the state before this hook, which alone gets the Trainer.
        """
        self._pause(trainer)
        self._read(trainer)
        checkpoint["callbacks"][self.state_key] = self.state_dict()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Write picture and results, also where a resumed run had nothing left to do."""
        self._read(trainer)
        if trainer.fast_dev_run or not trainer.is_global_zero:
            return
        curves = in_percent(self.history, self.scale)
        if self.plots and (figure := draw_curves(curves)) is not None:
            save_figure(trainer, self._folder, "curves", figure)
        results = {
            **summarise(curves),
            "train_seconds": round(self._training.seconds, 3),
            "wall_seconds": round(self._wall.seconds, 3),
            **run_settings(trainer, pl_module),
        }
        text = json.dumps(to_plain(results), indent=2, allow_nan=False)
        write_atomically(self._folder / "results.json", text + "\n")
        get_console().print(f"Results: {self._folder}", soft_wrap=True, highlight=False)

    def state_dict(self) -> dict[str, Any]:
        """Return curves and times so far, as plain numbers."""
        return {
            "history": {epoch: dict(row) for epoch, row in self.history.items()},
            "train_seconds": self._training.seconds,
            "wall_seconds": self._wall.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore curves and times."""
        self.history = {epoch: dict(row) for epoch, row in state_dict["history"].items()}
        self._training = Stopwatch(state_dict["train_seconds"])
        self._wall = Stopwatch(state_dict["wall_seconds"])

    # Parts ----------------------------------------------------------------------------------------------------------

    def _pause(self, trainer: Any) -> None:
        """Stop measuring, after a GPU has done what it was told to do."""
        if self._training.running and trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)
        self._training.stop()

    def _log_time(self, pl_module: Any) -> None:
        pl_module.log(TIME, self._training.seconds, sync_dist=True)

    def _read(self, trainer: Any) -> None:
        """Take what fit has logged since the last look; earlier values stay among the metrics."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        metrics = dict(trainer.callback_metrics)
        fresh = {name: float(value) for name, value in metrics.items() if value is not self._seen.get(name)}
        if fresh:
            self.history.setdefault(self._epoch, {}).update(fresh)
        self._seen = metrics


class Stopwatch:
    """Counts seconds while it runs.

    Args:
        seconds: Where to begin.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self._started: float | None = None

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._started is not None

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + (time.monotonic() - self._started if self._started is not None else 0.0)

    def start(self) -> None:
        """Go on, if it does not run."""
        if self._started is None:
            self._started = time.monotonic()

    def stop(self) -> None:
        """Stand still, if it runs."""
        self._before, self._started = self.seconds, None


def is_accuracy(name: str) -> bool:
    """Say whether a metric is an accuracy, by the last part of its name."""
    last = name.rpartition("/")[2].lower()
    return "acc" in last or "iou" in last or last == "knn"


def is_loss(name: str) -> bool:
    """Say whether a metric is a loss, by the last part of its name."""
    return "loss" in name.rpartition("/")[2].lower()


def in_percent(history: History, scale: float) -> History:
    """Return the history with accuracies in percent."""
    return {
        epoch: {name: round(scale * value, 4) if is_accuracy(name) else value for name, value in row.items()}
        for epoch, row in sorted(history.items())
    }


def summarise(history: History) -> dict[str, dict[str, float]]:
    """Return the last value of each metric, and the best one of each accuracy and loss of a validation."""
    final: dict[str, float] = {}
    best: dict[str, float] = {}
    for row in history.values():
        final.update(row)
    for name in sorted(final):
        if name.startswith("val") and (is_accuracy(name) or is_loss(name)):
            values = [row[name] for row in history.values() if name in row]
            best[name] = max(values) if is_accuracy(name) else min(values)
    return {"final": dict(sorted(final.items())), "best": best}


def draw_curves(history: History) -> "Figure | None":
    """Draw losses and accuracies by epoch, side by side.

    Args:
        history: By epoch; accuracies in percent.

    Returns:
        A figure, or None if there is neither a loss nor an accuracy.
    """
    from matplotlib.figure import Figure

    found = {name for row in history.values() for name in row}
    # What is logged by step and by epoch has three names; the plain one holds the epoch's value.
    names = [name for name in sorted(found) if not any(name == f"{plain}_{kind}" for plain in found for kind in FORKS)]
    panels = {
        "Loss": [name for name in names if is_loss(name)],
        "Accuracy (%)": [name for name in names if is_accuracy(name)],
    }
    panels = {title: shown for title, shown in panels.items() if shown}
    if not panels:
        return None
    figure = Figure(figsize=(4.8 * len(panels), 3.4), layout="constrained")
    figure.set_facecolor("white")
    for position, (title, shown) in enumerate(panels.items(), start=1):
        draw_panel(figure.add_subplot(1, len(panels), position), title, shown, history)
    return figure


def draw_panel(axes: "Axes", title: str, names: Iterable[str], history: History) -> None:
    """Draw some metrics by epoch, counted from 1; the legend says the last value of each."""
    from matplotlib.ticker import MaxNLocator

    for name in names:
        points = [(epoch + 1, row[name]) for epoch, row in history.items() if name in row]
        label = f"{name}  {points[-1][1]:.4g}"
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 20 else None, markersize=3.5, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch", color=GREY, size=9)
    axes.set_title(title, loc="left", size=10, weight="bold", color="#202124")
    axes.grid(axis="y", color="#e8eaed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=GREY, labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#dadce0")
    axes.legend(frameon=False, fontsize=8)
