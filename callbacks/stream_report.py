"""What a person wants to see of a stream: a table after each task, pictures and one file of results at the end."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn
from rich import get_console

from zoo.callbacks.few_shot_tables import build_few_shot_table, summarise_few_shot
from zoo.callbacks.run_files import run_folder, run_settings, save_figure, to_plain
from zoo.callbacks.stream_costs import StreamCosts
from zoo.callbacks.stream_figures import draw_curve, draw_matrix
from zoo.callbacks.stream_tables import (
    Row,
    build_table,
    compile_pattern,
    mean,
    pooled,
    read_row,
    seen,
    sizes_of,
    square,
    summarise,
    to_matrix,
)
from zoo.functional import write_atomically
from zoo.metrics import few_shot_curves

LONGEST_NAME = 12  # letters of a class name that fit over a column


class StreamReport(Callback):
    """Prints the accuracy on every task after each task, and writes pictures and results at the end of fit.

    It works with any module that logs an accuracy for each task, under any names that contain the task's number, and
    needs nothing else of it::

        trainer = Trainer(callbacks=[StreamReport(pattern="val/acc_task{task}")], ...)

    At the end of fit the run's folder holds ``accuracy_matrix.png`` (heat map: accuracy on each task after each task),
    ``accuracy_curve.png`` (all classes seen, and the first task, after each task) and ``results.json`` (settings,
    versions, commits of zoo and of the working folder, the figures of :func:`zoo.metrics.stream_summary`, the matrices,
    test sizes, wall time, and what the method costs; null where something is unknown or undefined). The costs are
    ``learnable_parameters``; ``training_ms_per_image``, with loading and all that an epoch begins with;
    ``evaluation_ms_per_image``, without loading; and, if the module has its network as ``backbone``, how often
    that sees an image, ``training_passes_per_image`` and ``evaluation_passes_per_image``. The pictures also go to every
    logger whose ``experiment`` has ``add_figure``, such as TensorBoard. With ``fast_dev_run`` nothing is written. After
    ``trainer.validate`` or ``trainer.test`` alone the one row is printed.

    In a few-shot stream, base classes first and then a few images of a few novel ones, table and curve show all, base
    and novel classes after each session, and ``results.json`` has the figures of :func:`zoo.metrics.few_shot_summary`
    under ``few_shot``. Sessions are numbered from 0 there, as in the papers.

    Tasks are numbered from 1 in tables and pictures, as people count, and from 0 in names of metrics and in the file.
    Logged accuracies are fractions, all that is shown is percent. Rows are saved in the checkpoint, so that a resumed
    run ends with the whole matrix; work after the last checkpoint of a killed run is missing from its wall time.

    Args:
        pattern: Name of the metric: ``{task}`` stands for the number of the task, ``{split}`` for any name without a
            slash. If several splits are logged in one validation, the one the datamodule names as ``evaluate`` is read,
            else the first; to choose, write the name in place of ``{split}``.
        known_pattern: The same for the accuracy with the task known. Need not be there.
        directory: Where to write. Default: the Trainer's ``log_dir``.
        plots: Draw the pictures.
        first_task: The number that the metrics give to the first task.
        scale: What turns a logged value into percent: 100 for fractions, 1 where percent is logged.
        task_index: Says, given the Trainer, which task (from 0) was trained last. Default: ``index`` of the
            datamodule's ``task`` if it has one, else every validation is the next task.
        task_names: A short name for each task. Default: the names of its classes, if the datamodule has ``tasks`` with
            ``classes`` and ``class_names``, and the names are short.
        few_shot: Whether it is a few-shot stream. Default: if the datamodule says a number of ``shots``.

    Raises:
        ValueError: If a pattern does not contain ``{task}`` once.
    """

    def __init__(
        self,
        pattern: str = "{split}/task{task}/acc",
        known_pattern: str = "{split}/task{task}/acc_task_known",
        directory: str | None = None,
        plots: bool = True,
        first_task: int = 0,
        scale: float = 100.0,
        task_index: Callable[[Any], int] | None = None,
        task_names: list[str] | None = None,
        few_shot: bool | None = None,
    ) -> None:
        self.pattern = pattern
        self.known_pattern = known_pattern
        self.directory = directory
        self.plots = plots
        self.first_task = first_task
        self.scale = scale
        self.task_index = task_index
        self.task_names = task_names
        self.few_shot = few_shot
        self._patterns = compile_pattern(pattern), compile_pattern(known_pattern)
        self._clear()

    def _clear(self) -> None:
        self.rows: dict[int, Row] = {}
        self.known_rows: dict[int, Row] = {}
        self.split: str | None = None
        self.test_sizes: list[int] | None = None
        self._seconds = 0.0
        self._started: float | None = None
        self._before: dict[str, Any] = {}
        self._warned = False
        self._costs = StreamCosts()

    # Lightning's hooks ----------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget another run's rows; a checkpoint brings its own afterwards."""
        if stage == "fit" and trainer.current_epoch == 0:
            self._clear()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock and learn where to write."""
        self._started = time.monotonic()
        self._folder = run_folder(trainer, self.directory)
        self._costs.attach(getattr(pl_module, "backbone", None))

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Let the training time run."""
        self._costs.start("training")

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Go on after a validation in the middle of an epoch."""
        self._costs.start("training")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the images, and stop after the last batch."""
        self._costs.count_batch("training", batch)
        if trainer.is_last_batch:
            self._costs.stop(trainer.strategy.root_device)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop, also where an epoch was left before its last batch."""
        self._costs.stop(trainer.strategy.root_device)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Let the evaluation time run; the sanity check does not count."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._costs.start("evaluation")

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop, and count the images."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._costs.stop(trainer.strategy.root_device)
            self._costs.count_batch("evaluation", batch)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Remember the values of earlier validations, which stay among the metrics."""
        self._costs.stop(trainer.strategy.root_device)
        self._before = dict(trainer.callback_metrics)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Remember the values that are there before the test."""
        self._before = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Take a row and print the table."""
        if trainer.sanity_checking:
            return
        fresh = {k: float(v) for k, v in trainer.callback_metrics.items() if v is not self._before.get(k)}
        self._before = {}
        evaluate = getattr(trainer.datamodule, "evaluate", None)
        row, split = read_row(
            fresh, self._patterns[0], self.first_task, self.scale, None if trainer.testing else evaluate
        )
        known_row, _ = read_row(fresh, self._patterns[1], self.first_task, self.scale, split)
        if not row:
            self._warn(
                f"found no metric named like {self.pattern!r}. Logged here: {', '.join(sorted(fresh)) or 'none'}. Give "
                "the name as StreamReport(pattern=...), with {task} for the number of the task."
            )
            return
        if min(row) < 0 or not all(0 <= value <= 100 or math.isnan(value) for value in row.values()):
            self._warn(
                f"read {row} (percent by task, counted from 0), which cannot be. Say what is logged with "
                f"StreamReport(scale=1) for percent, or first_task, which is {self.first_task}."
            )
            return
        loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        sizes = sizes_of(loaders, len(row))
        if trainer.state.fn != "fit":
            index = self._index(trainer, default=max(row))
            self._print(trainer, {index: row}, {index: known_row}, split, sizes)
            return
        index = self._index(trainer, default=len(self.rows))
        self.rows[index], self.known_rows[index] = row, known_row
        self.split, self.test_sizes = split, sizes
        self._print(trainer, self.rows, self.known_rows, split, sizes)

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Print the one row."""
        self.on_validation_end(trainer, pl_module)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Write pictures and results, also where a resumed run had nothing left to do."""
        self._costs.detach()
        if not self.rows or trainer.fast_dev_run or not trainer.is_global_zero:
            return
        matrix, known = to_matrix(self.rows), to_matrix(self.known_rows)
        if self.plots:
            for name, figure in self._figures(trainer, matrix, known).items():
                save_figure(trainer, self._folder, name, figure)
        results = self._results(trainer, pl_module, matrix, known)
        write_atomically(self._folder / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
        get_console().print(f"Results: {self._folder}", soft_wrap=True, highlight=False)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the module alone."""
        self._costs.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far, as plain numbers."""
        return {
            "rows": {index: dict(row) for index, row in self.rows.items()},
            "known_rows": {index: dict(row) for index, row in self.known_rows.items()},
            "split": self.split,
            "test_sizes": self.test_sizes,
            "seconds": self._elapsed(),
            "costs": {part: list(counts) for part, counts in self._costs.counts.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the rows."""
        self.rows, self.known_rows = dict(state_dict["rows"]), dict(state_dict["known_rows"])
        self.split, self.test_sizes = state_dict["split"], state_dict["test_sizes"]
        self._seconds = state_dict["seconds"]
        self._costs.counts.update({part: list(counts) for part, counts in state_dict.get("costs", {}).items()})

    # Parts ----------------------------------------------------------------------------------------------------------

    def _elapsed(self) -> float:
        return self._seconds + (time.monotonic() - self._started if self._started is not None else 0.0)

    def _index(self, trainer: Any, default: int) -> int:
        """Return the task that was trained last."""
        if self.task_index is not None:
            return self.task_index(trainer)
        index = getattr(getattr(trainer.datamodule, "task", None), "index", None)
        return default if index is None else int(index)

    def _is_few_shot(self, trainer: Any) -> bool:
        return hasattr(trainer.datamodule, "shots") if self.few_shot is None else self.few_shot

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            rank_zero_warn(f"StreamReport {message}")

    def _names(self, trainer: Any, num_columns: int) -> list[str] | None:
        """Return a short name for each column, if there are such names."""
        if self.task_names is not None:
            return (self.task_names + [""] * num_columns)[:num_columns]
        tasks = getattr(trainer.datamodule, "tasks", None)
        class_names = getattr(trainer.datamodule, "class_names", None)
        if not tasks or not class_names or num_columns > len(tasks) or num_columns < 2:
            return None
        groups = [[str(class_names[label]) for label in task.classes] for task in tasks[:num_columns]]
        if groups[0] == groups[1] or max(map(len, groups)) > 3:
            return None
        if max(len(", ".join(group)) for group in groups) <= LONGEST_NAME - 3:
            return [", ".join(group) for group in groups]
        if max(len(name) for group in groups for name in group) <= LONGEST_NAME:
            return ["\n".join(group) for group in groups]
        return None

    def _print(
        self,
        trainer: Any,
        rows: Mapping[int, Row],
        known_rows: Mapping[int, Row],
        split: str | None,
        sizes: list[int] | None,
    ) -> None:
        """Print above the progress bar, whichever bar that is."""
        if not trainer.is_global_zero:
            return
        from tqdm import tqdm  # type: ignore[import-untyped]

        console = get_console()  # the one on which Lightning's RichProgressBar is alive
        names = self._names(trainer, max(max(row) for row in rows.values()) + 1)
        if self._is_few_shot(trainer):
            table = build_few_shot_table(rows, split, sizes, classes_seen(trainer.datamodule))
        else:
            table = build_table(rows, known_rows, split, sizes, names, console)
        with tqdm.external_write_mode():  # clears a TQDMProgressBar for the moment
            console.print(table, "")

    def _figures(self, trainer: Any, matrix: list[Row], known: list[Row]) -> dict[str, Any]:
        """Return the pictures by name."""
        cells = square(matrix)
        columns = len(cells[0])
        averages = [mean(seen(row, index)) for index, row in enumerate(cells)] if columns > 1 else None
        curves: dict[str, Sequence[float]] = {
            "all tasks seen": [pooled(row, i, self.test_sizes) for i, row in enumerate(cells)]
        }
        if columns > 1:
            curves["first task"] = [row[0] for row in cells]
        if self._is_few_shot(trainer) and columns == len(cells) > 1:
            few_shot = few_shot_curves(cells, self.test_sizes)
            curves = {f"{name} classes": few_shot[name] for name in ("all", "base", "novel")}
        elif any(known):
            curves["task known"] = [pooled(row, index, self.test_sizes) for index, row in enumerate(square(known))]
        return {
            "accuracy_matrix": draw_matrix(cells, averages, self._names(trainer, columns)),
            "accuracy_curve": draw_curve(curves),
        }

    def _results(self, trainer: Any, pl_module: Any, matrix: list[Row], known: list[Row]) -> dict[str, Any]:
        """Return what goes into ``results.json``."""
        results = {
            "class_incremental": summarise(square(matrix), self.test_sizes),
            "task_known": summarise(square(known), self.test_sizes) if any(known) else None,
            "accuracy_matrix": {
                "class_incremental": square(matrix),
                "task_known": square(known) if any(known) else None,
            },
            "test_sizes": self.test_sizes,
            "split": self.split,
            "learnable_parameters": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
            **self._costs.summary(),
            "wall_seconds": round(self._elapsed(), 3),
            **run_settings(trainer, pl_module),
        }
        if self._is_few_shot(trainer):
            results["few_shot"] = summarise_few_shot(self.rows, self.test_sizes)
        plain: dict[str, Any] = to_plain(results)
        return plain


def classes_seen(datamodule: Any) -> list[int] | None:
    """Return the number of classes after each task, where the datamodule says it."""
    tasks = getattr(datamodule, "tasks", None)
    return [task.classes.stop for task in tasks] if tasks else None
