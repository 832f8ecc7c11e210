"""A working directory with a recipe and a claim."""

import sys

import pytest
import yaml
from playing import CONTENT, FIT

from zoo.cli import catalogue


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
