"""Scenes drawn from a seed, for tests and demonstrations without data."""

from collections.abc import Sequence

import torch

from zoo.datamodules.sources.segmentation import IGNORE, SceneTensors, SegmentationSource
from zoo.functional import mix_seeds

TRAIN, TEST = range(2)


class SyntheticScenes(SegmentationSource):
    """A stand-in of any shape for a data set of scenes that is not at hand.

    A scene is split into four quarters, each of a class that is drawn, shown in the colour of the palette with noise.
    One row of pixels in the middle is ignored.

    Args:
        num_classes: Number of classes.
        image_size: Side of the square scenes in pixels.
        num_train: Training scenes.
        num_test: Test scenes.
        class_names: Names of the classes. Default: class0, class1 and so on.
        seed: The same seed gives the same scenes.

    Raises:
        ValueError: If a number is less than 1, an odd side, or names are missing.
    """

    def __init__(
        self,
        num_classes: int = 4,
        image_size: int = 32,
        num_train: int = 16,
        num_test: int = 4,
        class_names: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        if min(num_classes, image_size, num_train, num_test) < 1 or image_size % 2:
            raise ValueError(
                f"num_classes={num_classes}, num_train={num_train} and num_test={num_test} must be at least 1, "
                f"image_size={image_size} even."
            )
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(f"class_names holds {len(class_names)} names for num_classes={num_classes}.")
        self.num_classes = num_classes
        self.image_size = image_size
        self.num_train = num_train
        self.num_test = num_test
        self.class_names = class_names
        self.seed = seed

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""
        return self.class_names or [f"class{label}" for label in range(self.num_classes)]

    def train(self) -> SceneTensors:
        """Return the training scenes."""
        return self._draw(TRAIN, self.num_train)

    def test(self) -> SceneTensors:
        """Return the test scenes."""
        return self._draw(TEST, self.num_test)

    def _draw(self, split: int, number: int) -> SceneTensors:
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, split))
        half, size = self.image_size // 2, self.image_size
        quarters = torch.randint(self.num_classes, (number, 2, 2), generator=generator)
        masks = quarters.repeat_interleave(half, 1).repeat_interleave(half, 2)
        noise = torch.randint(-32, 32, (number, 3, size, size), generator=generator)
        colors = torch.tensor(self.palette).T[:, masks].transpose(0, 1)
        masks[:, half] = IGNORE
        names = [f"{('train', 'test')[split]}{index}" for index in range(number)]
        return SceneTensors((colors + noise).clamp(0, 255).to(torch.uint8), masks.to(torch.uint8), names)
