"""Methods that learn new classes from a few images."""

from zoo.fewshot.fscil import FewShotClassIncremental

__all__ = ["FewShotClassIncremental"]
