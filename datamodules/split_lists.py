"""Lists of labelled and unlabelled scenes, as papers publish them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

CITYSCAPES_SUFFIX = "_leftImg8bit"


def scene_name(line: str) -> str:
    """Return the name of the scene that a line of a published list means.

    A line is a bare name (``2007_000032``), the path of an image, or the paths of an image and its mask, separated by a
    space or a tab. The name is that of the image's file, without folder, extension and Cityscapes' ``_leftImg8bit``.

    Args:
        line: One line, not empty.
    """
    file = line.split()[0].rpartition("/")[2]
    return file.rpartition(".")[0].removesuffix(CITYSCAPES_SUFFIX) if "." in file else file


def read_split_list(path: str) -> list[str]:
    """Return the names of the scenes that a published list holds, in its order.

    Args:
        path: A text file with a line for each scene; see :func:`scene_name`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, or a scene stands in it twice.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no list of scenes {path}.")
    names = [scene_name(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise ValueError(f"The list of scenes {path} is empty.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{len(names) - len(set(names))} scenes stand twice in {path}, {twice} first.")
    return names


def find_scenes(path: str, names: Sequence[str], where: str) -> Tensor:
    """Return the positions of the scenes that a published list names.

    Args:
        path: The list.
        names: Names of all scenes.
        where: What they belong to, for the error text.

    Returns:
        Positions in ``names``, int64, in the order of the list.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it names a scene that is not there.
    """
    positions = {name: position for position, name in enumerate(names)}
    listed = read_split_list(path)
    unknown = [name for name in listed if name not in positions]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of the {len(listed)} scenes in {path} are not in {where}, {unknown[0]} first (it has "
            f"{len(names)}, such as {names[0]}). Is it the list of another data set, or are files missing?"
        )
    return torch.tensor([positions[name] for name in listed])
