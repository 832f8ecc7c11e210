"""Methods that learn from images without labels."""

from zoo.pretraining.mae import MAE

__all__ = ["MAE"]
