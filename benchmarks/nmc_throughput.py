"""How fast NMC fits, against a bare loop that only runs the network; and whether memory grows with the images.

Both go over the same batches (EfficientNet-Lite0 at 96 pixels, Fashion-MNIST where it is, else digits), loaded and
resized in the process itself. The bare loop takes its turn after each batch of the fit, so that a busy moment of the
machine hits both; the fit is charged with all of ``trainer.fit`` but these turns, Lightning's start and end included.
Peak memory is that of two fresh processes, one of which fits four times as many images. One thread by default: with
more, each step waits for all of them, and on a busy machine that hides what is measured.

    python benchmarks/nmc_throughput.py

About three minutes on two CPU cores, of which the last measurement says:

    1 thread   ratio 1.012 (0.998 to 1.026, n = 9)   1172 MiB for 2,000 images, 1177 MiB for 8,000
    2 threads  ratio 0.996 (0.970 to 1.013, n = 9)   1171 MiB for 2,000 images, 1175 MiB for 8,000

Needs ``lightning-zoo[offline]``. Targets: ratio of images per second at least 0.97; peak memory that grows by less than
half of what the features of the added images would take.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

import lightning.pytorch as L
import torch
from torchvision.transforms import v2

import zoo
from zoo.callbacks import TaskLoop
from zoo.cli.lightning import quieten
from zoo.datamodules import ClassIncrementalDataModule
from zoo.datamodules.sources import Digits, FashionMNIST

RATIO = 0.97
MEMORY = 0.5  # part of the size of the added images' features by which the peak may grow


def source():
    """Return Fashion-MNIST where its files are, else digits."""
    try:
        images = FashionMNIST()
        images.prepare()
    except FileNotFoundError:
        return Digits()
    return images


def stream(options):
    """Return all classes as one task, images resized for the network."""
    resize = v2.Resize([options.size, options.size])
    data = ClassIncrementalDataModule(
        source(), num_tasks=1, batch_size=options.batch_size, train_transform=resize, test_transform=resize
    )
    data.setup("fit")
    return data


class BareLoop(L.Callback):
    """Run a network over batches of its own, one after each batch of a fit, and keep the seconds."""

    def __init__(self, network, loader):
        self.network = network
        self.loader = loader
        self.seconds = 0.0

    def on_train_start(self, trainer, pl_module):
        """Begin the loop."""
        start = time.perf_counter()
        self.batches = iter(self.loader)
        self.seconds += time.perf_counter() - start

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        """Take one turn of ``with torch.no_grad(): for images, labels in loader: network(images)``."""
        start = time.perf_counter()
        with torch.no_grad():
            images, _ = next(self.batches)
            self.network(images)
        self.seconds += time.perf_counter() - start


def fit(module, data, num_batches, *callbacks):
    """Fit a module on a number of batches, without evaluation; return the seconds of ``trainer.fit``."""
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[TaskLoop(), *callbacks], max_epochs=1, limit_train_batches=num_batches,
        limit_val_batches=0,
    )  # fmt: skip
    start = time.perf_counter()
    trainer.fit(module, data)
    return time.perf_counter() - start


def peak_memory(options, num_batches):
    """Return the highest resident memory, in MiB, of a fresh process that fits a number of batches."""
    words = [f"--{name}={value}" for name, value in vars(options).items()]
    # Large blocks go back to the system when they are freed: without this the peak moves by 100 MiB from run to run.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, __file__, *words, f"--fit_only={num_batches}"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    return float(done.stdout.split()[-1])


def main():
    """Measure, print, and end with code 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="images of one fit")
    parser.add_argument("--memory_images", type=int, default=2000, help="images of the smaller fit for the memory")
    parser.add_argument("--repeats", type=int, default=9, help="fits")
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1, help="threads of the network")
    parser.add_argument("--fit_only", type=int, default=0, help=argparse.SUPPRESS)  # batches, see peak_memory
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(options.threads)

    data = stream(options)
    num_images = len(data.train_set(0))
    num_batches = min(options.images, num_images) // options.batch_size
    few_batches = min(options.memory_images, num_images // 4) // options.batch_size
    nmc = zoo.NMC(num_classes=10, backbone="tf_efficientnet_lite0", pretrained="offline")
    if options.fit_only:
        fit(nmc, data, options.fit_only)
        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
        return

    print(f"{type(data.source).__name__}, {options.size} pixels, {options.threads} threads")
    # First of all: on Linux a process inherits the mark of the one that started it.
    few, many = (peak_memory(options, count) for count in (few_batches, 4 * few_batches))
    few_images = few_batches * options.batch_size
    kept = 3 * few_images * nmc.num_features * 4 / 2**20
    print(f"peak memory  {few:.1f} MiB for {few_images} images, {many:.1f} MiB for {4 * few_images}")
    print(f"growth       {many - few:.1f} MiB, limit {MEMORY * kept:.1f} (features of the added images: {kept:.1f})")

    fits, loops = [], []
    for _ in range(options.repeats + 1):
        bare = BareLoop(nmc.backbone, stream(options).train_dataloader())
        fits.append(fit(nmc, data, num_batches, bare) - bare.seconds)
        loops.append(bare.seconds)
    fits, loops = fits[1:], loops[1:]  # the first one warmed up
    ratios = [own / charged for own, charged in zip(loops, fits, strict=True)]
    ratio = statistics.median(ratios)
    for name, seconds in (("bare loop", loops), ("NMC trainer.fit", fits)):
        print(f"{name:15}  {num_batches * options.batch_size / statistics.median(seconds):7.1f} images/s")
    print(f"ratio            {ratio:7.3f}  ({min(ratios):.3f} to {max(ratios):.3f}, n = {len(ratios)})  target {RATIO}")
    sys.exit(ratio < RATIO or many - few > MEMORY * kept)


if __name__ == "__main__":
    main()
