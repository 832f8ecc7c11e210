"""``benchmarks/dmae.py`` on a GPU, at the sizes of the paper: ViT-B learns from ViT-L with a decoder of 8 blocks.

    python benchmarks/gpu/dmae.py

About a minute and 40 GiB at the default batch of 128, in bfloat16; further words are options of ``benchmarks/dmae.py``.
Target: at least 0.9 of the saving that the theory says. Not run yet.
"""

import runpy
import sys
from pathlib import Path

SIZES = [
    "--device=cuda", "--student=vit_base_patch16_224", "--teacher=vit_large_patch16_224.mae", "--decoder_dim=512",
    "--decoder_depth=8", "--decoder_heads=16", "--batch_size=128", "--repeats=20",
]  # fmt: skip

if __name__ == "__main__":
    script = Path(__file__).parents[1] / "dmae.py"
    sys.argv = [str(script), *SIZES, *sys.argv[1:]]
    runpy.run_path(str(script), run_name="__main__")
