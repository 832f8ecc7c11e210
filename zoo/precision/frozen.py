"""Frozen linear layers with 8-bit or 4-bit weights, for networks that are run and not trained.

The packed weights are no parameters, no buffers, and not in the module's state: a checkpoint never holds them. It holds
what was done and a fingerprint of the weights it was done to, and loading does it again.

bitsandbytes: https://github.com/bitsandbytes-foundation/bitsandbytes. torchao: https://github.com/pytorch/ao. Dettmers
et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", NeurIPS 2022; "QLoRA: Efficient Finetuning
of Quantized LLMs", NeurIPS 2023 (NF4).
"""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from zoo.precision.layers import IGNORED, LayerChoice, choose_layers, megabytes, no_layers, words

Mode = Literal["int8", "int8-dynamic", "nf4", "nf4-dq", "fp4", "fp4-dq"]
Library = Literal["bitsandbytes", "torchao"]

LIBRARIES: dict[str, tuple[Library, ...]] = {  # the first is taken that is installed
    "int8": ("bitsandbytes", "torchao"),
    "int8-dynamic": ("torchao",),
    **dict.fromkeys(("nf4", "nf4-dq", "fp4", "fp4-dq"), ("bitsandbytes",)),
}
EXTRAS = {"bitsandbytes": "quantization", "torchao": "float8"}
KEY = "quantization"  # in checkpoints
PLUGIN = "BitsandbytesPrecision"  # Lightning's, which packs layers by itself


def quantize_frozen(
    module: nn.Module,
    mode: Mode = "int8",
    keep: str | Sequence[str] = IGNORED,
    library: Library | None = None,
    device: torch.device | None = None,
) -> str:
    """Replace the linear layers of a frozen module by layers with packed weights, in place.

    :func:`zoo.precision.choose_layers` says which; for 4 bits both sizes must be multiples of 64, for 8 bits of 8.
    Biases stay as they are. Load the module's weights before; loading a state with other weights later is refused.

    Args:
        module: The module, or a part of one, with no parameter that trains.
        mode: "int8" (bitsandbytes: weights and activations, LLM.int8(); torchao: weights), "int8-dynamic" (torchao:
            weights and activations, no gradient to the inputs), "nf4" or "fp4" (weights in blocks of 64; with "-dq"
            their scales are quantised too).
        keep: Beginnings of names of layers that stay as they are.
        library: Default: bitsandbytes where it serves the mode and is installed, else torchao.
        device: Where to quantise. Default: where each layer is.

    Returns:
        What was done, in one line.

    Raises:
        ValueError: If a parameter trains, the module is one linear layer or has none, is quantised or sharded already,
            or the library does not serve the mode.
        ModuleNotFoundError: If the library is not installed.

    Source:
        Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", NeurIPS 2022; Dettmers et
        al., "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023.
    """
    library, keep = find_library(mode, library), words(keep)
    if isinstance(module, nn.Linear):
        raise ValueError("A linear layer cannot be replaced in itself: quantise the module that holds it.")
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    if trained:
        raise ValueError(
            f"{type(module).__name__} has parameters that train ({trained[0]} and {len(trained) - 1} more), which "
            "packed weights cannot: freeze it first (train_backbone=False where a method has it, zoo.nn.freeze "
            "elsewhere), or train it with an 8-bit optimizer instead."
        )
    choice = choose_layers(module, keep, multiple=64 if "4" in mode else 8)
    check_choice(module, choice)
    report, before = choice.describe(module), bytes_of(module)
    new: dict[int, QuantizedLinear] = {}
    for name, layer in choice.chosen.items():  # a layer that stands in two places still does
        if id(layer) not in new:
            new[id(layer)] = QuantizedLinear(layer, mode, library, device).train(layer.training)
        module.set_submodule(name, new[id(layer)])
    record = {"mode": mode, "keep": list(keep), "library": library, "weights": fingerprint(new.values())}
    module.quantization = record  # type: ignore[assignment]  # a plain attribute
    return f"{mode} ({library}): {report}; {megabytes(before)} before and {megabytes(bytes_of(module))} after."


def find_library(mode: str, library: Library | None = None) -> Library:
    """Return the library that serves a mode."""
    if mode not in LIBRARIES:
        raise ValueError(f"mode={mode!r} is unknown; known are {', '.join(LIBRARIES)}.")
    serving = LIBRARIES[mode]
    if library is not None and library not in serving:
        raise ValueError(f"library={library!r} has no mode={mode!r}: use {' or '.join(serving)}.")
    wanted = serving if library is None else (library,)
    for name in wanted:
        if find_spec(name) is not None:
            return name
    raise ModuleNotFoundError(
        f"mode={mode!r} needs {wanted[0]}: pip install 'lightning-zoo[{EXTRAS[wanted[0]]}]', or leave the network "
        "as it is."
    )


