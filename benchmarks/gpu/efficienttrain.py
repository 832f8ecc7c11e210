"""What EfficientTrain saves on a GPU: images per second at each size, and the crop against two others.

    python benchmarks/gpu/efficienttrain.py
    python benchmarks/gpu/efficienttrain.py --model deit_small_patch16_224 --batch_size 256 --precision bf16

Training steps (forward, backward, AdamW) of a timm network on images that are on the device already, at each size of
the curriculum in turn; the speed against full size stands beside what the pixels promise and, for the whole curriculum,
beside what the paper measured on a GPU. Then the crop by its two routes against the published one and against
``torch.nn.functional.interpolate``. Needs CUDA; half a minute a model.
"""

import argparse
import statistics
import sys

import timm
import torch
from torch import nn

from zoo.functional import curriculum, equivalent_epochs, low_frequency_crop


def published_crop(images, size):
    """Crop as the official code does: transform, cut out, transform back, real part."""
    side, half = images.shape[-1], size // 2
    spectrum = torch.fft.fft2(images)
    spectrum = torch.cat([spectrum[..., :half, :], spectrum[..., side - half :, :]], dim=-2)
    spectrum = torch.cat([spectrum[..., :half], spectrum[..., side - half :]], dim=-1)
    return torch.fft.ifft2(spectrum * (size / side) ** 2).real


def milliseconds(task, repeats):
    """Return the time of each call on the device, by its own clock, after three calls to warm up."""
    times = []
    for _ in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        task()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return times[3:]


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["deit_small_patch16_224", "resnet50", "convnext_tiny"])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("This benchmark needs a CUDA device; benchmarks/efficienttrain.py is the one for a CPU.")
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch {options.batch_size}, {options.precision}")
    images = torch.rand(options.batch_size, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (options.batch_size,), device=device)
    stages = curriculum("et", 300)

    for name in options.model:
        arguments = {"dynamic_img_size": True} if name.startswith(("vit", "deit")) else {}
        arguments = {"strict_img_size": False} if name.startswith("swin") else arguments
        model = timm.create_model(name, num_classes=1000, **arguments).to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)

        def step(size, model=model, optimizer=optimizer):
            smaller = low_frequency_crop(images, size)
            with torch.autocast("cuda", torch.bfloat16, enabled=options.precision == "bf16"):
                loss = nn.functional.cross_entropy(model(smaller), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        times = {size: milliseconds(lambda size=size: step(size), options.repeats) for size in (96, 160, 192, 224)}
        median = {size: statistics.median(values) for size, values in times.items()}
        print(name)
        for size, value in median.items():
            print(f"  {size:3} pixels: {1000 * options.batch_size / value:8.0f} images/s, {median[224] / value:5.2f} "
                  f"times full size ({min(times[size]):.1f} to {max(times[size]):.1f} ms), pixels promise "
                  f"{(224 / size) ** 2:.2f}")  # fmt: skip
        spent = sum(stage.epochs * median[stage.size] for stage in stages) / (300 * median[224])
        print(f"  whole curriculum: {1 / spent:.2f} times, pixels promise {300 / equivalent_epochs(stages):.2f}, "
              f"published 1.44 to 1.55 in wall time")  # fmt: skip

    print("crop of the batch, float32: times as fast as the published one")
    images = images.contiguous()
    for size in (96, 160, 192):
        tasks = {
            "published": lambda size=size: published_crop(images, size),
            "matmul": lambda size=size: low_frequency_crop(images, size, route="matmul"),
            "fft": lambda size=size: low_frequency_crop(images, size, route="fft"),
            "interpolate": lambda size=size: nn.functional.interpolate(images, size, mode="bicubic", antialias=True),
        }
        times = {name: statistics.median(milliseconds(task, options.repeats)) for name, task in tasks.items()}
        rest = ", ".join(f"{name} {times['published'] / times[name]:.1f}" for name in tasks if name != "published")
        print(f"  224 to {size}: published {times['published']:.2f} ms; {rest}")


if __name__ == "__main__":
    main()
