"""``zoo reproduce``: run what a paper claims, keep every run, and say whether the claim holds. No torch in here."""

import contextlib
import difflib
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from zoo.cli import curves, provenance, render, results
from zoo.cli.claims import Claim, claim_names, load_claim
from zoo.cli.messages import CommandError, Parser, nearest, print_table
from zoo.cli.results import Record, label
from zoo.cli.runner import FIT, RUNS, Job, RunFailedError, Runner, portable
from zoo.functional import write_atomically


def reproduce(
    claim: Claim,
    seeds: Sequence[int],
    jobs: int = 1,
    overrides: Sequence[str] = (),
    results_folder: Path = Path("results"),
    command: Sequence[str] = FIT,
) -> bool:
    """Run a claim and write its CSV file, the constraints file of the environment and a picture.

    Args:
        claim: The claim.
        seeds: One run of every row for each.
        jobs: Number of runs at a time.
        overrides: Further options of ``zoo fit``, as ``--name=value``. Runs with such an option do not count for the
            claim, unless it only says where the data are or on what the run happens.
        results_folder: Where the files go.
        command: Command that takes the options of ``zoo fit``.

    Returns:
        Whether every run has a result.
    """
    plan = [Job(claim, run, seed, tuple(overrides)) for seed in seeds for run in claim.runs]
    path = results_folder / f"{claim.name}.csv"
    print(f"{claim.title}: {len(plan)} runs, {jobs} at a time, in {RUNS / claim.name}")
    failed = []
    with contextlib.closing(Runner(command, jobs).run(plan)) as outcomes:
        for position, (job, outcome) in enumerate(outcomes, start=1):
            if isinstance(outcome, RunFailedError):
                failed.append(job)
                print(f"[{position}/{len(plan)}] {job}: FAILED, {outcome}", flush=True)
                continue
            numbers = [f"{label(metric)} {outcome[metric] or 'undefined'}" for metric in claim.metrics_of(job.run)]
            print(f"[{position}/{len(plan)}] {job}: {', '.join(numbers)} ({outcome['wall_time_s']} s)", flush=True)
            write_atomically(path, results.merge_records(claim, results.read_records(path), [outcome]))
            if all(results.is_neutral(option) for option in overrides):  # a trial is no part of the record
                write_atomically(path.with_suffix(".constraints.txt"), provenance.constraints())
    _conclude(claim, path, overrides)
    if failed:
        print(f"{len(failed)} of {len(plan)} runs failed; the same command tries them again")
    return not failed


def _conclude(claim: Claim, path: Path, overrides: Sequence[str]) -> None:
    """Print what the runs say and draw it."""
    from rich.console import Console

    everything = results.read_records(path)
    counted = results.counted(claim, everything)
    typed = shlex.join(portable(option) for option in overrides)
    trial = not all(results.is_neutral(option) for option in overrides)
    shown = [row for row in everything if row["overrides"] == typed] if trial else counted
    Console(highlight=False, markup=False).print(render.terminal_table(claim, shown))
    print(f"Rule: {results.describe(claim.rule)}.")
    if trial:
        print(f"A trial with {typed}: it does not count for the claim.")
    print(f"{claim.name}: {results.state(claim, counted)}")
    if counted:
        written = [path.name, path.with_suffix(".constraints.txt").name, *_draw(claim, path, counted)]
        print(f"Written to {path.parent}: {', '.join(written)}")


def _draw(claim: Claim, path: Path, records: list[Record]) -> list[str]:
    """Draw a claim's pictures beside its CSV file, and return the names of the files."""
    write_atomically(path.with_suffix(".png"), render.picture(claim, records))
    names = [path.with_suffix(".png").name]
    table = path.with_suffix(".curves.csv")
    if claim.curve and (points := curves.collect(claim, records, results.read_records(table))):
        write_atomically(table, curves.as_csv(points))
        write_atomically(path.with_suffix(".curves.png"), curves.picture(claim, points))
        names += [table.name, path.with_suffix(".curves.png").name]
    return names


