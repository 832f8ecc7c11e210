"""The images of a session as evaluation shows them, of which class means are made."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch import Tensor, nn


def plain_batches(trainer: Any, datamodule: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this process's share of the current session's images without augmentation, on the device.

    Args:
        trainer: The Trainer of the fit.
        datamodule: A stream with ``plain_train_dataloader``.
    """
    for batch in islice(datamodule.plain_train_dataloader(), int(trainer.fast_dev_run) or None):
        yield trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))


def average_statistics(encoder: nn.Module, strategy: Any) -> None:
    """Make the statistics of batch normalisation the mean over all processes, of which each gathered its own.

    Args:
        encoder: The network.
        strategy: The Trainer's strategy.
    """
    for name, buffer in encoder.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(strategy.reduce(buffer.clone(), reduce_op="mean"))
