"""Features of a frozen network, computed once."""

from operator import attrgetter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from zoo.nn import is_frozen

FINGERPRINT = 64  # values kept of each image to see that it is the same one


class FeatureCache(Callback):
    """Run a frozen part of a module once on each evaluation image of a fit, instead of once in every evaluation.

    In a stream of T equal tasks the images of task j are evaluated T - j times; with this callback the network sees
    them once, and the numbers are the same. The outputs are kept on the CPU: 4 D bytes an image for D features.

    It serves any module whose part takes the batch's images and returns one tensor. It relies on evaluation
    batches being the same ones each time, by loader and position, and checks it: the part must be frozen and unchanged,
    the datamodule must say ``fixed_evaluation`` (or ``fixed=True`` says it in its place), and some pixels of each batch
    are compared. Whatever does not hold is computed anew.

    Args:
        part: Name of the frozen part in the module.
        fixed: Whether evaluation images are free of random transforms. Default: what ``trainer.datamodule`` says.

    Raises:
        AttributeError: If the module has no such part.
    """

    def __init__(self, part: str = "backbone", fixed: bool | None = None) -> None:
        self.part = part
        self.fixed = fixed
        self.hits = 0  # images that were not computed again
        self._network: nn.Module | None = None
        self._kept: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        self._content: list[float] = []
        self._own_forward: Any = None
        self._batch: tuple[int, int] | None = None
        self._calls = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stand in for the part's forward during fit."""
        if stage != "fit":
            return
        network: nn.Module = attrgetter(self.part)(pl_module)
        fixed = self.fixed if self.fixed is not None else getattr(trainer.datamodule, "fixed_evaluation", None)  # type: ignore[attr-defined]
        if not fixed:
            why = (
                "the evaluation transforms may be random"
                if fixed is False
                else "the datamodule does not say fixed_evaluation"
            )
            rank_zero_info(f"FeatureCache is off: {why}. FeatureCache(fixed=True) switches it on.")
            return
        self._network, original = network, network.forward
        self._own_forward = vars(network).get("forward")

        def forward(images: Tensor) -> Any:
            if self._batch is None:
                return original(images)
            key, self._calls = (*self._batch, self._calls), self._calls + 1
            pixels = images.flatten(1)
            pixels = pixels[:, :: max(1, pixels.shape[1] // FINGERPRINT)]
            if key in self._kept and torch.equal(self._kept[key][0], pixels.cpu()):
                self.hits += len(images)
                return self._kept[key][1].to(images.device)
            features = original(images)
            self._kept[key] = (pixels.cpu(), features.detach().cpu())
            return features

        network.forward = forward  # removed in teardown

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget all if the part was changed since."""
        if self._network is not None and (found := content(self._network)) != self._content:
            self._kept.clear()
            self._content = found

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note which batch comes."""
        on = self._network is not None and not trainer.sanity_checking and is_frozen(self._network)
        self._batch, self._calls = (dataloader_idx, batch_idx) if on else None, 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stand aside for whatever is not evaluation."""
        self._batch = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the part its own forward back and free the features."""
        if self._network is not None:
            vars(self._network).pop("forward", None)
            if self._own_forward is not None:
                self._network.forward = self._own_forward
        self._network, self._own_forward, self._batch, self._content = None, None, None, []
        self._kept.clear()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Undo as after a fit: Lightning does not call ``teardown`` after an exception."""
        self.teardown(trainer, pl_module, "fit")


@torch.no_grad()
def content(network: nn.Module) -> list[float]:
    """Return sum and norm of every parameter and buffer: what changes with them, however they are written.

    torch's own version counters miss writes through ``.data``, by which averaged teachers are often updated.
    """
    tensors = [tensor.detach().flatten() for tensor in (*network.parameters(), *network.buffers())]
    sums = [tensor.sum(dtype=torch.float64) for tensor in tensors]
    norms = [torch.linalg.vector_norm(tensor.float(), dtype=torch.float64) for tensor in tensors]
    return torch.stack([number.cpu() for number in (*sums, *norms)]).tolist() if tensors else []
