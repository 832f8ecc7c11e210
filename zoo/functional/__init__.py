"""Pure functions and plain tuples that two rooms need. No Lightning here."""

from zoo.functional.files import write_atomically
from zoo.functional.seeds import mix_seeds, seed_all
from zoo.functional.tasks import Task

__all__ = ["Task", "mix_seeds", "seed_all", "write_atomically"]
