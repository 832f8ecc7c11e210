"""Plain modules that two methods need. No Lightning here."""

from zoo.nn.backbones import Backbone, create_backbone, freeze, is_frozen
from zoo.nn.checkpoints import check_state, drop_part, restore_part
from zoo.nn.cifar_resnets import cifar_resnet18, cifar_resnet20
from zoo.nn.class_means import ClassMeans, linear_from_means
from zoo.nn.low_frequency import LowFrequencyCrop
from zoo.nn.mae_decoder import MAEDecoder
from zoo.nn.prefix import PrefixAttention, attach_prefix, set_prefix
from zoo.nn.schedules import CosineOverCompute, CosineWithWarmup, PolyWithWarmup, QuarterCosine, cosine_with_warmup
from zoo.nn.segmentation import SegmentationNetwork, SmallUNet, create_segmentation_network, sliding_window
from zoo.nn.virtual_outliers import Outliers, VirtualOutliers, energy, synthesize_outliers
from zoo.nn.visible_patches import encode_visible, start_transformer

__all__ = [
    "Backbone",
    "ClassMeans",
    "CosineOverCompute",
    "CosineWithWarmup",
    "LowFrequencyCrop",
    "MAEDecoder",
    "Outliers",
    "PolyWithWarmup",
    "PrefixAttention",
    "QuarterCosine",
    "SegmentationNetwork",
    "SmallUNet",
    "VirtualOutliers",
    "attach_prefix",
    "check_state",
    "cifar_resnet18",
    "cifar_resnet20",
    "cosine_with_warmup",
    "create_backbone",
    "create_segmentation_network",
    "drop_part",
    "encode_visible",
    "energy",
    "freeze",
    "is_frozen",
    "linear_from_means",
    "restore_part",
    "set_prefix",
    "sliding_window",
    "start_transformer",
    "synthesize_outliers",
]
