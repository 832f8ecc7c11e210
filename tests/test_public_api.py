"""What every public name owes its reader: a docstring with all arguments, types and a page; a method its paper too."""

import importlib
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import docstring_parser  # comes with jsonargparse, which prints the same descriptions in `zoo fit --help`
import pytest

import zoo
from zoo.cli.catalogue import citation

ROOT = Path(__file__).parent.parent
ROOMS = (
    "zoo.callbacks",
    "zoo.datamodules",
    "zoo.datamodules.sources",
    "zoo.functional",
    "zoo.metrics",
    "zoo.nn",
    "zoo.precision",
)
METHODS = [name for name in zoo.__all__ if inspect.isclass(getattr(zoo, name))]
PUBLIC = [f"zoo.{name}" for name in METHODS]
PUBLIC += [f"{room}.{name}" for room in ROOMS for name in importlib.import_module(room).__all__]


def find(path: str) -> Any:
    """Return what a dotted path names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def parameters(thing: Any) -> dict[str, inspect.Parameter]:
    """Return what a person passes to a function, or to a class when making one."""
    if getattr(thing, "_is_protocol", False):
        return {}
    return dict(inspect.signature(thing).parameters)


@pytest.fixture(scope="session")
def pages() -> str:
    """The text of all pages."""
    return "\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").rglob("*.md")))


@pytest.mark.parametrize("path", PUBLIC)
def test_docstring_describes_every_argument_and_no_other(path: str) -> None:
    thing = find(path)
    docstring = docstring_parser.parse(thing.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)
    assert docstring.short_description, f"{path} has no docstring of its own"
    described = [entry for entry in docstring.params if entry.args[0] == "param"]
    if issubclass_of(thing, tuple):  # a NamedTuple's arguments are its attributes
        described = docstring.params
    assert [entry.arg_name.lstrip("*") for entry in described] == list(parameters(thing))
    assert all(entry.description for entry in described)


@pytest.mark.parametrize("path", PUBLIC)
def test_signature_is_typed(path: str) -> None:
    thing = find(path)
    untyped = [name for name, entry in parameters(thing).items() if entry.annotation is entry.empty]
    assert not untyped, f"{path} leaves {', '.join(untyped)} without a type"
    # As jsonargparse does: a name that stands in a type has to exist at run time.
    hints = typing.get_type_hints(thing.__init__ if inspect.isclass(thing) else thing)
    assert inspect.isclass(thing) or "return" in hints, f"{path} does not say what it returns"


@pytest.mark.parametrize("path", PUBLIC)
def test_a_page_names_it(path: str, pages: str) -> None:
    name = path.rpartition(".")[2]
    assert re.search(rf"\bzoo\.(\w+\.)*{name}\b|`[^`\n]*\b{name}\b[^`\n]*`", pages), f"no page in docs/ names {path}"


@pytest.mark.parametrize("name", METHODS)
def test_method_cites_its_paper(name: str) -> None:
    paper = citation(inspect.getdoc(getattr(zoo, name)) or "")
    assert re.search(r'".+".*\b(19|20)\d\d\b', paper), f"Source: of zoo.{name} holds no title and year: {paper!r}"


def test_names_of_the_package_are_those_of_its_stub() -> None:
    """The lazy loader reads the stub's imports, a type checker its ``__all__``: the two must agree."""
    stub = (ROOT / "zoo" / "__init__.pyi").read_text()
    (names,) = re.findall(r"^__all__ = (\[.*?\])", stub, re.MULTILINE | re.DOTALL)
    assert sorted(re.findall(r'"(\w+)"', names)) == sorted(zoo.__all__)
    assert all(isinstance(getattr(zoo, name), type | ModuleType | str) for name in zoo.__all__)
    assert "NMC" in METHODS


def test_importing_zoo_loads_neither_torch_nor_lightning(tmp_path: Path) -> None:
    script = "import sys, zoo; print(sorted({'torch', 'lightning', 'numpy', 'timm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_rooms_import_only_what_they_may() -> None:
    """The contracts stand in pyproject.toml."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def issubclass_of(thing: Any, base: type) -> bool:
    """Say whether a thing is a class that derives from another."""
    return inspect.isclass(thing) and issubclass(thing, base)
