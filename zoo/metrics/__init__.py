"""Metrics: torchmetrics that count, and pure functions that summarise."""

from zoo.metrics.continual import AccuracyMatrix, TaskAccuracy, stream_summary
from zoo.metrics.segmentation import intersection_over_union, mean_iou, pixel_accuracy

__all__ = [
    "AccuracyMatrix",
    "TaskAccuracy",
    "intersection_over_union",
    "mean_iou",
    "pixel_accuracy",
    "stream_summary",
]
