"""Quantisation-aware training: learn weights that bear 4 bits. Experimental."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from zoo.precision.layers import IGNORED, choose_layers, require, swap_layers


class QAT(Callback):
    """Train as if weights had 4 bits and activations 8, so that quantising them afterwards costs little. Experimental.

    torchao rounds weights (int4, one scale for each group of a row) and activations (int8, one scale for each token) in
    the forward pass, and lets gradients through; the weights that train, and checkpoints, stay plain. Evaluation sees
    the rounded network too. :meth:`convert` makes it real, for deployment.

    Args:
        part: Name of the submodule to train so; dots are allowed. Default: the whole module.
        group_size: Weights of a row that share a scale; layers whose inputs it does not divide are left out.
        start_epoch: Epoch from which on it rounds; before, training is plain. Evaluations outside of a fit
            round always.
        ignore: Beginnings of names of layers that stay as they are.

    Raises:
        ValueError: If an argument is out of range or no layer can be converted.
        ModuleNotFoundError: If torchao is not installed.

    Source:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        CVPR 2018.
    """

    def __init__(
        self,
        part: str | None = None,
        group_size: int = 32,
        start_epoch: int = 0,
        ignore: Sequence[str] = IGNORED,
    ) -> None:
        if group_size < 1 or start_epoch < 0:
            raise ValueError(f"group_size={group_size} must be positive, start_epoch={start_epoch} not negative.")
        require("torchao", "QAT", "float8", "training without it")
        self.part = part
        self.group_size = group_size
        self.start_epoch = start_epoch
        self.ignore = tuple(ignore)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Prepare what rounds from the beginning on."""
        if stage != "fit" or self.start_epoch == 0:
            self.prepare(pl_module)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Prepare when the time has come, also in a run that resumes later than that."""
        if trainer.current_epoch >= self.start_epoch:
            self.prepare(pl_module)

    def prepare(self, pl_module: Any) -> None:
        """Let the layers round; a second call finds nothing left to do."""
        from torchao.quantization import quantize_
        from torchao.quantization.qat import QATConfig
        from torchao.quantization.qat.linear import FakeQuantizedLinear

        module = self._module(pl_module)
        choice = choose_layers(module, self.ignore, accept=lambda layer: layer.in_features % self.group_size == 0)
        if not choice.chosen:
            if any(isinstance(layer, FakeQuantizedLinear) for layer in module.modules()):
                return
            raise ValueError(
                f"{type(module).__name__} has no linear layer with inputs in groups of {self.group_size} (kept: "
                f"{choice.reasons()}): use another group_size."
            )
        report, config = choice.describe(module), QATConfig(self._base(), step="prepare")
        swap_layers(module, choice, lambda chosen: quantize_(module, config, filter_fn=chosen))
        rank_zero_info(f"QAT, int4 weights in groups of {self.group_size}: {report}; the bytes stay the same.")

    def convert(self, pl_module: Any) -> None:
        """Quantise the layers that were trained so, in place, after the fit: for inference only."""
        from torchao.quantization import quantize_
        from torchao.quantization.qat import QATConfig

        quantize_(self._module(pl_module), QATConfig(self._base(), step="convert"))

    def _module(self, pl_module: Any) -> nn.Module:
        module: nn.Module = attrgetter(self.part)(pl_module) if self.part else pl_module
        return module

    def _base(self) -> Any:
        """Return the quantisation that is aimed at."""
        from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerGroup

        return Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4,  # type: ignore[attr-defined]  # torch has it, its stubs have not
            weight_granularity=PerGroup(self.group_size),
        )
