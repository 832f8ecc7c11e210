from . import callbacks, datamodules, functional, metrics, nn
from .continual.nmc import NMC
from .segmentation.fst import FST
from .segmentation.mean_teacher import MeanTeacher
from .supervised.image_classifier import ImageClassifier
from .supervised.linear_probe import LinearProbe

__version__: str
__all__ = [
    "FST",
    "NMC",
    "ImageClassifier",
    "LinearProbe",
    "MeanTeacher",
    "__version__",
    "callbacks",
    "datamodules",
    "functional",
    "metrics",
    "nn",
]
