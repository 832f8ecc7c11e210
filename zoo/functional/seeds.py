"""Random numbers that follow from numbers one knows."""

import random

import numpy as np
import torch


def mix_seeds(*key: int) -> int:
    """Return one seed for several numbers, so that (1, 2) and (2, 1) differ.

    Args:
        *key: Non-negative integers, for instance a seed, an epoch and a process.
    """
    # numpy fills short keys up with zeros: the length keeps (1,) and (1, 0) apart.
    return int(np.random.SeedSequence((len(key), *key)).generate_state(1)[0])


def seed_all(*key: int) -> None:
    """Seed Python, numpy and torch (all devices) from several numbers.

    Args:
        *key: As of :func:`mix_seeds`.
    """
    seed = mix_seeds(*key)
    random.seed(seed)
    np.random.seed(seed)  # other people's transforms draw from the global state
    torch.manual_seed(seed)
