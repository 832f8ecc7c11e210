"""The benchmark for a GPU runs through on a CPU, and says clearly what it needs."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = str(Path(__file__).parents[2] / "benchmarks" / "gpu" / "precision.py")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_says_that_it_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT])
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        runpy.run_path(SCRIPT, run_name="__main__")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_part_of_it_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Several seconds on a core."""
    monkeypatch.setattr(sys, "argv", [SCRIPT, "--smoke"])
    runpy.run_path(SCRIPT, run_name="__main__")
    printed = capsys.readouterr().out
    steps, fits = printed.split("stand-in for Fashion-MNIST")
    for kind in ("bf16", "fp8 tensorwise", "fp8 rowwise", "int8"):
        assert f"  {kind:15} eager" in steps
    assert steps.count("times bf16, bound") == 4
    assert fits.count("the spread of float32") == 5
