"""Scenes in files, and what the published formats of masks share."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

Table = npt.NDArray[np.uint8]  # 256 entries: what each id on disk becomes


class SceneFile(NamedTuple):
    """Where a scene is.

    Attributes:
        name: As a list of a split gives it.
        image: File of the image.
        mask: File of the mask.
    """

    name: str
    image: Path
    mask: Path


class SceneFiles:
    """Scenes that stay in their files until they are asked for.

    Args:
        scenes: Name and files of each scene.
        read_mask: Returns the mask in a file, uint8 of shape (H, W).

    Attributes:
        names: Name of every scene.
    """

    def __init__(self, scenes: Sequence[SceneFile], read_mask: Callable[[Path], Tensor]) -> None:
        self.scenes = scenes
        self.read_mask = read_mask
        self.names = [scene.name for scene in scenes]

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Image.Image, Tensor]:
        scene = self.scenes[index]
        with Image.open(scene.image) as file:
            image = file.convert("RGB")
        mask = self.mask(index)
        if image.size != (mask.shape[1], mask.shape[0]):
            raise ValueError(
                f"{scene.image} has {image.width} x {image.height} pixels and {scene.mask} {mask.shape[1]} x "
                f"{mask.shape[0]}: files of different scenes, or one of them was resized."
            )
        return image, mask

    def mask(self, index: int) -> Tensor:
        """Return the mask of a scene without decoding its image."""
        return self.read_mask(self.scenes[index].mask)


def files_by_name(folder: Path, suffix: str) -> dict[str, Path]:
    """Return the files in a folder and below that end with a suffix, by their names without it, sorted by path."""
    return {path.name.removesuffix(suffix): path for path in sorted(folder.rglob(f"*{suffix}"))}


def pair_files(
    images: Mapping[str, Path], masks: Mapping[str, Path], images_in: Path, masks_in: Path, get: str
) -> list[SceneFile]:
    """Return the scenes of which there are image and mask: all images.

    Args:
        images: Files of images by name.
        masks: Files of masks by name; there may be more.
        images_in: Where images were looked for, for the error text.
        masks_in: The same for masks.
        get: What to download from where, for the error text.

    Raises:
        FileNotFoundError: If there is no image, or a mask is missing.
    """
    if not images:
        raise FileNotFoundError(f"There are no images in {images_in}. {get}")
    missing = [name for name in images if name not in masks]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(images)} images have no mask in {masks_in}, {images[missing[0]].name} first. {get}"
        )
    return [SceneFile(name, path, masks[name]) for name, path in images.items()]


def lookup_table(pairs: Mapping[int, int]) -> Table:
    """Return a table of 256 entries from ids on disk to labels; an id without a label becomes 255."""
    table = np.full(256, 255, np.uint8)
    for number, label in pairs.items():
        table[number] = label
    return table


def read_ids(path: Path, table: Table | None = None) -> Tensor:
    """Return a mask of one id for each pixel, as a PNG in grey or with a palette holds it.

    Args:
        path: The file.
        table: What each id becomes. Default: itself.

    Returns:
        uint8 of shape (H, W).

    Raises:
        ValueError: If the file holds colours.
    """
    with Image.open(path) as file:
        if file.mode not in ("L", "P"):
            raise ValueError(
                f"{path} is an image of mode {file.mode}, and a mask holds one id for each pixel (mode P or L): is it "
                "a mask in colours?"
            )
        ids = np.array(file)
    return torch.from_numpy(ids if table is None else table[ids])
