from .curriculum import Stage, curriculum, equivalent_epochs, stage_at
from .files import atomic_path, write_atomically
from .low_frequency import downsample, low_frequency_crop
from .masking import Masking, count_visible, mask_from_noise
from .patches import grid_of, patchify, position_table, unpatchify
from .provenance import git_commit, versions
from .seeds import mix_seeds, seed_all
from .tasks import Task

__all__ = [
    "Masking",
    "Stage",
    "Task",
    "atomic_path",
    "count_visible",
    "curriculum",
    "downsample",
    "equivalent_epochs",
    "git_commit",
    "grid_of",
    "low_frequency_crop",
    "mask_from_noise",
    "mix_seeds",
    "patchify",
    "position_table",
    "seed_all",
    "stage_at",
    "unpatchify",
    "versions",
    "write_atomically",
]
