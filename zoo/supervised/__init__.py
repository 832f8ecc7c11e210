"""Methods that learn all classes at once."""

from zoo.supervised.image_classifier import ImageClassifier
from zoo.supervised.linear_probe import LinearProbe

__all__ = ["ImageClassifier", "LinearProbe"]
