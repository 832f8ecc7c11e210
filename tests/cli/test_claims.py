"""Claims: what a file may say, and when a rule holds."""

import math
import re
import shutil
from pathlib import Path

import pytest
import yaml
from playing import ACCURACY, ALL, CONTENT, claim, rows, table

from zoo.cli import catalogue, render, results
from zoo.cli.claims import (
    NoWorse,
    Order,
    Published,
    Ratio,
    Rule,
    Within,
    load_claim,
    read_claim,
)
from zoo.cli.main import main
from zoo.cli.messages import CommandError

ROOT = Path(__file__).parents[2]


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
