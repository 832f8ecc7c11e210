"""Methods that learn all classes at once."""

from zoo.supervised.linear_probe import LinearProbe

__all__ = ["LinearProbe"]
