"""Streams: who is in which task, in which order, and what is refused."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from zoo.datamodules import ClassIncrementalDataModule, DomainIncrementalDataModule
from zoo.datamodules.sources import Digits, Synthetic


def ready(data):
    data.prepare_data()
    data.setup("fit")
    return data


def test_tasks_share_out_all_images_and_labels_are_stream_positions() -> None:
    data = ready(ClassIncrementalDataModule(num_tasks=3, seed=4))
    assert [task.classes for task in data.tasks] == [range(4), range(4, 7), range(7, 10)]
    assert sum(len(data.train_set(i)) for i in range(3)) == 1437
    assert sum(len(data.evaluation_set(i, "test")) for i in range(3)) == 360
    source = Digits().train()
    view = data.train_set(1)
    for position in (0, 17, len(view) - 1):
        image, label = view[position]
        assert label in range(4, 7)
        pixels, number = source[int(view.indices[position])]
        assert number == data.class_order[label]
        torch.testing.assert_close(image[0], pixels[0] / 255)
    assert data.class_names[5] == str(data.class_order[5])


def test_order_drawn_from_the_seed_is_the_habit_of_the_field() -> None:
    data = ClassIncrementalDataModule(Synthetic(num_classes=100), num_tasks=10, seed=1993)
    assert data.class_order[:5] == [68, 56, 78, 8, 23]
    assert data.class_order == np.random.RandomState(1993).permutation(100).tolist()
    assert data.hparams["class_order"] == data.class_order


def test_tasks_can_be_named() -> None:
    data = ready(ClassIncrementalDataModule(tasks=[["3", 1], list(range(4, 10)), ["0", "2"]]))
    assert data.class_names == ["3", "1", "4", "5", "6", "7", "8", "9", "0", "2"]
    assert [task.classes for task in data.tasks] == [range(2), range(2, 8), range(8, 10)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tasks": 11}, "num_tasks=11 must be between 1 and the number of classes, 10"),
        ({"num_tasks": 0}, "num_tasks=0"),
        ({"tasks": [[0, 1], [1, 2, 3, 4, 5, 6, 7, 8, 9]]}, r"classes \[1\] stand more than once"),
        ({"tasks": [[0, 1], [2, 3]]}, r"classes \[4, 5, 6, 7, 8, 9\] are in no task"),
        ({"tasks": [list(range(10)), []]}, "task 1 of tasks is empty"),
        ({"tasks": [list(range(11))]}, r"classes \[10\] are not among the source's 10"),
        ({"tasks": [["zero"]]}, "class 'zero' is not among"),
        ({"tasks": [[0]], "num_tasks": 2}, "leave out num_tasks"),
        ({"class_order": [0, 0, *range(2, 10)]}, r"classes \[0\] stand more than once"),
        ({"epochs_per_task": 0}, "epochs_per_task=0"),
        ({"epochs_per_task": [1, 2]}, "one for each of 5 tasks"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"val_fraction": 1.0}, "val_fraction=1.0"),
        ({"evaluate": "val"}, "set val_fraction"),
    ],
)
def test_bad_arguments_are_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        ClassIncrementalDataModule(**arguments)


def test_label_out_of_range_is_refused() -> None:
    class Wrong(Digits):
        @property
        def classes(self):
            return super().classes[:9]

    with pytest.raises(ValueError, match=r"9 .*out of range"):
        ready(ClassIncrementalDataModule(Wrong(), num_tasks=3))


def test_task_without_images_is_refused() -> None:
    class Empty(Digits):
        @property
        def classes(self):
            return [*super().classes, "ten"]

    with pytest.raises(ValueError, match=r"Task 1 \(classes ten\) has no train image"):
        ready(ClassIncrementalDataModule(Empty(), tasks=[list(range(10)), [10]]))


def test_validation_images_are_held_out() -> None:
    data = ready(ClassIncrementalDataModule(num_tasks=5, evaluate="val", val_fraction=0.2))
    train, val = data.train_set(2), data.evaluation_set(2, "val")
    assert set(train.indices.tolist()).isdisjoint(val.indices.tolist())
    assert set(val.labels.tolist()) == set(data.tasks[2].classes)
    assert len(val) == pytest.approx(0.25 * len(train), rel=0.05)


def test_transforms_and_what_is_fixed() -> None:
    data = ready(ClassIncrementalDataModule(train_transform=[v2.Resize(16), v2.RandomHorizontalFlip()]))
    image, _ = data.train_set(0)[0]
    assert image.shape == (3, 16, 16)
    assert image.dtype == torch.float32
    assert data.fixed_evaluation
    assert not ClassIncrementalDataModule(test_transform=v2.RandomRotation(3)).fixed_evaluation
    assert not ClassIncrementalDataModule(test_transform=lambda image: image).fixed_evaluation
    assert ClassIncrementalDataModule(test_transform=v2.Compose([v2.Resize(9), v2.CenterCrop(8)])).fixed_evaluation


def test_normalised_images_are_refused() -> None:
    to_float = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.1] * 3)])
    data = ready(ClassIncrementalDataModule(test_transform=to_float))
    with pytest.raises(ValueError, match=r"must stay in \[0, 1\]"):
        data.evaluation_set(0, "test")[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_different_sizes_are_refused(workers) -> None:
    class Uneven(Synthetic):
        def train(self):
            images = super().train()

            class Images:
                targets = images.targets

                def __len__(self) -> int:
                    return len(images)

                def __getitem__(self, index):
                    return torch.zeros(3, 8 + index % 2, 8, dtype=torch.uint8), int(images.targets[index])

            return Images()

    data = ready(ClassIncrementalDataModule(Uneven(num_classes=2), num_tasks=1, num_workers=workers))
    with pytest.raises(ValueError, match=r"\(8, 8\) and \(9, 8\): give height and width"):
        list(data.loader(data.train_set(0), shuffle=False, pad=True))


def test_empty_order_is_no_default() -> None:
    with pytest.raises(ValueError, match="are in no task"):
        ClassIncrementalDataModule(class_order=[])


def test_order_follows_from_seed_and_epoch() -> None:
    def labels(seed: int, epoch: int) -> list[int]:
        data = ready(ClassIncrementalDataModule(seed=seed, class_order=list(range(10)), epochs_per_task=5))
        data._restored_epoch = epoch
        loader = data.loader(data.train_set(0), shuffle=True, pad=True)
        return torch.cat([batch[1] for batch in loader]).tolist()

    assert labels(0, 1) == labels(0, 1)
    assert labels(0, 1) != labels(0, 2)
    assert labels(0, 1) != labels(1, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_random_transforms_follow_from_seed_and_epoch(workers) -> None:
    def images(disturb: int) -> torch.Tensor:
        data = ready(
            ClassIncrementalDataModule(train_transform=v2.RandomCrop(8, padding=3), num_workers=workers, num_tasks=10)
        )
        loader = data.loader(data.train_set(0), shuffle=True, pad=True)
        for _ in range(disturb):
            next(iter(loader))
        torch.manual_seed(0)  # TaskLoop does so in the main process
        return torch.cat([batch[0] for batch in loader])

    torch.testing.assert_close(images(0), images(2), rtol=0, atol=0)


def test_domains_are_tasks_with_all_classes() -> None:
    source = Synthetic(num_classes=4, num_domains=3, train_per_class=6, test_per_class=3)
    data = ready(DomainIncrementalDataModule(source, domain_order=[2, 0, 1]))
    assert [task.classes for task in data.tasks] == [range(4)] * 3
    domains = torch.as_tensor(source.train().domains)
    for index, domain in enumerate([2, 0, 1]):
        view = data.train_set(index)
        assert set(domains[view.indices].tolist()) == {domain}
        assert set(view.labels.tolist()) == set(range(4))
    with pytest.raises(TypeError, match="Digits has no domains"):
        DomainIncrementalDataModule(Digits())
    with pytest.raises(ValueError, match="domain_order"):
        DomainIncrementalDataModule(source, domain_order=[0, 0, 1])


def test_checkpoint_of_another_stream_is_refused() -> None:
    state = ClassIncrementalDataModule(seed=0).state_dict()
    with pytest.raises(ValueError, match="order of the classes"):
        ClassIncrementalDataModule(seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="numbers of epochs"):
        ClassIncrementalDataModule(seed=0, epochs_per_task=2).load_state_dict(state)
