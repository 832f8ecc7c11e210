"""Files that are either whole or not there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary file in the same folder to write to, which takes the name in one step at the end.

    A full disk or a killed process leaves the old file, never half of the new one.

    Args:
        path: The name to take; its folder is made.

    Yields:
        Where to write.

    Raises:
        OSError: If the disk is full or not writable; a file that was there before is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        yield Path(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a file through :func:`atomic_path`.

    Args:
        path: Where to write; its folder is made.
        content: Text (written as UTF-8) or bytes.

    Raises:
        OSError: If the disk is full or not writable; a file that was there before is unchanged.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def _umask() -> int:
    """Return the process's mask; mkstemp makes files private, ours should be as any other."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
