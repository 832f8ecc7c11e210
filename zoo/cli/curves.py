"""Curves of a claim: what its runs logged on their way, kept as a table and drawn as a picture."""

import csv
import io
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from zoo.cli.claims import Claim, Curve
from zoo.cli.results import Record, label, read_records

Point: TypeAlias = dict[str, str]
"""A row of ``results/<claim>.curves.csv``: run, seed, epoch, x and y as they were logged."""

COLUMNS = ("run", "seed", "epoch", "x", "y")
COLORS = ("#1f3b5c", "#c0392b", "#2e8b57", "#d68910", "#7d3c98", "#5d6d7e", "#16a085", "#ba4a00")


def collect(claim: Claim, records: Iterable[Record], known: Iterable[Point]) -> list[Point]:
    """Return the points of a claim's curve.

    Those of a run are read from its folder; where the folder is not here they are those known already.

    Args:
        claim: The claim, with a curve.
        records: The runs that count.
        known: Points that were collected before.
    """
    before: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for point in known:
        before[point["run"], point["seed"]].append(point)
    points: list[Point] = []
    for record in records:
        found = read_points(claim.curve, Path(record["log"]).parent / "metrics.csv") if claim.curve else []
        key = {"run": record["run"], "seed": record["seed"]}
        points += [{**key, **point} for point in found] or before[record["run"], record["seed"]]
    return points


def read_points(curve: Curve, path: Path) -> list[Point]:
    """Return the rows of a table of metrics that have both columns of a curve."""
    rows = read_records(path)
    return [
        {"epoch": row.get("epoch", ""), "x": row[curve.x], "y": row[curve.y]}
        for row in rows
        if row.get(curve.x) and row.get(curve.y)
    ]


def as_csv(points: Iterable[Point]) -> str:
    """Return points as a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    return text.getvalue()


def picture(claim: Claim, points: Iterable[Point]) -> bytes:
    """Draw the mean over the seeds of each row, with a band from the lowest to the highest seed.

    Args:
        claim: The claim, with a curve.
        points: What :func:`collect` returned.

    Returns:
        A PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    assert claim.curve is not None
    percent = 100.0 if "acc" in claim.curve.y.rpartition("/")[2] else 1.0
    by_run: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        by_run[point["run"]][point["epoch"]].append((float(point["x"]), percent * float(point["y"])))
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = [run.name for run in claim.runs if run.name in by_run]
    names = [name for name in names if not claim.curve.runs or name in claim.curve.runs]
    for color, name in zip(COLORS * len(names), names, strict=False):
        seeds = list(by_run[name].values())
        x = [statistics.fmean(a for a, _ in group) for group in seeds]
        y = [[b for _, b in group] for group in seeds]
        axes.plot(x, [statistics.fmean(group) for group in y], color=color, marker="o", markersize=3, label=name)
        axes.fill_between(x, [min(group) for group in y], [max(group) for group in y], color=color, alpha=0.15, lw=0)
    axes.set_title(claim.title, fontsize=10)
    axes.set_xlabel(label(f"final.{claim.curve.x}"))
    axes.set_ylabel(label(f"final.{claim.curve.y}") + (" (percent)" if percent > 1 else ""))
    axes.grid(color="#e8eaed")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, metadata={"Software": None})  # the same picture is the same file
    return file.getvalue()
