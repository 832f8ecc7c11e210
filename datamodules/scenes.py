"""From a source's scenes to batches: transformed together with their masks, in an endless order that can be resumed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from zoo.datamodules.loaders import ShardSampler
from zoo.datamodules.sources.images import UNREADABLE
from zoo.datamodules.sources.segmentation import IGNORE, LabeledScenes
from zoo.datamodules.views import Transform
from zoo.functional import mix_seeds


class SceneView(Dataset[tuple[Tensor, Tensor]]):
    """Some of a source's scenes with a transform of image and mask. Copies no image.

    An item is a float image of shape (3, H, W) in [0, 1], and an int64 mask of shape (H', W') with classes and 255.

    Args:
        scenes: The source's data set.
        indices: Which of its scenes, int64 of shape (N,).
        transform: Any torchvision v2 transform; it gets a ``tv_tensors.Image`` and a ``tv_tensors.Mask``.
        num_classes: Labels must be below it, or 255.
    """

    def __init__(self, scenes: LabeledScenes, indices: Tensor, transform: Transform | None, num_classes: int) -> None:
        self.scenes = scenes
        self.indices = indices
        self.transform = transform
        self.num_classes = num_classes

    @property
    def names(self) -> list[str]:
        """Name of every scene."""
        return [self.scenes.names[index] for index in self.indices.tolist()]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        return self.transformed(position, *self.decoded(position))

    def decoded(self, position: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """Return a scene as it is, after a check of its labels."""
        index = int(self.indices[position])
        name = self.scenes.names[index]
        try:
            image, mask = self.scenes[index]
        except UNREADABLE as error:
            raise ValueError(f"Cannot read scene {name}: {error}") from error
        self.check(mask, name)
        image = v2.functional.to_image(image)
        if image.shape[0] == 1:
            image = tv_tensors.Image(image.expand(3, -1, -1))
        return image, tv_tensors.Mask(mask)

    def transformed(self, position: int, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return a scene after the transform, after a check of its pixels."""
        if self.transform is not None:
            image, mask = self.transform(image, mask)
        pixels: Tensor = v2.functional.to_dtype(image, torch.float32, scale=True).as_subclass(Tensor)
        low, high = pixels.aminmax()
        if pixels.shape[0] != 3 or not (low >= -0.5 and high <= 1.5):  # NaN fails too
            name = self.scenes.names[int(self.indices[position])]
            raise ValueError(
                f"Scene {name} has shape {tuple(pixels.shape)} and values in [{low:.3g}, {high:.3g}] after the "
                "transform, but images must have three channels and stay in [0, 1]: the method normalises."
            )
        return pixels, mask.as_subclass(Tensor).long()

    def check(self, mask: Tensor, name: str) -> None:
        """Raise ValueError if a mask holds what is neither a class nor ignored."""
        wrong = mask[(mask >= self.num_classes) & (mask != IGNORE)]
        if len(wrong):
            raise ValueError(
                f"The mask of scene {name} holds the label {int(wrong[0])}; with {self.num_classes} classes labels run "
                f"from 0 to {self.num_classes - 1}, and {IGNORE} is ignored. Is it a mask of raw ids, or one in "
                "colours?"
            )


class EndlessScenes(Dataset[Any]):
    """Endless passes over some scenes, each in an order of its own.

    What stands at a position of this stream, and what its random transform draws there, follows from the seed and the
    position alone. So a run can go on anywhere, and two methods that draw differently see the same images.

    Args:
        scenes: What to pass over.
        seed: Draws orders and transforms.
        with_masks: Whether an item is an image and a mask, or the image alone.
    """

    def __init__(self, scenes: SceneView, seed: int, with_masks: bool) -> None:
        self.scenes = scenes
        self.seed = seed
        self.with_masks = with_masks
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def __len__(self) -> int:
        """Return the length of one pass."""
        return len(self.scenes)

    def __getitem__(self, position: int) -> Any:
        with drawing_from(mix_seeds(self.seed, position)):
            image, mask = self.scenes[self.at(position)]
        return (image, mask) if self.with_masks else image

    def at(self, position: int) -> int:
        """Return which scene stands at a position."""
        lap, place = divmod(position, len(self.scenes))
        if self._order[0] != lap:
            generator = torch.Generator().manual_seed(mix_seeds(self.seed, lap))
            self._order = lap, torch.randperm(len(self.scenes), generator=generator)
        return int(self._order[1][place])


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Let torch draw from a seed on the CPU, and give the state back; other devices are left alone."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


class WindowSampler(ShardSampler):
    """The positions of an endless stream that belong to an epoch and a process.

    Args:
        dataset: The stream.
        num_replicas: Number of processes.
        rank: This process.
        num_samples: Positions of one process in an epoch.
    """

    def __init__(self, dataset: EndlessScenes, num_replicas: int, rank: int, num_samples: int) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=dataset.seed, pad=True)
        self.num_samples = num_samples

    def __iter__(self) -> Iterator[int]:
        total = self.num_samples * self.num_replicas
        first = self.epoch * total
        return iter(range(first + self.rank, first + total, self.num_replicas))
