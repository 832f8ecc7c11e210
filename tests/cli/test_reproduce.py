"""Tables, pictures and lists made of results, and where these come from; a small script plays ``zoo fit``."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from playing import ACCURACY, ALL, CONTENT, claim, table

from zoo.cli import catalogue, provenance, render, results
from zoo.cli.claims import (
    claim_names,
    load_claim,
)
from zoo.cli.main import main
from zoo.cli.messages import CommandError
from zoo.cli.reproduce import reproduce

ROOT = Path(__file__).parents[2]


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
