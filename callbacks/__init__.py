"""Callbacks that work in any Lightning project."""

if __name__ == "callbacks":
    raise ModuleNotFoundError("Import zoo.callbacks, not callbacks.")

from zoo.callbacks.confusion_matrix import ConfusionMatrix
from zoo.callbacks.efficient_train import EfficientTrain
from zoo.callbacks.feature_cache import FeatureCache
from zoo.callbacks.int8_training import Int8Training
from zoo.callbacks.knn_evaluation import KNNEvaluation
from zoo.callbacks.predicted_masks import PredictedMasks
from zoo.callbacks.prediction_table import PredictionTable
from zoo.callbacks.progress import StreamProgressBar
from zoo.callbacks.qat import QAT
from zoo.callbacks.quantize_frozen import QuantizeFrozen
from zoo.callbacks.reconstruction_images import ReconstructionImages
from zoo.callbacks.seed_epochs import SeedEpochs
from zoo.callbacks.segmentation_overlay import SegmentationOverlay
from zoo.callbacks.stream_report import StreamReport
from zoo.callbacks.task_loop import TaskLoop
from zoo.callbacks.training_report import TrainingReport
from zoo.functional import low_frequency_crop
from zoo.nn import LowFrequencyCrop

__all__ = [
    "QAT",
    "ConfusionMatrix",
    "EfficientTrain",
    "FeatureCache",
    "Int8Training",
    "KNNEvaluation",
    "LowFrequencyCrop",
    "PredictedMasks",
    "PredictionTable",
    "QuantizeFrozen",
    "ReconstructionImages",
    "SeedEpochs",
    "SegmentationOverlay",
    "StreamProgressBar",
    "StreamReport",
    "TaskLoop",
    "TrainingReport",
    "low_frequency_crop",
]
