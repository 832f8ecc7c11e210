"""Every public method at every precision under every strategy: what runs, what is refused, and why.

A method is taken from ``zoo.__all__``, and runs by one of its recipes on a synthetic twin: nothing has to be added for
a new one. A cell takes the steps of ``TWO_STEPS`` and one evaluation, through the command line.
"""

import functools
import json
import re
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
import yaml
from processes import in_two_processes
from test_recipes import RECIPES, TWO_STEPS, build, small_network, twin
from torch import nn

import zoo
from zoo.cli.lightning import ZooCLI

METHODS = sorted(name for name in zoo.__all__ if name[0].isupper())

FLOAT16 = {  # the name alone is for GPUs: on a CPU Lightning takes bfloat16 for it
    "class_path": "lightning.pytorch.plugins.MixedPrecision", "init_args": {"precision": "16-mixed", "device": "cpu"}
}  # fmt: skip
PRECISIONS = {
    "32-true": ["--trainer.precision", "32-true"],
    "bf16-mixed": ["--trainer.precision", "bf16-mixed"],
    "16-mixed": [
        "--trainer.precision",
        "null",
        "--trainer.plugins",
        json.dumps([FLOAT16]),
    ],
    "bf16-true": ["--trainer.precision", "bf16-true"],
    "float8": [
        *("--trainer.precision", "null", "--trainer.plugins", "zoo.precision.Float8Precision"),
        *("--trainer.plugins.emulate", "true"),
    ],
    "frozen int8": ["--trainer.callbacks+=QuantizeFrozen", "--trainer.callbacks.part"],
}
# What a method needs beside the callback, where its recipe trains what is to be frozen.
FREEZE = {
    "ExperienceReplay": ["--model.train_backbone", "false"],
    "FewShotClassIncremental": [
        *("--model.train_backbone", "false", "--model.tricks", '["prototypes", "pseudo_classes"]'),
        *("--model.backbone", "vit_tiny_patch16_224", "--model.backbone_args", '{"img_size": 32}'),
    ],
    "ImageClassifier": ["--model.mode", "linear_probe"],
    "SequentialFineTuning": ["--model.train_backbone", "false"],
}
STRATEGIES = {
    "one device": [],
    "ddp": ["--trainer.devices", "2", "--trainer.strategy", "ddp"],
    "fsdp2": [
        *("--trainer.devices", "2", "--trainer.strategy", "lightning.pytorch.strategies.ModelParallelStrategy"),
        *("--trainer.strategy.data_parallel_size", "2", "--trainer.strategy.tensor_parallel_size", "1"),
        *("--trainer.strategy.save_distributed_checkpoint", "false"),
    ],
}
CELLS = [(precision, strategy) for strategy in STRATEGIES for precision in PRECISIONS]
RUNS = "runs"


class Row(NamedTuple):
    """A method, the recipe that stands for it, the options that make it small, and its frozen part or its network."""

    method: str
    recipe: Path
    options: list[str]
    part: str


def recipe_of(method: str) -> Path:
    """Return the recipe of a method on the smallest images, on a transformer where there is one, under its own name."""

    def rank(path: Path) -> Any:
        text = path.read_text()
        own = path.stem.replace("_", "").startswith(method.lower())
        small = any(data in path.stem for data in ("_digit", "_fashion_mnist"))
        return "vit" not in text, not own, not small, path.stem

    mine = [path for path in RECIPES if kind_of(path) == method]
    assert mine, f"{method} has no recipe"
    return min(mine, key=rank)


def kind_of(recipe: Path) -> str:
    """Return the name of the method of a recipe."""
    return str(yaml.safe_load(recipe.read_text())["model"]["class_path"]).rpartition(".")[2]


@functools.cache
def row_of(method: str) -> Row:
    """Return the row of a method; the working directory holds what its recipe starts from."""
    recipe = recipe_of(method)
    cli = build(recipe)
    parts = [name for name in ("teacher", "backbone") if hasattr(cli.model, name)]
    return Row(method, recipe, twin(cli), parts[0] if parts else "backbone")


def run_cell(method: str, precision: str, strategy: str) -> str:
    """Return "runs", with a word on how, or the reason why it is refused.

    Raises:
        Exception: What broke a run that was not refused.
    """
    row = row_of(method)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", small_network)
        return run_row(row, precision, strategy)


def run_row(row: Row, precision: str, strategy: str) -> str:
    """Do so, where networks are small."""
    part = [row.part, *FREEZE.get(row.method, [])] if precision == "frozen int8" else []
    options = [*TWO_STEPS, *PRECISIONS[precision], *part, *STRATEGIES[strategy]]
    # Not where the recipes of others look for a checkpoint.
    args = ["fit", "--config", str(row.recipe), "--run_dir", "cell", *row.options, *options]
    answer = fit(args) if strategy == "one device" else fit_two(args)
    if "ddp_find_unused_parameters_true" in answer:  # the way out that the refusal names
        word = args.index("ddp")
        return fit_two([*args[:word], "ddp_find_unused_parameters_true", *args[word + 1 :]]) + ", unused parameters"
    return answer


