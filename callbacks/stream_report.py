"""What a person wants to see of a stream: a table after each task, pictures and one file of results at the end."""

import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn
from rich import box, get_console
from rich.measure import Measurement
from rich.table import Table
from torch import Tensor

from zoo import __version__
from zoo.callbacks.stream_figures import draw_curve, draw_matrix, to_png
from zoo.functional import write_atomically
from zoo.metrics import stream_summary

Row = dict[int, float]  # task -> accuracy in percent
NAN = float("nan")
LONGEST_NAME = 12  # letters of a class name that fit over a column


class StreamReport(Callback):
    """Prints the accuracy on every task after each task, and writes pictures and results at the end of fit.

    It works with any module that logs an accuracy for each task, under any names that contain the task's number, and
    reads nothing else of it::

        trainer = Trainer(callbacks=[StreamReport(pattern="val/acc_task{task}")], ...)

    At the end of fit the run's folder holds ``accuracy_matrix.png`` (heat map: accuracy on each task after each task),
    ``accuracy_curve.png`` (all classes seen, and the first task, after each task) and ``results.json`` (settings,
    versions, commit, the figures of :func:`zoo.metrics.stream_summary`, the matrices, test sizes, wall time; null where
    something is unknown or undefined). The pictures also go to every logger whose ``experiment`` has ``add_figure``,
    such as TensorBoard. With ``fast_dev_run`` nothing is written. After ``trainer.validate`` or ``trainer.test`` alone
    the one row is printed.

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
    ) -> None:
        self.pattern = pattern
        self.known_pattern = known_pattern
        self.directory = directory
        self.plots = plots
        self.first_task = first_task
        self.scale = scale
        self.task_index = task_index
        self.task_names = task_names
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

    # Lightning's hooks ----------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget another run's rows; a checkpoint brings its own afterwards."""
        if stage == "fit" and trainer.current_epoch == 0:
            self._clear()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock and learn where to write."""
        self._started = time.monotonic()
        log_dir = trainer.log_dir  # a collective call: on all processes
        self._folder = Path(self.directory or log_dir or trainer.default_root_dir)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Remember the values of earlier validations, which stay among the metrics."""
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
        if not self.rows or trainer.fast_dev_run or not trainer.is_global_zero:
            return
        matrix, known = to_matrix(self.rows), to_matrix(self.known_rows)
        if self.plots:
            for name, figure in self._figures(trainer, matrix, known).items():
                write_atomically(self._folder / f"{name}.png", to_png(figure))
                for logger in trainer.loggers:
                    if hasattr(getattr(logger, "experiment", None), "add_figure"):
                        logger.experiment.add_figure(name, figure, global_step=trainer.global_step, close=False)
        results = self._results(trainer, pl_module, matrix, known)
        write_atomically(self._folder / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
        get_console().print(f"Results: {self._folder}", soft_wrap=True, highlight=False)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far, as plain numbers."""
        return {
            "rows": {index: dict(row) for index, row in self.rows.items()},
            "known_rows": {index: dict(row) for index, row in self.known_rows.items()},
            "split": self.split,
            "test_sizes": self.test_sizes,
            "seconds": self._elapsed(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the rows."""
        self.rows, self.known_rows = dict(state_dict["rows"]), dict(state_dict["known_rows"])
        self.split, self.test_sizes = state_dict["split"], state_dict["test_sizes"]
        self._seconds = state_dict["seconds"]

    # Parts ----------------------------------------------------------------------------------------------------------

    def _elapsed(self) -> float:
        return self._seconds + (time.monotonic() - self._started if self._started is not None else 0.0)

    def _read(
        self, metrics: Mapping[str, float], pattern: re.Pattern[str], split: str | None
    ) -> tuple[Row, str | None]:
        return read_row(metrics, pattern, self.first_task, self.scale, split)

    def _index(self, trainer: Any, default: int) -> int:
        """Return the task that was trained last."""
        if self.task_index is not None:
            return self.task_index(trainer)
        index = getattr(getattr(trainer.datamodule, "task", None), "index", None)
        return default if index is None else int(index)

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
        if any(known):
            curves["task known"] = [pooled(row, index, self.test_sizes) for index, row in enumerate(square(known))]
        return {
            "accuracy_matrix": draw_matrix(cells, averages, self._names(trainer, columns)),
            "accuracy_curve": draw_curve(curves),
        }

    def _results(self, trainer: Any, pl_module: Any, matrix: list[Row], known: list[Row]) -> dict[str, Any]:
        """Return what goes into ``results.json``."""
        seed = os.environ.get("PL_GLOBAL_SEED")  # where Lightning's seed_everything keeps it
        results = {
            "class_incremental": summarise(square(matrix), self.test_sizes),
            "task_known": summarise(square(known), self.test_sizes) if any(known) else None,
            "accuracy_matrix": {
                "class_incremental": square(matrix),
                "task_known": square(known) if any(known) else None,
            },
            "test_sizes": self.test_sizes,
            "split": self.split,
            "wall_seconds": round(self._elapsed(), 3),
            "settings": {
                "model": describe(pl_module),
                "data": describe(trainer.datamodule),
                "trainer": {
                    "precision": trainer.precision,
                    "accelerator": type(trainer.accelerator).__name__,
                    "devices": trainer.num_devices,
                    "num_nodes": trainer.num_nodes,
                    "strategy": type(trainer.strategy).__name__,
                    "max_epochs": trainer.max_epochs,
                },
                "seed": int(seed) if seed else None,
            },
            "versions": versions(),
            "commit": git_commit(),
        }
        plain: dict[str, Any] = to_plain(results)
        return plain


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Turn a name with ``{task}`` and ``{split}`` into a regular expression with groups of these names.

    Raises:
        ValueError: If ``{task}`` is not there once.
    """
    if pattern.count("{task}") != 1 or pattern.count("{split}") > 1:
        raise ValueError(f"The pattern {pattern!r} must contain {{task}} once, and {{split}} at most once.")
    expression = re.escape(pattern).replace(r"\{task\}", r"(?P<task>\d+)").replace(r"\{split\}", r"(?P<split>[^/]+)")
    return re.compile(expression)


def read_row(
    metrics: Mapping[str, float],
    pattern: re.Pattern[str],
    first_task: int = 0,
    scale: float = 100.0,
    split: str | None = None,
) -> tuple[Row, str | None]:
    """Find the accuracies of one evaluation among the metrics.

    Args:
        metrics: Values by name.
        pattern: From :func:`compile_pattern`.
        first_task: The number of the first task in the names.
        scale: What turns a value into percent.
        split: Read this split if it is there, else the first that is.

    Returns:
        Percent by task, and the split they are of (None if the pattern does not say). Rounded to four decimals, which
        is what a float32 carries.
    """
    rows: dict[str | None, Row] = {}
    for name, value in metrics.items():
        if match := pattern.fullmatch(name):
            row = rows.setdefault(match.groupdict().get("split"), {})
            row[int(match["task"]) - first_task] = round(scale * value, 4)
    chosen = split if split in rows else next(iter(rows), None)
    return rows.get(chosen, {}), chosen


def sizes_of(loaders: Any, num_columns: int) -> list[int] | None:
    """Return the number of images in each loader, or None where that is not known or not one loader is one task."""
    loaders = [loaders] if hasattr(loaders, "dataset") else loaders
    try:
        sizes = [len(loader.dataset) for loader in loaders]
    except (TypeError, AttributeError):  # data sets without a length, loaders in another container
        return None
    return sizes if len(sizes) == num_columns else None


def to_matrix(rows: Mapping[int, Row]) -> list[Row]:
    """Return one row after each task; an empty one where a task was not evaluated."""
    return [rows.get(index, {}) for index in range(max(rows, default=-1) + 1)]


def square(rows: Sequence[Row]) -> list[list[float]]:
    """Return rows of the same length, with NaN where nothing was tested."""
    columns = max((max(row, default=-1) for row in rows), default=-1) + 1
    return [[row.get(column, NAN) for column in range(columns)] for row in rows]


def seen(row: Sequence[float], index: int) -> list[float]:
    """Return the accuracies on the tasks up to one that were tested."""
    return [value for value in row[: index + 1] if not math.isnan(value)]


def mean(values: Sequence[float]) -> float:
    """Return the mean, NaN of nothing."""
    return sum(values) / len(values) if values else NAN


def pooled(row: Sequence[float], index: int, sizes: Sequence[int] | None) -> float:
    """Return the accuracy over all images of the tasks up to one; over tasks where the number of images is unknown."""
    if sizes is None or len(sizes) < min(index + 1, len(row)):
        return mean(seen(row, index))
    pairs = [(v, n) for v, n in zip(row[: index + 1], sizes, strict=False) if not math.isnan(v)]
    total = sum(size for _, size in pairs)
    return sum(value * size for value, size in pairs) / total if total else NAN


def summarise(cells: Sequence[Sequence[float]], sizes: Sequence[int] | None) -> dict[str, float] | None:
    """Return the summary of a matrix; of a run that stopped early, over the tasks it trained."""
    columns = len(cells[0])
    if 1 < columns < len(cells):
        rank_zero_warn(
            f"StreamReport has {len(cells)} rows for {columns} tasks, so there is no summary: validate once after each "
            "task, or say which task was trained last with StreamReport(task_index=...)."
        )
        return None
    width = min(columns, len(cells))
    summary = stream_summary([row[:width] for row in cells], sizes[:width] if sizes and len(sizes) >= width else None)
    return {name: round(value, 4) for name, value in summary.items()}


def build_table(
    rows: Mapping[int, Row],
    known_rows: Mapping[int, Row],
    split: str | None,
    sizes: Sequence[int] | None,
    names: Sequence[str] | None,
    console: Any,
) -> Table:
    """Return the table of accuracies that fits the console: with names, without, without decimals, or cut.

    Args:
        rows: Percent, after each task.
        known_rows: The same with the task known; only its average is shown.
        split: For the title.
        sizes: Images of each task; the pooled accuracy is shown where tasks are unequal.
        names: Of the columns.
        console: Where it has to fit.
    """
    columns = max(max(row) for row in rows.values()) + 1
    unequal = sizes is not None and len(set(sizes)) > 1
    known = any(known_rows.values())

    def build(names: Sequence[str] | None, decimals: int, shown: Sequence[int | None]) -> Table:
        title = f"Accuracy (%){f' on {split}' if split else ''}"
        padding = (0, 0, 0, 1 if decimals else 0)  # no decimals where room is short
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=padding, show_edge=False)
        table.add_column("after task", style="dim", justify="right", no_wrap=True)
        for column in shown:
            header = "…" if column is None else str(column + 1)
            if names is not None and column is not None:
                header += f"\n{names[column]}"
            table.add_column(header, justify="right", no_wrap=True)
        for header in ["average", *["pooled"] * unequal, *["task known"] * known]:
            table.add_column(f" {header}", justify="right", style="bold" if header == "average" else "", no_wrap=True)
        for index in sorted(rows):
            (row,), known_row = square([rows[index]]), known_rows.get(index, {})
            cells = ["" if c is None else percent(rows[index].get(c, NAN), decimals) for c in shown]
            cells.append(percent(mean(seen(row, index)), 2))
            if unequal:
                cells.append(percent(pooled(row, index, sizes), 2))
            if known:
                cells.append(percent(mean(seen(square([known_row])[0], index)), 2))
            table.add_row(str(index + 1), *cells)
        return table

    every: list[int | None] = list(range(columns))
    choices = [(names, 1, every), (None, 1, every), (None, 0, every)]
    choices += [(None, 0, [0, None, *range(columns - last, columns)]) for last in range(columns - 2, 0, -1)]
    for choice in choices:
        table = build(*choice)
        if Measurement.get(console, console.options.update(width=10_000), table).maximum <= console.width:
            break
    return table


def percent(value: float, decimals: int) -> str:
    """Return a number for a table; nothing for NaN."""
    return "" if math.isnan(value) else f"{value:.{decimals}f}"


def describe(part: Any) -> dict[str, Any] | None:
    """Return class and hyper-parameters of a module or datamodule; the command line's own notes are left out."""
    if part is None:
        return None
    settings = {k: v for k, v in dict(getattr(part, "hparams", {})).items() if not str(k).startswith("_")}
    return {"class": f"{type(part).__module__}.{type(part).__qualname__}", **settings}


def to_plain(value: Any) -> Any:
    """Return a value as JSON knows it: NaN as null, what JSON does not know by its name."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, range)):
        return [to_plain(item) for item in value]
    if isinstance(value, Tensor):
        return to_plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "__qualname__", None) or str(value)


def versions() -> dict[str, str | None]:
    """Return the versions of Python, zoo and the packages that can change a number."""
    found: dict[str, str | None] = {"python": platform.python_version(), "zoo": __version__}
    for name in ("torch", "lightning", "timm", "torchvision"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_commit() -> str | None:
    """Return the commit of the working folder, ``-dirty`` behind it if tracked files differ; None if there is none."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
