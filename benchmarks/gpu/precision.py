"""What FP8 and INT8 gain on a GPU: training steps of ViT-B and ViT-L against bfloat16, and a short fit.

    python benchmarks/gpu/precision.py
    python benchmarks/gpu/precision.py --smoke    # all of it in a minute on a CPU, on a tiny network: says nothing

A step is forward, backward and AdamW on images that are on the device already, in eager mode and with compiled blocks.
Beside the ratio to bfloat16 in the same mode stands a bound: the step of bfloat16 with its products of the
converted layers, timed by themselves, twice as fast, as 8 bits promise; nothing else gains. Then a small ViT learns
Fashion-MNIST at each precision; its accuracy should be within the spread of float32 over the seeds. Needs CUDA, for FP8
a compute capability of 8.9; planned for less than ten minutes and 40 GiB of an H100. Not run yet.
"""

import argparse
import copy
import statistics
import sys
import time

import lightning.pytorch as L
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import zoo
from zoo.callbacks import Int8Training
from zoo.datamodules.sources import FashionMNIST, Synthetic
from zoo.precision import Float8Precision, choose_layers

SIZES = {"vit_base_patch16_224": 128, "vit_large_patch16_224": 64}  # images in a batch
STEPS = {"bf16": None, "fp8 tensorwise": "tensorwise", "fp8 rowwise": "rowwise", "int8": "int8"}
FITS = {"32-true": None, "bf16-mixed": None, "fp8 tensorwise": "tensorwise", "fp8 rowwise": "rowwise", "int8": "int8"}
GAIN = 2  # peak rate of products in 8 bits over that in bfloat16, on Hopper


def milliseconds(task, device, warmup, repeats):
    """Return the time of each call."""

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()

    times = []
    for _ in range(warmup + repeats):
        wait()
        start = time.perf_counter()
        task()
        wait()
        times.append(1000 * (time.perf_counter() - start))
    return times[warmup:]


def convert(model, kind, emulate):
    """Convert the linear layers of a network in place."""
    if kind == "int8":
        Int8Training().setup(None, model, "fit")
    elif kind is not None:
        Float8Precision(kind, compute="32-true" if emulate else "bf16-mixed", emulate=emulate).convert(model)
    return model


def time_steps(model, kind, compiled, images, labels, options):
    """Return the milliseconds of the steps of a copy of a network, and the peak of its memory in GiB."""
    device = images.device
    model = convert(copy.deepcopy(model).to(device), kind, options.smoke)
    if compiled:
        for block in model.blocks:
            block.compile()
    optimizer = torch.optim.AdamW(model.parameters(), fused=device.type == "cuda")

    def step():
        with torch.autocast(device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times = milliseconds(step, device, options.warmup, options.repeats)
    return times, torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")


def time_products(model, rows, options, device):
    """Return the milliseconds of the products of the layers that are converted: output, and both gradients."""
    total = 0.0
    shapes = [(layer.in_features, layer.out_features) for layer in choose_layers(model, multiple=16).chosen.values()]
    for shape in sorted(set(shapes)):
        x, w, dy = (
            torch.randn(*size, device=device, dtype=torch.bfloat16)
            for size in ((rows, shape[0]), (shape[1], shape[0]), (rows, shape[1]))
        )
        for product in (lambda x=x, w=w: x @ w.T, lambda dy=dy, w=w: dy @ w, lambda dy=dy, x=x: dy.T @ x):
            spent = statistics.median(milliseconds(product, device, options.warmup, options.repeats))
            total += shapes.count(shape) * spent
    return total


def compare_steps(options, device):
    """Print the steps of each network at each precision."""
    for name, size in options.sizes.items():
        model = timm.create_model(name, num_classes=1000)
        images, labels = torch.rand(size, 3, 224, 224, device=device), torch.randint(0, 1000, (size,), device=device)
        products = time_products(model, size * (model.patch_embed.num_patches + 1), options, device)
        print(f"\n{name}, {size} images; products of the converted layers: {products:.1f} ms in bfloat16")
        for compiled in (False,) if options.smoke else (False, True):
            base = float("nan")
            for kind, recipe in STEPS.items():
                try:
                    times, memory = time_steps(model, recipe, compiled, images, labels, options)
                except (RuntimeError, ValueError) as error:  # what the card cannot do
                    print(f"  {kind:15} {'compiled' if compiled else 'eager':9} {error}")
                    continue
                step = statistics.median(times)
                base = step if kind == "bf16" else base
                bound = base / (base - products * (1 - 1 / GAIN))
                print(f"  {kind:15} {'compiled' if compiled else 'eager':9} {step:8.2f} ms ({min(times):.2f} to "
                      f"{max(times):.2f})  {1000 * size / step:7.0f} images/s  {memory:6.2f} GiB  {base / step:5.2f} "
                      f"times bf16, bound {1.0 if kind == 'bf16' else bound:.2f}")  # fmt: skip


def loaders(smoke):
    """Return the training and the test images of Fashion-MNIST in batches, or of a stand-in."""
    source = Synthetic(num_classes=10, image_size=28, train_per_class=8, test_per_class=4) if smoke else FashionMNIST()
    source.prepare()
    batches = []
    for split, train in ((source.train(), True), (source.test(), False)):
        pairs = [(torch.as_tensor(image).float().div(255).expand(3, -1, -1), label) for image, label in split]
        images = TensorDataset(torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs]))
        batches.append(DataLoader(images, batch_size=16 if smoke else 512, shuffle=train, drop_last=train))
    return batches


