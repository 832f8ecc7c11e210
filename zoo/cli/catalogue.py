"""What zoo has: names, one line and the paper of each, read from the source text so that nothing heavy is imported."""

import ast
import itertools
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from zoo.cli.messages import CommandError, nearest

PACKAGE = Path(__file__).parent.parent
CONFIGS = PACKAGE / "configs"
CLAIMS = "claims"  # the folder below configs that holds no recipes

KINDS = {
    "methods": "",
    "datamodules": "datamodules",
    "sources": "datamodules/sources",
    "callbacks": "callbacks",
    "configs": "configs",
}


class Entry(NamedTuple):
    """One line of ``zoo list``.

    Attributes:
        name: As it is typed on the command line.
        summary: One sentence.
        paper: Short citation, or a dash where there is none.
    """

    name: str
    summary: str
    paper: str


def entries(kind: str) -> list[Entry]:
    """Return what there is of one kind, in alphabetical order.

    Args:
        kind: A key of ``KINDS``.
    """
    if kind == "configs":
        return [Entry(recipe_name(path), *_head_comment(path)) for path in recipes()]
    return sorted(_class_entries(PACKAGE / KINDS[kind]))


def recipes() -> list[Path]:
    """Return the shipped recipes, sorted by family and name."""
    return sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name != CLAIMS)


def recipe_name(path: Path) -> str:
    """Return ``family/name`` of a recipe, the form in which it is listed."""
    return f"{path.parent.name}/{path.stem}"


def find_recipe(name: str) -> Path:
    """Return a shipped recipe.

    Args:
        name: With or without its family and with or without ``.yaml``.

    Raises:
        CommandError: If there is none of that name, or several.
    """
    wanted = name.removesuffix(".yaml")
    paths = recipes()
    found = [path for path in paths if wanted in (path.stem, recipe_name(path))]
    if len(found) == 1:
        return found[0]
    if found:
        raise CommandError(f"{name} is the name of {len(found)} recipes; say {' or '.join(map(recipe_name, found))}")
    # The part the person typed decides what "near" means: with a family or without.
    names = [recipe_name(path) if "/" in wanted else path.stem for path in paths]
    raise CommandError(f"no recipe is named {name}; {nearest(wanted, names)}")


def _head_comment(path: Path) -> tuple[str, str]:
    """Return the first line of a recipe's head comment, and the citation behind ``Paper:`` or a dash."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    text = [line.lstrip("# ").strip() for line in lines]
    paper = re.search(r"Paper: ([^;]+)", " ".join(text))
    return text[0] if text else "", first_sentence(paper[1]) if paper else "-"


def _class_entries(package: Path) -> Iterator[Entry]:
    for name in _public_names(package):
        found = _find(package, name)
        if found is None:
            continue
        node, module = found
        if _is_contract(node):  # not something one can choose
            continue
        docstring = ast.get_docstring(node) or ""
        paper = citation(docstring) or citation(ast.get_docstring(module) or "") or "-"
        yield Entry(name, docstring.partition("\n")[0], paper)


def _is_contract(node: ast.ClassDef) -> bool:
    """Say whether a class is a protocol, or leaves methods to its subclasses."""
    words = [ast.unparse(base) for base in node.bases]
    words += [ast.unparse(d) for part in node.body if isinstance(part, ast.FunctionDef) for d in part.decorator_list]
    return bool({"ABC", "Protocol", "abstractmethod"} & set(words))


def _public_names(package: Path) -> list[str]:
    """Return ``__all__`` of a package."""
    for node in _parse(_init(package)).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            try:
                return list(ast.literal_eval(node.value))
            except ValueError as error:
                raise RuntimeError(f"__all__ of {_init(package)} has to be a plain list of names") from error
    return []


def _find(module: Path, name: str) -> tuple[ast.ClassDef, ast.Module] | None:
    """Return the class of a name and the module that defines it, through re-exports; None for what is no class.

    Args:
        module: A package folder or a module file.
        name: A name bound there.
    """
    path = _init(module) if module.is_dir() else module
    tree = _parse(path)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node, tree
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                if (alias.asname or alias.name) == name and (origin := _origin(path, node)) is not None:
                    return _find(origin, alias.name)
    return None


def _origin(path: Path, node: ast.ImportFrom) -> Path | None:
    """Return the package folder or module file an import of zoo's own comes from."""
    parts = (node.module or "").split(".")
    if node.level:
        start = path.parents[node.level - 1]
    elif parts[0] == PACKAGE.name:
        start, parts = PACKAGE, parts[1:]
    else:
        return None
    origin = start.joinpath(*parts)
    return origin if origin.is_dir() else origin.with_suffix(".py")


def _init(package: Path) -> Path:
    """Return the file that lists a package's names: the stub where it loads them lazily."""
    stub = package / "__init__.pyi"
    return stub if stub.exists() else package / "__init__.py"


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def citation(docstring: str) -> str:
    """Return the short citation in the ``Source:`` section of a docstring, empty without such a section.

    The section stands at the end of a class or module docstring; its first sentence is the citation, whether it fits
    on one line or not.
    """
    section = re.search(r"^Source:[ \t]*\n((?:[ \t]+\S.*\n?)+)", docstring + "\n", re.MULTILINE)
    if section is None:
        return ""
    return first_sentence(" ".join(section[1].split()))


def first_sentence(text: str) -> str:
    """Return a text up to its first full stop or address."""
    # A full stop after "al" or an initial does not end the sentence; an address is not for reading.
    return re.split(r"(?<!\bal)(?<!\b[A-Z])\.(?=\s|$)|,? \(?https?://", text, maxsplit=1)[0]
