"""Checkpoints without the weights that can be rebuilt."""

from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn


def drop_part(state_dict: MutableMapping[str, Any], prefix: str) -> None:
    """Remove a part of a module from its state, in place; for ``on_save_checkpoint``.

    Args:
        state_dict: The state of the module.
        prefix: How the names of the part begin, such as ``"backbone."``.
    """
    for name in [name for name in state_dict if name.startswith(prefix)]:
        del state_dict[name]


def restore_part(module: nn.Module, state_dict: MutableMapping[str, Any], prefix: str) -> None:
    """Fill in the tensors of a part that :func:`drop_part` removed with those the module was built with, in place.

    For ``on_load_checkpoint``. Loading stays strict for all other names: with ``strict_loading = False`` torch would
    let any missing tensor pass.

    Args:
        module: The module that is about to load.
        state_dict: What it is about to load.
        prefix: As of :func:`drop_part`.
    """
    for name, tensor in module.state_dict().items():
        if name.startswith(prefix):
            state_dict.setdefault(name, tensor)


def check_state(module: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Raise unless a state fits a module, with a message for people.

    Args:
        module: The module that is about to load.
        state_dict: What it is about to load.

    Raises:
        ValueError: Naming what is missing, unknown, or of another shape.
    """
    own, kind = module.state_dict(), type(module).__name__
    missing = [name for name in own if name not in state_dict]
    unknown = [name for name in state_dict if name not in own]
    if missing or unknown:
        raise ValueError(
            f"The checkpoint does not fit {kind}: missing {listed(missing)}; unknown {listed(unknown)}. "
            "Is it a checkpoint of another class?"
        )
    for name, tensor in state_dict.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"The checkpoint does not fit {kind}: {name} has shape {tuple(tensor.shape)} in the file and "
                f"{tuple(own[name].shape)} here. Use the backbone and the number of classes of that run."
            )


def listed(names: list[str]) -> str:
    """Return a few names and the number of the others."""
    if not names:
        return "nothing"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
