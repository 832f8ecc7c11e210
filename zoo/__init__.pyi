from . import callbacks, datamodules, functional, metrics, nn
from .continual.nmc import NMC
from .pretraining.dmae import DMAE
from .pretraining.mae import MAE
from .pretraining.self_distillation import SelfDistillation
from .supervised.image_classifier import ImageClassifier
from .supervised.linear_probe import LinearProbe

__version__: str
__all__ = [
    "DMAE",
    "MAE",
    "NMC",
    "ImageClassifier",
    "LinearProbe",
    "SelfDistillation",
    "__version__",
    "callbacks",
    "datamodules",
    "functional",
    "metrics",
    "nn",
]
