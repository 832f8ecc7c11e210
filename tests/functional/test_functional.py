"""Files that are whole or not there, and seeds that follow from numbers."""

import os
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.functional import Task, git_commit, mix_seeds, seed_all, write_atomically


def test_file_is_written_with_its_folder_and_usual_rights(tmp_path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_atomically(path, "first")
    write_atomically(path, b"second")
    assert path.read_text() == "second"
    other = tmp_path / "other"
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode
    assert os.listdir(path.parent) == ["b.txt"]


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, "good")

    def full(descriptor) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert Path(path).read_text() == "good"
    assert os.listdir(tmp_path) == ["results.json"]


def test_commit_is_that_of_the_folder(tmp_path, monkeypatch) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert git_commit(tmp_path) is None
    git("init")
    (tmp_path / "code.py").write_text("1")
    assert git_commit(tmp_path) is None  # nothing tracked
    git("add", "code.py")
    git("commit", "-m", "first")
    (tmp_path / "environment").mkdir()
    clean = git_commit(tmp_path)
    assert clean is not None
    assert len(clean) == 40
    assert git_commit(tmp_path / "environment") is None  # lies in the repository, and is no part of it
    (tmp_path / "code.py").write_text("2")
    assert git_commit(tmp_path) == f"{clean}-dirty"


def test_seeds_depend_on_each_number_and_their_order() -> None:
    seeds = {mix_seeds(*key) for key in [(0, 1), (1, 0), (0, 1, 0), (1, 1), (0,), (1,)]}
    assert len(seeds) == 6
    assert mix_seeds(3, 5) == mix_seeds(3, 5)


def test_everything_is_seeded() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_all(1, 2)
    first = draw()
    seed_all(1, 2)
    assert draw() == first
    seed_all(2, 1)
    assert draw() != first


def test_task_is_a_plain_tuple() -> None:
    index, classes, epochs, steps = Task(1, range(2, 4), 3, 7)
    assert (index, list(classes), epochs, steps) == (1, [2, 3], 3, 7)
