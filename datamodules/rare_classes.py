"""Rare-class sampling: scenes with rare classes are drawn more often, and crops that show them."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from zoo.datamodules.scenes import EndlessScenes, SceneView, drawing_from
from zoo.datamodules.sources.segmentation import LabeledScenes
from zoo.functional import mix_seeds, write_atomically

MANY = 1000  # scenes from which counting takes long enough for a progress bar


@dataclass(frozen=True)
class RareClassSampling:
    """Draw a class first, rare ones more often, then a scene that holds enough of it, then a crop that shows it.

    The probability of a class is the softmax of ``(1 - share) / temperature``, its share being that of the labelled
    pixels of all scenes; a class that does not occur is never drawn. A crop with too little of the class is drawn
    again, up to ten times.

    Args:
        temperature: The lower, the more the rare classes prevail. Published: 0.01.
        min_pixels: A scene holds enough of a class if it has more pixels of it, as stored. Published: 3000.
        min_crop_share: A crop shows enough of it if it has more than this share of ``min_pixels``; 0 takes any crop.
            Published: 0.5.
        statistics: File of the pixels of each class in each scene, such as ``sample_class_stats.json``, which DAFormer
            and its successors leave beside converted data; their files fit. If it is not there, the pixels are counted
            once and it is written. Default: counted at the start of each run, which is for small data sets.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Hoyer, Dai, Van Gool, "DAFormer: Improving Network Architectures and Training Strategies for Domain-Adaptive
        Semantic Segmentation", CVPR 2022, section 3.2; https://github.com/lhoyer/DAFormer (commit dc4fd9b).
    """

    temperature: float = 0.01
    min_pixels: int = 3000
    min_crop_share: float = 0.5
    statistics: str | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.temperature <= 0 or self.min_pixels < 0 or self.min_crop_share < 0:
            raise ValueError(
                f"temperature={self.temperature} must be greater than 0, min_pixels={self.min_pixels} and "
                f"min_crop_share={self.min_crop_share} not negative."
            )

    def prepare(self, scenes: LabeledScenes, num_classes: int) -> None:
        """Count the pixels and write them down, where a file is named that is not there."""
        if self.statistics is not None and not Path(self.statistics).is_file():
            write_statistics(self.statistics, scenes.names, count_pixels(scenes, num_classes))

    def counts(self, scenes: LabeledScenes, num_classes: int) -> Tensor:
        """Return the pixels of each class in each scene, int64 of shape (N, C)."""
        if self.statistics is None:
            return count_pixels(scenes, num_classes)
        return read_statistics(self.statistics, scenes.names, num_classes)


class RareClassScenes(EndlessScenes):
    """An endless stream of scenes in which rare classes are frequent; what stands where follows from the seed alone.

    Args:
        scenes: What to draw from.
        seed: Draws classes, scenes and transforms.
        sampling: How.
        counts: Pixels of each class in each scene, of shape (N, C).

    Raises:
        ValueError: If no scene holds enough of a class.
    """

    TRIES = 10

    def __init__(self, scenes: SceneView, seed: int, sampling: RareClassSampling, counts: Tensor) -> None:
        super().__init__(scenes, seed, with_masks=True)
        self.sampling = sampling
        self.probabilities = class_probabilities(counts.sum(dim=0), sampling.temperature)
        self.holders = [column.nonzero().flatten() for column in (counts > sampling.min_pixels).T]
        for label, holders in enumerate(self.holders):
            if self.probabilities[label] > 0 and not len(holders):
                raise ValueError(
                    f"No scene has more than min_pixels={sampling.min_pixels} pixels of class {label}, of which some "
                    f"has {int(counts[:, label].max())}: use a lower min_pixels."
                )

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        with drawing_from(mix_seeds(self.seed, position)):
            label = int(torch.multinomial(self.probabilities, 1))
            holders = self.holders[label]
            scene = int(holders[torch.randint(len(holders), ())])
            image, mask = self.scenes.decoded(scene)
            enough = self.sampling.min_pixels * self.sampling.min_crop_share
            for _ in range(1 + self.TRIES):
                crop, labels = self.scenes.transformed(scene, image, mask)
                if self.sampling.min_crop_share == 0 or (labels == label).sum() > enough:
                    break
        return crop, labels


def class_probabilities(pixels: Tensor, temperature: float) -> Tensor:
    """Return how probable each class is in rare-class sampling, float64 of shape (C,).

    Args:
        pixels: Pixels of each class, of shape (C,). A class without any has probability 0.
        temperature: Greater than 0.
    """
    share = pixels.double() / pixels.sum()
    return ((1 - share) / temperature).masked_fill(pixels == 0, -torch.inf).softmax(dim=0)


def count_pixels(scenes: LabeledScenes, num_classes: int) -> Tensor:
    """Return the pixels of each class in each scene, int64 of shape (N, C). Decodes every mask."""

    def count(index: int) -> Tensor:
        mask: Tensor = scenes.mask(index) if hasattr(scenes, "mask") else scenes[index][1]
        return torch.bincount(mask.flatten(), minlength=num_classes)[:num_classes]

    with ThreadPoolExecutor() as pool:
        counts = pool.map(count, range(len(scenes)))
        return torch.stack(
            list(track(counts, "Counting pixels of classes", total=len(scenes), disable=len(scenes) < MANY))
        )


def write_statistics(path: str, names: Any, counts: Tensor) -> None:
    """Write the pixels of each class in each scene in DAFormer's format, classes that do not occur left out."""
    rows = [
        {str(label): number for label, number in enumerate(row) if number} | {"file": name}
        for name, row in zip(names, counts.tolist(), strict=True)
    ]
    write_atomically(path, json.dumps(rows, indent=2))


def read_statistics(path: str, names: Any, num_classes: int) -> Tensor:
    """Return the pixels of each class in each scene from a file in DAFormer's format, int64 of shape (N, C).

    The file is a list with an object for each scene: ``file``, whose name without folder, extension,
    ``_labelTrainIds`` and ``_gtFine`` is that of the scene, and a number of pixels for each label that occurs.

    Args:
        path: The file.
        names: Names of the scenes that are wanted; there may be more.
        num_classes: Number of classes C.

    Raises:
        ValueError: If it is no such file, or lacks a scene.
    """
    try:
        rows = {scene_of(row["file"]): row for row in json.loads(Path(path).read_text(encoding="utf-8"))}
        labels = [str(label) for label in range(num_classes)]
        if missing := [name for name in names if name not in rows]:
            raise ValueError(f"lacks {len(missing)} of {len(names)} scenes, {missing[0]} first")
        return torch.tensor([[int(rows[name].get(label, 0)) for label in labels] for name in names])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no statistics of these scenes ({error}). Remove it, or name another file, and the pixels "
            "are counted anew."
        ) from error


def scene_of(file: str) -> str:
    """Return the name of the scene that a file of converted labels belongs to."""
    return Path(file).name.removesuffix(".png").removesuffix("_labelTrainIds").removesuffix("_gtFine")