def command(args: list[str]) -> int:
    """Run ``zoo reproduce``.

    Args:
        args: Words after ``reproduce``.

    Returns:
        Exit code: 0; 1 if a run failed or, with ``--check``, a document is out of date; 130 after Ctrl-C.
    """
    parser = Parser(
        "zoo reproduce",
        "Run what a paper claims and say whether it holds; without a claim, list them all.\n"
        "What was interrupted continues, what is done is not repeated.",
        "example: zoo reproduce nmc_digits --seeds 1 --trainer.accelerator=cpu",
        usage="zoo reproduce [CLAIM] [options] [options of zoo fit, added to every run]",
    )
    parser.add_argument("--seeds", type=_positive, metavar="N", help="number of seeds; by default those of the claim")
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="runs at a time; 1 by default")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="FOLDER", help="results by default")
    parser.add_argument("--render", action="store_true", help="update the tables in README.md and docs from the CSV")
    parser.add_argument("--check", action="store_true", help="with --render: change nothing, name what is out of date")
    name, words = (args[0], args[1:]) if args and not args[0].startswith("-") else ("", args)
    options, rest = parser.parse_known_args(words)
    overrides = _overrides(rest, parser)
    if options.check and not options.render:
        raise CommandError("zoo reproduce: --check belongs to --render")
    if options.render:
        if name or overrides:
            raise CommandError(f"zoo reproduce: --render takes no {'claim' if name else overrides[0]}; it does all")
        return _render(options.results, options.check)
    if not name:
        if overrides:
            raise CommandError(f"zoo reproduce: the claim comes first, before {overrides[0]}")
        _list(options.results)
        return 0
    claim = load_claim(name)
    seeds = claim.seeds[: options.seeds]
    if options.seeds:
        seeds += [max(seeds) + 1 + extra for extra in range(options.seeds - len(seeds))]
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended politely, it ends its runs politely
    try:
        return 0 if reproduce(claim, seeds, options.jobs, overrides, options.results, FIT) else 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _list(results_folder: Path) -> None:
    claims = [load_claim(name) for name in claim_names()]
    if not claims:
        print("There are no claims yet.")
    rows = []
    for claim in claims:
        records = results.counted(claim, results.read_records(results_folder / f"{claim.name}.csv"))
        rows.append((claim.name, results.state(claim, records), claim.title))
    print_table(rows)


def _render(results_folder: Path, check: bool) -> int:
    for claim in map(load_claim, claim_names()):
        path = results_folder / f"{claim.name}.csv"
        records = results.counted(claim, results.read_records(path))
        if records and not check:
            _draw(claim, path, records)
    changed = render.render_documents(Path(), results_folder, write=not check)
    for document in changed:
        print(f"{document} is out of date; zoo reproduce --render" if check else f"{document} updated")
    return 1 if check and changed else 0


def _overrides(words: list[str], parser: Parser) -> list[str]:
    """Return further options as ``--name=value``, whether they were typed with a blank or an equals sign."""
    options: list[str] = []
    for word in words:
        if word.startswith("--") and len(word) > 2:
            options.append(word)
        elif options and "=" not in options[-1]:
            options[-1] += f"={word}"
        else:
            raise CommandError(f"zoo reproduce: unexpected argument {word}; the claim comes first, then the options")
    own = [option for option in parser.options() if option.startswith("--")]
    for option in options:
        name = option.partition("=")[0]
        if name in ("--config", "--run_dir", "--ckpt_path"):
            raise CommandError(f"zoo reproduce: {name} is set for each run and cannot be given")
        if difflib.get_close_matches(name, own, cutoff=0.75):  # one of ours, misspelt: it would fail in every run
            raise CommandError(f"zoo reproduce: unknown option {name}; {nearest(name, own)}")
    return options


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise CommandError(f"zoo reproduce: expected a whole number from 1, found {text}")
    return number
