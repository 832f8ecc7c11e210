"""What EfficientTrain costs and saves on a CPU: the crop against the published one, and training steps by size.

Three measurements, all ratios of one run, in which everything that is compared takes turns:

- the time of the published crop (complex Fourier transforms) over that of ``low_frequency_crop``;
- the time of a training step at full size over that at each size of the curriculum with the crop, beside what the
  pixels promise;
- the share that the crop has in such a step.

    python benchmarks/efficienttrain.py

About two minutes on one CPU core, one thread.
"""

import argparse
import statistics
import sys
import time
from functools import partial

import torch
from torch import nn

import zoo
from zoo.functional import low_frequency_crop

CROPS = [(28, 16, 256, 5.0), (224, 96, 64, 4.0), (224, 160, 64, 2.0), (224, 192, 64, 1.5)]  # size, crop, batch, target
SHARE = 0.02  # of a training step of the smallest network that the paper trains
SMALLEST = "DeiT-T"
NETWORKS = {
    "ViT, 49 tokens of 48": (
        56, (24, 40, 48, 56), "vit_tiny_patch16_224",
        {"img_size": 56, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "mlp_ratio": 2,
         "dynamic_img_size": True},
    ),
    "ResNet-10, 16 to 64 channels": (
        56, (24, 40, 48, 56), "resnet18",
        {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 64], "stem_type": "deep", "stem_width": 8,
         "output_stride": 8},
    ),
    "DeiT-T": (224, (96, 160, 192, 224), "deit_tiny_patch16_224", {"dynamic_img_size": True}),
    "ResNet-18": (224, (96, 160, 192, 224), "resnet18", {}),
}  # fmt: skip


def published_crop(images, size):
    """Crop as the official code does: transform, cut out, transform back, real part."""
    side, half = images.shape[-1], size // 2
    spectrum = torch.fft.fft2(images)
    spectrum = torch.cat([spectrum[..., :half, :], spectrum[..., side - half :, :]], dim=-2)
    spectrum = torch.cat([spectrum[..., :half], spectrum[..., side - half :]], dim=-1)
    return torch.fft.ifft2(spectrum * (size / side) ** 2).real


def take_turns(tasks, repeats):
    """Return the seconds of each task, by name, each called in turn; the first round warms up."""
    seconds = {name: [] for name in tasks}
    for _ in range(repeats + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def ratio(above, below):
    """Return the median of the ratios of two lists, and its range, as text."""
    values = [one / other for one, other in zip(above, below, strict=True)]
    return statistics.median(values), f"{statistics.median(values):6.2f} ({min(values):.2f} to {max(values):.2f})"


def compare_crops(repeats):
    """Print the published crop against ours; return whether a target was missed."""
    missed = False
    print("crop: time of the published one over ours")
    for side, size, batch, target in CROPS:
        images = torch.rand(batch, 3, side, side)
        seconds = take_turns(
            {"published": partial(published_crop, images, size), "ours": partial(low_frequency_crop, images, size)},
            repeats,
        )
        value, text = ratio(seconds["published"], seconds["ours"])
        print(f"  {side:3} to {size:3}, batch {batch:3}: {text}, n = {repeats}, target {target:g}")
        missed |= value < target
    return missed


def compare_sizes(title, repeats):
    """Print what a network saves at each size; return the largest share that the crop has in a step."""
    side, sizes, name, arguments = NETWORKS[title]
    batch = 128 if side < 100 else 16
    network = zoo.nn.create_backbone(name, pretrained=False, **arguments)
    model = nn.Sequential(network, nn.Linear(network.num_features, 10))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images, labels = torch.rand(batch, 3, side, side), torch.randint(0, 10, (batch,))

    def step(smaller):
        nn.functional.cross_entropy(model(smaller), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    steps = {f"step {size}": partial(step, low_frequency_crop(images, size)) for size in sizes}
    crops = {f"crop {size}": partial(low_frequency_crop, images, size) for size in sizes[:-1]}
    seconds = take_turns({**steps, **crops}, repeats)
    print(f"{title}, batch {batch}: {1000 * statistics.median(seconds[f'step {side}']):.1f} ms a step at {side} pixels")
    shares = []
    for size in sizes[:-1]:
        both = [sum(pair) for pair in zip(seconds[f"step {size}"], seconds[f"crop {size}"], strict=True)]
        shares.append(ratio(seconds[f"crop {size}"], both)[0])
        print(
            f"  {size:3} pixels: {ratio(seconds[f'step {side}'], both)[1]} times as fast with the crop; pixels promise "
            f"{(side / size) ** 2:.2f}; the crop is {100 * shares[-1]:.1f} % of it"
        )
    return max(shares)


def main():
    """Measure, print, and end with code 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    missed = compare_crops(options.repeats)
    shares = {title: compare_sizes(title, options.repeats) for title in NETWORKS}
    sys.exit(missed or shares[SMALLEST] > SHARE)


if __name__ == "__main__":
    main()
