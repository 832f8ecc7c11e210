"""What a stream costs: passes of the network, and time."""

import time
from typing import Any

import torch
from torch import Tensor, nn


class StreamCosts:
    """Counts the images that were trained and evaluated, how often a network saw them, and the time.

    Training time runs from the start of an epoch to the end of its last batch: loading counts, and whatever a method
    does before the first batch. Evaluation time is that of the batches alone, without loading.
    """

    def __init__(self) -> None:
        # By part: seconds, images, and images that the network saw.
        self.counts = {"training": [0.0, 0, 0], "evaluation": [0.0, 0, 0]}
        self._part: str | None = None
        self._since = 0.0
        self._hook: Any = None

    def attach(self, network: Any) -> None:
        """Count what a module sees, until :meth:`detach`."""
        self.detach()
        if isinstance(network, nn.Module):
            self._hook = network.register_forward_pre_hook(lambda module, arguments: self._count_pass(arguments))

    def detach(self) -> None:
        """Leave the module alone."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def start(self, part: str) -> None:
        """Let the time of training or evaluation run, if none runs yet."""
        if self._part is None:
            self._part, self._since = part, time.monotonic()

    def stop(self, device: torch.device) -> None:
        """Stop the time, after a GPU has done what it was told to do."""
        if self._part is None:
            return
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.counts[self._part][0] += time.monotonic() - self._since
        self._part = None

    def count_batch(self, part: str, batch: Any) -> None:
        """Count the images of a batch: the length of its first tensor."""
        images = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
        if isinstance(images, Tensor) and images.ndim:
            self.counts[part][1] += len(images)

    def summary(self) -> dict[str, float | None]:
        """Return passes and milliseconds for each image; None where nothing was counted."""
        summary: dict[str, float | None] = {}
        for part, (seconds, images, passes) in self.counts.items():
            summary[f"{part}_passes_per_image"] = round(passes / images, 4) if images and passes else None
            summary[f"{part}_ms_per_image"] = round(1000 * seconds / images, 4) if images else None
        return summary

    def _count_pass(self, arguments: Any) -> None:
        if self._part is not None and arguments and isinstance(arguments[0], Tensor):
            self.counts[self._part][2] += len(arguments[0])