def fit(kind, recipe, seed, data, options):
    """Return the accuracy in percent of a small ViT after a short fit."""
    L.seed_everything(seed, verbose=False)
    network = {"img_size": 28, "patch_size": 4, "embed_dim": 192, "depth": 2 if options.smoke else 6, "num_heads": 3}
    module = zoo.ImageClassifier(
        10, "vit_tiny_patch16_224", backbone_args=network, mean=[0.286] * 3, std=[0.353] * 3,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05),
    )  # fmt: skip
    how = {"precision": kind if recipe is None else "bf16-mixed"}
    if recipe == "int8":
        how["callbacks"] = Int8Training()
    elif recipe is not None:
        how = {"plugins": Float8Precision(recipe, emulate=options.smoke)}
    trainer = L.Trainer(
        accelerator="cpu" if options.smoke else "cuda", devices=1, max_epochs=options.epochs, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **how,
    )  # fmt: skip
    trainer.fit(module, *data)
    return 100 * float(trainer.callback_metrics["val/acc"])


def compare_fits(options):
    """Print the accuracies at each precision beside those of float32."""
    data, exact = loaders(options.smoke), []
    print(f"\nsmall ViT on {'a stand-in for ' if options.smoke else ''}Fashion-MNIST, {options.epochs} epochs")
    for kind, recipe in FITS.items():
        try:
            found = [fit(kind, recipe, seed, data, options) for seed in range(options.seeds)]
        except (RuntimeError, ValueError) as error:
            print(f"  {kind:15} {error}")
            continue
        exact = exact or found
        mean, spread = statistics.mean(found), max(exact) - min(exact)
        told = "within" if abs(mean - statistics.mean(exact)) <= spread else "outside"
        told += f" the spread of float32, {spread:.2f}"
        print(f"  {kind:15} {mean:6.2f} % ({min(found):.2f} to {max(found):.2f}), {told}")


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="on a CPU, emulated and tiny: whether it runs")
    options = parser.parse_args()
    if not (options.smoke or torch.cuda.is_available()):
        sys.exit("This benchmark needs a CUDA device; --smoke tries its code on a CPU.")
    options.sizes = SIZES
    if options.smoke:
        options.warmup, options.repeats, options.seeds, options.epochs = 0, 1, 1, 1
        options.sizes = {"vit_tiny_patch16_224": 2}
    device = torch.device("cpu" if options.smoke else "cuda")
    where = "CPU" if options.smoke else torch.cuda.get_device_name()
    print(f"{where}, torch {torch.__version__}, {options.warmup} steps to warm up, {options.repeats} timed")
    compare_steps(options, device)
    compare_fits(options)


if __name__ == "__main__":
    main()
