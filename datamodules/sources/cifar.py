"""CIFAR-10 and CIFAR-100."""

from collections.abc import Sequence
from pathlib import Path

from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from zoo.datamodules.sources.source import LabeledImages, Source

# The names stand in a file of the archive. They are repeated here because a model asks for them before a download.
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR100_CLASSES = [
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
]  # fmt: skip


class CIFAR10(Source):
    """50,000 training and 10,000 test photographs of 32 x 32 pixels in ten classes.

    torchvision reads them, checksums included, from ``<root>/cifar-10-batches-py``.

    Args:
        root: Folder of the data.
        download: Fetch the archive (163 MB) into ``root`` and unpack it, if it is not there.

    Source:
        Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
        https://www.cs.toronto.edu/~kriz/cifar.html.
    """

    dataset: type[datasets.CIFAR10] = datasets.CIFAR10
    class_names: Sequence[str] = CIFAR10_CLASSES

    def __init__(self, root: str | Path = "data", download: bool = False) -> None:
        self.root = Path(root)
        self.download = download

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, in the order of the labels."""
        return self.class_names

    def prepare(self) -> None:
        """Download the archive if it is missing and that was asked for, and compare checksums.

        Raises:
            FileNotFoundError: If files are missing and ``download`` is off.
            ValueError: If a file is damaged and ``download`` is off.
            RuntimeError: If the download failed.
        """
        if self.download:
            try:
                self.dataset(self.root, download=True)
            except (OSError, RuntimeError) as error:
                raise RuntimeError(
                    f"{error}\n{self.dataset.__name__} could not be downloaded. Get {self.dataset.filename} some other "
                    f"way and put it into {self.root}; it is unpacked there."
                ) from error
        folder = self.root / self.dataset.base_folder
        meta = (self.dataset.meta["filename"], self.dataset.meta["md5"])
        for name, md5 in [*self.dataset.train_list, *self.dataset.test_list, meta]:
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{self.dataset.__name__} was not found: there is no {folder / name}. Set root to the folder that "
                    f"holds {self.dataset.base_folder}, or set download to true ({self.dataset.url})."
                )
            if not check_integrity(folder / name, md5):
                raise ValueError(
                    f"{folder / name} is damaged (its MD5 is not {md5}); remove it and get it again, "
                    "or set download to true."
                )

    def train(self) -> LabeledImages:
        """Return the training images."""
        return self._read(train=True)

    def test(self) -> LabeledImages:
        """Return the test images."""
        return self._read(train=False)

    def _read(self, train: bool) -> LabeledImages:
        images: LabeledImages = self.dataset(self.root, train=train)
        return images


class CIFAR100(CIFAR10):
    """50,000 training and 10,000 test photographs of 32 x 32 pixels in a hundred (fine) classes.

    torchvision reads them, checksums included, from ``<root>/cifar-100-python``.

    Args:
        root: Folder of the data.
        download: Fetch the archive (161 MB) into ``root`` and unpack it, if it is not there.

    Source:
        Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
        https://www.cs.toronto.edu/~kriz/cifar.html.
    """

    dataset = datasets.CIFAR100
    class_names = CIFAR100_CLASSES
