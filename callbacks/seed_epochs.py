"""The same random numbers in an epoch, whether the run was interrupted before it or not."""

import os
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn

from zoo.functional import seed_all


class SeedEpochs(Callback):
    """Seeds Python, numpy and torch at the start of each training epoch, from (seed, epoch, process).

    A checkpoint holds no random state. With this callback a run that was killed, and goes on at the start of an epoch,
    draws what an unbroken one draws there: dropout, drop path, mixing of images in the module. Put it first in the list
    of callbacks. It has no state and works with any module.

    The order of samples is the loader's affair: the datamodules of zoo draw it from (seed, epoch) as well, whereas
    ``DataLoader(shuffle=True)`` in the first epoch of a process has drawn before this callback is asked.

    Args:
        seed: Non-negative. Default: the ``seed`` of the datamodule if it has one, else that of Lightning's
            ``seed_everything``.

    Raises:
        ValueError: When fit starts, if there is no seed.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        self._seed = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Find the seed."""
        if stage != "fit":
            return
        seed = self.seed if self.seed is not None else getattr(trainer.datamodule, "seed", None)
        seed = seed if seed is not None else os.environ.get("PL_GLOBAL_SEED")  # where seed_everything keeps it
        if seed is None:
            raise ValueError(
                "SeedEpochs found no seed: the datamodule has no attribute seed, and seed_everything was not called. "
                "Give one, as SeedEpochs(seed=0)."
            )
        self._seed = int(seed)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Warn of a run that goes on in the middle of an epoch."""
        if trainer.fit_loop.restarted_mid_epoch:
            rank_zero_warn(
                "The checkpoint was saved in the middle of an epoch, so the rest of that epoch draws other random "
                "numbers than an unbroken run. Use a checkpoint of the end of an epoch: "
                "ModelCheckpoint(save_last=True, save_on_train_epoch_end=True), without every_n_train_steps."
            )

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Seed the epoch."""
        seed_all(self._seed, trainer.current_epoch, trainer.global_rank)
