"""The published curricula of EfficientTrain and EfficientTrain++ as lists of stages.

Wang et al., "EfficientTrain", ICCV 2023, https://arxiv.org/abs/2211.09703 (ET), and "EfficientTrain++", TPAMI 2024,
https://arxiv.org/abs/2405.08768 (ET++). Official code https://github.com/LeapLabTHU/EfficientTrain: ``ET_training.py``
at commit bdefd27 and ``_ET_pp_main_*.py`` at commit 2b9011c.

ET shares a number of epochs among five stages of equal length. ET++ shares a budget of computation, in equivalent
epochs, among ten stages of equal cost, so that a stage of small images has many epochs. An equivalent epoch costs what
an epoch of full-size images does, and cost grows with the number of pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple, TypeAlias

from zoo.functional.choices import check_choice

PUBLISHED_SIZE = 224  # pixels; what the sizes below are fractions of

Scale: TypeAlias = Literal["all", "last"]


@dataclass(frozen=True)
class Stage:
    """A stretch of training at one image size.

    Args:
        size: Side of the images in pixels; of the shorter side where they are no squares.
        epochs: Number of epochs.
        equivalent_epochs: Instead of ``epochs``: the cost, in epochs of full-size images.
        magnitude: Strength of RandAugment, 0 to 10; None leaves it as it is.
    """

    size: int
    epochs: int | None = None
    equivalent_epochs: float | None = None
    magnitude: float | None = None


class Preset(NamedTuple):
    """A published curriculum, at 224 pixels.

    Attributes:
        sizes: Side of the images in each stage.
        magnitudes: Strength of RandAugment in each stage.
        by_compute: Whether stages have equal cost (ET++) or equally many epochs (ET).
    """

    sizes: tuple[int, ...]
    magnitudes: tuple[int, ...]
    by_compute: bool


PRESETS = {
    "et": Preset((160, 160, 160, 192, 224), (1, 3, 5, 7, 9), by_compute=False),
    "etpp": Preset((96, 96, 160, 160, 160, 160, 224, 224, 224, 224), tuple(range(10)), by_compute=True),
    "etpp-deit": Preset((96, 96, 160, 160, 160, 160, 192, 192, 224, 224), tuple(range(10)), by_compute=True),
    "etpp-convnext": Preset((160, 160, 160, 160, 160, 160, 224, 224, 224, 224), tuple(range(10)), by_compute=True),
}


def curriculum(
    name: str, total: float, base_size: int = 224, scale: Scale = "all", divisor: int | None = None
) -> list[Stage]:
    """Return a published curriculum.

    Args:
        name: "et", or "etpp" (ResNet, Swin), "etpp-deit" or "etpp-convnext": the scripts of EfficientTrain++ differ.
        total: For "et" the number of epochs (published: 300), else the budget in equivalent epochs (published: 200).
        base_size: Side of full-size images in pixels.
        scale: For other sizes than 224: "all" keeps the ratios of the sizes; "last" keeps the sizes themselves but for
            the last one, which fits the speed-ups published for 384 and 512 pixels.
        divisor: Every size is the nearest multiple of it, the larger one in a tie. Default: 4 below 224 pixels, 32 from
            there on.

    Returns:
        Stages with whole epochs; those that come out empty for a small total are left out.

    Raises:
        ValueError: If the name is unknown, the total too small, or the sizes impossible.

    Source:
        Wang et al., "EfficientTrain: Exploring Generalized Curriculum Learning for Training Visual Backbones", ICCV
        2023; Wang et al., "EfficientTrain++: Generalized Curriculum Learning for Efficient Visual Backbone Training",
        TPAMI 2024.
    """
    if name not in PRESETS:
        raise ValueError(f"curriculum={name!r} is unknown; known are {', '.join(PRESETS)}, or give a list of stages.")
    preset = PRESETS[name]
    check_choice("scale", scale, Scale)
    if not total > 0:
        raise ValueError(f"total={total} must be positive.")
    largest_kept = max(size for size in preset.sizes if size < PUBLISHED_SIZE)
    if scale == "last" and base_size <= largest_kept:
        raise ValueError(
            f"scale='last' keeps sizes up to {largest_kept} pixels, which base_size={base_size} does not exceed."
        )
    sizes = [scaled_size(size, base_size, scale, divisor) for size in preset.sizes]
    if preset.by_compute:
        epochs = [end - start for start, end, _ in compute_spans(total, sizes, base_size)]
    else:
        if total != int(total):
            raise ValueError(f"total={total} must be a whole number of epochs for curriculum={name!r}.")
        ends = [int(total) * (index + 1) // len(sizes) for index in range(len(sizes))]
        epochs = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    if epochs[-1] <= 0:
        raise ValueError(f"total={total} is too small for curriculum={name!r}: no epoch of full-size images is left.")
    return [
        Stage(size, number, magnitude=magnitude)
        for size, number, magnitude in zip(sizes, epochs, preset.magnitudes, strict=True)
        if number > 0
    ]


def scaled_size(size: int, base_size: int, scale: Scale = "all", divisor: int | None = None) -> int:
    """Return a size published for 224 pixels for other full-size images; see :func:`curriculum`.

    Raises:
        ValueError: If the divisor does not divide full-size images, or the size comes out odd, which no crop has.
    """
    step = divisor or (4 if base_size < PUBLISHED_SIZE else 32)
    if base_size % step:
        raise ValueError(f"base_size={base_size} is no multiple of divisor={step}: give a divisor of it.")
    if size == PUBLISHED_SIZE:
        return base_size
    wanted = Fraction(size) if scale == "last" else Fraction(size * base_size, PUBLISHED_SIZE)
    scaled = max(step, int(wanted / step + Fraction(1, 2)) * step)
    if scaled % 2:
        raise ValueError(f"divisor={step} makes an odd size of {size}, {scaled}: use an even divisor.")
    return scaled


def compute_spans(budget: float, sizes: Sequence[int], base_size: int) -> list[tuple[int, int, int]]:
    """Return ``(start, end, length)`` of stages of equal cost, with the rounding of the published scripts.

    Each script resumes the last one under another count of epochs: those a run of the whole budget would have at its
    own size. ``length`` is that number; the stage trains the epochs ``start`` to ``end`` - 1 of it.

    Args:
        budget: Equivalent epochs of all stages.
        sizes: Side of the images in each stage.
        base_size: Side of full-size images.
    """
    spans: list[tuple[int, int, int]] = []
    reached, reached_size = 0, base_size  # of the last stage that trained: an empty one saves no checkpoint
    for index, size in enumerate(sizes):
        length = int(Fraction(budget) * base_size**2 / size**2)
        start = round(Fraction(reached * reached_size**2, size**2))  # half to even, as Python's round in the scripts
        end = length * (index + 1) // len(sizes)
        spans.append((start, max(start, end), length))
        if end > start:
            reached, reached_size = end, size
    return spans


def equivalent_epochs(stages: Sequence[Stage], base_size: int = 224, epochs: int | None = None) -> float:
    """Return what stages cost, in epochs of full-size images.

    Args:
        stages: The curriculum, with whole epochs.
        base_size: Side of full-size images.
        epochs: Count the first so many epochs only; epochs beyond the plan are of the last stage's size.
    """
    cost, left = 0.0, epochs
    for index, stage in enumerate(stages):
        number = stage.epochs or 0
        if left is not None:
            number = left if index == len(stages) - 1 else min(number, left)
            left -= number
        cost += number * (stage.size / base_size) ** 2
    return cost


def stage_at(stages: Sequence[Stage], epoch: int) -> Stage:
    """Return the stage of an epoch.

    Args:
        stages: The curriculum, with whole epochs.
        epoch: Counted from 0; beyond the plan it is the last stage's.
    """
    for stage in stages:
        epoch -= stage.epochs or 0
        if epoch < 0:
            return stage
    return stages[-1]


def with_epochs(stages: Sequence[Stage], base_size: int) -> list[Stage]:
    """Return stages with whole epochs, at least 1, in place of costs.

    Raises:
        ValueError: If there is no stage, or one has no or two lengths, or a size that is not possible.
    """
    if not stages:
        raise ValueError("The curriculum has no stage.")
    whole = []
    for position, stage in enumerate(stages):
        where = f"Stage {position} of the curriculum"
        if not 2 <= stage.size <= base_size or stage.size % 2:
            raise ValueError(f"{where} has size={stage.size}: it must be even, and from 2 to base_size={base_size}.")
        lengths = [length for length in (stage.epochs, stage.equivalent_epochs) if length is not None]
        if len(lengths) != 1 or not lengths[0] > 0:
            raise ValueError(f"{where} needs either epochs or equivalent_epochs, positive; got {stage}.")
        epochs = stage.epochs or max(1, round((stage.equivalent_epochs or 0) * (base_size / stage.size) ** 2))
        whole.append(Stage(stage.size, epochs, magnitude=stage.magnitude))
    return whole
