"""What the parser and constructors say, in one line, with the nearest names."""

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any

import lightning.pytorch as L
import torch
from torchvision.transforms import v2

from zoo.cli.catalogue import recipes
from zoo.cli.messages import nearest
from zoo.datamodules.sources import Source

# The kind of class that a key of the command line takes, by the end of its name.
BASES: dict[str, type] = {
    "model": L.LightningModule,
    "data": L.LightningDataModule,
    "source": Source,
    "callbacks": L.Callback,
    "transform": v2.Transform,
    "optimizer": torch.optim.Optimizer,
}
COMMON_OPTIONS = ("config", "ckpt_path", "seed_everything", "run_dir", "model", "data", "trainer")
# Lines that say which types were tried in vain, or repeat what was given.
NOISE = re.compile(r"Expected a <class|Expected a path but|Does not validate|Given value|Subtypes|Parser key|Errors:")


def one_line(message: str, words: Iterable[str]) -> str:
    """Return an error of the parser as one line.

    Args:
        message: What the parser says; often many lines, one for each type that was tried.
        words: The command line, and the texts of configuration files, to find what was meant.
    """
    text = " ".join(words)
    if found := re.search(
        r"Option '(\S+)' is not|not accept option '(\S+)'|[Uu]nrecognized arguments: ([^\s=]+)", message
    ):
        return unknown_option(found[1] or found[2] or found[3], text)
    key = found[1] if (found := re.search(r'Parser key "([^"]+)"', message)) else ""
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        return unknown_class(found[1], key)
    if found := re.search(r"Problem with given class_path '([^']+)':\s*(.+)", message):
        return f"{key}: cannot load class {found[1]!r}: {found[2].strip()}."
    if found := re.search(r"Expected a typing\.Literal\[(.*)\]\. Got value: (.+)", message):
        return f"{key} must be one of {found[1]}; got {found[2].strip()!r}."
    if found := re.fullmatch(r"[^\n]*\n\s*Expected a <class '(\w+)'>\. Got value: (.+)", message):
        return f"{key} must be of type {found[1]}; got {found[2].strip()!r}."
    if found := re.search(r"arguments are required: (.+)", message):
        names = [f"--{name.partition('.')[2]}" if "." in name else name for name in found[1].split(", ")]
        return f"missing: {', '.join(names)}; see --help."
    if found := re.search(r"File does not exist: '([^']+)'", message):
        name = found[1].rpartition("/")[2]
        known = any(name.removesuffix(".yaml") == path.stem for path in recipes())
        advice = f" A recipe of that name is shipped: zoo configs copy {name.removesuffix('.yaml')}." if known else ""
        return f"there is no file {name}.{advice}"
    lines = [line.strip(" -") for line in message.splitlines()]
    causes = [line for line in lines if line and not NOISE.match(line)]
    if "\n" in message and causes:
        value = found[1].strip() if (found := re.search(r"Given value: (.+)", message)) else ""
        cause = re.sub(r"^Expected a typing\.Literal\[(.*)\]$", rf"must be one of \1; got {value!r}.", causes[0])
        return f"{key}: {cause}" if key else cause
    return " ".join(message.split())


def unknown_option(option: str, text: str) -> str:
    """Return the message for an option that a class does not have.

    Args:
        option: What was typed.
        text: All that was typed, to see which classes are meant.
    """
    name = option.lstrip("-").rpartition(".")[2]
    options = {*COMMON_OPTIONS, *inspect.signature(L.Trainer.__init__).parameters}
    for kind in (kind for base in BASES.values() for kind in subclasses(base)):
        if re.search(rf"\b{kind.__name__}\b", text):
            options |= set(inspect.signature(kind).parameters)
    close = difflib.get_close_matches(name, options - {"self"}, n=3)
    return f"unknown option {option!r}" + (f"; did you mean {' or '.join(close)}?" if close else "; see --help.")


def unknown_class(name: str, key: str) -> str:
    """Return the message for a class that is not there: the nearest names, or zoo's own.

    Args:
        name: What was typed.
        key: The key of the command line that takes it.
    """
    bases = [base for end, base in BASES.items() if key.endswith(end)] or list(BASES.values())
    kinds: list[Any] = [kind for base in bases for kind in subclasses(base) if not is_abstract(kind)]
    known = sorted({kind.__name__ for kind in kinds if not kind.__name__.startswith("_")})
    ours = sorted({kind.__name__ for kind in kinds if re.match(r"zoo\.(?!cli)", kind.__module__)})
    advice = nearest(name, known if difflib.get_close_matches(name, known) else ours)
    return f"unknown class {name!r}{f' for {key}' if key else ''}; {advice}"


def is_abstract(kind: type) -> bool:
    """Say whether a class leaves methods to its subclasses, also where Python does not enforce it."""
    return any(getattr(getattr(kind, name, None), "__isabstractmethod__", False) for name in dir(kind))


def subclasses(base: Any) -> Iterator[Any]:
    """Yield all classes that derive from one."""
    for kind in base.__subclasses__():
        yield kind
        yield from subclasses(kind)
