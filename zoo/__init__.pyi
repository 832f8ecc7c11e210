from . import callbacks, datamodules, functional, metrics, nn
from .continual.nmc import NMC
from .supervised.linear_probe import LinearProbe

__version__: str
__all__ = ["NMC", "LinearProbe", "__version__", "callbacks", "datamodules", "functional", "metrics", "nn"]
