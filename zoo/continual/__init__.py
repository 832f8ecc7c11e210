"""Methods that learn a stream of tasks."""

from zoo.continual.coda_prompt import CodaPrompt
from zoo.continual.dualprompt import DualPrompt
from zoo.continual.experience_replay import ExperienceReplay
from zoo.continual.l2p import L2P
from zoo.continual.learner import StreamLearner
from zoo.continual.nmc import NMC
from zoo.continual.oneprompt import OnePrompt
from zoo.continual.outlier_phase import OutlierPhase
from zoo.continual.ovor import OVOR
from zoo.continual.prompt_learner import PromptLearner, Prompts
from zoo.continual.sequential import SequentialFineTuning

__all__ = [
    "L2P",
    "NMC",
    "OVOR",
    "CodaPrompt",
    "DualPrompt",
    "ExperienceReplay",
    "OnePrompt",
    "OutlierPhase",
    "PromptLearner",
    "Prompts",
    "SequentialFineTuning",
    "StreamLearner",
]
