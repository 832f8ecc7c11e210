"""FP8 training as a Lightning precision plugin, on torchao.

The matrix products of the linear layers run in 8-bit floating point, forward and backward; weights, gradients and
optimizer stay as they are, so checkpoints are plain and load into the unconverted module and back.

torchao: https://github.com/pytorch/ao, ``torchao.float8``. Micikevicius et al., "FP8 Formats for Deep Learning", 2022,
https://arxiv.org/abs/2209.05433.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from zoo.precision.layers import (
    IGNORED,
    LayerChoice,
    choose_layers,
    megabytes,
    no_layers,
    require,
    swap_layers,
    words,
)

Recipe = Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"]
Compute = Literal["bf16-mixed", "bf16-true", "32-true"]

MULTIPLE = 16  # what the products of the hardware ask of every size


class Float8Precision(Precision):
    """Train the linear layers of any module in FP8, on one device, under DDP, or sharded by FSDP2.

    Give it to the Trainer as a plugin and leave ``precision`` out. Speed needs a GPU with FP8 (compute capability 8.9)
    and ``torch.compile``; small layers become slower. :func:`zoo.precision.choose_layers` says which layers stay as
    they are. One line at the start of fit says how many were converted.

    Converted layers do not work in ``torch.inference_mode``: ``validate``, ``test`` and ``predict`` of this Trainer run
    under ``torch.no_grad`` instead.

    Args:
        recipe: "tensorwise" is the fastest. "rowwise" scales each row; "rowwise_with_gw_hp" leaves the gradient of the
            weights in high precision. The last two are more exact and slower.
        compute: The precision of everything else, as Lightning names it.
        ignore: Beginnings of names of layers that stay as they are.
        min_features: Smallest layer, in inputs and outputs.
        auto_filter: Leave out those layers that torchao's table for an H100 calls too small to gain.
        pad: Pad sizes that are no multiples of 16, such as batch times tokens, instead of refusing them.
        emulate: Compute as FP8 would, in high precision, on any device: for tests, slower than without.

    Raises:
        ValueError: If arguments do not go together, no layer can be converted, or a training batch has a size that the
            hardware does not take.
        RuntimeError: If the device has no FP8, or the module was sharded before it was converted.
        ModuleNotFoundError: If torchao is not installed.

    Source:
        Micikevicius et al., "FP8 Formats for Deep Learning", 2022.
    """

    precision: Any = "float8"

    def __init__(
        self,
        recipe: Recipe = "tensorwise",
        compute: Compute = "bf16-mixed",
        ignore: str | Sequence[str] = IGNORED,
        min_features: int = 0,
        auto_filter: bool = False,
        pad: bool = False,
        emulate: bool = False,
    ) -> None:
        if recipe not in ("tensorwise", "rowwise", "rowwise_with_gw_hp"):
            raise ValueError(f"recipe={recipe!r} must be 'tensorwise', 'rowwise' or 'rowwise_with_gw_hp'.")
        if compute not in ("bf16-mixed", "bf16-true", "32-true"):
            raise ValueError(
                f"compute={compute!r} must be 'bf16-mixed', 'bf16-true' or '32-true': FP8 needs no float16."
            )
        if auto_filter and recipe == "rowwise_with_gw_hp":
            raise ValueError("auto_filter has no table for recipe='rowwise_with_gw_hp': use min_features instead.")
        self.recipe = recipe
        self.compute = compute
        self.ignore = words(ignore)
        self.min_features = min_features
        self.auto_filter = auto_filter
        self.pad = pad
        self.emulate = emulate
        # The device of autocast is known once there is a module.
        self._inner = HalfPrecision("bf16-true") if compute == "bf16-true" else Precision()

    # The layers -----------------------------------------------------------------------------------------------------

    def convert(self, module: nn.Module) -> nn.Module:
        """Convert a module in place; a second call finds nothing left to do.

        A method that shards itself calls it in ``configure_model``, before it shards (:func:`zoo.precision.shard` does
        so); otherwise Lightning calls it.
        """
        device = device_of(module)
        self._check(device)
        choice = self.choose(module)
        if not choice.chosen:
            self._refuse_nothing(module, choice)
            return module
        from torchao.float8 import convert_to_float8_training

        report, bytes_before = choice.describe(module), num_bytes(module)
        config = self._config()
        swap_layers(
            module, choice, lambda chosen: convert_to_float8_training(module, module_filter_fn=chosen, config=config)
        )
        if not (self.emulate or self.pad):
            self._check_batches(module, choice)
        kind = f"{self.recipe} (emulated)" if self.emulate else self.recipe
        sizes = f"parameters {megabytes(bytes_before)} before and {megabytes(num_bytes(module))} after"
        rank_zero_info(f"float8 {kind}: {report}; {sizes}.")
        return module

    def choose(self, module: nn.Module) -> LayerChoice:
        """Return the layers that are to be converted; those that are so already are not among them."""
        if not self.auto_filter:
            return choose_layers(module, self.ignore, MULTIPLE, self.min_features)
        from torchao.float8.float8_linear_utils import _auto_filter_for_recipe  # has no public name

        large = _auto_filter_for_recipe(self.recipe, [])
        return choose_layers(module, self.ignore, MULTIPLE, self.min_features, lambda layer: large(layer, ""))

    def _config(self) -> Any:
        from torchao.float8 import Float8LinearConfig

        config = Float8LinearConfig.from_recipe_name(self.recipe)
        return replace(config, emulate=self.emulate, pad_inner_dim=self.pad)

    def _check(self, device: torch.device) -> None:
        """Raise unless library, device and precisions go together."""
        require("torchao", "Float8Precision", "float8", "precision='bf16-mixed'")
        if not self.emulate and (reason := why_no_float8(device)):
            raise RuntimeError(
                f"FP8 needs a GPU of compute capability 8.9 or more (Ada, Hopper, Blackwell), got {reason}. Use "
                "precision='bf16-mixed', or Float8Precision(emulate=True) to try the arithmetic, slowly."
            )
        if (self.recipe, self.compute, device.type) == ("rowwise_with_gw_hp", "bf16-mixed", "cpu"):
            raise ValueError("recipe='rowwise_with_gw_hp' fails on a CPU with compute='bf16-mixed': use '32-true'.")

    def _refuse_nothing(self, module: nn.Module, choice: LayerChoice) -> None:
        """Raise unless there are converted layers already."""
        from torchao.float8.float8_linear import Float8Linear

        if any(isinstance(part, Float8Linear) for part in module.modules()):
            return
        if choice.kept["sharded"]:
            raise RuntimeError(
                f"{type(module).__name__} was sharded before it was converted: call zoo.precision.shard, or "
                "self.trainer.precision_plugin.convert(self) before fully_shard, in configure_model."
            )
        advice = "Use precision='bf16-mixed'; for convolutional networks that is the way to speed."
        raise no_layers(module, choice, "that FP8 suits", advice)

    def _check_batches(self, module: nn.Module, choice: LayerChoice) -> None:
        """Let the first layer that trains look at the sizes of its inputs."""
        trained = [name for name, layer in choice.chosen.items() if layer.weight.requires_grad]
        if trained:
            module.get_submodule(trained[0]).register_forward_pre_hook(check_rows)

    # Lightning's hooks ----------------------------------------------------------------------------------------------

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Convert a LightningModule, and let the Trainer evaluate without ``inference_mode``."""
        trainer: Any = module.trainer
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            raise RuntimeError(
                "Float8Precision does not work with DeepSpeed, which takes over backward and step: use strategy='ddp', "
                "or ModelParallelStrategy."
            )
        for loop in (trainer.validate_loop, trainer.test_loop, trainer.predict_loop):
            loop.inference_mode = False
        if self.compute == "bf16-mixed":
            self._inner = MixedPrecision("bf16-mixed", device_of(module).type)
        return self.convert(self._inner.convert_module(module))

    def convert_input(self, data: Any) -> Any:
        """Cast a batch as ``compute`` says."""
        return self._inner.convert_input(data)

    def convert_output(self, data: Any) -> Any:
        """Cast outputs as ``compute`` says."""
        return self._inner.convert_output(data)

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """Return the context in which tensors are made."""
        return self._inner.tensor_init_context()

    def module_init_context(self) -> AbstractContextManager[Any]:
        """Return the context in which modules are made."""
        return self._inner.module_init_context()

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return the context of a step."""
        return self._inner.forward_context()


def device_of(module: nn.Module) -> torch.device:
    """Return the device that a module will run on: its Trainer's, else the one it is on."""
    trainer: Any = getattr(module, "_trainer", None)  # the public name raises where there is none
    if trainer is not None:
        return torch.device(trainer.strategy.root_device)
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def why_no_float8(device: torch.device) -> str:
    """Return what is wrong with a device, or nothing if it multiplies in FP8."""
    if device.type != "cuda":
        return f"a device of type {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    return "" if (major, minor) >= (8, 9) else f"{torch.cuda.get_device_name(device)} with {major}.{minor}"


def check_rows(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Raise ValueError if the rows of a training batch are no multiple of 16, which the gradient's product needs."""
    rows = inputs[0].numel() // inputs[0].shape[-1]
    if layer.training and torch.is_grad_enabled() and rows % MULTIPLE:
        raise ValueError(
            f"FP8 needs batch size times tokens to be a multiple of {MULTIPLE}, got {rows} (inputs of shape "
            f"{tuple(inputs[0].shape)}): use a batch size that is one and drop_last=True, or Float8Precision(pad=True)."
        )


def num_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
