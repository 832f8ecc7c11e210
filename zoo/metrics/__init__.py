"""Metrics: torchmetrics that count, and pure functions that summarise."""

from zoo.metrics.continual import AccuracyMatrix, TaskAccuracy, stream_summary
from zoo.metrics.fewshot import few_shot_curves, few_shot_figures, few_shot_summary, harmonic_mean
from zoo.metrics.segmentation import intersection_over_union, mean_iou, pixel_accuracy

__all__ = [
    "AccuracyMatrix",
    "TaskAccuracy",
    "few_shot_curves",
    "few_shot_figures",
    "few_shot_summary",
    "harmonic_mean",
    "intersection_over_union",
    "mean_iou",
    "pixel_accuracy",
    "stream_summary",
]
