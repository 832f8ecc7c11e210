"""Quantisation-aware training: learn weights that bear 4 bits. Experimental."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from zoo.precision.layers import IGNORED, SHARDED, choose_layers, find_part, no_layers, require, swap_layers, words


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
        ValueError: If an argument is out of range, no layer can be converted, or the strategy shards them before.
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
        ignore: str | Sequence[str] = IGNORED,
    ) -> None:
        if group_size < 1 or start_epoch < 0:
            raise ValueError(f"group_size={group_size} must be positive, start_epoch={start_epoch} not negative.")
        require("torchao", "QAT", "float8", "training without it")
        self.part = part
        self.group_size = group_size
        self.start_epoch = start_epoch
        self.ignore = words(ignore)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Prepare what rounds from the beginning on."""
        if self.start_epoch > 0 and type(trainer.strategy).__name__ in SHARDED:
            raise ValueError(
                f"QAT converts layers, which {type(trainer.strategy).__name__} has sharded by epoch "
                f"start_epoch={self.start_epoch}: use start_epoch=0, or strategy='ddp'."
            )
        self.prepare(pl_module, convert=stage != "fit" or self.start_epoch == 0)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Prepare when the time has come, also in a run that resumes later than that."""
        if trainer.current_epoch >= self.start_epoch:
            self.prepare(pl_module)

    def prepare(self, pl_module: Any, convert: bool = True) -> None:
        """Let the layers round, or only see whether they can; a second call finds nothing left to do."""
        from torchao.quantization import quantize_
        from torchao.quantization.qat import QATConfig
        from torchao.quantization.qat.linear import FakeQuantizedLinear

        module = self._module(pl_module)
        choice = choose_layers(module, self.ignore, accept=lambda layer: layer.in_features % self.group_size == 0)
        if not choice.chosen:
            if any(isinstance(layer, FakeQuantizedLinear) for layer in module.modules()):
                return
            purpose = f"with inputs in groups of {self.group_size}"
            raise no_layers(module, choice, purpose, "Use another group_size.")
        if not convert:
            return
        report, config = choice.describe(module), QATConfig(self._base(), step="prepare")
        swap_layers(module, choice, lambda chosen: quantize_(module, config, filter_fn=chosen))
        rank_zero_info(f"QAT, int4 weights in groups of {self.group_size}: {report}; the bytes stay the same.")

    def convert(self, pl_module: Any) -> None:
        """Quantise the layers that were trained so, in place, after the fit: for inference only."""
        from torchao.quantization import quantize_
        from torchao.quantization.qat import QATConfig

        quantize_(self._module(pl_module), QATConfig(self._base(), step="convert"))

    def _module(self, pl_module: Any) -> nn.Module:
        return find_part(pl_module, self.part, "QAT")

    def _base(self) -> Any:
        """Return the quantisation that is aimed at."""
        from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerGroup

        return Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4,  # type: ignore[attr-defined]  # torch has it, its stubs have not
            weight_granularity=PerGroup(self.group_size),
        )
