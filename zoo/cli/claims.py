"""Claims: what a paper says, how it is run here, and the rule that decides whether it holds.

A claim is a YAML file in ``configs/claims``; its keys are the attributes of ``Claim``.
"""

import dataclasses
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from zoo.cli import catalogue
from zoo.cli.catalogue import find_recipe, recipe_name
from zoo.cli.messages import CommandError, nearest

COST_METRICS = ("wall_time_s", "peak_memory_mib")  # measured by `zoo reproduce` itself, so not in results.json


SCALARS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Run:
    """One row of a claim's table, run once for each seed.

    Attributes:
        name: Name in the table.
        recipe: ``family/name`` of a shipped recipe.
        overrides: Options of ``zoo fit`` that turn the recipe into this row; ``{seed}`` stands for the seed, so that a
            row may start from the checkpoint of another one.
        metrics: Those of the claim's metrics that this row has, where it does not have all.
        note: What a reader should know about the row.
    """

    name: str
    recipe: str
    overrides: list[str] = dataclasses.field(default_factory=list)
    metrics: list[str] = dataclasses.field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Published:
    """A value read off a paper.

    Attributes:
        run: Name of the row.
        metric: One of the claim's metrics, in its unit.
        value: The mean.
        source: Table or figure number.
        std: Standard deviation, where the paper gives one.
    """

    run: str
    metric: str
    value: float
    source: str
    std: float | None = None


@dataclass(frozen=True)
class Within:
    """Every published value is met by the measured mean, up to a tolerance in the metric's unit, in both directions."""

    tolerance: float


@dataclass(frozen=True)
class Order:
    """The measured means are strictly ordered, each pair of neighbours at least ``min_gap`` apart.

    Attributes:
        metric: One of the claim's metrics.
        runs: Names of rows from best to worst.
        min_gap: In the metric's unit.
        lower_is_better: Whether the best row has the lowest value.
    """

    metric: str
    runs: list[str]
    min_gap: float = 0.0
    lower_is_better: bool = False


@dataclass(frozen=True)
class Ratio:
    """The mean of one row divided by that of another lies between two bounds; one of them is enough.

    Attributes:
        metric: One of the claim's metrics, or a cost: ``wall_time_s``, ``peak_memory_mib``.
        run: Name of the row above the line.
        baseline: Name of the row below the line.
        at_least: Lower bound.
        at_most: Upper bound.
    """

    metric: str
    run: str
    baseline: str
    at_least: float = -math.inf
    at_most: float = math.inf


@dataclass(frozen=True)
class NoWorse:
    """The mean of one row is at least that of another, less a margin.

    Attributes:
        metric: One of the claim's metrics; higher is better.
        run: Name of the row that must not be worse.
        baseline: Name of the row it is compared with.
        margin: In the metric's unit. Default: the spread, which is the larger standard deviation of the two rows.
    """

    metric: str
    run: str
    baseline: str
    margin: float | None = None


@dataclass(frozen=True)
class Rule:
    """What decides; where several are given, all must hold."""

    within: Within | None = None
    order: Order | None = None
    ratio: Ratio | None = None
    no_worse: NoWorse | None = None


