"""What the prompt methods cost: learnable parameters, passes of the transformer, and the time of an image.

Each method stands on the same vision transformer with random weights, whose cost is that of pretrained ones, with a
head of 100 classes. A pass is counted whenever a batch goes through the last block. In brackets stand ratios to the
plain transformer with a linear head, in a training step of the head alone and in evaluation: of time, and of
floating-point operations, the matrix products of the attention included. The methods take turns, so that a busy moment
of the machine hits all of them. On one thread of a CPU the time is that of the processor, which other programs hardly
lengthen.

    python benchmarks/prompt_methods.py                                           # ViT-Ti/16, minutes on one core
    python benchmarks/prompt_methods.py --backbone vit_base_patch16_224 --batch_size 16
"""

import argparse
import statistics
import time

import timm
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.nn import Backbone

METHODS = {
    "head alone": lambda backbone: zoo.SequentialFineTuning(100, backbone, train_backbone=False),
    "OnePrompt": lambda backbone: zoo.OnePrompt(100, backbone),
    "L2P": lambda backbone: zoo.L2P(100, backbone),
    "DualPrompt": lambda backbone: zoo.DualPrompt(100, backbone),
    "CodaPrompt": lambda backbone: zoo.CodaPrompt(100, backbone),
}


def make(name: str, options: argparse.Namespace):
    """Return a method in its first task, with a counter of the images that its transformer saw."""
    model = timm.create_model(options.backbone, num_classes=0)
    method = METHODS[name](Backbone(model, [0.5] * 3, [0.5] * 3)).to(options.device).train()
    if name == "CodaPrompt":
        method.prompts.start_task(0, torch.Generator().manual_seed(0))
    method.seen[:] = True
    method.images = 0
    model.blocks[-1].register_forward_hook(lambda block, args, out: setattr(method, "images", method.images + len(out)))
    return method


def step(method, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Compute the gradients of a training step."""
    if isinstance(method, zoo.SequentialFineTuning):
        loss = F.cross_entropy(method.head(method.backbone(images)), labels)
    else:
        features, prompt_loss = method.features(images, 0)
        loss = F.cross_entropy(method.head(features), labels) + method.prompt_loss_weight * prompt_loss
    method.zero_grad()
    loss.backward()


@torch.no_grad()
def evaluate(method, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Compute the scores of a batch."""
    method(images)


def seconds(run, method, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the time of one image."""
    clock = time.process_time if images.device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    run(method, images, labels)
    if images.is_cuda:
        torch.cuda.synchronize()
    return (clock() - start) / len(images)


def operations(run, method, images: torch.Tensor, labels: torch.Tensor) -> int:
    """Return the floating-point operations of a batch."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it does not see all fused kernels
        run(method, images, labels)
    return counter.get_total_flops()


def main() -> None:
    """Print a line for each method."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    methods = {name: make(name, options) for name in METHODS}
    size = methods["OnePrompt"].backbone.fixed_size
    images = torch.rand(options.batch_size, 3, *size, device=options.device)
    labels = torch.randint(0, 10, (options.batch_size,), device=options.device)
    times = {(name, run): [] for name in methods for run in (step, evaluate)}
    for turn in range(options.repeats + 1):
        for (name, run), found in times.items():
            taken = seconds(run, methods[name], images, labels)
            if turn:  # the first one warms up
                found.append(taken)
    flops = {(name, run): operations(run, methods[name], images, labels) for name, run in times}
    medians = {key: statistics.median(found) for key, found in times.items()}
    print(f"{options.backbone}, batch {options.batch_size}, {options.device}, {options.threads} thread(s), medians;")
    print("in brackets, of the head alone: time, floating-point operations")
    print(f"{'method':12} {'learnable':>10} {'passes':>7} {'training':>25} {'evaluation':>25}")
    for name, method in methods.items():
        learnable = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
        method.images = 0
        evaluate(method, images, labels)
        costs = []
        for run in (step, evaluate):
            ratios = (found[name, run] / found["head alone", run] for found in (medians, flops))
            costs.append(f"{1000 * medians[name, run]:6.1f} ms ({', '.join(f'{ratio:4.2f}' for ratio in ratios)})")
        print(f"{name:12} {learnable:10,} {method.images / len(images):7.0f} {costs[0]:>25} {costs[1]:>25}")
    for name in ("L2P", "DualPrompt", "CodaPrompt"):
        time_ratio, flops_ratio = (found["OnePrompt", evaluate] / found[name, evaluate] for found in (medians, flops))
        print(f"evaluation, OnePrompt over {name}: time {time_ratio:.2f}, FLOPs {flops_ratio:.2f}")


if __name__ == "__main__":
    main()
