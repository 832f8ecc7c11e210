"""Pure functions and plain tuples that two rooms need. No Lightning here.

Names are loaded when they are first used, because the light commands write files and need no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
