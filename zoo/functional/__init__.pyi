from .files import write_atomically
from .seeds import mix_seeds, seed_all
from .tasks import Task

__all__ = ["Task", "mix_seeds", "seed_all", "write_atomically"]
