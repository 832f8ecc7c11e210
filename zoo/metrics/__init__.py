"""Metrics: torchmetrics that count, and pure functions that summarise."""

from zoo.metrics.continual import AccuracyMatrix, TaskAccuracy, stream_summary

__all__ = ["AccuracyMatrix", "TaskAccuracy", "stream_summary"]
