"""Files that are either whole or not there."""

import os
import tempfile
from pathlib import Path


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a file so that a full disk or a killed process leaves the old file, never half of the new one.

    The content goes to a temporary file in the same folder, reaches the disk, and takes the name in one step.

    Args:
        path: Where to write; its folder is made.
        content: Text (written as UTF-8) or bytes.

    Raises:
        OSError: If the disk is full or not writable; a file that was there before is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    """Return the process's mask; mkstemp makes files private, ours should be as any other."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