def fit_two(args: list[str]) -> str:
    """Return the answer of two processes, which has to be the same."""
    first, second = in_two_processes(fit, args)
    assert first == second
    return str(first).partition(" ")[0] if first.startswith(RUNS) else first


def fit(args: list[str]) -> str:
    """Run a command; return "runs" with the sums of what was learned, or the reason of a refusal before training."""
    try:
        cli = ZooCLI(args)
    except Exception as error:
        return refusal(error)
    assert cli.trainer.global_step > 0
    values = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    assert all(value == value and abs(value) < float("inf") for value in values.values()), values
    check_types(cli.model)
    if cli.trainer.world_size == 1:
        return RUNS
    return f"{RUNS} {[total(parameter) for parameter in cli.model.parameters()]}"


def total(parameter: torch.Tensor) -> float:
    """Return the sum of a parameter, also of one whose parts are with several processes."""
    whole: torch.Tensor = getattr(parameter, "full_tensor", lambda: parameter)()
    return float(whole.detach().double().sum())


def check_types(module: nn.Module) -> None:
    """Check that sums of features are float64, and averages of weights float32, at any precision."""
    for name, part in module.named_modules():
        if isinstance(part, zoo.nn.ClassMeans):
            assert part.sum.dtype == torch.float64, name
    if hasattr(module, "average"):  # a teacher that is an average
        assert {parameter.dtype for parameter in module.teacher.parameters()} == {torch.float32}


def refusal(error: Exception) -> str:
    """Return the text of an error that zoo or Lightning raised on purpose before the first step; raise any other."""
    frames = traceback.extract_tb(error.__traceback__)
    training = any(frame.name in ("training_step", "optimizer_step") for frame in frames)
    raised_by = Path(frames[-1].filename)
    ours = any(part in raised_by.parts for part in ("zoo", "callbacks", "datamodules", "lightning"))
    if training or not ours or not isinstance(error, ValueError | RuntimeError):
        raise error
    return " ".join(str(error).split())


# The table ------------------------------------------------------------------------------------------------------------

HEAD = """# What runs at which precision

Every method, by one of its recipes on a small network and synthetic images, at every precision under every strategy, on
CPUs: two processes where there are several. `yes`: it trains, evaluates and saves; all processes end with the same
weights. A number: it is refused before training, for the reason below. `float8` is emulated; `frozen int8` is
`QuantizeFrozen` on the teacher or backbone, which is frozen where a method can train it (`train_backbone=False`, or a
linear probe); `16-mixed` is given as a plugin, because Lightning takes the name for bfloat16 on a CPU. Written by
`pytest -m slow tests/precision/test_matrix.py`; what the words mean stands in [precision](precision.md).
"""
UNUSED = "`yes`, with `ddp_find_unused_parameters_true`"


def write_table(rows: list[Row], answers: dict[tuple[str, str, str], str]) -> str:
    """Return the page of all answers by method, precision and strategy."""
    reasons: list[str] = []

    def cell(answer: str, method: str) -> str:
        if answer.startswith(RUNS):
            return UNUSED if answer != RUNS else "`yes`"
        reason = answer.replace(method, "The method")
        if reason not in reasons:
            reasons.append(reason)
        return f"{reasons.index(reason) + 1}"

    text = [HEAD]
    for strategy in STRATEGIES:
        text += [f"## {strategy}", "", f"| method | recipe | {' | '.join(PRECISIONS)} |"]
        text += ["| --- " * (2 + len(PRECISIONS)) + "|"]
        for row in rows:
            cells = [cell(answers[row.method, precision, strategy], row.method) for precision in PRECISIONS]
            text.append(f"| `zoo.{row.method}` | `{row.recipe.stem}` | {' | '.join(cells)} |")
        text.append("")
    text += ["## Reasons", "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)), ""]
    return "\n".join(text)


def read_table(text: str) -> dict[tuple[str, str, str], str]:
    """Return what :func:`write_table` was given: the reasons are those of "The method"."""
    reasons = dict(re.findall(r"^(\d+)\. (.+)$", text, re.MULTILINE))
    answers = {}
    for strategy, body in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL):
        for method, cells in re.findall(r"^\| `zoo\.(\w+)` \| `\w+` \| (.*) \|$", body, re.MULTILINE):
            for precision, cell in zip(PRECISIONS, cells.split(" | "), strict=True):
                answers[method, precision, strategy] = RUNS if cell.startswith("`yes`") else reasons[cell]
    return answers