@dataclass(frozen=True)
class Curve:
    """A picture of one logged metric over another, drawn beside the table.

    Attributes:
        x: Name of a column of the runs' ``metrics.csv``, such as ``time/train_seconds``.
        y: Another one, such as ``test/acc``; accuracies are shown in percent.
        runs: Names of the rows to show. Default: all.
    """

    x: str
    y: str
    runs: list[str] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class Claim:
    """What is claimed and how it is checked; each attribute but ``name`` is a key of the YAML file.

    Attributes:
        name: Name of the file.
        title: One line.
        runs: Rows of the table.
        seeds: One run of every row for each.
        seed_options: Options of ``zoo fit`` that apply a seed, with ``{seed}`` in its place.
        metrics: Dotted paths into a run's ``results.json``, or costs (``wall_time_s``, ``peak_memory_mib``).
        rule: Decides whether the claim holds.
        paper: Citation.
        description: What is checked, and what is not.
        published: Values the paper reports.
        curve: A picture of what the runs logged on their way.
        state: Said instead of "not run" while there is no result, such as "not run here (needs ImageNet and 8 GPUs)".
    """

    name: str
    title: str
    runs: list[Run]
    seeds: list[int]
    seed_options: list[str]
    metrics: list[str]
    rule: Rule
    paper: str = ""
    description: str = ""
    published: list[Published] = dataclasses.field(default_factory=list)
    curve: Curve | None = None
    state: str = ""

    def metrics_of(self, run: Run) -> list[str]:
        """Return the metrics that a row has."""
        return run.metrics or self.metrics

    def options(self, run: Run, seed: int) -> list[str]:
        """Return the options of ``zoo fit`` for one run, without the recipe."""
        return [option.replace("{seed}", str(seed)) for option in (*run.overrides, *self.seed_options)]

    def starts_from(self, run: Run, seed: int) -> list[Run]:
        """Return the rows above a row whose folders, of the same seed, its options name."""
        above = self.runs[: self.runs.index(run)]
        folders = {row.name: f"/{self.name}/{row.name}/seed{seed}/" for row in above}
        return [row for row in above if any(folders[row.name] in option for option in self.options(run, seed))]

    def settings(self, run: Run, seed: int) -> str:
        """Return a short hash of all that a run computes: the recipe's content, comments aside, and the options.

        And those of the rows that it starts from: where one of them changes, it is another run.
        """
        recipe = yaml.safe_load(find_recipe(run.recipe).read_text(encoding="utf-8"))
        start = [self.settings(row, seed) for row in self.starts_from(run, seed)]
        text = json.dumps([recipe, self.options(run, seed), *start], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def claim_names() -> list[str]:
    """Return the names of the shipped claims."""
    return sorted(path.stem for path in (catalogue.CONFIGS / catalogue.CLAIMS).glob("*.yaml"))


def load_claim(name: str) -> Claim:
    """Return a shipped claim.

    Raises:
        CommandError: If there is none of that name, or its file is not valid.
    """
    path = catalogue.CONFIGS / catalogue.CLAIMS / f"{name.removesuffix('.yaml')}.yaml"
    if not path.exists():
        raise CommandError(f"no claim is named {name}; {nearest(name, claim_names())}")
    return read_claim(path)


def read_claim(path: Path) -> Claim:
    """Read a claim and check that it means something.

    Raises:
        CommandError: With the file, the key and the value, if a key is unknown, missing or of a wrong type, a recipe,
            row or metric is not there, or the rule decides nothing.
    """
    where = path.name
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise CommandError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if isinstance(content, dict) and "name" in content:
        raise CommandError(f"{where}: remove the key name; a claim is named by its file")
    claim: Claim = _build(Claim, {"name": path.stem, **content} if isinstance(content, dict) else content, where)

    for key in ("runs", "seeds", "metrics"):
        if not getattr(claim, key):
            raise CommandError(f"{where}: {key} is empty; give at least one")
    rows = [run.name for run in claim.runs]
    for key, values in (("runs", rows), ("seeds", claim.seeds), ("metrics", claim.metrics)):
        if twice := {str(value) for value in values if list(values).count(value) > 1}:
            raise CommandError(f"{where}: {key} holds {', '.join(sorted(twice))} more than once")
    if len(claim.seeds) > 1 and not any("{seed}" in option for option in claim.seed_options):
        raise CommandError(f"{where}: no seed_options holds {{seed}}, so all {len(claim.seeds)} seeds would be one run")
    for position, run in enumerate(claim.runs):
        try:
            found = recipe_name(find_recipe(run.recipe))
        except CommandError as error:
            raise CommandError(f"{where}: runs[{position}].recipe: {error}") from error
        if found != run.recipe:
            raise CommandError(f"{where}: runs[{position}].recipe: write {found} for {run.recipe}")
        if set(run.name) & set("/\\|\n") or run.name in ("", ".", ".."):  # it names a folder and stands in a table
            raise CommandError(f"{where}: runs[{position}].name: {run.name!r} cannot name a folder")
    _check_names(claim, rows, where)
    return claim


def _check_names(claim: Claim, rows: list[str], where: str) -> None:
    """Refuse a rule or published value that refers to a row or metric the claim does not have."""
    rule = claim.rule
    if rule == Rule():
        raise CommandError(f"{where}: rule is empty; choose from within, order, ratio, no_worse")
    if rule.within and not claim.published:
        raise CommandError(f"{where}: rule.within compares with published values, but published is empty")
    if rule.order and len(rule.order.runs) < 2:
        raise CommandError(f"{where}: rule.order.runs has {len(rule.order.runs)} row; an order needs at least 2")
    if rule.ratio and rule.ratio.at_least == -math.inf and rule.ratio.at_most == math.inf:
        raise CommandError(f"{where}: rule.ratio has no bound; give at_least or at_most")
    used = [(f"published[{i}]", [value.run], value.metric) for i, value in enumerate(claim.published)]
    used += [(f"runs[{i}].metrics", [run.name], metric) for i, run in enumerate(claim.runs) for metric in run.metrics]
    if rule.order:
        used.append(("rule.order", rule.order.runs, rule.order.metric))
    if rule.ratio:
        used.append(("rule.ratio", [rule.ratio.run, rule.ratio.baseline], rule.ratio.metric))
    if rule.no_worse:
        used.append(("rule.no_worse", [rule.no_worse.run, rule.no_worse.baseline], rule.no_worse.metric))
    if claim.curve and (unknown := [name for name in claim.curve.runs if name not in rows]):
        raise CommandError(f"{where}: curve.runs names {unknown[0]}; {nearest(unknown[0], rows)}")
    for key, names, metric in used:
        for name in names:
            if name not in rows:
                raise CommandError(f"{where}: {key} names the row {name}, not one of runs; {nearest(name, rows)}")
            measured = claim.metrics_of(claim.runs[rows.index(name)])
            if metric not in claim.metrics:
                near = nearest(metric, claim.metrics)
                raise CommandError(f"{where}: {key} names {metric}, not one of metrics; {near}")
            if metric not in measured:
                raise CommandError(f"{where}: {key} names {metric}, which the row {name} does not have")


def _build(kind: Any, value: object, where: str) -> Any:
    """Turn YAML into a type: a dataclass of this file, a list of one, a number or a text."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:  # all of them are `X | None`
        return None if value is None else _build(arguments[0], value, where)
    if origin is list:
        if not isinstance(value, list):
            raise CommandError(f"{where}: expected a list, found {value!r}")
        return [_build(arguments[0], item, f"{where}[{position}]") for position, item in enumerate(value)]
    if kind in SCALARS:
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise CommandError(f"{where}: expected {SCALARS[kind]}, found {value!r}")
        return value
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if not isinstance(value, dict):
        raise CommandError(f"{where}: expected the keys {', '.join(fields)}, found {value!r}")
    if unknown := [str(key) for key in value if key not in fields]:
        raise CommandError(f"{where}: unknown key {unknown[0]}; {nearest(unknown[0], fields)}")
    required = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in required if name not in value]:
        raise CommandError(f"{where}: the key {missing[0]} is missing")
    hints = typing.get_type_hints(kind)
    # The file's name introduces the path to a key: nmc.yaml: runs[0].recipe
    join = ": " if where.endswith(".yaml") else "."
    return kind(**{key: _build(hints[key], item, f"{where}{join}{key}") for key, item in value.items()})
