"""The light commands: what they print, and that they load nothing heavy."""

import subprocess
import sys

import pytest

import zoo
from zoo.cli import catalogue
from zoo.cli.main import main
from zoo.cli.messages import nearest

MODULE = '''
"""Module.

Source:
    Nobody, "Of the module", 2000.
"""

from abc import ABC

class Base(ABC):
    """A contract."""

class Second(Base):
    """Second of two, with a paper of its own.

    Args:
        size: A size.

    Source:
        A. First et al., "A title that goes
        on", ICLR 2020,
        https://example.org/1.2. Equation 3.
    """

class First(Base):
    """First of two."""
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with one method, re-exported sources and three recipes; main reads it instead of zoo."""
    files = {
        "__init__.pyi": "from . import callbacks\nfrom .family.method import Method\n__all__ = ['Method', 'callbacks']",
        "family/method.py": 'class Method:\n    """Do a thing."""\n',
        "datamodules/__init__.py": "__all__ = []",
        "datamodules/sources/__init__.py": (
            "from zoo.datamodules.sources.module import Base, First, Second, helper\n"
            "__all__ = ['Second', 'First', 'Base', 'helper']"
        ),
        "datamodules/sources/module.py": MODULE.lstrip(),
        "callbacks/__init__.py": "__all__ = []",
        "configs/family/method_small.yaml": "# Method on small data. 1 minute.\n# More.\nseed_everything: 0  # zero\n",
        "configs/family/twice.yaml": "seed_everything: 0\n",
        "configs/other/twice.yaml": "# Second twice\nseed_everything: 0\n",
        "configs/claims/method.yaml": "title: not a recipe\n",
    }
    root = tmp_path / "zoo"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(catalogue, "PACKAGE", root)
    monkeypatch.setattr(catalogue, "CONFIGS", root / "configs")
    monkeypatch.chdir(tmp_path)
    return root


def test_help_names_every_command_once(capsys):
    assert main([]) == 0
    page = capsys.readouterr().out
    for command in ("fit", "validate", "test", "predict", "list", "configs", "export", "reproduce"):
        assert sum(line.startswith(f"  zoo {command} ") for line in page.splitlines()) == 1
    assert max(map(len, page.splitlines())) <= 100
    assert main(["--help"]) == main(["-h"]) == 0
    assert capsys.readouterr().out == page * 2


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"zoo {zoo.__version__}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fti"], "unknown command fti; did you mean fit?"),
        (["Lists"], "unknown command Lists; did you mean list?"),
        (["--versoin"], "unknown command --versoin; did you mean --version?"),
        (["xylophone"], "choose from fit, validate, test, predict, list, configs, export, reproduce"),
        (["list", "callback"], "zoo list: nothing is called callback; did you mean callbacks?"),
        (["list", "--met"], "zoo list: unknown argument --met;"),
        (["configs", "cpoy"], "zoo configs: unknown command cpoy; did you mean copy?"),
        (["configs", "copy"], "the following arguments are required: name; see zoo configs copy --help"),
        (["configs", "copy", "x", "--forc"], "zoo configs copy: unknown argument --forc; did you mean --force?"),
        (["configs", "copy", "method_smal"], "no recipe is named method_smal; did you mean method_small?"),
        (["configs", "copy", "famly/twice"], "did you mean family/twice?"),
        (["configs", "copy", "twice.yaml"], "twice.yaml is the name of 2 recipes; say family/twice or other/twice"),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_names_and_code_2(package, capsys, words, expected):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(("zoo: ", "zoo list: ", "zoo configs"))
    assert captured.err.count("\n") == 1
    assert expected in captured.err


def test_nearest_ignores_case_and_gives_all_where_nothing_is_near():
    assert nearest("cifar100", ["CIFAR10", "CIFAR100", "Digits"], count=1) == "did you mean CIFAR100?"
    assert nearest("zzz", ["a", "b", "a"]) == "choose from a, b"
    assert nearest("zzz", []) == "there is none"


def test_list_prints_name_line_and_paper_aligned(package, capsys):
    """Contracts and functions are left out; a class's own paper goes before its module's; nothing is cut."""
    assert main(["list", "sources"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        'First   First of two.                            Nobody, "Of the module", 2000',
        'Second  Second of two, with a paper of its own.  A. First et al., "A title that goes on", ICLR 2020',
    ]


def test_list_without_a_kind_prints_all_of_them(package, capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line and not line.startswith(" ")] == list(catalogue.KINDS)
    assert "  Method  Do a thing.  -\n" in out
    assert "  family/method_small  Method on small data. 1 minute.  -\n" in out
    assert "claims/" not in out


@pytest.mark.parametrize(
    "name", ["method_small", "method_small.yaml", "family/method_small", "family/method_small.yaml"]
)
def test_copy_keeps_every_byte(package, tmp_path, capsys, name):
    assert main(["configs", "copy", name, "--to", "mine/deep"]) == 0
    copy = tmp_path / "mine/deep/method_small.yaml"
    assert copy.read_bytes() == (package / "configs/family/method_small.yaml").read_bytes()
    assert "zoo fit --config mine/deep/method_small.yaml" in capsys.readouterr().out


def test_copy_overwrites_only_when_told(package, tmp_path, capsys):
    mine = tmp_path / "method_small.yaml"
    mine.write_text("mine")
    assert main(["configs", "copy", "method_small"]) == 2
    assert "method_small.yaml exists; --force overwrites it" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    assert main(["configs", "copy", "method_small", "--force"]) == 0
    assert mine.read_text().startswith("# Method on small data")


def test_copy_into_something_that_is_no_folder_is_one_line(package, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["configs", "copy", "method_small", "--to", "file"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_every_shipped_part_is_listed():
    """The real package: every class in ``__all__`` is found, with a line; every recipe has a head comment."""
    for kind in catalogue.KINDS:
        for entry in catalogue.entries(kind):
            assert entry.summary, f"{kind}: {entry.name} has no first line"
    assert {entry.name for entry in catalogue.entries("methods")} >= {"NMC"}


LIGHT = [["--help"], ["--version"], ["list"], ["configs", "list"], ["reproduce"], ["reproduce", "--render", "--check"]]


@pytest.mark.parametrize("words", LIGHT, ids=" ".join)
def test_light_commands_import_nothing_heavy(words, tmp_path):
    script = (
        "import sys\nfrom zoo.cli.main import main\n"
        f"code = main({words})\n"
        "heavy = {'torch', 'lightning', 'timm', 'torchvision', 'torchmetrics', 'jsonargparse', 'numpy'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_python_m_zoo_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "zoo", "lst"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "zoo: unknown command lst; did you mean list?\n"


def test_a_reader_that_stops_early_is_no_error(tmp_path):
    done = subprocess.run(
        f"{sys.executable} -c 'import sys; from zoo.cli.main import main; "
        'sys.stdout.reconfigure(write_through=True); sys.exit([main(["--help"]) for _ in range(9999)][-1])\''
        " 2>err | head -n 1 >/dev/null; cat err",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
