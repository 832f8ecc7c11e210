"""The runs of a claim as child processes, each in a folder of its own that tells how far it came.

A run that was interrupted continues from its last checkpoint; one that is done is not repeated.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from zoo.cli import provenance
from zoo.cli.catalogue import find_recipe
from zoo.cli.claims import COST_METRICS, Claim, Run
from zoo.cli.messages import nearest
from zoo.cli.results import Record
from zoo.functional import write_atomically

RUNS = Path("runs/reproduce")
FIT = (sys.executable, "-m", "zoo", "fit")


class RunFailedError(Exception):
    """A run has no result; the message says why, the other runs go on."""


@dataclass(frozen=True)
class Job:
    """One run: a row of a claim with a seed.

    Attributes:
        claim: The claim.
        run: The row.
        seed: The seed.
        overrides: Options of ``zoo fit`` typed by hand, as ``--name=value``.
    """

    claim: Claim
    run: Run
    seed: int
    overrides: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the name in messages."""
        return f"{self.run.name}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """The run's own folder; with options typed by hand another one, so that a trial never touches a result."""
        name = f"seed{self.seed}"
        if self.overrides:
            name += "-" + hashlib.sha256("\n".join(self.overrides).encode()).hexdigest()[:8]
        return RUNS / self.claim.name / self.run.name / name

    def command(self, fit: Sequence[str]) -> list[str]:
        """Return the command line that starts the run, or continues it where there is a checkpoint."""
        recipe = find_recipe(self.run.recipe)
        with contextlib.suppress(ValueError):  # a clone shows a short path, an installed package its own
            recipe = recipe.relative_to(Path.cwd())
        words = [*fit, "--config", str(recipe), *self.options(), *self.overrides]
        words.append(f"--run_dir={self.folder}")
        return [*words, "--ckpt_path=last"] if self.checkpoint.exists() else words

    def options(self) -> list[str]:
        """Return the row's options; a folder of another row is that of the run with the same options typed by hand."""
        rows, seed = f"{(RUNS / self.claim.name).as_posix()}/", f"/seed{self.seed}/"
        options = self.claim.options(self.run, self.seed)
        return [option.replace(seed, f"/{self.folder.name}/") if rows in option else option for option in options]

    def needs(self, other: "Job") -> bool:
        """Say whether the run starts from what another leaves in its folder."""
        return other.seed == self.seed and other.run in self.claim.starts_from(self.run, self.seed)

    @property
    def checkpoint(self) -> Path:
        """The run's last checkpoint."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def log(self) -> Path:
        """All that the run printed, of every attempt."""
        return self.folder / "log.txt"

    @property
    def ledger(self) -> Path:
        """What is known about the run beside its results."""
        return self.folder / "reproduce.json"


@dataclass
class Runner:
    """Runs jobs as child processes.

    Attributes:
        fit: Command that takes the options of ``zoo fit``.
        jobs: Number of runs at a time.
    """

    fit: Sequence[str] = FIT
    jobs: int = 1
    _children: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, jobs: Sequence[Job]) -> Generator[tuple[Job, Record | RunFailedError], None, None]:
        """Run jobs and yield each with its row of the CSV file, or the reason it has none, as they end.

        A job that starts from the checkpoint of one before it waits for that, and fails where that failed. When the
        caller stops early, or on Ctrl-C, the runs under way are told to stop, and waited for.
        """
        waiting = {job.folder: (job, [other for other in jobs if job.needs(other)]) for job in jobs}
        running: dict[Future[Record | RunFailedError], Job] = {}
        outcomes: dict[Path, Record | RunFailedError] = {}
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                while waiting or running:
                    for folder, (job, needs) in list(waiting.items()):
                        if len(running) < self.jobs and all(other.folder in outcomes for other in needs):
                            failed = [other for other in needs if isinstance(outcomes[other.folder], RunFailedError)]
                            del waiting[folder]
                            running[pool.submit(self._try, job, failed)] = job
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        job = running.pop(future)
                        outcomes[job.folder] = future.result()
                        yield job, outcomes[job.folder]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                with self._lock:
                    for child in self._children:
                        os.kill(child, signal.SIGTERM)
                raise

    def _try(self, job: Job, failed: Sequence[Job]) -> Record | RunFailedError:
        if failed:
            return RunFailedError(f"it starts from {failed[0]}, which failed")
        try:
            ledger = _read_json(job.ledger)
            done = ledger.get("finished") and ledger.get("settings") == job.claim.settings(job.run, job.seed)
            if not (done and (job.folder / "results.json").exists()):
                ledger = self._execute(job, ledger)
            return _record(job, ledger)
        except OSError as error:
            return RunFailedError(f"{error.filename or job.folder}: {error.strerror}")
        except RunFailedError as error:
            return error

    def _execute(self, job: Job, ledger: dict[str, Any]) -> dict[str, Any]:
        """Run a job to its end and return its ledger."""
        settings = job.claim.settings(job.run, job.seed)
        job.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(job.log.open("a", encoding="utf-8"))
            _lock(log, job)
            if ledger.get("settings") != settings and any(path != job.log for path in job.folder.iterdir()):
                # Of other settings, or nobody knows of which: it is not continued, and not lost either.
                job.folder.rename(job.folder.with_name(f"{job.folder.name}.until-{datetime.now():%Y%m%d-%H%M%S-%f}"))
                job.folder.mkdir()
                log, ledger = stack.enter_context(job.log.open("a", encoding="utf-8")), {}
                _lock(log, job)
            (job.folder / "results.json").unlink(missing_ok=True)  # of an earlier attempt
            if "started" in ledger and job.log.exists():  # the process that started it was killed: the log saw the end
                ledger["wall_time_s"] += max(0.0, job.log.stat().st_mtime - ledger.pop("started"))
            command = job.command(self.fit)
            commit, dirty = provenance.commit()
            ledger = {
                "settings": settings,
                "wall_time_s": 0.0,
                "peak_memory_mib": 0.0,
                **ledger,
                "finished": False,
                "started": time.time(),
                "commit": commit,
                "dirty": dirty,
                "versions": provenance.versions(),
                "hardware": provenance.hardware(),
            }
            write_atomically(job.ledger, json.dumps(ledger, indent=2))
            print(f"\n$ {shlex.join(command)}", file=log, flush=True)
            start = time.monotonic()
            code, peak = self._wait(command, log)
            ledger["wall_time_s"] += time.monotonic() - start
            ledger["peak_memory_mib"] = max(ledger["peak_memory_mib"], peak)
            ledger["date"] = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ")
            ledger["finished"] = code == 0 and (job.folder / "results.json").exists()
            del ledger["started"]
            write_atomically(job.ledger, json.dumps(ledger, indent=2))
        if not ledger["finished"]:
            reason = f"ended with exit code {code}" if code else "ended well but left no results.json"
            raise RunFailedError(f"{reason}; {job.log} ends:\n{_tail(job.log)}")
        return ledger

    def _wait(self, command: list[str], log: IO[str]) -> tuple[int, float]:
        """Run a command into a log; return its exit code and the peak memory of its largest process in MiB."""
        cores = os.cpu_count() or 1
        threads = {"OMP_NUM_THREADS": str(max(1, cores // self.jobs))} if self.jobs > 1 else {}
        environment = {"PYTHONUNBUFFERED": "1", **threads, **os.environ}
        with self._lock:  # a child is known before anybody can ask for the children
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
            self._children.add(child.pid)
        # Unlike Popen.wait, wait4 gives the usage of this child alone; it leaves the child's id taken until it returns.
        _, status, usage = os.wait4(child.pid, 0)
        with self._lock:
            self._children.discard(child.pid)
        child.returncode = os.waitstatus_to_exitcode(status)
        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
        return child.returncode, usage.ru_maxrss / unit


def _lock(log: IO[str], job: Job) -> None:
    """Refuse a folder that another run writes to.

    The lock belongs to the open log, which the child inherits: a child that outlives its parent still holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise RunFailedError(f"another process is writing to {job.folder}; wait for it or end it") from error


