"""Images drawn from a seed, for tests and demonstrations without data."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.datamodules.sources.source import Source
from zoo.functional import mix_seeds

TRAIN, TEST, PATTERN, TINT = range(4)  # what a number is drawn for; part of its seed


class Synthetic(Source):
    """A stand-in of any shape for a data set that is not at hand.

    An image is a coarse coloured pattern of its class, a tint of its domain, and noise of its own, each drawn from the
    seed when the image is asked for. Classes are easily told apart, so that a method that learns shows it.

    Args:
        num_classes: Number of classes.
        image_size: Side of the square RGB images in pixels.
        train_per_class: Training images of a class, in every domain.
        test_per_class: Test images of a class, in every domain.
        num_domains: With more than one, the training images have ``domains``.
        test_domains: Whether the test images have them too; if not, they are one fixed test set over all domains.
        seed: The same seed gives the same images.

    Raises:
        ValueError: If a number is less than 1.
    """

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int = 32,
        train_per_class: int = 8,
        test_per_class: int = 4,
        num_domains: int = 1,
        test_domains: bool = False,
        seed: int = 0,
    ) -> None:
        for name in ("num_classes", "image_size", "train_per_class", "test_per_class", "num_domains"):
            if locals()[name] < 1:
                raise ValueError(f"{name}={locals()[name]} must be at least 1.")
        self.num_classes = num_classes
        self.image_size = image_size
        self.train_per_class = train_per_class
        self.test_per_class = test_per_class
        self.num_domains = num_domains
        self.test_domains = test_domains
        self.seed = seed
        self.domain_names = [f"domain{index}" for index in range(num_domains)] if num_domains > 1 else []

    @property
    def classes(self) -> Sequence[str]:
        """Names class0, class1 and so on."""
        return [f"class{label}" for label in range(self.num_classes)]

    def train(self) -> "SyntheticImages":
        """Return the training images."""
        return SyntheticImages(self, TRAIN, self.train_per_class, self.num_domains > 1)

    def test(self) -> "SyntheticImages":
        """Return the test images."""
        return SyntheticImages(self, TEST, self.test_per_class, self.num_domains > 1 and self.test_domains)


class SyntheticImages:
    """One split of ``Synthetic``: uint8 images of shape (3, S, S), drawn when they are asked for.

    Args:
        source: Numbers and seed.
        split: ``TRAIN`` or ``TEST``; keeps the noise of the two apart.
        per_class: Images of a class in a domain.
        tell_domains: Whether the set has the attribute ``domains``.
    """

    domains: Tensor

    def __init__(self, source: Synthetic, split: int, per_class: int, tell_domains: bool) -> None:
        self.image_size, self.seed, self.split = source.image_size, source.seed, split
        self.targets = torch.arange(source.num_classes).repeat(per_class * source.num_domains)
        self.tints = torch.arange(source.num_domains).repeat_interleave(per_class * source.num_classes)
        if tell_domains:
            self.domains = self.tints

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label, size = int(self.targets[index]), self.image_size
        cells = torch.arange(size) * 4 // size  # 4 x 4 cells, whatever the size
        pattern = self._draw(128, (3, 4, 4), PATTERN, label)[:, cells][:, :, cells]
        tint = self._draw(64, (3, 1, 1), TINT, int(self.tints[index]))
        noise = self._draw(64, (3, size, size), self.split, index)
        return (pattern + tint + noise).to(torch.uint8), label  # at most 127 + 63 + 63

    def _draw(self, high: int, shape: tuple[int, ...], *key: int) -> Tensor:
        """Return integers below ``high`` that follow from the seed and the key."""
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, *key))
        return torch.randint(0, high, shape, generator=generator)
