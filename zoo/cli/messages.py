"""What a person reads when something typed was wrong: one line, with the nearest names."""

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn


class CommandError(Exception):
    """Something that was typed or written cannot be understood; ``zoo`` prints it as one line and exits with code 2."""


def nearest(word: str, names: Iterable[str], count: int = 3) -> str:
    """Return the end of an error message: the names most like a word, or all of them where none is like it.

    Args:
        word: What was found.
        names: What is allowed.
        count: Largest number of names to give.
    """
    names = list(dict.fromkeys(names))
    likeness = {name: difflib.SequenceMatcher(None, name.lower(), word.lower()).ratio() for name in names}
    best = max(likeness.values(), default=0.0)
    if best < 0.5:
        return "choose from " + ", ".join(names) if names else "there is none"
    close = sorted((name for name in names if likeness[name] > best - 0.15), key=lambda name: -likeness[name])
    return "did you mean " + " or ".join(close[:count]) + "?"


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviation and answers a mistake with one line instead of a page."""

    def __init__(self, prog: str, description: str, epilog: str | None = None, usage: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            usage=usage,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raise what the base class would print below a usage page."""
        raise CommandError(f"{message}; see {self.prog} --help")

    def options(self) -> list[str]:
        """Return every option the parser knows."""
        return [option for action in self._actions for option in action.option_strings]

    def parse(self, args: list[str]) -> argparse.Namespace:
        """Parse a whole command line.

        Raises:
            CommandError: If something is left over; with the options most like it.
        """
        namespace, rest = self.parse_known_args(args)
        if rest:
            option = rest[0].partition("=")[0]
            raise CommandError(f"{self.prog}: unknown argument {option}; {nearest(option, self.options())}")
        return namespace


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print aligned columns: wrapped in a terminal; in a pipe one line a row, nothing cut."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, style="bold")
        table.add_column()
        table.add_column(style="dim")
        for row in rows:
            table.add_row(*row)
        Console(highlight=False, markup=False).print(table)
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
