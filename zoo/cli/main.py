"""The command ``zoo``. Only fit, validate, test and predict load torch; everything else answers at once."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from zoo.cli.messages import CommandError, Parser, nearest, print_table

HELP = """\
zoo: research methods for learning better from less, in PyTorch Lightning

  zoo fit         train and evaluate a method            zoo fit --config nmc_digits.yaml
  zoo validate    evaluate on the validation images      zoo validate --config FILE --ckpt_path FILE
  zoo test        evaluate on the test images            zoo test --config FILE --ckpt_path FILE
  zoo predict     label images                           zoo predict --config FILE --ckpt_path FILE

  zoo list        names of all parts, with their papers  zoo list methods
  zoo configs     list or copy the shipped recipes       zoo configs copy nmc_digits
  zoo export      weights of a checkpoint, for timm      zoo export last.ckpt encoder.safetensors
  zoo reproduce   run what a paper claims                zoo reproduce

zoo COMMAND --help says more; zoo --version prints the version.
"""

HEAVY = ("fit", "validate", "test", "predict")


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Words after ``zoo``; the process's own by default.

    Returns:
        Exit code: 0, or 1 where a run failed, 2 where the words could not be understood, 130 after Ctrl-C.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        return _dispatch(words)
    except CommandError as error:
        print(error if str(error).startswith("zoo ") else f"zoo: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `zoo list | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(words: list[str]) -> int:
    command, rest = (words[0], words[1:]) if words else ("--help", [])
    if command in HEAVY:
        from zoo.cli.lightning import run

        run(words)
        return 0
    light: dict[str, Callable[[list[str]], int]] = {
        "list": _list,
        "configs": _configs,
        "export": _export,
        "reproduce": _reproduce,
        "--help": _help,
        "-h": _help,
        "help": _help,
        "--version": _version,
    }
    if command not in light:
        names = (
            ["--help", "--version"] if command.startswith("-") else [*HEAVY, "list", "configs", "export", "reproduce"]
        )
        raise CommandError(f"unknown command {command}; {nearest(command, names)}")
    try:
        return light[command](rest)
    except SystemExit as stop:  # argparse leaves this way after printing a help page
        return stop.code if isinstance(stop.code, int) else 0


def _help(args: list[str]) -> int:
    print(HELP, end="")
    return 0


def _version(args: list[str]) -> int:
    from zoo import __version__

    print(f"zoo {__version__}")
    return 0


def _export(args: list[str]) -> int:
    from zoo.cli.export import command

    return command(args)


def _reproduce(args: list[str]) -> int:
    from zoo.cli.reproduce import command

    return command(args)


def _list(args: list[str]) -> int:
    from zoo.cli.catalogue import KINDS, entries

    parser = Parser("zoo list", "Print names, one line and the paper of what zoo has.")
    parser.add_argument("kind", nargs="?", help=", ".join(KINDS) + "; all by default")
    kind = parser.parse(args).kind
    if kind is not None and kind not in KINDS:
        raise CommandError(f"zoo list: nothing is called {kind}; {nearest(kind, KINDS)}")
    if kind is not None:
        print_table([tuple(entry) for entry in entries(kind)])
        return 0
    for position, name in enumerate(KINDS):
        print(("\n" if position else "") + name)
        print_table([(f"  {entry.name}", *entry[1:]) for entry in entries(name)])
    return 0


def _configs(args: list[str]) -> int:
    from zoo.cli.catalogue import find_recipe

    if not args or args[0] == "list":
        return _list(["configs", *args[1:]])
    if args[0] != "copy":
        if args[0] not in ("-h", "--help"):
            raise CommandError(f"zoo configs: unknown command {args[0]}; {nearest(args[0], ['list', 'copy'])}")
        print("zoo configs list               print the shipped recipes\nzoo configs copy NAME --help   copy one")
        return 0
    parser = Parser(
        "zoo configs copy",
        "Copy a shipped recipe, comments included, to edit it.",
        "example: zoo configs copy nmc_digits --to experiments",
    )
    parser.add_argument("name", help="as `zoo configs list` prints it; family and .yaml may be left out")
    parser.add_argument("--to", type=Path, default=Path(), metavar="FOLDER", help="made if missing; by default here")
    parser.add_argument("--force", action="store_true", help="overwrite a file of that name")
    options = parser.parse(args[1:])
    recipe = find_recipe(options.name)
    target = options.to / recipe.name
    if target.exists() and not options.force:
        raise CommandError(f"{target} exists; --force overwrites it, --to FOLDER copies elsewhere")
    try:
        options.to.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(recipe, target)
    except OSError as error:
        raise CommandError(f"{target} cannot be written: {error.strerror}") from error
    print(f"copied to {target}; run it: zoo fit --config {target}")
    return 0