def _record(job: Job, ledger: dict[str, Any]) -> Record:
    """Return a run's row of the CSV file."""
    measured = {**_flatten(_read_json(job.folder / "results.json")), **{name: ledger[name] for name in COST_METRICS}}
    metrics = dict.fromkeys(job.claim.metrics, "")
    for metric in job.claim.metrics_of(job.run):
        value = measured.get(metric)
        if metric not in measured:
            raise RunFailedError(f"{job.folder / 'results.json'} has no {metric}; {nearest(metric, measured)}")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise RunFailedError(f"{job.folder / 'results.json'}: {metric} is {value!r}, not a number")
        metrics[metric] = "" if value is None or math.isnan(value) else f"{value:.6g}"
    return {
        "run": job.run.name,
        "seed": str(job.seed),
        "recipe": job.run.recipe,
        "options": shlex.join(job.claim.options(job.run, job.seed)),
        "overrides": shlex.join(portable(option) for option in job.overrides),
        **metrics,
        "wall_time_s": f"{ledger['wall_time_s']:.2f}",
        "peak_memory_mib": f"{ledger['peak_memory_mib']:.0f}",
        "date": ledger["date"],
        "commit": ledger["commit"],
        "dirty": {True: "yes", False: "no", None: ""}[ledger["dirty"]],
        "versions": ledger["versions"],
        "hardware": ledger["hardware"],
        "log": job.log.as_posix(),
        "checkpoint": job.checkpoint.as_posix() if job.checkpoint.exists() else "",
        "settings": ledger["settings"],
    }


def portable(option: str) -> str:
    """Return an option without this machine's folders: ``--data.source.root=/a/b/c`` is ``--data.source.root=c``."""
    return re.sub(r"(?<![\w.:/])[~/](?:[^=,\]\"']*/)?", "", option)


def _flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by their dotted paths."""
    flat = {}
    for key, value in content.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds a mapping; one that is not there is empty."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFailedError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise RunFailedError(f"{path} holds {type(content).__name__}, not a mapping")
    return content


def _tail(path: Path, count: int = 12) -> str:
    """Return the last lines of a log."""
    return "\n".join(f"    {line}" for line in path.read_text("utf-8", "replace").rstrip().split("\n")[-count:])
