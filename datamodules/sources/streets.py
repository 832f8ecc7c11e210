"""Streets with the 19 classes of Cityscapes: the real ones, and two synthetic data sets that are adapted to them."""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets

from zoo.datamodules.sources.scene_files import (
    SceneFile,
    SceneFiles,
    Table,
    files_by_name,
    lookup_table,
    pair_files,
    read_ids,
)
from zoo.datamodules.sources.segmentation import Color, SegmentationSource

# torchvision keeps the official table of ids, labels ("train ids") and colours.
LABELED = sorted(
    (entry for entry in datasets.Cityscapes.classes if 0 <= entry.train_id < 255), key=lambda e: e.train_id
)
CITYSCAPES_IDS = {entry.id: entry.train_id for entry in LABELED}

# SYNTHIA's own ids. 0, 13, 14 and 22 (void, parking slot, road work, lane marking) are no class of Cityscapes.
SYNTHIA_IDS = {
    1: 10, 2: 2, 3: 0, 4: 1, 5: 4, 6: 8, 7: 5, 8: 13, 9: 7, 10: 11, 11: 18, 12: 17, 15: 6, 16: 9, 17: 12, 18: 14,
    19: 15, 20: 16, 21: 3,
}  # fmt: skip


class Streets(SegmentationSource):
    """What the sources of streets share: the classes of Cityscapes, in its order and colours.

    Args:
        root: Folder of the data.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @property
    def classes(self) -> Sequence[str]:
        """The 19 classes of Cityscapes."""
        return [entry.name for entry in LABELED]

    @property
    def palette(self) -> Sequence[Color]:
        """Cityscapes' colours."""
        return [entry.color for entry in LABELED]


class Cityscapes(Streets):
    """Cityscapes with fine masks: 2975 scenes of German cities for training, 500 for measuring, 2048 x 1024 pixels.

    The files are those of ``leftImg8bit_trainvaltest.zip`` and ``gtFine_trainvaltest.zip``:
    ``leftImg8bit/<split>/<city>/<name>_leftImg8bit.png``, and ``gtFine/<split>/<city>/<name>_gtFine_labelIds.png``, of
    which 19 ids are classes and the others are ignored. Where these are not there, ``..._labelTrainIds.png`` is read,
    which other projects make of them. Names are as ``hamburg_000000_080169``. The published test set has no masks, so
    ``val`` is measured.

    Args:
        root: Folder that holds ``leftImg8bit`` and ``gtFine``.

    Source:
        Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016,
        https://www.cityscapes-dataset.com.
    """

    GET = (
        "Register at https://www.cityscapes-dataset.com, get leftImg8bit_trainvaltest.zip and "
        "gtFine_trainvaltest.zip, unpack both into one folder and set root to it."
    )

    def __init__(self, root: str | Path = "data/cityscapes") -> None:
        super().__init__(root)

    def prepare(self) -> None:
        """Check that every image has its mask.

        Raises:
            FileNotFoundError: If files are missing; says what to get from where.
        """
        self.train()
        self.test()

    def train(self) -> SceneFiles:
        """Return the training scenes, sorted by city and name."""
        return self._read("train")

    def test(self) -> SceneFiles:
        """Return the scenes of ``val``."""
        return self._read("val")

    def _read(self, split: str) -> SceneFiles:
        images_in, masks_in = self.root / "leftImg8bit" / split, self.root / "gtFine" / split
        table: Table | None = lookup_table(CITYSCAPES_IDS)
        masks = files_by_name(masks_in, "_gtFine_labelIds.png")
        if not masks:
            masks, table = files_by_name(masks_in, "_gtFine_labelTrainIds.png"), None
        images = files_by_name(images_in, "_leftImg8bit.png")
        return SceneFiles(pair_files(images, masks, images_in, masks_in, self.GET), partial(read_ids, table=table))


