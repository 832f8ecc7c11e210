"""What FeatureCache saves: a stream of ten tasks of one class, fitted by NMC with and without it.

Counts the images that go through EfficientNet-Lite0 and takes the time of ``trainer.fit``; runs with and without the
callback take turns, so that a busy moment of the machine hits both. All numbers that were logged, and the class means,
must be the same to the last bit. Fashion-MNIST where it is, else digits; a tenth of it by default, and all of it with
``--images 60000``.

    python benchmarks/feature_cache.py
    python benchmarks/feature_cache.py --images 60000

Needs ``lightning-zoo[offline]``. Target: each image goes through once. With 60,000 training and 10,000 test images
those are 70,000 forwards instead of 115,000 (60,000 and 1,000 x (1 + ... + 10)), a ratio of 0.609.

Last measured on two CPU cores, one thread, results identical each time; loading and resizing, which the callback does
not save, is in the seconds:

    6,000 images (half a minute)     7,000 forwards instead of 11,625: 0.602   time 0.692 (0.687 to 0.750, n = 3)
    60,000 images (4 minutes)      70,000 forwards instead of 115,000: 0.609   time 0.699 (0.671 to 0.702, n = 3)
"""

import argparse
import os
import statistics
import sys
import time

import lightning.pytorch as L
import torch
from torchvision.transforms import v2

import zoo
from zoo.callbacks import FeatureCache, TaskLoop
from zoo.cli.lightning import quieten
from zoo.datamodules import ClassIncrementalDataModule
from zoo.datamodules.sources import Digits, FashionMNIST
from zoo.datamodules.sources.images import TensorImages

# glibc gives freed memory back to the system or keeps it, depending on what lies behind it, and to get it again cost up
# to a third of the time of either kind of run. With these it keeps it. Read when a process starts; others ignore them.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**25)}


class FirstImages(FashionMNIST):
    """Fashion-MNIST cut short, and one test image for six training images as in the whole."""

    def __init__(self, num_images):
        super().__init__()
        self.num_images = num_images

    def train(self):
        """Return the first training images."""
        return first(super().train(), self.num_images)

    def test(self):
        """Return the first test images."""
        return first(super().test(), self.num_images // 6)


def first(images, count):
    """Return the first images of a set."""
    return TensorImages(images.name, images.images[:count], images.targets[:count])


class Numbers(L.Callback):
    """Keep what was logged after each task."""

    def __init__(self):
        self.logged = []

    def on_validation_end(self, trainer, pl_module):
        """Copy the numbers."""
        self.logged.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def source(num_images):
    """Return Fashion-MNIST where its files are, else digits."""
    try:
        images = FirstImages(num_images)
        images.prepare()
    except FileNotFoundError:
        return Digits()
    return images


def fit(data, *callbacks):
    """Fit NMC on a stream; return the images through its network, the seconds, and all its results."""
    nmc = zoo.NMC(num_classes=10, backbone="tf_efficientnet_lite0", pretrained="offline")
    batches = []
    nmc.backbone.model.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    numbers = Numbers()
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[TaskLoop(), *callbacks, numbers], max_epochs=data.num_epochs,
    )  # fmt: skip
    start = time.perf_counter()
    trainer.fit(nmc, data)
    return sum(batches), time.perf_counter() - start, (numbers.logged, nmc.means.means())


def same(one, other):
    """Say whether two fits logged the same and have the same means, to the last bit."""
    return one[0] == other[0] and torch.equal(one[1], other[1])


def main():
    """Measure, print, and end with code 1 if an image went through twice or a result differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6000, help="training images")
    parser.add_argument("--repeats", type=int, default=3, help="fits of each kind")
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1, help="threads of the network")
    options = parser.parse_args()
    if not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    quieten()
    torch.set_num_threads(options.threads)

    resize = v2.Resize([options.size, options.size])
    data = ClassIncrementalDataModule(
        source(options.images), num_tasks=10, batch_size=options.batch_size, train_transform=resize,
        test_transform=resize,
    )  # fmt: skip
    data.setup("fit")
    num_train, num_test = len(data.labels("train")), len(data.labels("test"))
    print(f"{num_train} training and {num_test} test images in ten tasks, {options.size} pixels")

    with_cache, without = [], []
    for turn in range(options.repeats):
        pair = [(with_cache, [FeatureCache()]), (without, [])]
        for fits, callbacks in pair if turn % 2 else reversed(pair):
            fits.append(fit(data, *callbacks))
    identical = all(same(one[2], without[0][2]) for one in (*with_cache, *without))
    forwards = with_cache[0][0], without[0][0]
    ratios = [one[1] / other[1] for one, other in zip(with_cache, without, strict=True)]
    print(f"forwards       {forwards[0]} instead of {forwards[1]}: ratio {forwards[0] / forwards[1]:.3f}")
    seconds = [statistics.median(one[1] for one in fits) for fits in (with_cache, without)]
    print(
        f"seconds        {seconds[0]:.1f} instead of {seconds[1]:.1f}: ratio {statistics.median(ratios):.3f}  "
        f"({min(ratios):.3f} to {max(ratios):.3f}, n = {len(ratios)})"
    )
    print(f"accuracy       {without[0][2][0][-1]['test/acc']:.4f} after the last task")
    print(f"results        {'identical' if identical else 'DIFFERENT'}")
    sys.exit(not identical or forwards[0] != num_train + num_test)


if __name__ == "__main__":
    main()
