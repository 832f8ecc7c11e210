"""Where a run lives: its folder, its checkpoints that are never half written, its metrics that survive a resume."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from zoo.functional import atomic_path, write_atomically

RUNS = Path("runs")


def new_run(recipe: str, runs: Path = RUNS) -> Path:
    """Return the folder ``runs/<recipe>/<n>`` of a new run; the first process makes it.

    The other processes of a run may see it made already or not: Lightning takes the paths that matter from the first.
    """
    parent = runs / recipe
    while True:
        numbers = [int(path.name) for path in parent.glob("*") if path.name.isdigit()]
        folder = parent / str(max(numbers, default=-1) + 1)
        if rank_zero_only.rank != 0:  # type: ignore[attr-defined]  # Lightning sets it when it is imported
            return folder
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # another run took the number between the look and the step
            continue
        return folder


def last_run(recipe: str, runs: Path = RUNS) -> Path:
    """Return the folder of the newest run of a recipe that has a last checkpoint.

    Raises:
        FileNotFoundError: If there is none.
    """
    folders = [path.parent.parent for path in (runs / recipe).glob("*/checkpoints/last.ckpt")]
    numbered = [path for path in folders if path.name.isdigit()]
    if not numbered:
        raise FileNotFoundError(
            f"--ckpt_path last: no run in {runs / recipe} has a checkpoints/last.ckpt. Start one without --ckpt_path, "
            "or give the path of a file."
        )
    return max(numbered, key=lambda path: int(path.name))


def run_of(checkpoint: str) -> Path | None:
    """Return the run folder that a checkpoint lies in, or None if it lies elsewhere."""
    parent = Path(checkpoint).parent
    return parent.parent if parent.name == "checkpoints" else None


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its target and rename it.

    Lightning writes to the system's temporary folder and moves the file, which copies it where that folder is another
    disk: a kill or a full disk in between leaves half a file in the place of the good one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint; a remote path is left to Lightning."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)


class ResumeCheckpoint(ModelCheckpoint):
    """Keep ``last.ckpt`` of the last finished epoch, beside any checkpoint that the user asks for.

    A class of its own, because Lightning refuses two of one class and the same settings.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "checkpoints", filename="{epoch}", save_last=True, save_on_train_epoch_end=True)


class MetricsCSV(Logger):
    """Write metrics to ``metrics.csv`` of the run folder, and go on in that file when a run is resumed.

    Lightning's own CSV logger deletes the file of a run that is resumed in its folder.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.columns: list[str] = []
        self.resumed = False
        self.opened = False

    @property
    def name(self) -> str:
        """Return nothing: the folder says it."""
        return ""

    @property
    def version(self) -> str:
        """Return nothing: the folder says it."""
        return ""

    @property
    def save_dir(self) -> str:
        """Return the run folder."""
        return str(self.folder)

    @property
    def path(self) -> Path:
        """Return the file."""
        return self.folder / "metrics.csv"

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: they stand in config.yaml and in each checkpoint."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Append a row; if there is a new column, the file is written anew."""
        row: dict[str, Any] = {"step": step}
        row |= {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        new_columns = [name for name in row if name not in self.columns]
        if self.opened and not new_columns:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)
            return
        rows = self.read(before=None if self.opened else (step or 0) if self.resumed else 0)
        self.opened = True
        known = list(dict.fromkeys(name for old in rows for name in old))
        self.columns = ["epoch", "step", *sorted({*known, *self.columns, *row} - {"epoch", "step"})]
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows([*rows, row])
        write_atomically(self.path, text.getvalue())

    def read(self, before: int | None) -> list[dict[str, str]]:
        """Return the rows of the file; those of an interrupted epoch, which runs again, are left out.

        Args:
            before: Keep rows of smaller steps; None keeps all, 0 none.
        """
        if before == 0 or not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            rows = [{name: cell for name, cell in row.items() if name and cell} for row in csv.DictReader(file)]
        if before is None:
            return rows
        return [row for row in rows if row.get("step", "").isdigit() and int(row["step"]) < before]
