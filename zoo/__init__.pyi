from . import callbacks, datamodules, functional, metrics, nn, precision
from .continual.coda_prompt import CodaPrompt
from .continual.dualprompt import DualPrompt
from .continual.experience_replay import ExperienceReplay
from .continual.l2p import L2P
from .continual.nmc import NMC
from .continual.oneprompt import OnePrompt
from .continual.ovor import OVOR
from .continual.sequential import SequentialFineTuning
from .fewshot.fscil import FewShotClassIncremental
from .pretraining.dmae import DMAE
from .pretraining.mae import MAE
from .pretraining.self_distillation import SelfDistillation
from .segmentation.fst import FST
from .segmentation.mean_teacher import MeanTeacher
from .supervised.image_classifier import ImageClassifier
from .supervised.linear_probe import LinearProbe

__version__: str
__all__ = [
    "DMAE",
    "FST",
    "L2P",
    "MAE",
    "NMC",
    "OVOR",
    "CodaPrompt",
    "DualPrompt",
    "ExperienceReplay",
    "FewShotClassIncremental",
    "ImageClassifier",
    "LinearProbe",
    "MeanTeacher",
    "OnePrompt",
    "SelfDistillation",
    "SequentialFineTuning",
    "__version__",
    "callbacks",
    "datamodules",
    "functional",
    "metrics",
    "nn",
    "precision",
]
