"""Where a number comes from: versions, commit and hardware. Nothing here imports torch."""

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata

from zoo import functional
from zoo.cli.catalogue import PACKAGE

DISTRIBUTION = "lightning-zoo"
CODE = ("zoo", "datamodules", "callbacks", "configs")  # what can change a number


def versions() -> str:
    """Return the versions of Python and of the packages that can change a number most, in one line."""
    return ", ".join(f"{name} {version}" for name, version in functional.versions().items())


def constraints() -> str:
    """Return every installed distribution as ``name==version``, sorted, one a line: a constraints file for pip.

    Local parts of a version (``+cpu``) are left out: they name a build, which an index may or may not have, and a
    constraint without one admits them all.
    """
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if name and name != DISTRIBUTION:
            found.setdefault(name, distribution.version.partition("+")[0])  # the first on the path is the one imported
    header = f"# Python {platform.python_version()}, {platform.system()} {platform.machine()}\n"
    return header + "".join(f"{name}=={version}\n" for name, version in sorted(found.items()))


def commit() -> tuple[str, bool | None]:
    """Return the commit zoo's code was run from and whether the code differed from it.

    Returns:
        Hash and whether there are changes; an empty hash and None where the code is not in a repository of its own, as
        after an install from a wheel.
    """
    # An environment inside somebody else's repository is ignored there, so being tracked is what tells.
    tracked = _git("ls-files", "--error-unmatch", "__init__.py")
    top = _git("rev-parse", "--show-toplevel")
    if tracked is None or top is None:
        return "", None
    changes = _git("-C", top, "status", "--porcelain", "--", *CODE)
    return _git("rev-parse", "HEAD") or "", bool(changes)


def hardware() -> str:
    """Return the processor, the cores this process may use, and the GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} cores, {_gpus()}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _gpus() -> str:
    if shutil.which("nvidia-smi") is None:
        return "no GPU"
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    names = answer.stdout.split("\n")[:-1] if answer.returncode == 0 else []
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "no GPU"


def _git(*arguments: str) -> str | None:
    """Return what git prints when asked in the package's folder, None if it fails or is not there."""
    try:
        answer = subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
