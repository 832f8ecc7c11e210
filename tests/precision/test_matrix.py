"""Each method at one precision under one strategy, as the table in docs says; the slow test runs and writes all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matrix
import pytest
import torch
from matrix import CELLS, METHODS, PRECISIONS, RUNS, read_table, row_of, run_cell, write_table

import zoo

TABLE = Path(__file__).parents[2] / "docs" / "precision_matrix.md"


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Write runs into a temporary folder, and show errors in full."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_TRACEBACK", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    row_of.cache_clear()  # the files are gone


# Precisions take turns; of five methods one runs under DDP and one under FSDP2, which take longer.
TURNS = ["one device", "ddp", "one device", "fsdp2", "one device"]


@pytest.mark.parametrize(
    ("method", "precision", "strategy"),
    [
        (method, list(PRECISIONS)[number % len(PRECISIONS)], TURNS[number % len(TURNS)])
        for number, method in enumerate(METHODS)
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_method_does_what_the_table_says(method: str, precision: str, strategy: str) -> None:
    documented = read_table(TABLE.read_text(encoding="utf-8"))[method, precision, strategy]
    answer = run_cell(method, precision, strategy)
    assert (RUNS if answer.startswith(RUNS) else answer.replace(method, "The method")) == documented


def test_the_table_names_every_method_and_every_method_runs_somewhere() -> None:
    table = read_table(TABLE.read_text(encoding="utf-8"))
    assert table.keys() == {(method, *cell) for method in METHODS for cell in CELLS}
    for method in METHODS:
        assert f"| `zoo.{method}` | `{matrix.recipe_of(method).stem}` |" in TABLE.read_text(encoding="utf-8")
    for method in METHODS:
        # The default precision, on one device and under DDP.
        assert table[method, "32-true", "one device"] == table[method, "32-true", "ddp"] == RUNS
    assert "zoo.cli" not in TABLE.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_method_at_every_precision_under_every_strategy() -> None:
    """A quarter of an hour on one core; writes the table."""
    answers, broken = {}, []
    for key in [(method, *cell) for method in METHODS for cell in CELLS]:
        try:
            answers[key] = run_cell(*key)
        except Exception as error:  # neither a run nor a refusal
            broken.append((key, error))
        print(key, answers.get(key, "BROKEN"), flush=True)
    assert not broken
    TABLE.write_text(write_table([row_of(method) for method in METHODS], answers), encoding="utf-8")


def test_an_answer_is_a_run_or_a_refusal_before_training() -> None:
    def training_step() -> None:
        raise ValueError("in the middle")

    def caught(function: Any) -> Exception:
        try:
            function()
        except Exception as error:
            return error
        raise AssertionError

    for function in (training_step, lambda: {}["x"], lambda: int("x")):
        with pytest.raises((ValueError, KeyError)):
            matrix.refusal(caught(function))
    assert matrix.refusal(caught(lambda: zoo.precision.Float8Precision("mx"))).startswith("recipe='mx' must be")