class GTAV(Streets):
    """24,966 frames of a video game with Cityscapes' classes; for domain adaptation all of them are training scenes.

    The files are those of the ten archives of images and the ten of labels: ``images/00001.png``, and
    ``labels/00001.png``, whose palette holds Cityscapes' ids (34 for license plates); 19 of them are classes, the
    others are ignored. Scenes whose image and mask differ in size are left out, with a warning; to find them the heads
    of all files are read, which takes seconds.

    Args:
        root: Folder that holds ``images`` and ``labels``.

    Source:
        Richter et al., "Playing for Data: Ground Truth from Computer Games", ECCV 2016,
        https://download.visinf.tu-darmstadt.de/data/from_games.
    """

    GET = (
        "Get the archives of images and labels from https://download.visinf.tu-darmstadt.de/data/from_games, unpack "
        "all into one folder and set root to it."
    )

    def __init__(self, root: str | Path = "data/gta") -> None:
        super().__init__(root)

    def prepare(self) -> None:
        """Check that every image has its mask.

        Raises:
            FileNotFoundError: If files are missing; says what to get from where.
        """
        self._list()

    def train(self) -> SceneFiles:
        """Return all scenes whose image and mask have one size."""
        scenes = self._list()
        with ThreadPoolExecutor() as pool:
            fits = list(pool.map(sizes_agree, scenes))
        if odd := [scene.name for scene, fit in zip(scenes, fits, strict=True) if not fit]:
            warnings.warn(
                f"{len(odd)} of {len(scenes)} scenes in {self.root} are left out, because image and mask differ in "
                f"size: {', '.join(odd[:10])}{' ...' if len(odd) > 10 else ''}.",
                stacklevel=2,
            )
        kept = [scene for scene, fit in zip(scenes, fits, strict=True) if fit]
        return SceneFiles(kept, partial(read_ids, table=lookup_table(CITYSCAPES_IDS)))

    def test(self) -> SceneFiles:
        """Raise ValueError: all scenes are for training.

        Raises:
            ValueError: Always.
        """
        raise no_test_scenes(self)

    def _list(self) -> list[SceneFile]:
        images_in, masks_in = self.root / "images", self.root / "labels"
        return pair_files(
            files_by_name(images_in, ".png"), files_by_name(masks_in, ".png"), images_in, masks_in, self.GET
        )


class SYNTHIA(Streets):
    """SYNTHIA-RAND-CITYSCAPES: 9400 rendered scenes with 16 of Cityscapes' classes; all of them are training scenes.

    The files are those of the archive: ``RGB/0000000.png``, and ``GT/LABELS/0000000.png`` of 16 bits, whose first
    channel holds SYNTHIA's own ids. The classes are Cityscapes' 19, of which terrain, truck and train do not occur.

    Args:
        root: Folder that holds ``RGB`` and ``GT``.

    Source:
        Ros et al., "The SYNTHIA Dataset: A Large Collection of Synthetic Images for Semantic Segmentation of Urban
        Scenes", CVPR 2016, http://synthia-dataset.net.
    """

    GET = (
        "Get SYNTHIA-RAND-CITYSCAPES from http://synthia-dataset.net/downloads, unpack it and set root to its folder "
        "RAND_CITYSCAPES."
    )

    def __init__(self, root: str | Path = "data/synthia") -> None:
        super().__init__(root)

    def prepare(self) -> None:
        """Check that every image has its mask.

        Raises:
            FileNotFoundError: If files are missing; says what to get from where.
        """
        self.train()

    def train(self) -> SceneFiles:
        """Return all scenes."""
        images_in, masks_in = self.root / "RGB", self.root / "GT" / "LABELS"
        images, masks = files_by_name(images_in, ".png"), files_by_name(masks_in, ".png")
        return SceneFiles(pair_files(images, masks, images_in, masks_in, self.GET), read_synthia)

    def test(self) -> SceneFiles:
        """Raise ValueError: all scenes are for training.

        Raises:
            ValueError: Always.
        """
        raise no_test_scenes(self)


def read_synthia(path: Path) -> Tensor:
    """Return a mask of SYNTHIA as labels, uint8 of shape (H, W).

    Raises:
        ValueError: If the file has not three channels of 16 bits.
    """
    with Image.open(path) as file:
        codec, box, offset, layout = file.tile[0]
        if layout != "RGB;16B":
            raise ValueError(
                f"{path} is an image of mode {file.mode} in the layout {layout}, and a mask of SYNTHIA has three "
                "channels of 16 bits: is it one in colours (GT/COLOR), or was it converted?"
            )
        # PIL keeps the upper byte of each 16 bits, and ids are in the lower one. That is what it keeps if it is told
        # that the bytes stand in the other order.
        file.tile = [(codec, box, offset, "RGB;16L")]  # type: ignore[list-item]  # older releases know plain tuples
        ids = np.array(file)[..., 0]
    return torch.from_numpy(lookup_table(SYNTHIA_IDS)[ids])


def sizes_agree(scene: SceneFile) -> bool:
    """Say whether image and mask of a scene have one size; reads the heads of the files."""
    with Image.open(scene.image) as image, Image.open(scene.mask) as mask:
        agree: bool = image.size == mask.size
    return agree


def no_test_scenes(source: Streets) -> ValueError:
    """Return the error of a source that is no target."""
    return ValueError(
        f"{type(source).__name__} has no test scenes: give it as the source of DomainAdaptationDataModule, with a "
        "target that has some, such as Cityscapes; or measure with evaluate='val'."
    )
