from . import callbacks, datamodules, functional, metrics, nn, precision
from .continual.nmc import NMC
from .supervised.image_classifier import ImageClassifier
from .supervised.linear_probe import LinearProbe

__version__: str
__all__ = [
    "NMC",
    "ImageClassifier",
    "LinearProbe",
    "__version__",
    "callbacks",
    "datamodules",
    "functional",
    "metrics",
    "nn",
    "precision",
]
