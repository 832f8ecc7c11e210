"""The numbers of a stream: read from logged metrics, brought into a matrix, shown as a table."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from rich import box
from rich.measure import Measurement
from rich.table import Table

from zoo.metrics import stream_summary

Row = dict[int, float]  # task -> accuracy in percent
NAN = float("nan")


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
