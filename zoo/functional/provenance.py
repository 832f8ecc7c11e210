"""Where a number comes from."""

import platform
import subprocess
from importlib import metadata

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


def git_commit() -> str | None:
    """Return the commit of the working folder, ``-dirty`` behind it if tracked files differ; None if there is none."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
