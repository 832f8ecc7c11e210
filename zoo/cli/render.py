"""How results look: a table in the terminal, the same table in README and docs, and a picture."""

import io
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zoo.cli import results
from zoo.cli.claims import Claim, claim_names, load_claim
from zoo.cli.messages import CommandError
from zoo.cli.results import Record, label, mean, std, values
from zoo.functional import write_atomically

if TYPE_CHECKING:
    from rich.table import Table

BLOCK = re.compile(r"^<!-- claim: (\S+) -->\n.*?^<!-- /claim -->$", re.DOTALL | re.MULTILINE)
SUMMARY = re.compile(r"^<!-- claims -->\n.*?^<!-- /claims -->$", re.DOTALL | re.MULTILINE)
OPENING = re.compile(r"^<!-- claim: (\S+) -->$", re.MULTILINE)


class Line(NamedTuple):
    """One line of a claim's table: a row and a metric."""

    run: str
    metric: str
    paper: str
    measured: str
    n: str
    verdict: str


def lines(claim: Claim, records: list[Record]) -> list[Line]:
    """Return a claim's table.

    Args:
        claim: The claim.
        records: The runs to show.
    """
    checks = results.checks(claim, records)
    table = []
    for run in claim.runs:
        for metric in claim.metrics_of(run):
            published = [value for value in claim.published if (value.run, value.metric) == (run.name, metric)]
            paper = [f"{_spread(value.value, value.std, 'g')} ({value.source})" for value in published]
            numbers = values(records, run.name, metric)
            measured = _spread(mean(numbers), std(numbers), ".2f") if numbers else "not run"
            verdict = [str(check) for check in checks if (check.run, check.metric) == (run.name, metric)]
            table.append(
                Line(
                    run=run.name,
                    metric=label(metric),
                    paper=", ".join(paper) or "-",
                    measured=measured,
                    n=str(len(numbers)),
                    verdict=", ".join(dict.fromkeys(verdict)) or "-",
                )
            )
    return table


def _spread(value: float, spread: float | None, form: str) -> str:
    """Return ``mean ± std``, without the second part where there is none."""
    return f"{value:{form}}" if spread is None or math.isnan(spread) else f"{value:{form}} ± {spread:{form}}"


def terminal_table(claim: Claim, records: list[Record]) -> "Table":
    """Return a claim's table for a terminal."""
    from rich import box
    from rich.table import Table

    header, rows = _long(claim, lines(claim, records))
    table = Table(title=claim.title, box=box.SIMPLE_HEAD, title_style="bold", title_justify="left")
    for name in header:
        table.add_column(name, justify="right" if name == "n" else "left", no_wrap=name == "run")
    for row in rows:
        table.add_row(*row)
    return table


