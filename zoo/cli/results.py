"""Results: the runs of a claim, and what its rule says of them.

The runs are rows of ``results/<claim>.csv``, written by ``zoo reproduce`` and by nobody else. Everything that is said
about a claim is computed from this file and the claim's own.
"""

import csv
import io
import math
import shlex
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeAlias

from zoo.cli.claims import Claim, Rule

Record: TypeAlias = dict[str, str]
"""A row of the CSV file: one run."""

# Options that say where a run happens, not what it computes; with any other the numbers are not the claim's.
NEUTRAL_OPTIONS = (
    "--trainer.accelerator",
    "--trainer.devices",
    "--trainer.num_nodes",
    "--trainer.enable_*",
    "--trainer.logger*",
    "--data.num_workers",
    "--data.*root",
    "--data.*download",
)


@dataclass(frozen=True)
class Check:
    """One comparison that a rule asks for; a table shows it beside its row and metric.

    Attributes:
        run: Name of the row.
        metric: Metric that is compared.
        holds: None while one side was not measured.
        detail: The measured difference or ratio.
    """

    run: str
    metric: str
    holds: bool | None
    detail: str = ""

    def __str__(self) -> str:
        """Return the words of the table."""
        verdict = {True: "holds", False: "does not hold", None: "not run"}[self.holds]
        return f"{verdict} ({self.detail})" if self.detail else verdict


def read_records(path: Path) -> list[Record]:
    """Read a CSV file of runs; a file that is not there has none."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: value or "" for key, value in row.items()} for row in csv.DictReader(file)]


def merge_records(claim: Claim, old: Iterable[Record], new: Iterable[Record]) -> str:
    """Return a CSV file in which new runs have taken the place of the same runs done before.

    Two runs are the same if row, seed and the options typed by hand are.
    """
    merged = {(row["run"], row["seed"], row["overrides"]): row for row in [*old, *new]}
    order = {run.name: position for position, run in enumerate(claim.runs)}
    rows = sorted(
        merged.values(), key=lambda row: (order.get(row["run"], len(order)), int(row["seed"]), row["overrides"])
    )
    # New runs have every column; a metric that the claim has dropped since stays readable at the end.
    columns = list(dict.fromkeys(key for row in [*new, *rows] for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def is_neutral(option: str) -> bool:
    """Say whether an option, such as ``--data.num_workers=4``, leaves what is computed as it is."""
    name = option.partition("=")[0]
    return any(fnmatch(name, pattern) for pattern in NEUTRAL_OPTIONS)


def counted(claim: Claim, records: Iterable[Record]) -> list[Record]:
    """Return the runs that speak for or against a claim.

    Left out are runs of another recipe or other options than the claim has now, and runs with options typed by hand
    that change what is computed. Where a run was done with and without neutral options, the one without counts.
    """
    runs = {run.name: run for run in claim.runs}
    chosen: dict[tuple[str, str], Record] = {}
    for record in records:
        run = runs.get(record["run"])
        if run is None or record["settings"] != claim.settings(run, int(record["seed"])):
            continue
        options = shlex.split(record["overrides"])
        key = (record["run"], record["seed"])
        if all(is_neutral(option) for option in options) and (key not in chosen or not options):
            chosen[key] = record
    return list(chosen.values())


def values(records: Iterable[Record], run: str, metric: str) -> list[float]:
    """Return a metric of every run of a row that has one."""
    texts = [record.get(metric, "") for record in records if record["run"] == run]
    return [float(text) for text in texts if text]


def mean(numbers: list[float]) -> float:
    """Return the arithmetic mean, NaN of none."""
    return statistics.fmean(numbers) if numbers else math.nan


def std(numbers: list[float]) -> float:
    """Return the sample standard deviation (divided by n - 1), NaN of fewer than two."""
    return statistics.stdev(numbers) if len(numbers) > 1 else math.nan


def checks(claim: Claim, records: list[Record]) -> list[Check]:
    """Return every comparison that the claim's rule asks for, on the runs given."""

    def measured(run: str, metric: str) -> float:
        return mean(values(records, run, metric))

    found = []
    if within := claim.rule.within:
        for published in claim.published:
            gap = measured(published.run, published.metric) - published.value
            # Two published digits are compared, not their binary images: 70.1 - 70.0 is a little more than 0.1.
            holds = abs(gap) <= within.tolerance + 1e-9
            found.append(_check(published.run, published.metric, gap, holds, f"{gap:+.2f}"))
    if order := claim.rule.order:
        for better, worse in zip(order.runs, order.runs[1:], strict=False):
            gap = measured(better, order.metric) - measured(worse, order.metric)
            lead = -gap if order.lower_is_better else gap
            holds = lead > 0 and lead >= order.min_gap - 1e-9
            found.append(_check(better, order.metric, gap, holds, f"{gap:+.2f} to {worse}"))
    if ratio := claim.rule.ratio:
        below = measured(ratio.baseline, ratio.metric)
        quotient = measured(ratio.run, ratio.metric) / below if below else math.nan
        holds = ratio.at_least <= quotient <= ratio.at_most
        found.append(_check(ratio.run, ratio.metric, quotient, holds, f"{quotient:.2f} x {ratio.baseline}"))
    if rule := claim.rule.no_worse:
        gap = measured(rule.run, rule.metric) - measured(rule.baseline, rule.metric)
        margin = rule.margin
        if margin is None:
            spreads = [std(values(records, name, rule.metric)) for name in (rule.run, rule.baseline)]
            margin = max(spread for spread in [0.0, *spreads] if not math.isnan(spread))
        found.append(_check(rule.run, rule.metric, gap, gap >= -margin - 1e-9, f"{gap:+.2f} to {rule.baseline}"))
    return found


