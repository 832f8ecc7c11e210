from . import callbacks, datamodules, functional, metrics, nn
from .continual.nmc import NMC

__version__: str
__all__ = ["NMC", "__version__", "callbacks", "datamodules", "functional", "metrics", "nn"]
