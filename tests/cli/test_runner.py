"""The runs of a claim: which start, wait, go on and fail; a small script plays ``zoo fit``."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from playing import ACCURACY, CONTENT, calls, play, rows

from zoo.cli import catalogue, results
from zoo.cli.claims import (
    Run,
    load_claim,
    read_claim,
)
from zoo.cli.main import main
from zoo.cli.runner import portable


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


def test_a_row_runs_anew_with_the_row_that_it_starts_from(home):
    chain()
    assert main(["reproduce", "x", "--seeds", "1"]) == 0
    calls()
    path = catalogue.CONFIGS / "claims/x.yaml"
    path.write_text(path.read_text().replace("--model.level=9", "--model.level=8"))
    assert main(["reproduce", "x", "--seeds", "1"]) == 0
    assert calls() == ["high 0 fresh", "low 0 fresh"]
    path.write_text(path.read_text().replace("--model.level=7", "--model.level=6"))
    assert main(["reproduce", "x", "--seeds", "1"]) == 0
    assert calls() == ["low 0 fresh"]


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
