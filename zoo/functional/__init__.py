"""Pure functions and plain tuples that two rooms need. No Lightning here."""

from zoo.functional.files import write_atomically
from zoo.functional.tasks import Task

__all__ = ["Task", "write_atomically"]
