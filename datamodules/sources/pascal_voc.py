"""PASCAL VOC 2012, with or without the further masks of SBD."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import SBDataset
from torchvision.datasets.voc import DATASET_YEAR_DICT

from zoo.datamodules.sources.scene_files import SceneFiles, files_by_name, pair_files, read_ids
from zoo.datamodules.sources.segmentation import SegmentationSource

CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
GET_VOC = (
    f"Unpack {DATASET_YEAR_DICT['2012']['filename']} ({DATASET_YEAR_DICT['2012']['url']}) and set root to its folder "
    "VOC2012, or to the folder that holds VOCdevkit."
)
GET_SBD = (
    f"The further masks come from SBD: unpack {SBDataset.filename} ({SBDataset.url}) and set sbd_root to its folder "
    "benchmark_RELEASE/dataset; or put the masks as PNG files, shared by many projects as SegmentationClassAug, into a "
    "folder of this name beside SegmentationClass."
)


class PascalVOC(SegmentationSource):
    """PASCAL VOC 2012: photographs of 20 classes of things and the background, of many sizes.

    With ``augmented`` the training set is the usual one of 10,582 scenes: the 1464 of VOC's ``train``, and all others
    that SBD has masks of and that are not in VOC's ``val``. Without, it is ``train`` alone. The 1449 scenes of ``val``
    are measured. Names are those of published lists, such as ``2007_000032``.

    Images are ``JPEGImages/<name>.jpg``. A mask is the first of ``SegmentationClass/<name>.png`` (VOC's fine ones; some
    projects put all into this folder), ``SegmentationClassAug/<name>.png``, and ``<sbd_root>/cls/<name>.mat``. 255,
    the rim of an object, is ignored.

    Args:
        root: The folder ``VOC2012``, or the one that holds ``VOCdevkit/VOC2012``.
        augmented: Whether scenes that have masks of SBD only are used too.
        sbd_root: Folder of SBD, which holds ``cls``; needed where ``SegmentationClassAug`` is not there.

    Source:
        Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective", IJCV 2015,
        http://host.robots.ox.ac.uk/pascal/VOC/voc2012. Hariharan et al., "Semantic Contours from Inverse Detectors",
        ICCV 2011.
    """

    AUGMENTED = 10_582

    def __init__(
        self, root: str | Path = "data/VOC2012", augmented: bool = True, sbd_root: str | Path | None = None
    ) -> None:
        self.root = Path(root)
        self.augmented = augmented
        self.sbd_root = None if sbd_root is None else Path(sbd_root)

    @property
    def classes(self) -> Sequence[str]:
        """The background and the 20 classes, in VOC's order."""
        return CLASSES

    def prepare(self) -> None:
        """Check that every image and every mask is there.

        Raises:
            FileNotFoundError: If files are missing; says what to get from where.
            ValueError: If the augmented training set is not the usual one.
        """
        self.test()
        found = len(self.train())
        if self.augmented and found != self.AUGMENTED:
            raise ValueError(
                f"{self.folder} has masks of {found} scenes outside val, and the usual training set has "
                f"{self.AUGMENTED}: masks are missing, or there are some of other scenes. {GET_SBD} augmented=False "
                "takes the scenes of VOC alone."
            )

    @property
    def folder(self) -> Path:
        """The folder VOC2012."""
        inside = self.root / "VOCdevkit" / "VOC2012"
        return inside if inside.is_dir() else self.root

    def train(self) -> SceneFiles:
        """Return the training scenes, sorted by name where they are augmented."""
        masks = self.masks()
        names = self.names_in("train")
        if self.augmented:
            names = sorted({*masks} - {*self.names_in("val")} | {*names})
        return self.scenes(names, masks)

    def test(self) -> SceneFiles:
        """Return the scenes of VOC's ``val``."""
        return self.scenes(self.names_in("val"), self.masks())

    def names_in(self, split: str) -> list[str]:
        """Return the names that a list of VOC holds."""
        path = self.folder / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not path.is_file():
            raise FileNotFoundError(f"PASCAL VOC 2012 was not found: there is no {path}. {GET_VOC}")
        return path.read_text(encoding="utf-8").split()

    def masks(self) -> dict[str, Path]:
        """Return the file of every mask by name, the fine ones before others."""
        sbd = {} if self.sbd_root is None else files_by_name(self.sbd_root / "cls", ".mat")
        if self.sbd_root is not None and not sbd:
            raise FileNotFoundError(f"There are no masks in {self.sbd_root / 'cls'}. {GET_SBD}")
        folders = (self.folder / name for name in ("SegmentationClassAug", "SegmentationClass"))
        return sbd | {name: path for folder in folders for name, path in files_by_name(folder, ".png").items()}

    def scenes(self, names: Sequence[str], masks: dict[str, Path]) -> SceneFiles:
        """Return the scenes of some names."""
        folder = self.folder / "JPEGImages"
        images = files_by_name(folder, ".jpg")
        if missing := [name for name in names if name not in images]:
            raise FileNotFoundError(
                f"{len(missing)} of {len(names)} images are missing in {folder}, {missing[0]}.jpg first. {GET_VOC}"
            )
        chosen = {name: images[name] for name in names}
        return SceneFiles(pair_files(chosen, masks, folder, self.folder / "SegmentationClass", GET_VOC), read_mask)


def read_mask(path: Path) -> Tensor:
    """Return a mask, uint8 of shape (H, W), of a PNG file or of SBD's format.

    Raises:
        ValueError: If a file of SBD cannot be read.
    """
    if path.suffix != ".mat":
        return read_ids(path)
    # scipy comes with scikit-learn.
    from scipy.io import loadmat  # type: ignore[import-untyped]
    from scipy.io.matlab import MatReadError  # type: ignore[import-untyped]

    try:
        record = loadmat(path, variable_names=["GTcls"], squeeze_me=True, struct_as_record=False)["GTcls"]
        return torch.from_numpy(record.Segmentation).to(torch.uint8)
    except (MatReadError, zlib.error, KeyError, AttributeError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"{path} is no mask of SBD, or is damaged ({type(error).__name__}: {error}).") from error
