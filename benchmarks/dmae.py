"""What a step of DMAE costs, against MAE alone and against teachers that see or run more; measured beside the theory.

Five ways to train one student on the same batches: MAE alone; DMAE; DMAE with all blocks of the teacher, on the visible
patches (as the official code, without its unused decoder); DMAE with all blocks on all patches; and the last one cut
behind the tap. A step is forward, backward and AdamW. The ways take turns within each round, so that a busy moment of
the machine hits all; ratios are medians over the rounds. The theory counts multiply-accumulates. Peak memory is that
of a fresh process for each way on a CPU, and of the allocator on a GPU.

    python benchmarks/dmae.py

ViT-Tiny learns from ViT-B with 75 % hidden and a decoder of 2 blocks of 192 channels. Three minutes of one CPU core, of
which the last measurement says (time of DMAE = 1):

    MAE alone                        measured 0.383   theory 0.326   1025 MiB
    DMAE                                      1.000          1.000   1282 MiB
    whole teacher, visible patches            1.198          1.216   1424 MiB
    cut teacher, all patches                  2.832          2.981   1283 MiB
    whole teacher, all patches                3.653          3.857   1424 MiB
    share of the theory: 0.980 (0.961 to 1.000, n = 7)

Target: what DMAE saves of the
step with a whole teacher on all patches is at least 0.85 of what the theory says on a CPU (0.9 on a GPU, see
``benchmarks/gpu/dmae.py``).
"""

import argparse
import functools
import os
import resource
import statistics
import subprocess
import sys
import time

import torch

import zoo
from zoo.functional import count_visible
from zoo.nn import Backbone
from zoo.pretraining.cost import decoder_macs, transformer_macs
from zoo.pretraining.encoders import build_teacher

WAYS = {
    "MAE alone": "no teacher",
    "DMAE": "to the tap, visible patches",
    "whole teacher, visible patches": "all blocks, visible patches",
    "cut teacher, all patches": "to the tap, all patches",
    "whole teacher, all patches": "all blocks, all patches",
}
BASELINE = "whole teacher, all patches"
TARGETS = {"cpu": 0.85, "cuda": 0.9}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def build(way, options):
    """Return the module that trains in a way; all have the same student."""
    torch.manual_seed(0)
    student = {
        "backbone": options.student, "mask_ratio": options.mask_ratio, "decoder_dim": options.decoder_dim,
        "decoder_depth": options.decoder_depth, "decoder_heads": options.decoder_heads, **IMAGENET,
    }  # fmt: skip
    if way == "MAE alone":
        return zoo.MAE(norm_pix_loss=False, **student).to(options.device)
    module = zoo.DMAE(teacher=options.teacher, teacher_pretrained=False, **student)
    if "whole" in way:  # the same first blocks, and those that DMAE drops
        whole, _ = build_teacher(options.teacher, False, None, None)
        whole.model.load_state_dict(module.teacher.model.state_dict(), strict=False)
        module.teacher = whole
    if "all patches" in way:
        module.teacher.forward_visible = functools.partial(on_all_patches, module.teacher)
    return module.to(options.device)


def on_all_patches(teacher, images, ids_keep, taps):
    """Return what a teacher that sees all patches has for the visible ones."""
    everything = torch.arange(teacher.model.patch_embed.num_patches, device=images.device).expand(len(images), -1)
    tokens, tapped = Backbone.forward_visible(teacher, images, everything, taps)
    rows = torch.cat([torch.zeros_like(ids_keep[:, :1]), 1 + ids_keep], dim=1)
    return tokens, {
        tap: found.gather(1, rows[..., None].expand(-1, -1, found.shape[-1])) for tap, found in tapped.items()
    }


class Way:
    """A module with its optimizer, and the seconds of its steps."""

    def __init__(self, way, options):
        self.module = build(way, options).train()
        self.optimizer = torch.optim.AdamW([p for p in self.module.parameters() if p.requires_grad], lr=1e-4)
        self.device, self.seconds = options.device, []

    def losses(self, images, noise):
        """Return the losses of a batch."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            return self.module.losses(images, noise)

    def step(self, images, noise):
        """Take one step and keep its seconds."""
        self.wait()
        start = time.perf_counter()
        loss = self.losses(images, noise)["loss"]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.wait()
        self.seconds.append(time.perf_counter() - start)

    def wait(self):
        """Wait until the device has done what it was told."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def batch(options):
    """Return images and noise, the same for all ways."""
    torch.manual_seed(1)
    images = torch.rand(options.batch_size, 3, 224, 224, device=options.device)
    return images, torch.rand(options.batch_size, 196, device=options.device)


