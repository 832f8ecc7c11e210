"""INT8 matrix products in training, for GPUs that have no FP8. Experimental."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info

from zoo.precision.layers import IGNORED, choose_layers, find_part, no_layers, require, swap_layers, words

MULTIPLE = 16


class Int8Training(Callback):
    """Compute matrix products of linear layers in 8-bit whole numbers during fit. Experimental.

    torchao quantises weights and activations anew at each product; weights, gradients and optimizer stay as they are,
    so checkpoints are plain and load into the unconverted module and back. It saves no memory. Speed needs a GPU with
    int8 tensor cores (Ampere and later) and ``torch.compile``; where the GPU has FP8,
    :class:`zoo.precision.Float8Precision` is the more exact choice. torchao calls its part a prototype.

    The layers are converted before the optimizer is made and stay converted.

    Args:
        part: Name of the submodule to convert; dots are allowed. Default: the whole module.
        ignore: Beginnings of names of layers that stay as they are.
        output: Compute outputs in int8.
        grad_input: Compute gradients of inputs in int8.
        grad_weight: Compute gradients of weights in int8; these are the first to suffer from it.

    Raises:
        ValueError: If no layer can be converted.
        ModuleNotFoundError: If torchao is not installed.
    """

    def __init__(
        self,
        part: str | None = None,
        ignore: str | Sequence[str] = IGNORED,
        output: bool = True,
        grad_input: bool = True,
        grad_weight: bool = True,
    ) -> None:
        require("torchao", "Int8Training", "float8", "precision='bf16-mixed'")
        self.part = part
        self.ignore = words(ignore)
        self.output = output
        self.grad_input = grad_input
        self.grad_weight = grad_weight

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Convert, once."""
        if stage != "fit":
            return
        from torchao.prototype.quantized_training import Int8MixedPrecisionTrainingConfig
        from torchao.prototype.quantized_training.int8_mixed_precision import Int8MixedPrecisionTrainingLinear
        from torchao.quantization import quantize_

        module = find_part(pl_module, self.part, "Int8Training")
        choice = choose_layers(module, self.ignore, MULTIPLE)
        if not choice.chosen:
            if any(isinstance(layer, Int8MixedPrecisionTrainingLinear) for layer in module.modules()):
                return
            advice = "Use precision='bf16-mixed'; for convolutional networks that is the way to speed."
            raise no_layers(module, choice, "to train in int8", advice)
        report = choice.describe(module)
        config = Int8MixedPrecisionTrainingConfig(self.output, self.grad_input, self.grad_weight, module_swap=True)
        swap_layers(module, choice, lambda chosen: quantize_(module, config, filter_fn=chosen))
        rank_zero_info(f"Int8Training: {report}; the bytes stay the same.")
