"""zoo: research methods for learning better from less, as PyTorch Lightning modules, datamodules and callbacks.

Names are loaded when they are first used: ``import zoo`` costs nothing, ``zoo.NMC`` imports what NMC needs. The public
names and where they live stand in ``__init__.pyi``.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
