from .files import atomic_path, write_atomically
from .provenance import git_commit, versions
from .seeds import mix_seeds, seed_all
from .tasks import Task

__all__ = ["Task", "atomic_path", "git_commit", "mix_seeds", "seed_all", "versions", "write_atomically"]
