"""Methods that learn from images without labels."""

from zoo.pretraining.dmae import DMAE
from zoo.pretraining.mae import MAE
from zoo.pretraining.self_distillation import SelfDistillation

__all__ = ["DMAE", "MAE", "SelfDistillation"]
