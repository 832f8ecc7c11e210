"""Sharding by FSDP2, in one line of a method."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


def shard(module: L.LightningModule, *networks: nn.Module, forwards: Sequence[str] = ()) -> None:
    """Shard networks over the processes if the strategy is FSDP2, and convert the module to FP8 before, if it is to be.

    For ``configure_model``; with any other strategy nothing happens, and a second call finds nothing left to do. Each
    block (a member of one of the network's own ``nn.Sequential`` or ``nn.ModuleList``) is gathered by itself::

        def configure_model(self) -> None:
            shard(self, self.backbone, self.head)

    Args:
        module: The LightningModule.
        *networks: The parts of it that are called as modules; together they hold every parameter that trains.
        forwards: Names of methods of networks that are called as their ``forward`` is, and gather weights as it does.

    Raises:
        ValueError: If the Trainer asks for what FSDP2 would ignore.
    """
    if module.device_mesh is None or any(isinstance(network, FSDPModule) for network in networks):
        return
    strategy: Any = module.trainer.strategy
    if getattr(strategy, "_layer_sync", None) is not None:  # has no public name
        raise ValueError(
            "FSDP2 ignores sync_batchnorm, so each process would normalise by its own images: use strategy='ddp', or "
            "sync_batchnorm=False."
        )
    if getattr(module.trainer.precision_plugin, "scaler", None) is not None:
        raise ValueError(
            "FSDP2 with precision='16-mixed': each process would look for overflow in its own part of the gradient, "
            "and skip steps that others take. Use precision='bf16-mixed'."
        )
    convert = getattr(module.trainer.precision_plugin, "convert", None)
    if convert is not None:
        convert(module)
    mesh = module.device_mesh["data_parallel"]
    for network in networks:
        network.to(memory_format=torch.contiguous_format)  # what FSDP2 asks for
        for block in blocks(network):
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        # Also the root: after a forward without a backward its weights would stay whole, beside sharded moments.
        fully_shard(network, mesh=mesh, reshard_after_forward=True)
        for name in forwards:
            if hasattr(network, name):
                register_fsdp_forward_method(network, name)


def refuse_sharding(module: L.LightningModule, reason: str) -> None:
    """Raise ValueError if the strategy is FSDP2; for ``configure_model`` of a method that cannot be sharded.

    Args:
        module: The LightningModule.
        reason: Why.
    """
    if module.device_mesh is not None:
        raise ValueError(f"{type(module).__name__} cannot be sharded by FSDP2: {reason}. Use strategy='ddp'.")


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise ValueError if an optimizer does not take sharded parameters; for ``configure_optimizers``.

    Args:
        optimizer: The optimizer.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if type(optimizer).__module__.startswith("bitsandbytes.") and any(isinstance(p, DTensor) for p in parameters):
        raise ValueError(
            f"{type(optimizer).__name__} of bitsandbytes does not take parameters that are sharded by FSDP2, which "
            "shards the moments anyway: use torch.optim.AdamW, or strategy='ddp'."
        )


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the members of the lists of modules that stand nearest to the root, where they hold parameters."""
    found = []
    for child in network.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            found += [block for block in child if any(True for _ in block.parameters())]
        else:
            found += blocks(child)
    return found
