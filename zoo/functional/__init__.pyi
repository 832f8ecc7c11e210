from .curriculum import Stage, curriculum, equivalent_epochs, stage_at
from .files import atomic_path, write_atomically
from .losses import task_cross_entropy
from .low_frequency import downsample, low_frequency_crop
from .provenance import git_commit, versions
from .seeds import mix_seeds, seed_all
from .tasks import Task

__all__ = [
    "Stage",
    "Task",
    "atomic_path",
    "curriculum",
    "downsample",
    "equivalent_epochs",
    "git_commit",
    "low_frequency_crop",
    "mix_seeds",
    "seed_all",
    "stage_at",
    "task_cross_entropy",
    "versions",
    "write_atomically",
]
