"""Metrics: torchmetrics that count, and pure functions that summarise."""

from zoo.metrics.continual import AccuracyMatrix, TaskAccuracy, stream_summary
from zoo.metrics.fewshot import few_shot_curves, few_shot_figures, few_shot_summary, harmonic_mean

__all__ = [
    "AccuracyMatrix",
    "TaskAccuracy",
    "few_shot_curves",
    "few_shot_figures",
    "few_shot_summary",
    "harmonic_mean",
    "stream_summary",
]
