"""A frozen part of a module in 8 or 4 bits."""

from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info

from zoo.precision.frozen import (
    Library,
    Mode,
    check_record,
    find_library,
    quantizations,
    quantize_frozen,
    save_quantization,
)
from zoo.precision.layers import IGNORED, SHARDED, find_part, words


class QuantizeFrozen(Callback):
    """Pack the weights of a frozen part of any module into 8 or 4 bits, before fit or evaluation begins.

    The part is what ``part`` names: the backbone under a head or under prompts, a teacher. It must not train, and it
    must have its weights when the Trainer calls ``setup``. One line says what was converted, what was kept and why, and
    the bytes before and after.

    Checkpoints do not hold the packed weights. They hold the mode and a fingerprint of the weights, and what does not
    fit is refused. zoo's methods quantise themselves again when they load such a checkpoint; another module needs this
    callback to load one.

    Args:
        mode: See :func:`zoo.precision.quantize_frozen`, as the next two. Where something below the part trains, such as
            prompts, "int8-dynamic" is refused at the first step.
        part: Name of the frozen submodule; dots are allowed.
        keep: Beginnings of names of layers that stay as they are.
        library: "bitsandbytes" or "torchao". Default: the first that is installed and serves the mode.

    Raises:
        ValueError: If the module has no such part, the part trains, has no linear layer, is quantised in another way,
            or the strategy shards.
        ModuleNotFoundError: If the library is not installed.

    Source:
        Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", NeurIPS 2022; Dettmers et
        al., "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023.
    """

    def __init__(
        self,
        mode: Mode = "int8",
        part: str = "backbone",
        keep: str | tuple[str, ...] | list[str] = IGNORED,
        library: Library | None = None,
    ) -> None:
        self.mode = mode
        self.part = part
        self.keep = list(words(keep))
        self.library = find_library(mode, library)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Quantise, once."""
        if type(trainer.strategy).__name__ in SHARDED:
            raise ValueError(
                f"QuantizeFrozen packs weights, which {type(trainer.strategy).__name__} cannot shard: use "
                "strategy='ddp', or one device."
            )
        part = find_part(pl_module, self.part, "QuantizeFrozen")
        done = quantizations(pl_module).get(self.part)
        if done is None:
            report = quantize_frozen(part, self.mode, self.keep, self.library, trainer.strategy.root_device)
            rank_zero_info(f"QuantizeFrozen, {self.part}: {report}")
        elif (done["mode"], done["keep"], done["library"]) != (self.mode, self.keep, self.library):
            raise ValueError(f"{self.part} is quantised already, as {done}: build the module anew for another mode.")

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Check, once an epoch, that nothing woke the part: its biases would train on weights that cannot."""
        part = find_part(pl_module, self.part, "QuantizeFrozen")
        if batch_idx == 0 and any(parameter.requires_grad for parameter in part.parameters()):
            raise ValueError(
                f"{self.part} of {type(pl_module).__name__} is quantised and was unfrozen in epoch "
                f"{trainer.current_epoch}: leave QuantizeFrozen out, or keep the part frozen."
            )

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Note what was done, also where the module does not."""
        save_quantization(pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Check that the same was done in the run of the checkpoint, if anything was."""
        saved = checkpoint.get("quantization", {}).get(self.part)
        if saved is not None:
            check_record(self.part, quantizations(pl_module)[self.part], saved)
