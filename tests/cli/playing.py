"""A claim of two rows, and a small script that plays ``zoo fit``."""

import json
from pathlib import Path

from zoo.cli import results
from zoo.cli.claims import Claim, Rule, Run, Within

# Plays `zoo fit`: accuracy = 10 x level + seed. What it shall do besides stands in the file `script`, by row and seed.
FIT = """
import json, os, pathlib, signal, sys, time
options = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
folder = pathlib.Path(options["--run_dir"])
row, seed = options["--model.row"], int(options["--seed_everything"])
with open("calls", "a") as file:
    file.write(f"{row} {seed} {options.get('--ckpt_path', 'fresh')}\\n")
act = json.loads(pathlib.Path("script").read_text()).get(f"{row} {seed}", "")
print("epoch 1", flush=True)
if "--model.start" in options:
    json.loads(pathlib.Path(options["--model.start"]).read_text())  # of another row
if act == "slow":
    time.sleep(0.5)
if act == "fail":
    raise SystemExit("no such image: a.png")
if act == "empty":
    raise SystemExit(0)
if act in ("killed", "hang") and "--ckpt_path" not in options:
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_text("half way")
    if act == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    pathlib.Path("id").write_text(str(os.getpid()))
    os.replace("id", "hanging")
    time.sleep(60)
accuracy = 10.0 * int(options["--model.level"]) + seed
numbers = {"accuracy": float("nan") if act == "nan" else accuracy, "forgetting": 1.0, "classes": 10}
(folder / "results.json").write_text(json.dumps({"class_incremental": numbers, "method": "X"}))
if act == "late":
    raise SystemExit("no space left for the last checkpoint")
"""

CONTENT = {
    "title": "X keeps what it learns",
    "paper": "Nobody, 2000",
    "runs": [
        {"name": "high", "recipe": "family/x", "overrides": ["--model.row=high", "--model.level=9"]},
        {"name": "low", "recipe": "family/x", "overrides": ["--model.row=low", "--model.level=7"], "note": "Old"},
    ],
    "seeds": [0, 2],
    "seed_options": ["--seed_everything={seed}"],
    "metrics": ["class_incremental.accuracy"],
    "published": [{"run": "high", "metric": "class_incremental.accuracy", "value": 91.5, "source": "table 1"}],
    "rule": {"within": {"tolerance": 0.5}},
}
ACCURACY = CONTENT["metrics"][0]


def play(**acts):
    Path("script").write_text(json.dumps({name.replace("_", " "): act for name, act in acts.items()}))


def calls():
    """Return what was started since the last question, as "row seed checkpoint"."""
    path = Path("calls")
    found = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def rows(name="x"):
    return results.read_records(Path(f"results/{name}.csv"))


def claim(**changes):
    """Return a claim of rows a, b, c and metric m."""
    base = {
        "name": "c",
        "title": "C",
        "runs": [Run("a", "f/x"), Run("b", "f/x"), Run("c", "f/x")],
        "seeds": [0, 1],
        "seed_options": ["--s={seed}"],
        "metrics": ["m"],
        "rule": Rule(within=Within(1.0)),
    }
    return Claim(**{**base, **changes})


def table(**numbers):
    """Return records of metric m: one list of numbers, by seed, for each row."""
    return [
        {"run": run, "seed": str(seed), "m": f"{number:g}"}
        for run, series in numbers.items()
        for seed, number in enumerate(series)
    ]


ALL = {"a": [90, 92], "b": [80, 80], "c": [79, 81]}
