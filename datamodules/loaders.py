"""Loaders whose order, shards and worker seeds follow from (seed, epoch, process) alone.

Lightning stores no random state in a checkpoint, prefetches before it tells a sampler the epoch, and pads shards. What is
below makes a resumed run see what an unbroken one sees, and a count over all processes exact.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from zoo.functional import mix_seeds, seed_all


class ShardSampler(DistributedSampler[Any]):
    """The share of one process, without the repeats that torch's sampler adds to make shares equal.

    A subclass of ``DistributedSampler`` so that Lightning leaves it alone.

    Args:
        dataset: What to draw from.
        num_replicas: Number of processes.
        rank: This process.
        shuffle: Draw a new order from (seed, epoch).
        seed: The same on every process.
        pad: Repeat samples so that every process has the same number, as torch does.

    Raises:
        ValueError: If there are fewer samples than processes.
    """

    def __init__(
        self, dataset: Dataset[Any], num_replicas: int, rank: int, shuffle: bool, seed: int, pad: bool
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=shuffle, seed=seed)
        self.pad = pad
        self.num_total = len(dataset)  # type: ignore[arg-type]  # Dataset does not promise a length; ours have one
        if self.num_total < num_replicas:
            raise ValueError(f"{self.num_total} samples cannot be shared by {num_replicas} processes; use fewer.")
        if not pad:
            self.num_samples = len(range(rank, self.num_total, num_replicas))

    def __iter__(self) -> Iterator[int]:
        if self.pad:
            return super().__iter__()
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(self.num_total, generator=generator).tolist()
        else:
            order = list(range(self.num_total))
        return iter(order[self.rank :: self.num_replicas])


class EpochLoader(DataLoader[Any]):
    """A DataLoader that sets sample order and worker seeds from the epoch each time it is iterated.

    It has a generator of its own, so that the global random state is not touched.

    Args:
        dataset: What to draw from.
        sampler: The order and the share of this process.
        seed: Seeds the workers, together with the epoch and the rank.
        epoch: Called at each ``iter``.
        **kwargs: Of ``DataLoader``.
    """

    def __init__(
        self, dataset: Dataset[Any], sampler: ShardSampler, seed: int, epoch: Callable[[], int], **kwargs: Any
    ) -> None:
        super().__init__(dataset, sampler=sampler, generator=torch.Generator(), worker_init_fn=seed_worker, **kwargs)
        self.seed = seed
        self.current_epoch = epoch

    def __iter__(self) -> Any:
        epoch = self.current_epoch()
        self.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # a ShardSampler, see __init__
        self.generator.manual_seed(mix_seeds(self.seed, epoch, self.sampler.rank))  # type: ignore[attr-defined]
        return super().__iter__()


def equal_steps_batch_size(num_samples: int, batch_size: int, world_size: int) -> int:
    """Return the largest batch size for which unpadded shares of a data set take the same number of steps everywhere.

    Collective calls (gradients, buffers) happen once a step, so a process with one step more would wait for ever. Shares
    differ by at most one sample; only when the smaller one is a multiple of the batch size do the numbers of steps
    differ, and then a slightly smaller batch cures it.

    Args:
        num_samples: Size of the data set.
        batch_size: The size that was asked for.
        world_size: Number of processes.

    Raises:
        ValueError: If only a batch size of 1 was allowed and the shares are unequal.
    """
    smaller, remainder = divmod(num_samples, world_size)
    if remainder == 0:
        return batch_size
    for size in range(batch_size, 1, -1):
        if smaller % size:
            return size
    raise ValueError(
        f"batch_size={batch_size} gives {world_size} processes unequal numbers of steps over {num_samples} samples; "
        "use at least 2 more samples in a batch, or pad=True."
    )


def seed_worker(worker_id: int) -> None:
    """Seed Python and numpy of a loader worker too: from torch's seed, which came from the loader's own generator."""
    seed_all(torch.initial_seed())
