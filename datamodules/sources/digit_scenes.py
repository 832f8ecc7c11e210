"""Scenes of real handwritten digits with a class for each pixel, in two domains: segmentation without a download."""

import colorsys
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from zoo.datamodules.sources.segmentation import IGNORE, SceneTensors, SegmentationSource

SIDE = 64  # pixels
TEST_EVERY = 5  # handwriting of which every fifth stands in test scenes only
TRIES = 8
TRAIN, TEST = 0, 1

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Draw = Callable[..., Any]  # ``random`` of a numpy generator: one uniform number, or an array of a shape


class Look(NamedTuple):
    """How a domain looks; each pair is where a uniform draw begins and how far it reaches.

    Attributes:
        hue: Of the background.
        saturation: Of the background.
        value: Of the background.
        frequency: Of the three waves of its texture, per image.
        contrast: Of the texture.
        digit_saturation: Of a digit's colour.
        digit_value: Of a digit's colour.
        noise: Largest noise of a pixel.
        gain: Exposure.
        offset: Spread of the brightness.
    """

    hue: tuple[float, float]
    saturation: float
    value: tuple[float, float]
    frequency: tuple[float, float]
    contrast: float
    digit_saturation: tuple[float, float]
    digit_value: tuple[float, float]
    noise: float
    gain: tuple[float, float]
    offset: float


LOOKS = {
    "source": Look((0.45, 0.25), 0.5, (0.25, 0.20), (1, 2), 0.25, (0.2, 0.4), (0.8, 0.2), 0.05, (1.0, 0.0), 0.0),
    "target": Look((0.00, 0.25), 0.6, (0.22, 0.20), (3, 4), 0.35, (0.5, 0.5), (0.75, 0.25), 0.08, (0.8, 0.3), 0.1),
}


class DigitScenes(SegmentationSource):
    """Scenes of 64 x 64 pixels: three to five of scikit-learn's real digits on a textured background.

    Label 0 is the background, 1 + d a pixel of digit d, 255 the rim of a digit, which is not counted. Handwriting of
    test scenes (360 of the 1797 digits) stands in no training scene. The two domains hold the same digits' classes in
    other colours, textures, exposure and noise: ``"source"`` is cold and smooth with pale bright digits, ``"target"``
    warm and finer, with saturated digits and more noise. A scene follows from (seed, domain, split, index) alone; all
    are built in memory, about 0.8 ms each.

    For semi-supervised learning the first scenes are the labelled ones: 32 of 512 are 1/16, 64 are 1/8.

    Args:
        domain: Which of the two looks.
        num_train: Training scenes.
        num_test: Test scenes.
        seed: The same seed gives the same scenes.

    Raises:
        ValueError: If a number is less than 1, or there is no such domain.

    Source:
        The digits: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
        1998, https://doi.org/10.24432/C50P49. The scenes are ours.
    """

    def __init__(
        self,
        domain: Literal["source", "target"] = "source",
        num_train: int = 512,
        num_test: int = 200,
        seed: int = 0,
    ) -> None:
        if domain not in LOOKS:
            raise ValueError(f"domain={domain!r} must be 'source' or 'target'.")
        if num_train < 1 or num_test < 1:
            raise ValueError(f"num_train={num_train} and num_test={num_test} must be at least 1.")
        self.domain = domain
        self.num_train = num_train
        self.num_test = num_test
        self.seed = seed

    @property
    def classes(self) -> Sequence[str]:
        """The background and the ten digits."""
        return ["background", *(str(digit) for digit in range(10))]

    def train(self) -> SceneTensors:
        """Return the training scenes."""
        return build_scenes(self.seed, self.domain, TRAIN, self.num_train)

    def test(self) -> SceneTensors:
        """Return the test scenes."""
        return build_scenes(self.seed, self.domain, TEST, self.num_test)


@cache
def build_scenes(seed: int, domain: str, split: int, number: int) -> SceneTensors:
    """Return the first scenes of a split; they are kept, because all who ask share them."""
    scenes = [draw_scene(seed, domain, split, index) for index in range(number)]
    return SceneTensors(
        torch.from_numpy(np.stack([image for image, _ in scenes])),
        torch.from_numpy(np.stack([mask for _, mask in scenes])),
        [f"{domain}_{('train', 'test')[split]}_{index:04d}" for index in range(number)],
    )


