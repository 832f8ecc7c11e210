"""Callbacks that work in any Lightning project."""

if __name__ == "callbacks":
    raise ModuleNotFoundError("Import zoo.callbacks, not callbacks.")

from zoo.callbacks.feature_cache import FeatureCache
from zoo.callbacks.prediction_table import PredictionTable
from zoo.callbacks.task_loop import TaskLoop

__all__ = ["FeatureCache", "PredictionTable", "TaskLoop"]