def markdown(claim: Claim, records: list[Record], csv_link: str) -> str:
    """Return what stands between a claim's markers in README and docs.

    Args:
        claim: The claim.
        records: The runs that count.
        csv_link: Path of the CSV file, relative to the document.
    """
    header, rows = (_long if claim.published else _wide)(claim, lines(claim, records))
    table = [header, ["---"] * len(header), *rows]
    what = f" ({label(claim.metrics[0])})" if len(claim.metrics) == 1 else ""
    paper = [f"Paper: {claim.paper.rstrip('.')}."] if claim.paper else []
    notes = [f"{run.name}: {run.note.rstrip('.')}." for run in claim.runs if run.note]
    source = f"[runs]({csv_link}), " if records else ""
    parts = [
        f"**{claim.title}**{what}: {results.state(claim, records)}",
        "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table),
        " ".join(
            [*paper, f"Rule: {results.describe(claim.rule)}.", *notes, f"From {source}`zoo reproduce {claim.name}`."]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _long(claim: Claim, table: list[Line]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows, one for each metric, which is a column only where there are several."""
    names = [name for name in Line._fields if name != "metric" or len(claim.metrics) > 1]
    return names, [[getattr(line, name) for name in names] for line in table]


def _wide(claim: Claim, table: list[Line]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows, one for each row of the claim with all its metrics; without the paper's values."""
    labels = [label(metric) for metric in claim.metrics]
    rows = []
    for run in claim.runs:
        cells = {line.metric: line for line in table if line.run == run.name}
        counts = dict.fromkeys(line.n for line in cells.values())
        verdicts = dict.fromkeys(line.verdict for line in cells.values() if line.verdict != "-")
        measured = [cells[name].measured if name in cells else "" for name in labels]
        rows.append([run.name, *measured, ", ".join(counts), ", ".join(verdicts) or "-"])
    return ["run", *labels, "n", "verdict"], rows


def render_documents(root: Path, results_folder: Path, write: bool = True) -> list[Path]:
    """Bring the tables of README.md and docs up to date with the CSV files.

    A table stands between ``<!-- claim: NAME -->`` and ``<!-- /claim -->``, each on a line of its own; a list of all
    claims with their states between ``<!-- claims -->`` and ``<!-- /claims -->``.

    Args:
        root: Folder that holds README.md and docs.
        results_folder: Folder that holds the CSV files.
        write: Whether to change the documents; otherwise they are only compared.

    Returns:
        The documents that differed.

    Raises:
        CommandError: If a marker is not closed or names no claim.
    """
    changed = []
    for document in [*root.glob("README.md"), *sorted(root.glob("docs/**/*.md"))]:
        old = document.read_text(encoding="utf-8")
        closed = {block.start() for block in BLOCK.finditer(old)}
        for opening in OPENING.finditer(old):
            if opening.start() not in closed:
                raise CommandError(f"{document}: <!-- claim: {opening[1]} --> is not closed by <!-- /claim -->")

        def list_all(block: re.Match[str], folder: Path = document.parent) -> str:
            return summary(root, results_folder, folder)

        def fill(block: re.Match[str], folder: Path = document.parent) -> str:
            claim = load_claim(block[1])
            path = results_folder / f"{claim.name}.csv"
            records = results.counted(claim, results.read_records(path))
            link = Path(os.path.relpath(path, folder)).as_posix()
            return f"<!-- claim: {block[1]} -->\n{markdown(claim, records, link)}<!-- /claim -->"

        new = SUMMARY.sub(list_all, BLOCK.sub(fill, old))
        if new != old:
            changed.append(document)
            if write:
                write_atomically(document, new)
    return changed


def summary(root: Path, results_folder: Path, folder: Path) -> str:
    """Return the block that lists all claims: title, state, and the page of docs that has the table.

    Args:
        root: Folder that holds docs.
        results_folder: Folder that holds the CSV files.
        folder: Where the document is that shows the list.
    """
    pages: dict[str, Path] = {}
    for page in sorted(root.glob("docs/**/*.md")):
        for opening in OPENING.finditer(page.read_text(encoding="utf-8")):
            pages.setdefault(opening[1], page)
    rows = ["| claim | state | table |", "| --- | --- | --- |"]
    for name in claim_names():
        claim = load_claim(name)
        records = results.counted(claim, results.read_records(results_folder / f"{name}.csv"))
        link = (
            f"[{pages[name].stem}]({Path(os.path.relpath(pages[name], folder)).as_posix()})" if name in pages else "-"
        )
        rows.append(f"| {claim.title} | {results.state(claim, records)} | {link} |")
    return "\n".join(["<!-- claims -->", *rows, "<!-- /claims -->"])


def picture(claim: Claim, records: list[Record]) -> bytes:
    """Draw a claim's rows: bars for means, whiskers for a standard deviation, dots for runs, diamonds for the paper.

    Args:
        claim: The claim.
        records: The runs to show.

    Returns:
        A PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(claim.runs)
    figure = Figure(figsize=(7.0, (0.9 + 0.42 * rows) * len(claim.metrics) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{claim.title}\n{results.state(claim, records)}", fontsize=10)
    for axes, metric in zip(figure.subplots(len(claim.metrics), squeeze=False).flat, claim.metrics, strict=True):
        for height, run in enumerate(claim.runs):
            numbers = values(records, run.name, metric)
            if numbers:
                spread = std(numbers)
                axes.barh(height, mean(numbers), height=0.6, color="#9ab8d8")
                axes.plot(numbers, [height] * len(numbers), "o", color="#1f3b5c", markersize=3, zorder=3)
                if not math.isnan(spread):
                    axes.errorbar(mean(numbers), height, xerr=spread, color="#1f3b5c", capsize=4)
            for value in claim.published:
                if (value.run, value.metric) == (run.name, metric):
                    axes.plot(value.value, height, "D", color="#c0392b", fillstyle="none", zorder=4)
        axes.set_yticks(range(rows), [run.name for run in claim.runs])
        axes.set_ylim(rows - 0.4, -0.6)  # the first row on top, rows without a run in their place
        has_paper = any(value.metric == metric for value in claim.published)
        axes.set_xlabel(label(metric) + (" (diamond: paper)" if has_paper else ""))
        axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, metadata={"Software": None})  # the same picture is the same file
    return file.getvalue()