@cache
def handwriting(split: int) -> tuple[Floats, Bytes]:
    """Return the digits of a split: images of shape (N, 8, 8) in [0, 1], and which digit each is."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    is_test = np.arange(len(digits.target)) % TEST_EVERY == 0
    chosen = is_test if split == TEST else ~is_test
    return digits.images[chosen] / 16, digits.target[chosen].astype(np.uint8)


def draw_scene(
    seed: int, domain: str, split: int, index: int
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float32]], Bytes]:
    """Return a scene: float32 of shape (3, 64, 64) in [0, 1], and its mask.

    The order of the draws is part of the definition, and so is that each is a ``random()``: numpy keeps these stable.
    """
    look, domain_number = LOOKS[domain], list(LOOKS).index(domain)
    random = np.random.default_rng([seed, domain_number, split, index]).random
    image = draw_background(look, random)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    draw_digits(look, random, split, image, mask)
    first, second = random((3, SIDE, SIDE)), random((3, SIDE, SIDE))
    image = image + look.noise * (first + second - 1)
    image = image * within(look.gain, random()) + look.offset * (random() - 0.5)
    return np.clip(image, 0, 1).astype(np.float32), mask


def within(span: tuple[float, float], draw: float) -> float:
    """Return where a uniform draw lies in a span."""
    return span[0] + span[1] * draw


def draw_background(look: Look, random: Draw) -> Floats:
    """Return a colour under a texture of three waves, shape (3, 64, 64)."""
    color = colorsys.hsv_to_rgb(within(look.hue, random()), look.saturation, within(look.value, random()))
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    texture = np.zeros((SIDE, SIDE))
    for _ in range(3):
        frequency, angle, phase = within(look.frequency, random()), 2 * math.pi * random(), 2 * math.pi * random()
        wave = np.sin(2 * math.pi * frequency * (x * math.cos(angle) + y * math.sin(angle)) + phase)
        texture += wave / 3
    return np.array(color)[:, None, None] * (1 + look.contrast * texture)


def draw_digits(look: Look, random: Draw, split: int, image: Floats, mask: Bytes) -> None:
    """Draw three to five digits into an image and its mask, each where there is room, in place."""
    images, labels = handwriting(split)
    placed: list[tuple[int, int, int]] = []
    for _ in range(3 + math.floor(3 * random())):
        instance = math.floor(random() * len(images))
        size = 16 + math.floor(13 * random())
        hue, saturation = random(), within(look.digit_saturation, random())
        color = colorsys.hsv_to_rgb(hue, saturation, within(look.digit_value, random()))
        place = find_place(random, size, placed)
        if place is None:
            continue
        placed.append((*place, size))
        top, left = place
        ink = enlarge(images[instance], size)
        alpha = np.minimum(1.6 * ink, 1)
        box = image[:, top : top + size, left : left + size]
        box[:] = box * (1 - alpha) + np.array(color)[:, None, None] * alpha
        box_mask = mask[top : top + size, left : left + size]
        box_mask[(ink > 0.25) & (ink <= 0.40)] = IGNORE
        box_mask[ink > 0.40] = 1 + labels[instance]


def find_place(random: Draw, size: int, placed: list[tuple[int, int, int]]) -> tuple[int, int] | None:
    """Return top and left of a free square, or None after eight tries."""
    for _ in range(TRIES):
        top, left = (math.floor(random() * (SIDE - size + 1)) for _ in range(2))
        if all(
            abs((top + size / 2) - (other_top + other / 2)) > 0.42 * (size + other)
            or abs((left + size / 2) - (other_left + other / 2)) > 0.42 * (size + other)
            for other_top, other_left, other in placed
        ):
            return top, left
    return None


def enlarge(digit: Floats, size: int) -> Floats:
    """Return an 8 x 8 digit of another size, bilinearly, with half-pixel centres and clamped edges."""
    at = np.clip((np.arange(size) + 0.5) * 8 / size - 0.5, 0, 7)
    low = np.floor(at).astype(int)
    high, share = np.minimum(low + 1, 7), at - low
    rows = digit[low] * (1 - share)[:, None] + digit[high] * share[:, None]
    enlarged: Floats = rows[:, low] * (1 - share) + rows[:, high] * share
    return enlarged
