"""Which linear layers of a module are converted to a low precision, and which are kept."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

IGNORED = ("head", "fc_norm", "patch_embed", "prompt")
CONVERTED = ("torchao.", "bitsandbytes.", "lightning.", "zoo.precision.")  # have layers that take others' places
SHARDED = ("ModelParallelStrategy", "FSDPStrategy", "DeepSpeedStrategy")


@dataclass
class LayerChoice:
    """What :func:`choose_layers` found.

    Args:
        chosen: Layers to convert, by name; one layer may have two names.
        kept: Number of linear layers that stay as they are, by the reason.
    """

    chosen: dict[str, nn.Linear] = field(default_factory=dict)
    kept: Counter[str] = field(default_factory=Counter)

    @property
    def weights(self) -> list[Tensor]:
        """The weights of the chosen layers, each once."""
        return list({id(layer.weight): layer.weight for layer in self.chosen.values()}.values())

    def describe(self, module: nn.Module) -> str:
        """Return the numbers of layers as a text, and the share of the module's parameters that are in them."""
        count = len({id(layer) for layer in self.chosen.values()})
        share = sum(weight.numel() for weight in self.weights) / max(1, num_parameters(module))
        text = f"{count} of {count + self.kept.total()} linear layers, {share:.0%} of the parameters"
        return f"{text}; kept: {self.reasons()}" if self.kept else text

    def reasons(self) -> str:
        """Return why layers were kept."""
        return ", ".join(f"{number} {reason}" for reason, number in sorted(self.kept.items())) or "none"


def choose_layers(
    module: nn.Module,
    ignore: Sequence[str] = IGNORED,
    multiple: int = 1,
    min_features: int = 0,
    accept: Callable[[nn.Linear], bool] = lambda layer: True,
) -> LayerChoice:
    """Return the linear layers of a module that a low precision suits.

    A layer is chosen if its type is ``nn.Linear`` itself, no part of its name begins with an ignored word, it is not
    inside ``nn.MultiheadAttention``, which reads the weight past the layer, and its sizes suit. Heads are ignored
    because few outputs give no speed and their errors go straight into the loss; norms, convolutions, prompts, tokens,
    tables of positions and class means are no linear layers.

    Args:
        module: The module; its own name is not looked at.
        ignore: Beginnings of names, of any part of a dotted name.
        multiple: Number that both sizes of a layer must be multiples of.
        min_features: Smallest size, of both inputs and outputs.
        accept: One more condition.

    Raises:
        ValueError: If a chosen layer has hooks, which would be lost with it.
    """
    inside = tuple(f"{name}." for name, part in module.named_modules() if isinstance(part, nn.MultiheadAttention))
    choice, counted = LayerChoice(), set()
    for name, layer in module.named_modules(remove_duplicate=False):
        converted = type(layer).__module__.startswith(CONVERTED) and hasattr(layer, "in_features")
        if not isinstance(layer, nn.Linear) and not converted:
            continue
        sizes = (layer.in_features, layer.out_features)
        if converted:
            reason = f"converted already, to {type(layer).__name__}"
        elif isinstance(layer.weight, DTensor):
            reason = "sharded"
        elif any(part.startswith(tuple(ignore)) for part in name.split(".")):
            reason = "ignored"
        elif inside and name.startswith(inside):
            reason = "inside nn.MultiheadAttention"
        elif type(layer) is not nn.Linear:
            reason = f"of type {type(layer).__name__}"
        elif any(size % multiple for size in sizes):
            reason = f"with sizes that are no multiples of {multiple}"
        elif min(sizes) < min_features or not accept(layer):
            reason = "too small"
        else:
            refuse_hooks(name, layer)
            choice.chosen[name] = layer
            continue
        choice.kept[reason] += id(layer) not in counted
        counted.add(id(layer))
    return choice


def refuse_hooks(name: str, layer: nn.Module) -> None:
    """Raise ValueError if a layer has hooks: a layer that takes its place would never call them."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    if any(hooks):
        raise ValueError(
            f"{name} has hooks, which would be lost when the layer is converted: remove them, register them later, or "
            "name the layer in ignore."
        )


def no_layers(module: nn.Module, choice: LayerChoice, purpose: str, advice: str) -> ValueError:
    """Return the error of a module that has nothing to convert; other advice if something else converted it.

    Args:
        module: The module.
        choice: What was kept.
        purpose: What the layers were to be.
        advice: What to do.
    """
    if any(reason.startswith("converted") for reason in choice.kept):
        advice = "Another plugin or callback converts the same layers: leave one of the two out."
    return ValueError(f"{type(module).__name__} has no linear layer {purpose} (kept: {choice.reasons()}). {advice}")


def find_part(module: nn.Module, name: str | None, user: str) -> nn.Module:
    """Return a part of a module by its dotted name, or the module itself.

    Raises:
        ValueError: If it has no such part, naming those it has, or the part is one linear layer, which cannot be
            replaced in itself.
    """
    try:
        part: nn.Module = attrgetter(name)(module) if name else module
    except AttributeError as error:
        parts = ", ".join(child for child, _ in module.named_children())
        raise ValueError(
            f"{type(module).__name__} has no part {name!r}; it has {parts or 'none'}. Give one of them as "
            f"{user}(part=...)."
        ) from error
    if isinstance(part, nn.Linear):
        raise ValueError(f"{user}(part={name!r}) is a linear layer itself: give the part that holds it.")
    return part


def words(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return names as a tuple; one name may be given by itself."""
    return (names,) if isinstance(names, str) else tuple(names)


def swap_layers(
    module: nn.Module, choice: LayerChoice, convert: Callable[[Callable[[nn.Module, str], bool]], Any]
) -> None:
    """Let a library replace the chosen layers in place.

    Args:
        module: The module.
        choice: What is to be replaced.
        convert: The library's function, given a filter of layers and names. It makes layers in training mode, and makes
            two of one that stands in two places; here each is as it was.
    """
    convert(lambda _, name: name in choice.chosen)
    new: dict[int, nn.Module] = {}
    for name, old in choice.chosen.items():
        layer = new.setdefault(id(old), module.get_submodule(name))
        module.set_submodule(name, layer.train(old.training))


def require(library: str, user: str, extra: str, instead: str) -> None:
    """Raise ModuleNotFoundError, with the way out, if an optional library is not installed."""
    if find_spec(library) is None:
        raise ModuleNotFoundError(
            f"{user} needs {library}: pip install 'lightning-zoo[{extra}]', or use {instead} instead."
        )


def num_parameters(module: nn.Module) -> int:
    """Return the number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def megabytes(number: int) -> str:
    """Return a number of bytes as a text."""
    return f"{number / 1e6:.2f} MB"