def macs(module, way):
    """Return the multiply-accumulates of a step for each image."""
    student = module.backbone.model
    length = student.patch_embed.num_patches
    visible = count_visible(length, module.mask_ratio)
    own = transformer_macs(student, visible) + decoder_macs(
        length, visible, student.embed_dim, module.decoder.pred.in_features, len(module.decoder.blocks),
        module.decoder.pred.out_features,
    )  # fmt: skip
    if way == "MAE alone":
        return 3 * own
    head = (visible + 1) * student.embed_dim * module.teacher.num_features
    return 3 * (own + head) + transformer_macs(module.teacher.model, length if "all patches" in way else visible)


def peak_memory(way, options):
    """Return the peak of memory, in MiB, of three steps in a way: of a fresh process, or of the GPU's allocator."""
    if options.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        alone = Way(way, options)
        for _ in range(3):
            alone.step(*batch(options))
        return torch.cuda.max_memory_allocated() / 2**20
    words = [f"--{name}={value}" for name, value in vars(options).items() if name != "only"]
    # Large blocks go back to the system when they are freed: without this the peak moves from run to run.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, __file__, *words, f"--only={way}"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return float(done.stdout.split()[-1])


def main():
    """Measure, print, and end with code 1 if the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="vit_tiny_patch16_224")
    parser.add_argument("--teacher", default="vit_base_patch16_224.mae")
    parser.add_argument("--mask_ratio", type=float, default=0.75)
    parser.add_argument("--decoder_dim", type=int, default=192)
    parser.add_argument("--decoder_depth", type=int, default=2)
    parser.add_argument("--decoder_heads", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7, help="rounds, each with a step in every way")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--only", default="", help=argparse.SUPPRESS)  # a way, see peak_memory
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        alone = Way(options.only, options)
        for _ in range(3):
            alone.step(*batch(options))
        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
        return

    # First of all: on Linux a process inherits the mark of the one that started it.
    memory = {way: peak_memory(way, options) for way in WAYS}
    ways = {way: Way(way, options) for way in WAYS}
    images, noise = batch(options)
    with torch.no_grad():
        cut, whole = (ways[way].losses(images, noise)["loss"] for way in ("DMAE", "whole teacher, visible patches"))
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {options.threads} threads"
    print(f"{options.student} from {options.teacher}, {options.mask_ratio:.0%} hidden, {len(images)} images, {device}")
    print(f"the loss of DMAE and with the whole teacher on the same patches differ by {float((cut - whole).abs()):g}")
    for _ in range(options.repeats + 1):
        for way in ways.values():
            way.step(images, noise)
    costs = {way: macs(ways[way].module, way) for way in ways}
    seconds = {way: ways[way].seconds[1:] for way in ways}  # the first one warmed up
    print(f"{'':32} {'teacher':28} {'s/step':>8} {'MiB':>7} {'measured':>9} {'theory':>7}   (time of DMAE = 1)")
    for way, teacher in WAYS.items():
        ratio = statistics.median(mine / one for mine, one in zip(seconds[way], seconds["DMAE"], strict=True))
        theory = costs[way] / costs["DMAE"]
        step = statistics.median(seconds[way])
        print(f"{way:32} {teacher:28} {step:8.3f} {memory[way]:7.0f} {ratio:9.3f} {theory:7.3f}")
    saved = [1 - one / mine for mine, one in zip(seconds[BASELINE], seconds["DMAE"], strict=True)]
    expected = 1 - costs["DMAE"] / costs[BASELINE]
    shares = sorted(share / expected for share in saved)
    target, share = TARGETS[options.device], statistics.median(shares)
    print(f"saved of the step with a {BASELINE}: {statistics.median(saved):.3f}, in theory {expected:.3f}")
    print(f"share of the theory: {share:.3f} ({shares[0]:.3f} to {shares[-1]:.3f}, n = {len(shares)})  target {target}")
    sys.exit(share < target)


if __name__ == "__main__":
    main()
