"""What callbacks write into a run's folder: where it is, the settings of the run, pictures."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from zoo.callbacks.stream_figures import to_png
from zoo.functional import git_commit, versions, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run_folder(trainer: Any, directory: str | None = None) -> Path:
    """Return where to write: the folder that is asked for, else the Trainer's.

    A collective call, because ``log_dir`` is one: make it on all processes.
    """
    log_dir = trainer.log_dir
    return Path(directory or log_dir or trainer.default_root_dir)


def save_figure(trainer: Any, folder: Path, name: str, figure: "Figure") -> None:
    """Write ``<name>.png``, and give the figure to every logger whose ``experiment`` has ``add_figure``."""
    write_atomically(folder / f"{name}.png", to_png(figure))
    for logger in trainer.loggers:
        if hasattr(getattr(logger, "experiment", None), "add_figure"):
            logger.experiment.add_figure(name, figure, global_step=trainer.global_step, close=False)


def run_settings(trainer: Any, pl_module: Any) -> dict[str, Any]:
    """Return what a result depends on: settings, versions, commits of zoo and of the working folder."""
    seed = os.environ.get("PL_GLOBAL_SEED")  # where Lightning's seed_everything keeps it
    return {
        "settings": {
            "model": describe(pl_module),
            "data": describe(trainer.datamodule),
            "trainer": {
                "precision": trainer.precision,
                "accelerator": type(trainer.accelerator).__name__,
                "devices": trainer.num_devices,
                "num_nodes": trainer.num_nodes,
                "strategy": type(trainer.strategy).__name__,
                "max_epochs": trainer.max_epochs,
            },
            "seed": int(seed) if seed else None,
        },
        "versions": versions(),
        "commit": git_commit(Path(__file__).parent),
        "project_commit": git_commit(),
    }


def describe(part: Any) -> dict[str, Any] | None:
    """Return class and hyper-parameters of a module or datamodule; the command line's own notes are left out."""
    if part is None:
        return None
    settings = {k: v for k, v in dict(getattr(part, "hparams", {})).items() if not str(k).startswith("_")}
    return {"class": f"{type(part).__module__}.{type(part).__qualname__}", **settings}


def to_plain(value: Any) -> Any:
    """Return a value as JSON knows it: NaN as null, what JSON does not know by its name."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, range)):
        return [to_plain(item) for item in value]
    if isinstance(value, Tensor):
        return to_plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "__qualname__", None) or str(value)
