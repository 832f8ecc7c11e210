"""MNIST and the data set that took over its file format."""

import gzip
import shutil
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file, read_label_file

from zoo.datamodules.sources.images import TensorImages
from zoo.datamodules.sources.source import Source

FILES = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)  # fmt: skip
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist


class MNIST(Source):
    """Handwritten digits: 60,000 training and 10,000 test images of 28 x 28 grey pixels, ten classes.

    The four files may be gzipped or not. They are looked for where torchvision keeps them, ``<root>/MNIST/raw``, then
    in ``root`` itself, and are only read, so ``root`` may be a folder that belongs to the system. Images are uint8 of
    shape (1, 28, 28).

    Args:
        root: Folder of the data.
        download: Fetch the files into ``root``, with checksums, if they are not found.

    Source:
        LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proceedings of the IEEE 1998,
        https://doi.org/10.1109/5.726791.
    """

    dataset: type[datasets.MNIST] = datasets.MNIST

    def __init__(self, root: str | Path = "data", download: bool = False) -> None:
        self.root = Path(root)
        self.download = download

    @property
    def classes(self) -> Sequence[str]:
        """Names of the ten classes, as torchvision spells them."""
        return list(self.dataset.classes)

    @property
    def folders(self) -> Sequence[Path]:
        """Folders in which the files are looked for; the first that holds all four is taken."""
        return [self.root / self.dataset.__name__ / "raw", self.root]

    def prepare(self) -> None:
        """Download the files if they are missing and that was asked for.

        Raises:
            FileNotFoundError: If they are missing and ``download`` is off.
            RuntimeError: If the download failed.
        """
        if self.download and all(missing_files(folder) for folder in self.folders):
            try:
                self.dataset(self.root, download=True)
            except (OSError, RuntimeError) as error:
                raise RuntimeError(
                    f"{error}\n{self.dataset.__name__} could not be downloaded. Get its four *-ubyte.gz files some "
                    f"other way and put them into {self.folders[0]}."
                ) from error
        self._folder()

    def train(self) -> TensorImages:
        """Return the training images."""
        return self._read("train", "training")

    def test(self) -> TensorImages:
        """Return the test images."""
        return self._read("t10k", "test")

    def _read(self, prefix: str, split: str) -> TensorImages:
        folder = self._folder()
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte", read_image_file)
        targets = read_idx(folder / f"{prefix}-labels-idx1-ubyte", read_label_file)
        if len(images) != len(targets):
            raise ValueError(
                f"The {split} files in {folder} do not belong together: {len(images)} images, {len(targets)} labels."
            )
        return TensorImages(f"the {split} set of {self.dataset.__name__}", images.unsqueeze(1), targets)

    def _folder(self) -> Path:
        for folder in self.folders:
            if not missing_files(folder):
                return folder
        looked = "\n  ".join(f"{folder} (lacks {', '.join(missing_files(folder))})" for folder in self.folders)
        raise FileNotFoundError(
            f"{self.dataset.__name__} was not found; its files, gzipped or not, were looked for in\n  {looked}\n"
            "Set root to the folder that holds them, or set download to true."
        )


class FashionMNIST(MNIST):
    """Articles of clothing: 60,000 training and 10,000 test images of 28 x 28 grey pixels, ten classes.

    The four files are looked for in ``<root>/FashionMNIST/raw``, where torchvision keeps them, then in ``root`` itself.
    Without a ``root`` they are looked for in ``data/FashionMNIST/raw``, then where Debian's package
    ``dataset-fashion-mnist`` installs them. Images are uint8 of shape (1, 28, 28).

    Args:
        root: Folder of the data.
        download: Fetch the files into ``root`` (or ``data``), with checksums, if they are not found.

    Source:
        Xiao et al., "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", 2017,
        https://arxiv.org/abs/1708.07747.
    """

    dataset = datasets.FashionMNIST

    def __init__(self, root: str | Path | None = None, download: bool = False) -> None:
        super().__init__("data" if root is None else root, download)
        self.search_debian = root is None

    @property
    def folders(self) -> Sequence[Path]:
        """Folders in which the files are looked for; the first that holds all four is taken."""
        raw, flat = super().folders
        return [raw, DEBIAN_FOLDER if self.search_debian else flat]


def missing_files(folder: Path) -> list[str]:
    """Return which of the four files a folder holds neither plain nor gzipped."""
    return [name for name in FILES if not (folder / name).is_file() and not (folder / f"{name}.gz").is_file()]


def read_idx(path: Path, reader: Callable[[str], Tensor]) -> Tensor:
    """Read an idx file, or its gzipped form ``path`` + ``.gz``, with a reader of torchvision.

    Args:
        path: Name without ``.gz``; the plain file is taken if there is one.
        reader: ``read_image_file`` or ``read_label_file``. It takes plain files only, so a gzipped one is unpacked into
            a temporary file: the folder may not be ours to write to.

    Raises:
        ValueError: If the file is damaged, cut short or of another format; names it.
    """
    packed = path.with_name(f"{path.name}.gz")
    try:
        if path.is_file():
            return reader(str(path))
        with tempfile.NamedTemporaryFile() as plain:
            with gzip.open(packed) as file:
                shutil.copyfileobj(file, plain)
            plain.flush()
            return reader(plain.name)
    except (OSError, EOFError, zlib.error, AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        found = path if path.is_file() else packed
        raise ValueError(
            f"{found} is damaged or no idx file ({type(error).__name__}: {error}); remove it and get it again."
        ) from error
