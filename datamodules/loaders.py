"""Loaders whose order, shards and worker seeds follow from (seed, epoch, process) alone.

Lightning stores no random state in a checkpoint, prefetches before it tells a sampler the epoch, and pads shards. What
is below makes a resumed run see what an unbroken one sees, and a count over all processes exact.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

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
            generator = torch.Generator().manual_seed(self.seed + self.epoch)  # as torch does with pad
            order = torch.randperm(self.num_total, generator=generator).tolist()
        else:
            order = list(range(self.num_total))
        return iter(order[self.rank :: self.num_replicas])


class EpochLoader(DataLoader[Any]):
    """A DataLoader that sets sample order and worker seeds from the epoch each time it is iterated.

    It has a generator of its own, so that the global random state is not touched.

    Args:
        dataset: What to draw from.
        seed: Seeds the workers, together with the epoch and the rank.
        epoch: Called at each ``iter``.
        **kwargs: Of ``DataLoader``; ``sampler`` is a :class:`ShardSampler`, or what Lightning makes of it.
    """

    def __init__(self, dataset: Dataset[Any], seed: int, epoch: Callable[[], int], **kwargs: Any) -> None:
        # Lightning builds a loader anew for predict: from the attributes named as these arguments, and with the
        # arguments that it finds in the first one.
        fixed = {"generator": torch.Generator(), "worker_init_fn": seed_worker, "collate_fn": collate}
        super().__init__(dataset, **(kwargs | fixed))
        self.seed = seed
        self.epoch = epoch

    def __iter__(self) -> Any:
        # A generator: Lightning may ask for the iterator of a resumed fit before it knows the epoch, and draw later.
        epoch = self.epoch()
        if isinstance(self.sampler, ShardSampler):
            self.sampler.set_epoch(epoch)
        rank = getattr(self.sampler, "rank", 0)
        self.generator.manual_seed(mix_seeds(self.seed, epoch, rank))
        yield from super().__iter__()


def shard_loader(
    images: Dataset[Any],
    trainer: Any,
    epoch: Callable[[], int],
    batch_size: int,
    num_workers: int,
    seed: int,
    shuffle: bool,
    pad: bool,
) -> EpochLoader:
    """Return the loader of this process's share of a data set.

    Args:
        images: What to draw from.
        trainer: Says which process this is; None for a single one.
        epoch: Says which epoch it is.
        batch_size: Samples in a batch; without padding it may shrink, see :func:`equal_steps_batch_size`.
        num_workers: Loader processes.
        seed: Draws the order, and seeds the workers.
        shuffle: Draw a new order each epoch.
        pad: Repeat samples so that every process has the same number; False shares them exactly.
    """
    rank, world_size = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
    sampler = ShardSampler(images, world_size, rank, shuffle=shuffle, seed=seed, pad=pad)
    return EpochLoader(
        images,
        seed=seed,
        epoch=epoch,
        sampler=sampler,
        batch_size=batch_size if pad else equal_steps_batch_size(sampler.num_total, batch_size, world_size),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )


def collate(samples: list[Any]) -> Any:
    """Make a batch as torch does, with an error that says what to do.

    Raises:
        ValueError: If the images have different sizes.
    """
    images = [sample[0] for sample in samples if isinstance(sample, tuple) and isinstance(sample[0], Tensor)]
    sizes = sorted({tuple(image.shape[-2:]) for image in images})
    if len(sizes) > 1:
        raise ValueError(
            f"Images of a batch have different sizes, {sizes[0]} and {sizes[-1]}: give height and width "
            "to the transforms, as in torchvision.transforms.v2.Resize with size [224, 224]."
        )
    return default_collate(samples)


def equal_steps_batch_size(num_samples: int, batch_size: int, world_size: int) -> int:
    """Return the largest batch size for which unpadded shares of a data set take the same number of steps everywhere.

    Collective calls (gradients, buffers) happen once a step, so a process with one step more would wait for ever.
    Shares differ by at most one sample; only when the smaller one is a multiple of the batch size do the numbers of
    steps differ, and then a slightly smaller batch cures it.

    Args:
        num_samples: Size of the data set.
        batch_size: The size that was asked for.
        world_size: Number of processes.

    Raises:
        ValueError: If no batch size up to the one asked for does.
    """
    smaller, remainder = divmod(num_samples, world_size)
    if remainder == 0:
        return batch_size
    for size in range(batch_size, 1, -1):
        if smaller % size:
            return size
    raise ValueError(
        f"batch_size={batch_size} gives {world_size} processes unequal numbers of steps over {num_samples} samples; "
        f"choose one that does not divide {smaller}."
    )


def seed_worker(worker_id: int) -> None:
    """Seed Python and numpy of a loader worker too: from torch's seed, which came from the loader's own generator."""
    seed_all(torch.initial_seed())
