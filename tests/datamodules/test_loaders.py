import random
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, DistributedSampler

from zoo.datamodules.loaders import EpochLoader, ShardSampler, equal_steps_batch_size


class Numbers(Dataset):
    """Positions, and what each random generator of the process says."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return index, torch.rand(()).item(), np.random.rand(), random.random()


def shares(size, world_size, **options):
    samplers = [
        ShardSampler(Numbers(size), world_size, rank, **{"shuffle": False, "seed": 0, "pad": False} | options)
        for rank in range(world_size)
    ]
    drawn = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(share) for share in drawn]
    return drawn


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("size", "world_size"), [(10, 1), (10, 2), (11, 2), (11, 3), (3, 3)])
def test_unpadded_shares_hold_every_sample_once(size, world_size, shuffle):
    drawn = shares(size, world_size, shuffle=shuffle)
    assert sorted(chain(*drawn)) == list(range(size))
    assert max(map(len, drawn)) - min(map(len, drawn)) <= 1


def test_padded_shares_are_equal():
    drawn = shares(11, 3, pad=True)
    assert {len(share) for share in drawn} == {4}
    assert set(chain(*drawn)) == set(range(11))


def test_padded_and_unpadded_shares_have_the_same_order():
    for seed in (0, 1):
        assert shares(12, 2, shuffle=True, seed=seed) == shares(12, 2, shuffle=True, seed=seed, pad=True)


def test_shuffle_follows_from_seed_and_epoch():
    sampler = ShardSampler(Numbers(50), 1, 0, shuffle=True, seed=3, pad=False)
    first = list(sampler)
    assert first != list(range(50))
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert first != list(sampler)


def test_lightning_leaves_the_sampler_alone():
    assert isinstance(ShardSampler(Numbers(2), 1, 0, shuffle=False, seed=0, pad=False), DistributedSampler)


def test_fewer_samples_than_processes_are_refused():
    with pytest.raises(ValueError, match="2 samples cannot be shared by 3 processes"):
        ShardSampler(Numbers(2), 3, 0, shuffle=False, seed=0, pad=False)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_batch_size_is_the_largest_with_which_every_process_takes_the_same_number_of_steps(world_size):
    def has_equal_steps(batch_size, size):
        return len({-(-len(range(rank, size, world_size)) // batch_size) for rank in range(world_size)}) == 1

    for size in range(world_size, 60):
        for asked in range(1, 12):
            allowed = [batch_size for batch_size in range(1, asked + 1) if has_equal_steps(batch_size, size)]
            if allowed:
                assert equal_steps_batch_size(size, asked, world_size) == max(allowed)
            else:
                with pytest.raises(ValueError, match=f"batch_size={asked} gives {world_size} processes unequal"):
                    equal_steps_batch_size(size, asked, world_size)


def make_loader(epoch, num_workers=0, seed=0, rank=0):
    data = Numbers(12)
    sampler = ShardSampler(data, 2, rank, shuffle=True, seed=seed, pad=True)
    return EpochLoader(data, sampler=sampler, seed=seed, epoch=epoch, batch_size=3, num_workers=num_workers)


def drawn(loader):
    return [torch.stack([column.double() for column in batch]).tolist() for batch in loader]


def numbers(batches, column):
    """Return all numbers in one column of the batches."""
    return set(chain(*(batch[column] for batch in batches)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_order_of_an_epoch_does_not_depend_on_what_was_iterated_before(num_workers):
    epochs = iter([0, 1, 2])
    unbroken = make_loader(lambda: next(epochs), num_workers)
    _, _, third = (drawn(unbroken) for _ in range(3))
    torch.manual_seed(77)
    resumed = drawn(make_loader(lambda: 2, num_workers))
    positions = [batch[0] for batch in resumed]
    assert positions == [batch[0] for batch in third]
    if num_workers:  # without workers, transforms draw from the global state, which is the Trainer's to seed
        assert resumed == third


def test_workers_draw_other_numbers_in_another_epoch_rank_or_seed():
    reference = drawn(make_loader(lambda: 0, 2))
    for other in (make_loader(lambda: 1, 2), make_loader(lambda: 0, 2, rank=1), make_loader(lambda: 0, 2, seed=1)):
        for column in (1, 2, 3):
            assert not numbers(reference, column) & numbers(drawn(other), column)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_iterating_leaves_the_global_random_state_alone(num_workers):
    class Positions(Numbers):
        def __getitem__(self, index):
            return index

    data = Positions(12)
    loader = EpochLoader(
        data,
        sampler=ShardSampler(data, 1, 0, shuffle=True, seed=0, pad=True),
        seed=0,
        epoch=lambda: 0,
        num_workers=num_workers,
    )
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert len(list(loader)) == 12
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_epoch_is_asked_for_when_the_first_batch_is_drawn(num_workers):
    """A resumed fit asks for the iterator before it knows its epoch, if the length of training is estimated."""
    current = {"epoch": 0}

    def loader():
        data = Numbers(12)
        sampler = ShardSampler(data, 1, 0, shuffle=True, seed=0, pad=False)
        return EpochLoader(data, 0, lambda: current["epoch"], sampler=sampler, batch_size=4, num_workers=num_workers)

    early = iter(loader())
    current["epoch"] = 3
    for one, other in zip(early, loader(), strict=True):
        assert torch.equal(one[0], other[0])
