"""Text files that say which images a session of a few-shot stream holds, in the form the field shares them."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from zoo.datamodules.sources.source import LabeledImages
from zoo.functional import write_atomically


def read_list(path: Path) -> list[str]:
    """Return the lines of a list.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty or names an image twice.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}: index_dir must hold session_1.txt, the base session, and one file for each later one."
        )
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty.")
    if len(set(lines)) < len(lines):
        raise ValueError(f"{path} names {next(line for line in lines if lines.count(line) > 1)} twice.")
    return lines


def key_of(path: str) -> str:
    """Return the last two parts of a path: folder of the class and file."""
    return "/".join(PurePosixPath(path.replace("\\", "/")).parts[-2:])


def positions_by_name(images: LabeledImages) -> dict[str, int]:
    """Return the position of each image by the last two parts of its path; empty for images without files."""
    samples: Sequence[tuple[str, int]] = getattr(images, "samples", ())
    return {key_of(path): position for position, (path, _) in enumerate(samples)}


def locate(lines: Sequence[str], images: LabeledImages, by_name: Mapping[str, int], path: Path) -> Tensor:
    """Return the position of each image that a list names, int64.

    Args:
        lines: Positions, or paths.
        images: The source's training images.
        by_name: From :func:`positions_by_name`.
        path: The list, for error texts.

    Raises:
        FileNotFoundError: If an image is not there.
        ValueError: If paths are given for images without files.
    """
    positions = []
    for line in lines:
        if line.isdigit():
            position = int(line) if int(line) < len(images) else None
        elif not by_name:
            raise ValueError(f"{path} names files, as {line}, but the images of this source have positions only.")
        else:
            position = by_name.get(key_of(line))
        if position is None:
            raise FileNotFoundError(f"{path} names {line}, which is not among the {len(images)} training images.")
        positions.append(position)
    return torch.tensor(positions)


def write_list(path: Path, positions: Sequence[int], images: LabeledImages) -> None:
    """Write a list of images: by the last two parts of their paths, or by position where there are no files."""
    samples: Sequence[tuple[str, int]] = getattr(images, "samples", ())
    lines = [key_of(samples[position][0]) if samples else str(position) for position in positions]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "\n".join(lines) + "\n")
