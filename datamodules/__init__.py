"""Datamodules: how images are split over time, processes and batches. A source says where they come from."""

if __name__ == "datamodules":
    raise ModuleNotFoundError("Import zoo.datamodules, not datamodules.")

from zoo.datamodules.class_incremental import ClassIncrementalDataModule
from zoo.datamodules.classification import ClassificationDataModule
from zoo.datamodules.domain_incremental import DomainIncrementalDataModule
from zoo.datamodules.few_shot_incremental import FewShotIncrementalDataModule
from zoo.datamodules.rare_classes import RareClassSampling
from zoo.datamodules.scene_transforms import RandomScale, ResizeImage, SceneCrop
from zoo.datamodules.segmentation import DomainAdaptationDataModule, SemiSupervisedSegmentationDataModule
from zoo.datamodules.streams import TaskStream
from zoo.datamodules.transforms import ScheduledRandAugment, SharedValue

__all__ = [
    "ClassIncrementalDataModule",
    "ClassificationDataModule",
    "DomainAdaptationDataModule",
    "DomainIncrementalDataModule",
    "FewShotIncrementalDataModule",
    "RandomScale",
    "RareClassSampling",
    "ResizeImage",
    "SceneCrop",
    "ScheduledRandAugment",
    "SemiSupervisedSegmentationDataModule",
    "SharedValue",
    "TaskStream",
]
