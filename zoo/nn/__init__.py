"""Plain modules that two methods need. No Lightning here."""

from zoo.nn.backbones import Backbone, create_backbone, freeze, is_frozen
from zoo.nn.checkpoints import check_state, drop_part, restore_part
from zoo.nn.class_means import ClassMeans, linear_from_means
from zoo.nn.low_frequency import LowFrequencyCrop
from zoo.nn.schedules import CosineOverCompute, CosineWithWarmup, PolyWithWarmup, cosine_with_warmup
from zoo.nn.segmentation import SegmentationNetwork, SmallUNet, create_segmentation_network, sliding_window

__all__ = [
    "Backbone",
    "ClassMeans",
    "CosineOverCompute",
    "CosineWithWarmup",
    "LowFrequencyCrop",
    "PolyWithWarmup",
    "SegmentationNetwork",
    "SmallUNet",
    "check_state",
    "cosine_with_warmup",
    "create_backbone",
    "create_segmentation_network",
    "drop_part",
    "freeze",
    "is_frozen",
    "linear_from_means",
    "restore_part",
    "sliding_window",
]
