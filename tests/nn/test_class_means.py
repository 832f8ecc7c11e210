"""Class means that samples are added to."""

import torch

from zoo.nn import ClassMeans


def test_added_samples_give_the_means_in_any_order() -> None:
    features, labels = torch.randn(7, 3), torch.tensor([2, 0, 2, 2, 0, 1, 2])
    means, shuffled = ClassMeans(4, 3), ClassMeans(4, 3)
    means.add(features, labels)
    for i in torch.randperm(7).tolist():
        shuffled.add(features[i : i + 1], labels[i : i + 1])
    assert means.count.tolist() == [2, 1, 4, 0]
    expected = torch.stack([features[labels == label].double().mean(dim=0) for label in range(3)])
    torch.testing.assert_close(means.means()[:3], expected)
    torch.testing.assert_close(shuffled.means(), means.means())


def test_adding_is_undone_by_subtracting() -> None:
    features, labels = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    means = ClassMeans(2, 3)
    means.add(features, labels)
    means.subtract(features[2:], labels[2:])
    torch.testing.assert_close(means.means(), features[:2].double())
