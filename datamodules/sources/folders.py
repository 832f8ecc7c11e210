"""Image files in one folder for each class."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from zoo.datamodules.sources.images import ImageFiles, verify_image_files
from zoo.datamodules.sources.source import Source
from zoo.datamodules.splits import hold_out

Samples = list[tuple[str, int]]


class ImageFolders(Source):
    """One folder of images for each class: ImageNet-1k, ImageNet-R, ImageNet-A, CUB-200, and your own images.

    The name of a class is that of its folder; labels follow the sorted names. Sub-folders of a class belong to it, and
    folders whose names begin with a dot are passed over. How images are split is seen from what ``root`` holds, in this
    order:

    1. ``train`` and ``test`` were given: these are the two folders of class folders, below ``root``.
    2. ``images.txt`` and ``train_test_split.txt``: CUB-200-2011 as published, with its official split; the class
       folders are in ``images``.
    3. ``train`` and, beside it, ``test`` or ``val``: the layout of ImageNet-1k (the labelled ``val`` is its test set).
    4. Else ``root`` (or ``train`` below it, if that was given) holds the class folders, and ``test_fraction`` of each
       class is drawn by ``seed``.

    Args:
        root: Folder of the data.
        train: Folder of the training images below ``root``, if it is not to be found as above.
        test: Folder of the test images below ``root``; needs ``train``.
        test_fraction: Share of each class that is set aside for testing where no split is given, between 0 and 1.
        seed: Draws that share.
        verify: Decode every file once before training, to find damaged ones. Turn it off for sets as large as ImageNet.

    Raises:
        ValueError: If ``test_fraction`` is out of range, or ``test`` was given without ``train``.
    """

    def __init__(
        self,
        root: str | Path,
        train: str | None = None,
        test: str | None = None,
        test_fraction: float = 0.2,
        seed: int = 0,
        verify: bool = True,
    ) -> None:
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction={test_fraction} must be greater than 0 and less than 1.")
        if test is not None and train is None:
            raise ValueError(f"test={test!r} was given without train; name both folders.")
        self.root = Path(root)
        self.train_folder = train
        self.test_folder = test
        self.test_fraction = test_fraction
        self.seed = seed
        self.verify = verify

    @property
    def classes(self) -> Sequence[str]:
        """Names of the class folders, sorted. Lists one folder."""
        return class_folders(self._folders[0])

    def prepare(self) -> None:
        """List all files and, if asked for, decode each once.

        Raises:
            FileNotFoundError: If a folder is missing, holds no class folder, or a class folder holds no image.
            ValueError: If the classes of the two folders differ, a class cannot be split, or a file cannot be read.
        """
        train, test = self._splits
        if self.verify:
            verify_image_files([path for path, _ in (*train, *test)])

    def train(self) -> ImageFiles:
        """Return the training images."""
        return ImageFiles(self._splits[0])

    def test(self) -> ImageFiles:
        """Return the test images."""
        return ImageFiles(self._splits[1])

    @property
    def _is_cub(self) -> bool:
        return self.train_folder is None and all(
            (self.root / name).is_file() for name in ("images.txt", "train_test_split.txt")
        )

    @property
    def _folders(self) -> tuple[Path, Path | None]:
        """The folder of training classes, and that of test classes if it is another."""
        if self.train_folder is not None:
            return self.root / self.train_folder, self.root / self.test_folder if self.test_folder else None
        if self._is_cub:
            return self.root / "images", None
        if (self.root / "train").is_dir():
            for name in ("test", "val"):
                if (self.root / name).is_dir():
                    return self.root / "train", self.root / name
        return self.root, None

    @cached_property
    def _splits(self) -> tuple[Samples, Samples]:
        train_folder, test_folder = self._folders
        classes = class_folders(train_folder)
        samples = list_images(train_folder, classes)
        if test_folder is not None:
            test_classes = class_folders(test_folder)
            if classes != test_classes:
                missing, extra = sorted({*classes} - {*test_classes}), sorted({*test_classes} - {*classes})
                raise ValueError(
                    f"{train_folder} and {test_folder} must hold the same classes, but the second lacks "
                    f"{', '.join(missing) or 'none'} and has besides {', '.join(extra) or 'none'}."
                )
            return samples, list_images(test_folder, classes)
        if self._is_cub:
            return read_cub_split(self.root, train_folder, samples)
        train, test = hold_out([label for _, label in samples], self.test_fraction, self.seed, classes)
        return [samples[index] for index in train.tolist()], [samples[index] for index in test.tolist()]


def class_folders(folder: Path) -> list[str]:
    """Return the sorted names of the class folders in a folder.

    Raises:
        FileNotFoundError: If the folder is missing or holds no folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; set root to the folder that holds the class folders.")
    try:
        names = [name for name in find_classes(folder)[0] if not name.startswith(".")]
    except FileNotFoundError:
        names = []
    if not names:
        raise FileNotFoundError(f"{folder} holds no class folders; put the images of each class into a folder of it.")
    return names


def list_images(folder: Path, classes: Sequence[str]) -> Samples:
    """Return path and label of every image, sorted by class and path.

    Raises:
        FileNotFoundError: If a class has no image.
    """
    labels = {name: label for label, name in enumerate(classes)}
    samples: Samples = make_dataset(folder, labels, IMG_EXTENSIONS, allow_empty=True)
    found = {label for _, label in samples}
    if empty := [name for name, label in labels.items() if label not in found]:
        raise FileNotFoundError(
            f"No images in {', '.join(str(folder / name) for name in empty[:10])}"
            f"{f' and {len(empty) - 10} more' if len(empty) > 10 else ''}; add some or remove the folder. "
            f"A name of an image ends with one of {' '.join(IMG_EXTENSIONS)}."
        )
    return samples


def read_cub_split(root: Path, folder: Path, samples: Samples) -> tuple[Samples, Samples]:
    """Split images as the files of CUB-200-2011 say.

    ``images.txt`` has lines ``<id> <path>``, and ``train_test_split.txt`` lines ``<id> <1 for training, 0 for test>``.

    Args:
        root: Where the two files are.
        folder: What the paths are relative to.
        samples: Path and label of every image.

    Raises:
        ValueError: If the files and the images do not agree.
    """
    paths, flags = (
        dict(line.split() for line in (root / name).read_text().splitlines() if line.strip())
        for name in ("images.txt", "train_test_split.txt")
    )
    split = {paths[number]: flags.get(number) for number in paths}
    train: Samples = []
    test: Samples = []
    for path, label in samples:
        flag = split.pop(Path(path).relative_to(folder).as_posix(), None)
        if flag not in ("0", "1"):
            raise ValueError(
                f"{path} is not in the split of {root}: images.txt and train_test_split.txt do not name it."
            )
        (train if flag == "1" else test).append((path, label))
    if split:
        raise ValueError(
            f"{len(split)} images named in {root / 'images.txt'} are missing, {folder / next(iter(split))} first."
        )
    return train, test
