"""Where images come from. A source knows files and formats, and nothing of tasks, batches or transforms."""

from zoo.datamodules.sources.cifar import CIFAR10, CIFAR100
from zoo.datamodules.sources.class_range import ClassRange
from zoo.datamodules.sources.core50 import CORe50
from zoo.datamodules.sources.digit_scenes import DigitScenes
from zoo.datamodules.sources.digits import Digits
from zoo.datamodules.sources.fashion_mnist import MNIST, FashionMNIST
from zoo.datamodules.sources.folders import ImageFolders
from zoo.datamodules.sources.glyphs import Glyphs
from zoo.datamodules.sources.pascal_voc import PascalVOC
from zoo.datamodules.sources.segmentation import LabeledScenes, SegmentationSource
from zoo.datamodules.sources.source import LabeledImages, Source
from zoo.datamodules.sources.streets import GTAV, SYNTHIA, Cityscapes
from zoo.datamodules.sources.synthetic import Synthetic
from zoo.datamodules.sources.synthetic_scenes import SyntheticScenes

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "GTAV",
    "MNIST",
    "SYNTHIA",
    "CORe50",
    "Cityscapes",
    "ClassRange",
    "DigitScenes",
    "Digits",
    "FashionMNIST",
    "Glyphs",
    "ImageFolders",
    "LabeledImages",
    "LabeledScenes",
    "PascalVOC",
    "SegmentationSource",
    "Source",
    "Synthetic",
    "SyntheticScenes",
]
