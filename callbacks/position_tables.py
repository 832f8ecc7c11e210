"""Position tables of transformers that follow the size of the images, with the optimizer's memory of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer


class PositionTables:
    """The position tables of the timm networks in a module.

    timm's ``set_input_size`` gives a network new parameters for another image size (the position embedding of ViT and
    DeiT; the relative positions of Swin, whose windows become a 32nd of the image). Here they take the values of the
    old ones, interpolated as EfficientTrain's scripts do it, and their places in the optimizer, whose moments are
    interpolated too.

    Args:
        module: Holds the networks.

    Raises:
        ValueError: If there is no network in it whose tables can follow.
    """

    def __init__(self, module: nn.Module) -> None:
        found = [part for part in module.modules() if hasattr(part, "set_input_size") and hasattr(part, "patch_embed")]
        if not found:
            raise ValueError(
                f"positions='resample' needs a timm network with set_input_size (ViT, DeiT, Swin), and there is none "
                f"in {type(module).__name__}: use positions='dynamic'."
            )
        self.networks: list[Any] = found

    def named_parameters(self) -> dict[tuple[int, str], nn.Parameter]:
        """Return the parameters of the networks by number and name."""
        return {
            (number, name): parameter
            for number, network in enumerate(self.networks)
            for name, parameter in network.named_parameters()
        }

    def resize(self, size: int, optimizers: Sequence[Optimizer] = ()) -> None:
        """Make the tables those of square images of a size, in the networks and in optimizers.

        Args:
            size: Side in pixels.
            optimizers: Hold the tables that are replaced.
        """
        old = self.named_parameters()
        for network in self.networks:
            if tuple(network.patch_embed.img_size) != (size, size):
                network.set_input_size(img_size=(size, size))
        for (number, name), parameter in self.named_parameters().items():
            before = old[number, name]
            if parameter is before:
                continue
            num_prefix = prefix_of(self.networks[number], name)
            with torch.no_grad():
                parameter.copy_(resize_table(before, parameter.shape, num_prefix))
            parameter.requires_grad_(before.requires_grad)  # earlier releases of timm let a frozen table learn
            for optimizer in optimizers:
                replace_parameter(optimizer, before, parameter, num_prefix)

    @contextmanager
    def at(self, size: int) -> Iterator[None]:
        """Have the tables of another size for a moment; afterwards the networks are what they were."""
        # All that set_input_size writes: parameters, buffers, sizes, and windows, which it would not find again.
        own = {part: attributes(part) for network in self.networks for part in network.modules()}
        self.resize(size)
        try:
            yield
        finally:
            for part, before in own.items():
                vars(part).update(before)

    def fit(self, module: nn.Module, state: Mapping[str, Tensor], sizes: Sequence[int]) -> None:
        """Give the tables the shapes that they have in a checkpoint, so that it can be loaded.

        Args:
            module: The module that the state is of.
            state: Its parameters by name.
            sizes: The image sizes it may have been saved at.

        Raises:
            ValueError: If the shapes are those of none of them.
        """
        for size in sizes:
            self.resize(size)
            if all(state[n].shape == p.shape for n, p in module.named_parameters() if n in state):
                return
        raise ValueError(f"The checkpoint's position tables fit none of the curriculum's sizes, {sorted(set(sizes))}.")


def attributes(module: nn.Module) -> dict[str, Any]:
    """Return what a module holds, as it is now: what replaces a parameter later does not show here."""
    return {name: dict(value) if type(value) is dict else value for name, value in vars(module).items()}


def prefix_of(network: Any, name: str) -> int:
    """Return how many entries of a table, at its beginning, have no place in the image: those of class tokens."""
    if name != "pos_embed" or getattr(network, "no_embed_class", False):
        return 0
    return int(getattr(network, "num_prefix_tokens", 0))


def resize_table(table: Tensor, shape: Sequence[int], num_prefix: int = 0) -> Tensor:
    """Interpolate a table of positions in a square, bilinearly, as EfficientTrain's scripts do.

    Args:
        table: Shape (1, P + n², D), or (n², D); one entry for each position after P entries that have none.
        shape: The same with another n.
        num_prefix: The number P.
    """
    rows = table.reshape(-1, table.shape[-1])
    before, after = isqrt(len(rows) - num_prefix), isqrt(shape[-2] - num_prefix)
    square = rows[num_prefix:].T.reshape(1, -1, before, before)
    resized = F.interpolate(square.float(), (after, after), mode="bilinear", align_corners=False)
    resized = resized.to(rows.dtype).flatten(2)[0].T
    return torch.cat([rows[:num_prefix], resized]).reshape(tuple(shape))


def replace_parameter(optimizer: Optimizer, old: nn.Parameter, new: nn.Parameter, num_prefix: int) -> None:
    """Put a parameter into an optimizer in the place of another one, with its moments interpolated."""
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    if old in optimizer.state:
        optimizer.state[new] = {
            name: resize_table(value, new.shape, num_prefix)
            if isinstance(value, Tensor) and value.shape == old.shape
            else value
            for name, value in optimizer.state.pop(old).items()
        }
