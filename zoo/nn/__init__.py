"""Plain modules that two methods need. No Lightning here."""

from zoo.nn.backbones import Backbone, create_backbone, freeze, is_frozen
from zoo.nn.checkpoints import check_state, drop_part, restore_part
from zoo.nn.class_means import ClassMeans, linear_from_means
from zoo.nn.low_frequency import LowFrequencyCrop
from zoo.nn.mae_decoder import MAEDecoder
from zoo.nn.schedules import CosineOverCompute, CosineWithWarmup, cosine_with_warmup
from zoo.nn.visible_patches import encode_visible, start_transformer

__all__ = [
    "Backbone",
    "ClassMeans",
    "CosineOverCompute",
    "CosineWithWarmup",
    "LowFrequencyCrop",
    "MAEDecoder",
    "check_state",
    "cosine_with_warmup",
    "create_backbone",
    "drop_part",
    "encode_visible",
    "freeze",
    "is_frozen",
    "linear_from_means",
    "restore_part",
    "start_transformer",
]
