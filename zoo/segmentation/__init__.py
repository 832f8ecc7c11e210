"""Methods that give each pixel a class, with few labels or with labels of another domain."""

from zoo.segmentation.fst import FST
from zoo.segmentation.mean_teacher import MeanTeacher
from zoo.segmentation.objectives import DomainMixing, EntropyFiltering, Objective, Outcome

__all__ = ["FST", "DomainMixing", "EntropyFiltering", "MeanTeacher", "Objective", "Outcome"]
