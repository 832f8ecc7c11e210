"""What jsonargparse and constructors say, in one line, with the nearest names."""

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator

import lightning.pytorch as L
import torch
from torchvision.transforms import v2

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
NOT_THE_CAUSE = re.compile(r"Expected a <class|Expected a path but|Does not validate|Expected a <class 'NoneType'>")


def one_line(message: str, words: Iterable[str]) -> str:
    """Return an error of the parser as one line.

    Args:
        message: What the parser says; often many lines, one for each type that was tried.
        words: The command line, and the texts of configuration files, to find what was meant.
    """
    text = " ".join(words)
    if found := re.search(r"Option '([^']+)' is not accepted", message):
        return unknown_option(found[1], text)
    if found := re.search(r"Unrecognized arguments: (.*)", message):
        return unknown_option(found[1].split()[0].split("=")[0], text)
    key = found[1] if (found := re.search(r'Parser key "([^"]+)"', message)) else ""
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        return unknown_class(found[1], key)
    if found := re.search(r"(?:No module named|has no attribute|Problem with given class_path) '([^']+)'", message):
        causes = [line.strip(" -") for line in message.splitlines() if found[1] in line]
        if "." not in found[1]:
            return unknown_class(found[1], key)
        return causes[-1]
    if "\n" in message and (causes := list(informative(message))):
        return f"{key}: {causes[0]}" if key else causes[0]
    return " ".join(message.split())


def informative(message: str) -> Iterator[str]:
    """Yield the lines of a message that say why, without those that say which types were tried in vain."""
    listing = message.partition("Errors:")[2] or message
    for line in listing.splitlines():
        line = line.strip(" -")
        if line and not NOT_THE_CAUSE.match(line) and not line.startswith(("Given value", "Subtypes", "Parser key")):
            yield line


def unknown_option(option: str, text: str) -> str:
    """Return the message for an option that a class does not have."""
    name = option.lstrip("-").rpartition(".")[2]
    options: set[str] = set(inspect.signature(L.Trainer.__init__).parameters)
    for base in BASES.values():
        for kind in subclasses(base):
            if re.search(rf"\b{kind.__name__}\b", text):
                options |= set(inspect.signature(kind.__init__).parameters)
    options |= {"config", "ckpt_path", "seed_everything", "run_dir", "model", "data", "trainer"}
    close = difflib.get_close_matches(name, options - {"self"}, n=3)
    return f"unknown option {option!r}" + (f"; did you mean {' or '.join(close)}?" if close else "; see --help.")


def unknown_class(name: str, key: str) -> str:
    """Return the message for a class that is not there."""
    bases = [base for end, base in BASES.items() if key.endswith(end)] or list(BASES.values())
    known = sorted({kind.__name__ for base in bases for kind in subclasses(base) if not inspect.isabstract(kind)})
    ours = [kind for kind in known if any(is_ours(base, kind) for base in bases)] or known
    return f"unknown class {name!r}{f' for {key}' if key else ''}; {nearest(name, ours)}"


def is_ours(base: type, name: str) -> bool:
    """Say whether a class of that name belongs to zoo."""
    return any(kind.__name__ == name and kind.__module__.startswith("zoo.") for kind in subclasses(base))


def subclasses(base: type) -> Iterator[type]:
    """Yield all classes that derive from one."""
    for kind in base.__subclasses__():
        yield kind
        yield from subclasses(kind)
