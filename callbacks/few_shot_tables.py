"""The numbers of a few-shot stream: all, base and novel classes after each session, as a table and as curves."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from zoo.callbacks.stream_tables import Row, percent, square, to_matrix
from zoo.metrics import few_shot_curves, few_shot_summary


def summarise_few_shot(rows: Mapping[int, Row], sizes: Sequence[int] | None) -> dict[str, float | list[float]] | None:
    """Return the summary of a stream, with the curves it is of; None if a session was not evaluated."""
    if not is_whole(rows):
        return None
    matrix = square(to_matrix(rows))
    summary: dict[str, float | list[float]] = {n: round(v, 4) for n, v in few_shot_summary(matrix, sizes).items()}
    curves = {name: [round(v, 4) for v in values] for name, values in few_shot_curves(matrix, sizes).items()}
    return {**summary, **{f"{name}_by_session": values for name, values in curves.items()}}


def is_whole(rows: Mapping[int, Row]) -> bool:
    """Say whether every session so far was evaluated on all sessions up to it, which the figures need."""
    return bool(rows) and all(sorted(rows.get(index, {})) == list(range(index + 1)) for index in range(max(rows) + 1))


def build_few_shot_table(
    rows: Mapping[int, Row], split: str | None, sizes: Sequence[int] | None, num_classes: Sequence[int] | None
) -> Table:
    """Return a table with a row after each session.

    Args:
        rows: Percent by session, after each session; the last one alone may be there.
        split: For the title.
        sizes: Test images of each session. Default: equal.
        num_classes: Number of classes seen after each session, where it is known.
    """
    title = f"Accuracy (%){f' on {split}' if split else ''}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False)
    table.add_column("after session", style="dim", justify="right", no_wrap=True)
    headers = ["classes"] * (num_classes is not None) + ["all", "base", "novel", "harmonic mean"]
    for header in headers:
        table.add_column(f" {header}", justify="right", style="bold" if header == "all" else "", no_wrap=True)
    for index, row in sorted(rows.items()):
        width = index + 1
        (cells,) = square([{column: row.get(column, float("nan")) for column in range(width)}])
        curves = few_shot_curves([cells] * width, sizes[:width] if sizes is not None and len(sizes) >= width else None)
        numbers = [percent(values[-1], 2) for values in curves.values()]
        count = [str(num_classes[index])] if num_classes is not None else []
        table.add_row(str(index), *count, *numbers)  # the base session is number 0 in the papers
    return table
