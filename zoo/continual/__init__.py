"""Methods that learn a stream of tasks."""

from zoo.continual.learner import StreamLearner
from zoo.continual.nmc import NMC

__all__ = ["NMC", "StreamLearner"]
