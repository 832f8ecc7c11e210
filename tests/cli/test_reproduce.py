"""Claims from file to verdict; a small script plays ``zoo fit``."""

import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from zoo.cli import catalogue, provenance, render, results
from zoo.cli.claims import (
    Claim,
    NoWorse,
    Order,
    Published,
    Ratio,
    Rule,
    Run,
    Within,
    claim_names,
    load_claim,
    read_claim,
)
from zoo.cli.main import main
from zoo.cli.messages import CommandError
from zoo.cli.reproduce import reproduce
from zoo.cli.runner import portable

ROOT = Path(__file__).parents[2]

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


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working directory with one recipe and one claim shipped, and a script that plays ``zoo fit``."""
    configs = tmp_path / "shipped"
    (configs / "family").mkdir(parents=True)
    (configs / "claims").mkdir()
    (configs / "family/x.yaml").write_text("# X. 1 minute.\nseed_everything: 0\n")
    (configs / "claims/x.yaml").write_text(yaml.safe_dump(CONTENT))
    (tmp_path / "fit.py").write_text(FIT)
    (tmp_path / "script").write_text("{}")
    monkeypatch.setattr(catalogue, "CONFIGS", configs)
    monkeypatch.setattr("zoo.cli.reproduce.FIT", (sys.executable, "fit.py"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


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


# ------------------------------------------------------------------------------------------------------------ running


def test_seed_stands_in_the_options_of_a_row_too(home):
    claim = read_claim(home / "shipped/claims/x.yaml")
    row = Run("low", "family/x", overrides=["--model.start=runs/high/seed{seed}/last.ckpt"])
    assert claim.options(row, 2) == ["--model.start=runs/high/seed2/last.ckpt", "--seed_everything=2"]


def test_a_claim_runs_every_row_and_seed_and_writes_one_row_a_run(home, capsys):
    assert main(["reproduce", "x"]) == 0
    assert sorted(calls()) == ["high 0 fresh", "high 2 fresh", "low 0 fresh", "low 2 fresh"]
    records = rows()
    assert [(row["run"], row["seed"], row[ACCURACY]) for row in records] == [
        ("high", "0", "90"),
        ("high", "2", "92"),
        ("low", "0", "70"),
        ("low", "2", "72"),
    ]
    first = records[0]
    assert first["recipe"] == "family/x"
    assert first["options"] == "--model.row=high --model.level=9 --seed_everything=0"
    assert first["log"] == "runs/reproduce/x/high/seed0/log.txt"
    assert "epoch 1" in Path(first["log"]).read_text()
    assert f"python {sys.version.split()[0]}, " in first["versions"]
    assert "torch " in first["versions"]
    assert re.search(r", [1-9]\d* cores, ", first["hardware"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\dZ", first["date"])
    assert 0 < float(first["wall_time_s"]) < 60
    # On Linux a process starts with the mark of the one that started it, here that of all tests before.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    assert 4 < float(first["peak_memory_mib"]) < own + 500
    assert str(home) not in Path("results/x.csv").read_text()
    assert Path("results/x.png").read_bytes().startswith(b"\x89PNG")

    printed = capsys.readouterr().out
    # (90 + 92) / 2 = 91; sample standard deviation sqrt(2); 91 - 91.5 = -0.5, just within
    assert re.search(r"high +91.5 \(table 1\) +91.00 ± 1.41 +2 +holds \(-0.50\)", printed)
    assert re.search(r"low +- +71.00 ± 1.41 +2 +-", printed)
    assert "x: holds" in printed


def test_what_is_done_is_not_repeated_and_its_csv_is_rebuilt(home):
    assert main(["reproduce", "x", "--seeds", "1"]) == 0
    before = Path("results/x.csv").read_text()
    Path("results/x.csv").unlink()
    assert sorted(calls()) == ["high 0 fresh", "low 0 fresh"]
    assert main(["reproduce", "x", "--seeds", "1"]) == 0
    assert calls() == []
    assert Path("results/x.csv").read_text() == before


def test_more_seeds_than_the_claim_has_go_on_counting(home):
    assert main(["reproduce", "x", "--seeds", "3", "--jobs", "2"]) == 0
    assert sorted(calls()) == [f"{row} {seed} fresh" for row in ("high", "low") for seed in (0, 2, 3)]


def chain():
    """Let row "low" start from what row "high" of its seed leaves."""
    start = "--model.start=runs/reproduce/x/high/seed{seed}/results.json"
    low = {**CONTENT["runs"][1], "overrides": [*CONTENT["runs"][1]["overrides"], start]}
    (catalogue.CONFIGS / "claims/x.yaml").write_text(yaml.safe_dump({**CONTENT, "runs": [CONTENT["runs"][0], low]}))


@pytest.mark.parametrize("options", [[], ["--trainer.max_epochs=1"]])
def test_a_row_waits_for_the_row_of_its_seed_that_it_starts_from(home, options):
    chain()
    play(high_0="slow", high_2="slow")
    assert main(["reproduce", "x", "--jobs", "4", *options]) == 0
    assert [call.split()[0] for call in calls()] == ["high", "high", "low", "low"]


def test_rows_come_in_their_order_where_they_can(home):
    chain()
    assert main(["reproduce", "x"]) == 0
    assert calls() == [f"{row} {seed} fresh" for seed in (0, 2) for row in ("high", "low")]


def test_a_row_fails_with_the_row_that_it_starts_from(home, capsys):
    chain()
    play(high_0="fail")
    assert main(["reproduce", "x", "--jobs", "2"]) == 1
    assert "low, seed 0: FAILED, it starts from high, seed 0, which failed" in capsys.readouterr().out
    assert sorted(calls()) == ["high 0 fresh", "high 2 fresh", "low 2 fresh"]
    play()
    assert main(["reproduce", "x"]) == 0
    assert calls() == ["high 0 fresh", "low 0 fresh"]


def test_a_failed_run_shows_the_end_of_its_log_and_loses_no_other(home, capsys):
    play(high_2="fail", low_0="empty")
    assert main(["reproduce", "x"]) == 1
    printed = capsys.readouterr().out
    assert "high, seed 2: FAILED, ended with exit code 1; runs/reproduce/x/high/seed2/log.txt ends:" in printed
    assert "    no such image: a.png" in printed
    assert "low, seed 0: FAILED, ended well but left no results.json" in printed
    assert [(row["run"], row["seed"]) for row in rows()] == [("high", "0"), ("low", "2")]
    assert "x: partly run 2 of 4" in printed
    calls()
    play()
    assert main(["reproduce", "x"]) == 0
    assert sorted(calls()) == ["high 2 fresh", "low 0 fresh"]


def test_results_of_a_run_that_fails_afterwards_do_not_count(home):
    play(high_0="late")
    assert main(["reproduce", "x", "--seeds", "1"]) == 1
    assert [row["run"] for row in rows()] == ["low"]


def test_a_killed_run_continues_from_its_checkpoint_and_adds_up_its_time(home):
    play(high_0="killed")
    assert main(["reproduce", "x", "--seeds", "1"]) == 1
    ledger = Path("runs/reproduce/x/high/seed0/reproduce.json")
    assert ledger.read_text().count('"wall_time_s": 0.') == 1
    ledger.write_text(ledger.read_text().replace('"wall_time_s": 0.', '"wall_time_s": 500.'))
    calls()
    assert main(["reproduce", "x", "--seeds", "1"]) == 0
    assert calls() == ["high 0 last"]
    record = rows()[0]
    assert record["checkpoint"] == "runs/reproduce/x/high/seed0/checkpoints/last.ckpt"
    assert 500 < float(record["wall_time_s"]) < 560
    assert Path(record["log"]).read_text().count("epoch 1") == 2


def test_results_of_an_attempt_that_failed_do_not_count(home):
    play(high_0="killed")
    assert main(["reproduce", "x", "--seeds", "1"]) == 1
    Path("runs/reproduce/x/high/seed0/results.json").write_text('{"class_incremental": {"accuracy": 99.0}}')
    play(high_0="empty")
    assert main(["reproduce", "x", "--seeds", "1"]) == 1
    assert [row["run"] for row in rows()] == ["low"]


def test_a_changed_recipe_runs_anew_and_keeps_the_old_run(home, capsys):
    assert main(["reproduce", "x", "--seeds", "1"]) == 0
    calls()
    recipe = catalogue.CONFIGS / "family/x.yaml"
    recipe.write_text("# Another comment.\nseed_everything: 0\n")
    assert main(["reproduce", "x", "--seeds", "1"]) == 0
    assert calls() == []
    recipe.write_text("seed_everything: 1\n")
    capsys.readouterr()
    assert main(["reproduce"]) == 0
    assert capsys.readouterr().out == "x  not run  X keeps what it learns\n"  # the old runs are of another recipe
    assert main(["reproduce", "x", "--seeds", "1"]) == 0
    assert sorted(calls()) == ["high 0 fresh", "low 0 fresh"]
    kept = list(Path("runs/reproduce/x/high").glob("seed0.until-*"))
    assert [json.loads((path / "results.json").read_text())["method"] for path in kept] == ["X"]


def test_a_trial_with_other_options_touches_no_result_and_does_not_count(home, capsys):
    assert main(["reproduce", "x"]) == 0
    before = rows()
    calls()
    assert main(["reproduce", "x", "--model.level", "1"]) == 0
    assert len(calls()) == 4
    printed = capsys.readouterr().out
    assert "A trial with --model.level=1: it does not count for the claim." in printed
    assert "11.00 ± 1.41" in printed
    assert "x: holds" in printed
    assert [row for row in rows() if not row["overrides"]] == before
    assert results.counted(load_claim("x"), rows()) == before


def test_options_that_only_say_where_count_and_hide_the_machine(home):
    assert main(["reproduce", "x", "--data.source.root=/big/disk/images", "--trainer.devices", "1"]) == 0
    assert {row["overrides"] for row in rows()} == {"--data.source.root=images --trainer.devices=1"}
    claim = load_claim("x")
    assert results.state(claim, results.counted(claim, rows())) == "holds"
    assert main(["reproduce", "x"]) == 0
    for records in (rows(), rows()[::-1]):
        assert [row["overrides"] for row in results.counted(claim, records)] == [""] * 4


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--data.root=/a/b/c", "--data.root=c"),
        ("--data.root=~/c", "--data.root=c"),
        ("--data.root=/c", "--data.root=c"),
        ("--data.roots=['/a/b','/c/d e']", "--data.roots=['b','d e']"),
        ("--data.root=data/images", "--data.root=data/images"),
        ("--data.url=https://a.b/c", "--data.url=https://a.b/c"),
        ("--trainer.max_time=00:12:00", "--trainer.max_time=00:12:00"),
    ],
)
def test_portable(option, expected):
    assert portable(option) == expected


def test_a_metric_that_is_not_there_is_named_with_the_nearest(home, capsys):
    path = catalogue.CONFIGS / "claims/x.yaml"
    path.write_text(path.read_text().replace("class_incremental.accuracy", "class_incremental.acuracy"))
    assert main(["reproduce", "x", "--seeds", "1"]) == 1
    assert "has no class_incremental.acuracy; did you mean class_incremental.accuracy?" in capsys.readouterr().out
    path.write_text(path.read_text().replace("class_incremental.acuracy", "class_incremental.accuracy"))
    calls()
    assert main(["reproduce", "x", "--seeds", "1"]) == 0
    assert calls() == []  # the run was right, the claim's name for it was not


def test_an_undefined_number_leaves_the_claim_undecided(home, capsys):
    play(high_0="nan", high_2="nan")
    assert main(["reproduce", "x"]) == 0
    assert rows()[0][ACCURACY] == ""
    assert "x: not decided (accuracy is undefined)" in capsys.readouterr().out


def driver(*words):
    """Start ``zoo reproduce`` in a process of its own."""
    code = (
        "import sys; from pathlib import Path; from zoo.cli import catalogue, main, reproduce\n"
        f"catalogue.CONFIGS = Path({str(catalogue.CONFIGS)!r}); reproduce.FIT = (sys.executable, 'fit.py')\n"
        f"sys.exit(main.main(['reproduce', *{words}]))"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path):
    for _ in range(600):
        if Path(path).exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_its_runs_and_continues_later(home, number):
    play(low_0="hang")
    process = driver("x", "--seeds", "2")
    wait_for("hanging")
    start = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - start < 20  # the child would sleep for 60 s
    assert process.returncode == 130
    assert errors == "interrupted; the same command continues where it stopped\n"
    assert [row["run"] for row in rows()] == ["high"]
    assert calls() == ["high 0 fresh", "low 0 fresh"]
    assert main(["reproduce", "x", "--seeds", "2"]) == 0
    assert calls() == ["low 0 last", "high 2 fresh", "low 2 fresh"]


def test_a_folder_that_an_orphan_still_writes_to_is_left_alone(home, capsys):
    play(high_0="hang")
    process = driver("x", "--seeds", "1")
    wait_for("hanging")
    process.kill()
    process.wait()
    play(low_0="")
    assert main(["reproduce", "x", "--seeds", "1"]) == 1
    assert "high, seed 0: FAILED, another process is writing to runs/reproduce/x/high/seed0" in capsys.readouterr().out
    os.kill(int(Path("hanging").read_text()), signal.SIGKILL)
    time.sleep(0.2)
    log = Path("runs/reproduce/x/high/seed0/log.txt")
    os.utime(log, (time.time() + 500, time.time() + 500))  # the last the lost process is known to have done
    assert main(["reproduce", "x", "--seeds", "1"]) == 0
    assert 500 < float(rows()[0]["wall_time_s"]) < 560


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["y"], "no claim is named y; "),
        (["--seeds", "1", "x"], "unexpected argument x; the claim comes first"),
        (["x", "--seed", "1"], "unknown option --seed; did you mean --seeds"),
        (["x", "--seeds", "0"], "expected a whole number from 1, found 0"),
        (["x", "--jobs", "two"], "expected a whole number from 1, found two"),
        (["x", "--run_dir=elsewhere"], "--run_dir is set for each run"),
        (["--trainer.devices=1"], "the claim comes first, before --trainer.devices=1"),
        (["x", "--render"], "--render takes no claim"),
        (["--check"], "--check belongs to --render"),
    ],
)
def test_bad_words_are_one_line_and_run_nothing(home, capsys, words, expected):
    assert main(["reproduce", *words]) == 2
    errors = capsys.readouterr().err
    assert expected in errors
    assert errors.count("\n") == 1
    assert calls() == []


# ------------------------------------------------------------------------------------------------------------ verdicts


def claim(**changes):
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


@pytest.mark.parametrize(
    ("rule", "numbers", "expected"),
    [
        (Rule(within=Within(1.0)), {**ALL, "a": [90, 92]}, "holds"),  # 91 against 92
        (Rule(within=Within(0.9)), {**ALL, "a": [90, 92]}, "does not hold"),
        (Rule(within=Within(1.0)), {**ALL, "a": [93, 93.2]}, "does not hold"),  # better than published is off, too
        (Rule(order=Order("m", ["a", "b"], min_gap=11)), ALL, "holds"),
        (Rule(order=Order("m", ["a", "b"], min_gap=11.5)), ALL, "does not hold"),
        (Rule(order=Order("m", ["b", "a"])), ALL, "does not hold"),
        (Rule(order=Order("m", ["b", "c"])), ALL, "does not hold"),  # a tie is no order
        (Rule(order=Order("m", ["b", "a"], lower_is_better=True)), ALL, "holds"),
        (Rule(ratio=Ratio("m", "a", "b", at_least=1.13)), ALL, "holds"),  # 91 / 80 = 1.1375
        (Rule(ratio=Ratio("m", "a", "b", at_least=1.14)), ALL, "does not hold"),
        (Rule(ratio=Ratio("m", "b", "a", at_most=0.87)), ALL, "does not hold"),  # 0.879
        (Rule(no_worse=NoWorse("m", "c", "b")), ALL, "holds"),  # as good
        (Rule(no_worse=NoWorse("m", "b", "c")), {**ALL, "c": [80, 82]}, "holds"),  # 80 is 1 below 81 +- 1.41
        (Rule(no_worse=NoWorse("m", "b", "c")), {**ALL, "c": [82, 82]}, "does not hold"),
        (Rule(no_worse=NoWorse("m", "b", "a", margin=11)), ALL, "holds"),
        (Rule(no_worse=NoWorse("m", "b", "a", margin=10.9)), ALL, "does not hold"),
        (Rule(within=Within(1.0), order=Order("m", ["b", "a"])), ALL, "does not hold"),  # all must hold
        (Rule(order=Order("m", ["a", "b"])), {**ALL, "c": [79]}, "partly run 5 of 6"),
        (Rule(order=Order("m", ["a", "b"])), {}, "needs 8 GPUs"),
        (Rule(ratio=Ratio("m", "a", "b", at_least=1)), {**ALL, "b": [0, 0]}, "not decided (m is undefined)"),
    ],
)
def test_state_follows_the_rule(rule, numbers, expected):
    published = [Published("a", "m", 92.0, "table 1")]
    assert results.state(claim(rule=rule, published=published, state="needs 8 GPUs"), table(**numbers)) == expected


def test_curves_are_kept_beside_the_results_and_drawn_again_without_the_runs(home, capsys):
    path = catalogue.CONFIGS / "claims/x.yaml"
    path.write_text(yaml.safe_dump({**CONTENT, "curve": {"x": "time/train_seconds", "y": "test/acc"}}))
    script = Path("fit.py").read_text()
    log = "epoch,time/train_seconds,test/acc\n0,1.5,0.5\n0,1.5,\n1,3,0.75\n"
    Path("fit.py").write_text(f"{script}\n(folder / 'metrics.csv').write_text({log!r})\n")
    assert main(["reproduce", "x"]) == 0
    kept = Path("results/x.curves.csv").read_text()
    assert kept.splitlines()[:3] == ["run,seed,epoch,x,y", "high,0,0,1.5,0.5", "high,0,1,3,0.75"]
    assert len(kept.splitlines()) == 1 + 4 * 2  # the row without an accuracy is none
    picture = Path("results/x.curves.png")
    drawn = picture.read_bytes()
    picture.unlink()
    shutil.rmtree("runs")
    assert main(["reproduce", "--render"]) == 0
    assert picture.read_bytes() == drawn
    assert Path("results/x.curves.csv").read_text() == kept


def test_mean_and_spread():
    assert results.mean([1.0, 2.0, 6.0]) == 3.0
    assert results.std([1.0, 2.0, 6.0]) == pytest.approx(math.sqrt(7.0))
    assert math.isnan(results.mean([]))
    assert math.isnan(results.std([1.0]))


def test_costs_are_metrics(home):
    path = catalogue.CONFIGS / "claims/x.yaml"
    content = {**CONTENT, "published": [], "metrics": ["wall_time_s"]}
    content["rule"] = {"ratio": {"metric": "wall_time_s", "run": "high", "baseline": "low", "at_most": 1000.0}}
    path.write_text(yaml.safe_dump(content))
    assert main(["reproduce", "x", "--seeds", "1"]) == 0
    assert float(rows()[0]["wall_time_s"]) > 0
    assert results.checks(load_claim("x"), rows())[0].holds


def test_a_row_may_have_some_of_the_metrics(home):
    path = catalogue.CONFIGS / "claims/x.yaml"
    content = {**CONTENT, "metrics": [ACCURACY, "class_incremental.forgetting"]}
    content["runs"] = [CONTENT["runs"][0], {**CONTENT["runs"][1], "metrics": [ACCURACY]}]
    path.write_text(yaml.safe_dump(content))
    assert main(["reproduce", "x", "--seeds", "1"]) == 0
    assert [row["class_incremental.forgetting"] for row in rows()] == ["1", ""]
    lines = render.lines(load_claim("x"), rows())
    assert [(line.run, line.metric) for line in lines] == [
        ("high", "accuracy"),
        ("high", "forgetting"),
        ("low", "accuracy"),
    ]


# --------------------------------------------------------------------------------------------------------- claim files


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"titel": "x"}, "x.yaml: unknown key titel; did you mean title?"),
        ({"title": None}, "x.yaml: title: expected a text, found None"),
        ({"seeds": []}, "x.yaml: seeds is empty"),
        ({"seeds": [0, 0]}, "x.yaml: seeds holds 0 more than once"),
        ({"seeds": [0.5]}, "x.yaml: seeds[0]: expected a whole number, found 0.5"),
        ({"seeds": 3}, "x.yaml: seeds: expected a list, found 3"),
        ({"seed_options": ["--seed_everything=0"]}, "no seed_options holds {seed}, so all 2 seeds would be one run"),
        ({"runs": [{"name": "high"}]}, "x.yaml: runs[0]: the key recipe is missing"),
        ({"runs": [{"name": "high", "recipe": "x"}]}, "x.yaml: runs[0].recipe: write family/x for x"),
        (
            {"runs": [{"name": "high", "recipe": "family/y"}]},
            "runs[0].recipe: no recipe is named family/y; did you mean",
        ),
        ({"runs": [{"name": "a/b", "recipe": "family/x"}]}, "runs[0].name: 'a/b' cannot name a folder"),
        ({"rule": {}}, "rule is empty; choose from within, order, ratio, no_worse"),
        ({"rule": {"withn": {"tolerance": 1}}}, "rule: unknown key withn; did you mean within?"),
        ({"rule": {"within": 1}}, "rule.within: expected the keys tolerance, found 1"),
        ({"published": []}, "rule.within compares with published values, but published is empty"),
        ({"rule": {"order": {"metric": ACCURACY, "runs": ["high"]}}}, "an order needs at least 2"),
        (
            {"rule": {"order": {"metric": ACCURACY, "runs": ["hihg", "low"]}}},
            "row hihg, not one of runs; did you mean high",
        ),
        ({"rule": {"order": {"metric": "acc", "runs": ["high", "low"]}}}, "names acc, not one of metrics;"),
        (
            {"rule": {"ratio": {"metric": ACCURACY, "run": "high", "baseline": "low"}}},
            "no bound; give at_least or at_most",
        ),
        ({"rule": {"no_worse": {"metric": ACCURACY, "run": "hihg", "baseline": "low"}}}, "did you mean high"),
        ({"curve": {"x": "a", "y": "b", "runs": ["hgh"]}}, "curve.runs names hgh; did you mean high"),
        ({"name": "y"}, "remove the key name"),
        ({"metrics": "accuracy"}, "metrics: expected a list, found 'accuracy'"),
    ],
)
def test_a_claim_that_means_nothing_is_refused_by_key_and_value(home, change, expected):
    path = catalogue.CONFIGS / "claims/x.yaml"
    path.write_text(yaml.safe_dump({**CONTENT, **change}))
    with pytest.raises(CommandError, match=re.escape(expected)):
        read_claim(path)


def test_a_claim_that_is_no_yaml_is_refused_in_one_line(home, capsys):
    (catalogue.CONFIGS / "claims/x.yaml").write_text("title: [")
    assert main(["reproduce", "x"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("zoo: x.yaml is not YAML: ")
    assert errors.count("\n") == 1


def test_whole_numbers_are_numbers(home):
    path = catalogue.CONFIGS / "claims/x.yaml"
    path.write_text(yaml.safe_dump({**CONTENT, "rule": {"within": {"tolerance": 1}}}))
    assert read_claim(path).rule.within == Within(1.0)


# ----------------------------------------------------------------------------------------------------------- documents

EMPTY = "Before.\n\n<!-- claim: x -->\n<!-- /claim -->\n\nAfter.\n"


def test_render_fills_the_marked_tables_from_the_csv_alone(home, capsys):
    reproduce(load_claim("x"), [0, 2], command=(sys.executable, "fit.py"))
    Path("README.md").write_text(EMPTY)
    Path("docs/deep").mkdir(parents=True)
    Path("docs/deep/x.md").write_text(EMPTY)
    assert main(["reproduce", "--render", "--check"]) == 1
    assert Path("README.md").read_text() == EMPTY
    Path("runs").rename("gone")
    assert main(["reproduce", "--render"]) == 0
    text = Path("README.md").read_text()
    assert text.startswith(
        "Before.\n\n<!-- claim: x -->\n**X keeps what it learns** (accuracy): holds\n\n| run | paper |"
    )
    assert "\n| high | 91.5 (table 1) | 91.00 ± 1.41 | 2 | holds (-0.50) |\n" in text
    assert "\n| low | - | 71.00 ± 1.41 | 2 | - |\n" in text
    assert (
        "\n\nPaper: Nobody, 2000. Rule: within 0.5 of the published value. low: Old. From [runs](results/x.csv)" in text
    )
    assert text.endswith("\n<!-- /claim -->\n\nAfter.\n")
    assert "[runs](../../results/x.csv)" in Path("docs/deep/x.md").read_text()
    assert main(["reproduce", "--render", "--check"]) == 0
    csv = Path("results/x.csv")
    csv.write_text(csv.read_text().replace(",92,", ",93,"))
    assert render.render_documents(Path(), Path("results"), write=False) == [Path("README.md"), Path("docs/deep/x.md")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<!-- claim: x -->\n", "claim: x --> is not closed"),
        ("<!-- claim: x -->\n<!-- claim: x -->\n<!-- /claim -->\n", "claim: x --> is not closed"),
        ("<!-- claim: xx -->\n<!-- /claim -->\n", "no claim is named xx; did you mean x?"),
    ],
)
def test_bad_markers_are_refused_and_change_nothing(home, text, expected):
    Path("README.md").write_text(text)
    with pytest.raises(CommandError, match=expected):
        render.render_documents(Path(), Path("results"))
    assert Path("README.md").read_text() == text


def test_the_same_csv_gives_the_same_picture():
    records = table(**ALL)
    drawn = render.picture(claim(), records)
    assert drawn == render.picture(claim(), records)
    assert drawn != render.picture(claim(), table(**{**ALL, "a": [10, 20]}))
    assert b"Software" not in drawn  # matplotlib's version would change the file with every release


def test_list_shows_states(home, capsys):
    path = catalogue.CONFIGS / "claims/x.yaml"
    path.with_name("big.yaml").write_text(yaml.safe_dump({**CONTENT, "state": "not run here (needs 8 GPUs)"}))
    assert main(["reproduce", "x", "--seeds", "1"]) == 0
    capsys.readouterr()
    assert main(["reproduce"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "big  not run here (needs 8 GPUs)  X keeps what it learns",
        "x    partly run 2 of 4            X keeps what it learns",
    ]


# ---------------------------------------------------------------------------------------------------------- provenance


def test_constraints_are_exact_public_versions_without_addresses(home):
    main(["reproduce", "x", "--seeds", "1"])
    text = Path("results/x.constraints.txt").read_text()
    lines = text.splitlines()[1:]
    names = [line.partition("==")[0] for line in lines]
    assert names == sorted(set(names))
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]*==[0-9][A-Za-z0-9.]*", line) for line in lines)
    assert any(line.startswith("torch==2") for line in lines)
    assert "lightning-zoo" not in text


def test_constraints_leave_out_what_an_index_may_not_have(monkeypatch):
    class Distribution:
        def __init__(self, name, version):
            self.metadata, self.version = {"Name": name}, version

    found = [Distribution("Torch_Vision", "0.2+cpu"), Distribution("lightning-zoo", "1.0"), Distribution("a", "1")]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: iter(found))
    assert provenance.constraints().splitlines()[1:] == ["a==1", "torch-vision==0.2"]


def test_commit_tells_changes_of_the_code_and_ignores_somebody_elses_repository(tmp_path, monkeypatch):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    package = tmp_path / "zoo"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git("init", "-q")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    assert provenance.commit() == ("", None)  # inside a repository that does not know it
    git("add", "zoo")
    git("commit", "-qm", "x")
    found, dirty = provenance.commit()
    assert re.fullmatch(r"[0-9a-f]{40}", found)
    assert dirty is False
    (tmp_path / "results").mkdir()
    (tmp_path / "results/x.csv").write_text("")
    assert provenance.commit() == (found, False)  # writing a result does not change the code
    (package / "__init__.py").write_text("x = 1")
    assert provenance.commit() == (found, True)


# ------------------------------------------------------------------------------------------------------ the repository


def test_every_shipped_claim_is_valid():
    for name in claim_names():
        loaded = load_claim(name)
        assert [loaded.settings(run, seed) for run in loaded.runs for seed in loaded.seeds]


def test_without_published_values_a_row_is_one_line_with_all_its_metrics(home):
    claim = {key: value for key, value in CONTENT.items() if key != "published"}
    claim["metrics"] = [ACCURACY, "final.test/acc"]
    claim["runs"] = [{**CONTENT["runs"][0], "metrics": [ACCURACY]}, CONTENT["runs"][1]]
    claim["rule"] = {"order": {"metric": ACCURACY, "runs": ["high", "low"]}}
    (catalogue.CONFIGS / "claims/x.yaml").write_text(yaml.safe_dump(claim))
    numbers = {("high", 0): ("90", ""), ("high", 2): ("92", ""), ("low", 0): ("70", "50"), ("low", 2): ("72", "52")}
    records = [
        {"run": run, "seed": str(seed), ACCURACY: first, "final.test/acc": second}
        for (run, seed), (first, second) in numbers.items()
    ]
    table = render.markdown(load_claim("x"), records, "x.csv").split("\n\n")[1]
    assert table.splitlines() == [
        "| run | accuracy | test accuracy | n | verdict |",
        "| --- | --- | --- | --- | --- |",
        "| high | 91.00 ± 1.41 |  | 2 | holds (+20.00 to low) |",
        "| low | 71.00 ± 1.41 | 51.00 ± 1.41 | 2 | - |",
    ]


def test_all_claims_are_listed_with_their_state_and_page(home):
    Path("docs/deep").mkdir(parents=True)
    Path("docs/deep/x.md").write_text(EMPTY)
    Path("README.md").write_text("A\n\n<!-- claims -->\nold\n<!-- /claims -->\n\nB\n")
    assert main(["reproduce", "--render"]) == 0
    row = "| X keeps what it learns | not run | [x](docs/deep/x.md) |"
    listed = f"<!-- claims -->\n| claim | state | table |\n| --- | --- | --- |\n{row}\n<!-- /claims -->"
    assert Path("README.md").read_text() == f"A\n\n{listed}\n\nB\n"
    reproduce(load_claim("x"), [0, 2], command=(sys.executable, "fit.py"))
    assert main(["reproduce", "--render", "--check"]) == 1
    assert main(["reproduce", "--render"]) == 0
    assert row.replace("not run", "holds") in Path("README.md").read_text()


def test_tables_in_the_repository_are_those_of_its_csv_files():
    stale = render.render_documents(ROOT, ROOT / "results", write=False)
    assert not stale, f"run `zoo reproduce --render`: {', '.join(map(str, stale))}"


@pytest.mark.parametrize(
    ("metric", "shown"),
    [
        ("class_incremental.average_accuracy", "average accuracy"),
        ("task_known.forgetting", "forgetting (task known)"),
        ("final.test/acc", "test accuracy"),
        ("final.test/loss", "test/loss"),
        ("final.val.acc_top5", "val.acc_top5"),
        ("best.val/acc", "val/acc (best)"),
        ("best.test/acc", "test accuracy (best)"),
        ("train_seconds", "training time (s)"),
        ("peak_memory_mib", "peak memory (MiB)"),
    ],
)
def test_names_of_metrics_in_tables(metric: str, shown: str) -> None:
    assert results.label(metric) == shown