def check_choice(module: nn.Module, choice: LayerChoice) -> None:
    """Raise ValueError if there is nothing to quantise, or it must not be."""
    name = type(module).__name__
    if hasattr(module, "quantization"):
        raise ValueError(f"{name} is quantised already, as {module.quantization}: build it anew for another mode.")
    if choice.kept["sharded"]:
        raise ValueError(f"{name} is sharded, and packed weights are not: use strategy='ddp', or one device.")
    if not choice.chosen:
        advice = "Convolutional networks have none: use precision='bf16-true' to save memory."
        raise no_layers(module, choice, "to quantise", advice)


class QuantizedLinear(nn.Module):
    """A frozen linear layer whose weight is packed.

    Args:
        layer: The layer to take weight and bias of.
        mode: See :func:`quantize_frozen`.
        library: See there.
        device: See there.
    """

    def __init__(self, layer: nn.Linear, mode: str, library: Library, device: torch.device | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.mode = mode
        self.digest = digest(layer.weight)
        weight = layer.weight.detach().to(device or layer.weight.device)
        # Not a buffer: DDP copies the first process's buffers to all at each step.
        self.packed: Packed = (
            TorchaoWeight(weight, mode)
            if library == "torchao"
            else Int8Weight(weight)
            if mode == "int8"
            else FourBitWeight(weight, mode)
        )
        self.bias = layer.bias
        self.to(weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer returns, in the precision of the input or of autocast."""
        if self.mode == "int8-dynamic" and torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError(
                "mode='int8-dynamic' gives no gradient to what lies below the layer, such as prompts: it would be "
                "zero. Use mode='int8' there."
            )
        if torch.is_autocast_enabled(x.device.type):  # which does not know packed weights
            x = x.to(torch.get_autocast_dtype(x.device.type))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y = self.packed.linear(x.reshape(-1, self.in_features), bias)
        return y.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def extra_repr(self) -> str:
        """Say what it is in a printed module."""
        return f"in_features={self.in_features}, out_features={self.out_features}, mode={self.mode}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedLinear":
        # Whole numbers are moved and never cast, so one tells where to.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        probe = torch.empty(0, dtype=torch.uint8, device=self.packed.tensors()[0].device)
        self.packed.move(fn(probe).device)
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Accept the weight that was packed, and no other."""
        weight = state_dict.pop(f"{prefix}weight", None)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if weight is not None and digest(weight) != self.digest:
            args[-1].append(f"{prefix}weight is not the one that was quantised: load weights first, quantise then.")


# Packed weights of each library ---------------------------------------------------------------------------------------


class Packed(ABC):
    """A weight as a library packs it."""

    @abstractmethod
    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return x of shape (N, in) times the weight, plus the bias, of shape (N, out)."""

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """Return all that takes memory."""

    @abstractmethod
    def move(self, device: torch.device) -> None:
        """Move to a device, without a cast."""


class Int8Weight(Packed):
    """8 bits for each number, and a scale for each row, by bitsandbytes."""

    def __init__(self, weight: Tensor) -> None:
        import bitsandbytes

        silence_bitsandbytes()
        self.codes, self.scale, _ = bitsandbytes.functional.int8_vectorwise_quant(weight.contiguous().half())

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Quantise the rows of x, multiply whole numbers, and scale."""
        import bitsandbytes

        state = bitsandbytes.MatmulLtState()
        state.CB, state.SCB, state.has_fp16_weights, state.is_training = self.codes, self.scale, False, False
        y: Tensor = bitsandbytes.matmul(x, self.codes, bias=bias, state=state)
        return y

    def tensors(self) -> list[Tensor]:
        """Return codes and scales."""
        return [self.codes, self.scale]

    def move(self, device: torch.device) -> None:
        """Move to a device."""
        self.codes, self.scale = self.codes.to(device), self.scale.to(device)


class FourBitWeight(Packed):
    """4 bits for each number, and a scale for each block of 64, by bitsandbytes."""

    def __init__(self, weight: Tensor, mode: str) -> None:
        import bitsandbytes

        kind, _, nested = mode.partition("-")
        self.codes, self.state = bitsandbytes.functional.quantize_4bit(
            weight.contiguous(), blocksize=64, compress_statistics=bool(nested), quant_type=kind
        )

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply by the unpacked weight."""
        import bitsandbytes

        y: Tensor = bitsandbytes.matmul_4bit(x, self.codes.t(), quant_state=self.state, bias=bias)
        return y

    def tensors(self) -> list[Tensor]:
        """Return codes, scales, and their own scales."""
        second = self.state.state2
        own = [self.codes, self.state.absmax, self.state.code]
        return own if second is None else [*own, self.state.offset, second.absmax, second.code]

    def move(self, device: torch.device) -> None:
        """Move to a device."""
        self.codes = self.codes.to(device)
        self.state.to(device)  # in place


class TorchaoWeight(Packed):
    """A weight that torchao quantised: a tensor of its own kind."""

    def __init__(self, weight: Tensor, mode: str) -> None:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        quantize_(layer, Int8WeightOnlyConfig() if mode == "int8" else Int8DynamicActivationInt8WeightConfig())
        self.weight = layer.weight.detach()

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply by the unpacked weight, or whole numbers."""
        return F.linear(x, self.weight, bias)

    def tensors(self) -> list[Tensor]:
        """Return codes and scales."""
        weight: Any = self.weight
        return [getattr(weight, name) for name in weight.__tensor_flatten__()[0] if getattr(weight, name) is not None]

    def move(self, device: torch.device) -> None:
        """Move to a device."""
        self.weight = self.weight.to(device)


def silence_bitsandbytes() -> None:
    """Leave out what bitsandbytes says at every call: that it rounds inputs to float16 before it quantises them."""
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    if not logger.filters:
        logger.addFilter(lambda record: "inputs will be cast" not in record.getMessage())


# Checkpoints ----------------------------------------------------------------------------------------------------------


def quantizations(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Return what :func:`quantize_frozen`, or Lightning's plugin, did to parts of a module, by their names."""
    done = {name: part.quantization for name, part in module.named_modules() if hasattr(part, "quantization")}
    for name, part in module.named_children():
        kinds = {type(layer) for layer in part.modules() if isinstance(layer, nn.Linear)}
        packed = sorted(kind.__name__ for kind in kinds if kind.__module__.startswith(("bitsandbytes.", "lightning.")))
        if packed:
            done[name] = {"mode": ", ".join(packed), "keep": [], "library": PLUGIN, "weights": None}
    return done


def save_quantization(module: nn.Module, checkpoint: MutableMapping[str, Any]) -> None:
    """Note in a checkpoint which parts are quantised, and how; for ``on_save_checkpoint``.

    Args:
        module: The module that is saved.
        checkpoint: What is about to be written.
    """
    if found := quantizations(module):
        checkpoint[KEY] = found


def restore_quantization(module: nn.Module, checkpoint: Mapping[str, Any], exact: bool = False) -> None:
    """Quantise a module as the one was that a checkpoint is of; for ``on_load_checkpoint``, before anything else there.

    Args:
        module: The module that is about to load; its frozen parts have their weights.
        checkpoint: What it is about to load.
        exact: Refuse a module that is quantised where the one of the checkpoint was not: for a method whose state, such
            as class means, belongs to the very features.

    Raises:
        ValueError: If the module is quantised otherwise, or other weights are.
    """
    saved: dict[str, Any] = checkpoint.get(KEY, {})
    own = quantizations(module)
    for name, record in saved.items():
        if name not in own and record["library"] == PLUGIN:
            raise ValueError(
                f"{name} was packed by Lightning's {PLUGIN} in the run of the checkpoint, whose state belongs to the "
                "features of that precision: give the same plugin, or fit anew, with the callback QuantizeFrozen."
            )
        if name not in own:
            report = quantize_frozen(module.get_submodule(name), record["mode"], record["keep"], record["library"])
            rank_zero_info(f"Quantised {name or type(module).__name__} as in the checkpoint: {report}")
            own[name] = quantizations(module)[name]
        check_record(name, own[name], record)
    if exact and (more := own.keys() - saved.keys()):
        raise ValueError(
            f"{', '.join(sorted(more))} of {type(module).__name__} is quantised, and was not in the run of the "
            "checkpoint, whose state belongs to the features of that precision: leave QuantizeFrozen out, or fit anew."
        )


def check_record(name: str, own: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise ValueError if a part is quantised in another way than in the checkpoint."""
    if {**own, "weights": None} != {**saved, "weights": None}:
        told = [f"mode={it['mode']!r} (library={it['library']!r}, keep={it['keep']})" for it in (saved, own)]
        raise ValueError(f"{name} was quantised by {told[0]} in the run of the checkpoint, and is by {told[1]} here.")
    if own["weights"] != saved["weights"]:
        raise ValueError(
            f"The weights of {name} are not those that were quantised in the run of the checkpoint, which does not "
            "hold them: build the module with the weights (name, file, or seed) of that run."
        )


def digest(weight: Tensor) -> str:
    """Return a fingerprint of a weight."""
    return hashlib.sha256(weight.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def fingerprint(layers: Any) -> str:
    """Return a fingerprint of the weights of quantised layers, in order."""
    return hashlib.sha256("".join(layer.digest for layer in layers).encode()).hexdigest()[:16]


def bytes_of(module: nn.Module) -> int:
    """Return the bytes of a module's parameters, buffers and packed weights, shared ones once."""
    tensors = [*module.parameters(), *module.buffers()]
    layers = {id(part): part for part in module.modules() if isinstance(part, QuantizedLinear)}
    tensors += [tensor for layer in layers.values() for tensor in layer.packed.tensors()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
