"""Pictures of a stream: the accuracy matrix as a heat map, and accuracy after each task.

Figures are made without ``matplotlib.pyplot``, so that no window, backend or global setting of the user is touched.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from math import floor, isnan
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Matrix = Sequence[Sequence[float]]
GREY = "#5f6368"
BLUE, ORANGE = "#1f5a9e", "#d9822b"


def draw_matrix(
    matrix: Matrix, averages: Sequence[float] | None = None, task_names: Sequence[str] | None = None
) -> "Figure":
    """Draw an accuracy matrix as a heat map with numbers, and beside it the average of each row.

    Args:
        matrix: Accuracies in percent, one row after each task, one column for each task; NaN where nothing was tested.
        averages: The average of each row over the tasks so far, in percent. Default: not drawn.
        task_names: Names of the columns, shown under their numbers; lines of at most about 12 letters.

    Returns:
        A figure that is readable from 2 to about 20 tasks.
    """
    from matplotlib.figure import Figure

    cells = np.array(matrix, dtype=float)
    (rows, columns), crowded = cells.shape, max(cells.shape) > 12
    lines = [line for name in task_names or () for line in name.split("\n")]
    name_lines = max((name.count("\n") + 1 for name in task_names or ()), default=0)
    cell_height = 0.34 if crowded else 0.52  # inches
    cell_width = max(cell_height, 0.075 * max(map(len, lines), default=0))
    gap, average_width = (0.35, 0.7 / cell_width) if averages is not None else (0.0, 0.0)  # in cells
    width, height = cell_width * (columns + gap + average_width), cell_height * rows
    left, right, below, above = 0.6, 0.75, 0.55 + 0.13 * name_lines, 0.35
    figure = Figure(figsize=(width + left + right, height + below + above))
    figure.set_facecolor("white")
    total_width, total_height = width + left + right, height + below + above
    axes = figure.add_axes((left / total_width, below / total_height, width / total_width, height / total_height))

    known = cells[~np.isnan(cells)]
    low = min(90.0, floor(known.min() / 10) * 10) if known.size else 0.0
    style: dict[str, Any] = {"cmap": "YlGnBu", "vmin": low, "vmax": 100.0, "edgecolors": "white", "linewidth": 1.0}
    image = axes.pcolormesh(np.arange(columns + 1), np.arange(rows + 1), np.ma.masked_invalid(cells), **style)
    start = columns + gap

    def number(x: float, y: float, value: float, bold: bool) -> None:
        if not isnan(value):
            text = "100" if value > 99.95 else f"{value:.0f}" if crowded and not bold else f"{value:.1f}"
            color = "white" if (value - low) / (100 - low) > 0.55 else "#202124"
            weight = "bold" if bold else "normal"
            axes.text(x, y, text, ha="center", va="center", color=color, weight=weight, size=7.5 if crowded else 9)

    for i in range(rows):
        for j in range(columns):
            number(j + 0.5, i + 0.5, cells[i, j], bold=False)
    labels = [str(j + 1) if task_names is None else f"{j + 1}\n{task_names[j]}" for j in range(columns)]
    axes.set_xticks(np.arange(columns) + 0.5, labels, size=8)
    if averages is not None:
        shown = np.ma.masked_invalid(np.array(averages, dtype=float)[:, None])
        axes.pcolormesh([start, start + average_width], np.arange(rows + 1), shown, **style)
        for i in range(rows):
            number(start + average_width / 2, i + 0.5, averages[i], bold=True)
        axes.set_xticks([*axes.get_xticks(), start + average_width / 2], [*labels, "average"], size=8)

    axes.set_xlim(0, start + average_width)
    axes.set_ylim(rows, 0)
    axes.set_yticks(np.arange(rows) + 0.5, [str(i + 1) for i in range(rows)], size=8)
    axes.tick_params(length=0, colors=GREY)
    axes.set_xlabel("tested on task", color=GREY, size=9, x=columns / 2 / (start + average_width))
    axes.set_ylabel("after task", color=GREY, size=9)
    axes.set_title("Accuracy (%)", loc="left", size=10, weight="bold", color="#202124")
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar_height = min(height, 2.2)
    bar = figure.add_axes(
        (
            (left + width + 0.18) / total_width,
            (below + height - bar_height) / total_height,
            0.12 / total_width,
            bar_height / total_height,
        )
    )
    figure.colorbar(image, cax=bar)
    bar.tick_params(length=0, labelsize=7.5, colors=GREY)
    for spine in bar.spines.values():
        spine.set_visible(False)
    return figure


def draw_curve(curves: Mapping[str, Sequence[float]], x_label: str = "tasks learned") -> "Figure":
    """Draw accuracies after each task, each line with its name and last value at its end.

    Args:
        curves: Accuracies in percent after each task, by name. The first is drawn boldest; NaN leaves a gap.
        x_label: What is counted from left to right.

    Returns:
        A figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    figure.set_facecolor("white")
    axes = figure.add_subplot()
    styles = [(BLUE, "-", 2.4), (ORANGE, "-", 1.6), (GREY, "--", 1.6)]
    for (name, values), (color, line, width) in zip(curves.items(), styles, strict=False):
        x = np.arange(1, len(values) + 1)
        axes.plot(x, values, line, color=color, linewidth=width, marker="o", markersize=2 + width, label=name)
    count = max(len(values) for values in curves.values())
    known = [value for values in curves.values() for value in values if not isnan(value)]
    low, high = (min(known), max(known)) if known else (0.0, 100.0)
    margin = max(2.0, 0.08 * (high - low))
    axes.set_ylim(max(-2.0, low - margin), min(102.0, high + margin))
    axes.set_xlim(1 - 0.04 * count, count + 0.04 * count)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.set_xlabel(x_label, color=GREY, size=9)
    axes.set_title("Accuracy (%)", loc="left", size=10, weight="bold", color="#202124")
    axes.grid(axis="y", color="#e8eaed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=GREY, labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#dadce0")
    label_ends(axes, curves, styles)
    return figure


def label_ends(axes: "Axes", curves: Mapping[str, Sequence[float]], styles: Sequence[tuple[str, str, float]]) -> None:
    """Write name and last value right of each line, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    step = 0.15 * (high - low)  # two lines of text
    ends = [
        (float(values[-1]), name, color)
        for (name, values), (color, _, _) in zip(curves.items(), styles, strict=False)
        if len(values) and not isnan(values[-1])
    ]
    ends.sort()
    heights = [value for value, _, _ in ends]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + step)
    if heights and (excess := heights[-1] - (high - step / 3)) > 0:
        heights[-1] -= excess
        for index in reversed(range(len(heights) - 1)):
            heights[index] = min(heights[index], heights[index + 1] - step)
    for (value, name, color), height in zip(ends, heights, strict=True):
        axes.annotate(
            f"{name}\n{value:.1f}",
            (1.02, height),
            xycoords=("axes fraction", "data"),
            color=color,
            size=8.5,
            va="center",
            annotation_clip=False,
        )


def to_png(figure: "Figure") -> bytes:
    """Return a figure as the content of a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()
