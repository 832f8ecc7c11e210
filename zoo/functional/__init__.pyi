from .averages import ema_update_, momentum_at
from .colors import color_map
from .curriculum import Stage, curriculum, equivalent_epochs, stage_at
from .files import atomic_path, write_atomically
from .look_ahead import LiteralSteps, LookAhead, VirtualSteps, has_functional_form, virtual_step
from .losses import task_cross_entropy
from .low_frequency import downsample, low_frequency_crop
from .masking import Masking, count_visible, mask_from_noise
from .mixing import class_mix_mask, color_jitter, cut_mix_mask, gaussian_blur, strong_augment
from .patches import grid_of, patchify, position_table, unpatchify
from .pixels import (
    PseudoLabels,
    drop_uncertain,
    entropy,
    feature_distance,
    majority_labels,
    ohem_cross_entropy,
    pixel_cross_entropy,
    pseudo_label,
    reweighted_cross_entropy,
)
from .provenance import git_commit, versions
from .seeds import mix_seeds, seed_all
from .tasks import Task

__all__ = [
    "LiteralSteps",
    "LookAhead",
    "Masking",
    "PseudoLabels",
    "Stage",
    "Task",
    "VirtualSteps",
    "atomic_path",
    "class_mix_mask",
    "color_jitter",
    "color_map",
    "count_visible",
    "curriculum",
    "cut_mix_mask",
    "downsample",
    "drop_uncertain",
    "ema_update_",
    "entropy",
    "equivalent_epochs",
    "feature_distance",
    "gaussian_blur",
    "git_commit",
    "grid_of",
    "has_functional_form",
    "low_frequency_crop",
    "majority_labels",
    "mask_from_noise",
    "mix_seeds",
    "momentum_at",
    "ohem_cross_entropy",
    "patchify",
    "pixel_cross_entropy",
    "position_table",
    "pseudo_label",
    "reweighted_cross_entropy",
    "seed_all",
    "stage_at",
    "strong_augment",
    "task_cross_entropy",
    "unpatchify",
    "versions",
    "virtual_step",
    "write_atomically",
]
