"""Where a number comes from."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

NAMED = ("lightning-zoo", "torch", "torchvision", "lightning", "timm", "torchmetrics", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that can change a number most."""
    found = {"python": platform.python_version()}
    for name in NAMED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit(folder: str | Path = ".") -> str | None:
    """Return the commit that a folder is at, ``-dirty`` behind it if tracked files differ.

    Args:
        folder: A folder whose content is tracked; one that is only ignored inside somebody's repository, as an
            environment is, has no commit.

    Returns:
        The hash, or None where there is no repository, no commit or no git.
    """
    tracked = _git(folder, "ls-files", "--error-unmatch", ".")
    return _git(folder, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*") if tracked else None


def _git(folder: str | Path, *arguments: str) -> str | None:
    """Return what git prints when asked in a folder, None if it fails or is not there."""
    try:
        answer = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
