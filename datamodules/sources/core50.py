"""CORe50: fifty household objects, filmed in eleven sessions."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from zoo.datamodules.sources.images import ImageFiles, verify_image_files
from zoo.datamodules.sources.source import Source

TRAIN_SESSIONS = (1, 2, 4, 5, 6, 8, 9, 11)
TEST_SESSIONS = (3, 7, 10)
NUM_OBJECTS = 50
CATEGORIES = (
    "plug_adapter", "mobile_phone", "scissor", "light_bulb", "can",
    "glass", "ball", "marker", "cup", "remote_control",
)  # fmt: skip
FRAME = re.compile(r"C_(\d+)_(\d+)_(\d+)\.png")


class CORe50(Source):
    """About 165,000 frames of 50 objects (five of each of ten categories) in eleven sessions.

    The sessions differ in background and light: they are the domains. Training takes sessions 1, 2, 4, 5, 6, 8, 9 and
    11, in this order; sessions 3, 7 and 10 are one fixed test set, as published. The label is the object, not the
    category. Frames are sorted by number, as they were filmed.

    The files are those of the published archive of 128 x 128 pixels:
    ``<root>/s<session>/o<object>/C_<session>_<object>_<frame>.png``. Its address stands on
    https://vlomonaco.github.io/core50; nothing is downloaded here.

    Args:
        root: Folder that holds ``s1`` to ``s11``.
        verify: Decode every file once before training, to find damaged ones; takes minutes.

    Source:
        Lomonaco and Maltoni, "CORe50: a New Dataset and Benchmark for Continuous Object Recognition", CoRL 2017,
        https://arxiv.org/abs/1705.03550.
    """

    domain_names = tuple(f"s{session}" for session in TRAIN_SESSIONS)

    def __init__(self, root: str | Path = "data/core50_128x128", verify: bool = False) -> None:
        self.root = Path(root)
        self.verify = verify

    @property
    def classes(self) -> Sequence[str]:
        """Names of the objects, plug_adapter1 to remote_control5."""
        return [f"{category}{number}" for category in CATEGORIES for number in range(1, 6)]

    def prepare(self) -> None:
        """Check that every session has every object and, if asked for, that every file can be read.

        Raises:
            FileNotFoundError: If a folder is missing or holds no frame.
            ValueError: If a frame is in the wrong folder or cannot be read.
        """
        samples = [*self.train().samples, *self.test().samples]
        if self.verify:
            verify_image_files([path for path, _ in samples])

    def train(self) -> ImageFiles:
        """Return the frames of the training sessions; their ``domains`` are positions in ``domain_names``."""
        sessions = [self._session(session) for session in TRAIN_SESSIONS]
        domains = torch.arange(len(sessions)).repeat_interleave(torch.tensor([len(samples) for samples in sessions]))
        return ImageFiles([sample for samples in sessions for sample in samples], domains)

    def test(self) -> ImageFiles:
        """Return the frames of the three test sessions."""
        return ImageFiles([sample for session in TEST_SESSIONS for sample in self._session(session)])

    def _session(self, session: int) -> list[tuple[str, int]]:
        return [(path, number - 1) for number in range(1, NUM_OBJECTS + 1) for path in self._frames(session, number)]

    def _frames(self, session: int, number: int) -> list[str]:
        """Return the files of one object in one session, by frame number."""
        folder = self.root / f"s{session}" / f"o{number}"
        if not folder.is_dir():
            raise FileNotFoundError(
                f"CORe50 is not complete: there is no folder {folder}. Set root to the folder that holds s1 to s11, "
                "unpacked from core50_128x128.zip (see https://vlomonaco.github.io/core50)."
            )
        frames = {}
        for name in os.listdir(folder):
            if not name.endswith(".png"):
                continue
            match = FRAME.fullmatch(name)
            if match is None or (int(match[1]), int(match[2])) != (session, number):
                raise ValueError(
                    f"{folder / name} is not a frame of session {session}, object {number}: "
                    f"the name should be C_{session:02d}_{number:02d}_<frame>.png."
                )
            frames[int(match[3])] = str(folder / name)
        if not frames:
            raise FileNotFoundError(f"CORe50 is not complete: {folder} holds no frame.")
        return [frames[number] for number in sorted(frames)]