def _check(run: str, metric: str, value: float, holds: bool, detail: str) -> Check:
    return Check(run, metric, None) if math.isnan(value) else Check(run, metric, holds, detail)


def describe(rule: Rule) -> str:
    """Return a rule in words."""
    words = []
    if rule.within:
        words.append(f"within {rule.within.tolerance:g} of the published value")
    if order := rule.order:
        gap = f", each at least {order.min_gap:g} apart" if order.min_gap else ""
        words.append(f"{(' < ' if order.lower_is_better else ' > ').join(order.runs)} in {label(order.metric)}{gap}")
    if ratio := rule.ratio:
        bounds = [f"at least {ratio.at_least:g}"] * (ratio.at_least > -math.inf)
        bounds += [f"at most {ratio.at_most:g}"] * (ratio.at_most < math.inf)
        words.append(f"{label(ratio.metric)} of {ratio.run} is {' and '.join(bounds)} x that of {ratio.baseline}")
    if no_worse := rule.no_worse:
        margin = "the spread" if no_worse.margin is None else f"{no_worse.margin:g}"
        words.append(f"{no_worse.run} is at most {margin} below {no_worse.baseline} in {label(no_worse.metric)}")
    return "; ".join(words)


def label(metric: str) -> str:
    """Return a metric's name as a table shows it."""
    known = {
        "wall_time_s": "wall time (s)",
        "peak_memory_mib": "peak memory (MiB)",
        "train_seconds": "training time (s)",
        "wall_seconds": "time in fit (s)",
        "training_passes_per_image": "passes an image (training)",
        "evaluation_passes_per_image": "passes an image",
        "training_ms_per_image": "ms an image (training)",
        "evaluation_ms_per_image": "ms an image",
        "time/train_seconds": "training time (s)",
        "test/acc": "test accuracy",
        "test/knn": "test accuracy (k-NN)",
        "test/miou_student": "test mIoU (student)",
        "test/miou_teacher": "test mIoU (teacher)",
        "train/pseudo_acc_foreground": "pseudo-label accuracy (digits)",
        "train/quality": "share of sure labels",
        "train/gradients": "gradients",
    }
    kind, _, logged = metric.partition(".")
    if kind in ("final", "best"):  # of TrainingReport; the rest is a name that a method logged
        logged = known.get(logged, logged)
        return logged if kind == "final" else f"{logged} (best)"
    group, _, name = metric.replace("_", " ").rpartition(".")
    # The group tells metrics of one name apart; class-incremental is what is meant where nothing is said.
    return known.get(metric, f"{name} ({group})" if group not in ("", "class incremental") else name)


def state(claim: Claim, records: list[Record]) -> str:
    """Return the claim's state in words.

    Args:
        claim: The claim.
        records: The runs that count.

    Returns:
        "holds", "does not hold", "partly run n of m", "not decided (reason)", or the claim's own words while nothing
        was run.
    """
    wanted = {(run.name, str(seed)) for run in claim.runs for seed in claim.seeds}
    done = wanted & {(record["run"], record["seed"]) for record in records}
    if not records:
        return claim.state or "not run"
    if done < wanted:
        return f"partly run {len(done)} of {len(wanted)}"
    outcomes = checks(claim, records)
    if undefined := [check for check in outcomes if check.holds is None]:
        return f"not decided ({label(undefined[0].metric)} is undefined)"
    return "holds" if all(check.holds for check in outcomes) else "does not hold"
