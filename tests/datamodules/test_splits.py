import pytest
import torch

from zoo.datamodules.splits import check_labels, hold_out


def test_hold_out_keeps_the_proportion_of_every_class():
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 10)[
        torch.randperm(80, generator=torch.Generator().manual_seed(3))
    ]
    kept, held_out = hold_out(labels, 0.2, seed=0)
    assert labels[held_out].bincount().tolist() == [10, 4, 2]
    assert sorted(torch.cat((kept, held_out)).tolist()) == list(range(80))
    assert kept.dtype == held_out.dtype == torch.int64


def test_hold_out_follows_from_the_seed_and_leaves_the_global_random_state_alone():
    labels = torch.arange(100) % 4
    state = torch.get_rng_state()
    first, again, other = hold_out(labels, 0.2, 0), hold_out(labels, 0.2, 0), hold_out(labels, 0.2, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_hold_out_of_a_class_does_not_depend_on_the_other_classes():
    labels = torch.arange(90) % 3
    _, with_all = hold_out(labels, 0.3, seed=5)
    two = (labels != 1).nonzero().flatten()
    _, without_one = hold_out(labels[two], 0.3, seed=5)
    assert two[without_one].tolist() == [index for index in with_all.tolist() if labels[index] != 1]


@pytest.mark.parametrize(("count", "fraction", "expected"), [(2, 0.01, 1), (2, 0.99, 1), (5, 0.1, 1), (10, 0.25, 2)])
def test_hold_out_leaves_an_image_on_both_sides(count, fraction, expected):
    kept, held_out = hold_out([7] * count, fraction, seed=0)
    assert (len(kept), len(held_out)) == (count - expected, expected)


def test_hold_out_of_nothing_keeps_all():
    kept, held_out = hold_out([4, 4, 1], 0, seed=0)
    assert kept.tolist() == [0, 1, 2]
    assert held_out.numel() == 0
    assert held_out.dtype == torch.int64


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_hold_out_refuses_a_bad_fraction(fraction):
    with pytest.raises(ValueError, match=f"fraction is {fraction}"):
        hold_out([0, 0, 1, 1], fraction, seed=0)


def test_hold_out_refuses_a_class_with_one_image():
    with pytest.raises(ValueError, match="Class 1 has a single image"):
        hold_out([0, 0, 1], 0.5, seed=0)


@pytest.mark.parametrize(
    "targets", [[0, 2, 1], (0, 2, 1), torch.tensor([0, 2, 1]), torch.tensor([0, 2, 1], dtype=torch.uint8)]
)
def test_check_labels_returns_int64(targets):
    labels = check_labels(targets, 3, "the set")
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([0, 1, 3, 5], "Label 3 of image 2 of the test set of X is out of range: there are 3 classes.*0 to 2.*2 of 4"),
        ([0, -1], "Label -1 of image 1"),
        ([], "the test set of X is empty"),
        (torch.tensor([0.0, 1.0]), r"are float32 of shape \(2,\)"),
        (torch.zeros(2, 3, dtype=torch.int64), r"are int64 of shape \(2, 3\)"),
    ],
)
def test_check_labels_names_what_is_wrong(targets, message):
    with pytest.raises(ValueError, match=message):
        check_labels(targets, 3, "the test set of X")
