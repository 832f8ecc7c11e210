"""What looking ahead costs: step time and peak memory of FST against MeanTeacher, in one run.

An iteration of FST computes K + 1 gradients instead of one, each of as many forward and backward passes as an iteration
of the mean teacher. So K + 1 is the ratio of step times that the count explains, and the column ratio/gradients is what
is on top of it. Memory is the peak of all tensors that an iteration makes, beside those that are there before it:
activations, gradients, and what the look ahead holds. The last column has what FST holds more at that moment, in copies
of the student's parameters.

    python benchmarks/fst.py
    python benchmarks/fst.py --accelerator gpu --width 96 --size 256 --batch_size 16

Targets: ratio/gradients at most 1.1; one step ahead holds nothing more; three deep ones hold one backup and the virtual
moments (SGD 1, AdamW 2); the wide variant with SGD holds the sum of the gradients, which lives on while the next one is
computed, and with AdamW the mean of the future students.

Last measured on one thread of a processor that others used too, a U-shape of 250,000 parameters, 4 + 4 images of 64
pixels (half a minute):

    SGD                    ms/iteration  ratio  gradients  ratio/gradients  copies
    MeanTeacher                    40.7   1.00          1            1.000    0.00
    FST, 1 step                    77.6   1.91          2            0.953    0.00
    FST, 3 deep                   151.4   3.72          4            0.930    2.00
    FST, 3 deep, carried          154.4   3.79          4            0.948    1.00
    FST, 3 wide                   151.2   3.72          4            0.929    1.00
    AdamW
    MeanTeacher                    39.5   1.00          1            1.000    0.00
    FST, 1 step                    78.0   1.97          2            0.987    0.00
    FST, 3 deep                   161.0   4.07          4            1.019    3.00
    FST, 3 deep, carried          155.6   3.94          4            0.985    1.00
    FST, 3 wide                   151.9   3.84          4            0.961    1.00
"""

import argparse
import statistics
import time
import weakref
from functools import partial
from typing import Any

import lightning.pytorch as L
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import zoo
from zoo.datamodules import DomainAdaptationDataModule
from zoo.datamodules.sources import SyntheticScenes

VARIANTS: dict[str, dict[str, Any]] = {
    "MeanTeacher": {"ahead_steps": 0},
    "FST, 1 step": {"ahead_steps": 1},
    "FST, 3 deep": {"ahead_steps": 3},
    "FST, 3 deep, carried": {"ahead_steps": 3, "optimizer_state": "carried"},
    "FST, 3 wide": {"ahead_steps": 3, "variant": "wide"},
}
OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-4),
}


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is on, and the largest sum of those alive."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at what it returns."""
        outputs = func(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(outputs):
            if not isinstance(leaf, torch.Tensor):
                continue
            storage = leaf.untyped_storage()
            if storage._cdata not in self.sizes and storage._cdata not in given:
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata, 0)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return outputs


class Measure(L.Callback):
    """Times iterations after the first few, and measures the memory of the last one."""

    def __init__(self, skip: int) -> None:
        self.skip = skip
        self.seconds: list[float] = []
        self.peak = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start the clock, in the last iteration the count of bytes."""
        self.last = batch_idx == trainer.num_training_batches - 1
        self.cuda = pl_module.device.type == "cuda"
        if self.last and self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        elif self.last:
            self.live = LiveTensors()
            self.live.__enter__()
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop."""
        if self.cuda:
            torch.cuda.synchronize()
        if not self.last and batch_idx >= self.skip:
            self.seconds.append(time.perf_counter() - self.start)
        if self.last and self.cuda:
            self.peak = torch.cuda.max_memory_allocated() - self.before
        elif self.last:
            self.live.__exit__(None, None, None)
            self.peak = self.live.peak


def run(options: dict[str, Any], optimizer: Any, arguments: argparse.Namespace) -> tuple[float, int, int]:
    """Return the median time of an iteration, the peak of its memory, and the size of the trained parameters."""
    torch.manual_seed(0)
    method = zoo.FST(
        4, network="small_unet", network_args={"width": arguments.width}, start_step=0, optimizer=optimizer, **options
    )
    scenes = partial(SyntheticScenes, 4, arguments.size, arguments.batch_size * 4)
    data = DomainAdaptationDataModule(
        scenes(), scenes(seed=1), batch_size=arguments.batch_size, steps_per_epoch=arguments.steps, future=3
    )
    measure = Measure(skip=3)
    trainer = L.Trainer(
        max_epochs=1, accelerator=arguments.accelerator, devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, callbacks=[measure],
    )  # fmt: skip
    trainer.fit(method, data)
    size = sum(parameter.numel() * parameter.element_size() for parameter in method.student.parameters())
    return statistics.median(measure.seconds), measure.peak, size


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=2, help="each variant's best round counts")
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, {arguments}")
    for name, optimizer in OPTIMIZERS.items():
        rounds = [
            {variant: run(options, optimizer, arguments) for variant, options in VARIANTS.items()}
            for _ in range(arguments.rounds)
        ]
        base = min(results["MeanTeacher"][0] for results in rounds)
        print(f"\n{name:22} ms/iteration  ratio  gradients  ratio/gradients  peak MiB   copies")
        for variant, options in VARIANTS.items():
            seconds = min(results[variant][0] for results in rounds)
            _, peak, size = rounds[0][variant]
            gradients = 1 + options["ahead_steps"]
            above = (peak - rounds[0]["MeanTeacher"][1]) / size
            print(
                f"{variant:22} {1000 * seconds:12.1f} {seconds / base:6.2f} {gradients:10} "
                f"{seconds / base / gradients:16.3f} {peak / 2**20:9.1f} {above:8.2f}"
            )


if __name__ == "__main__":
    main()
