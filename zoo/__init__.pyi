from . import callbacks, datamodules, functional, metrics, nn
from .continual.nmc import NMC
from .pretraining.mae import MAE
from .supervised.image_classifier import ImageClassifier
from .supervised.linear_probe import LinearProbe

__version__: str
__all__ = [
    "MAE",
    "NMC",
    "ImageClassifier",
    "LinearProbe",
    "__version__",
    "callbacks",
    "datamodules",
    "functional",
    "metrics",
    "nn",
]
