"""Few-shot streams: who is a shot, lists of them, several processes, what a checkpoint may change, what is refused."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from zoo.datamodules import FewShotIncrementalDataModule
from zoo.datamodules.sources import Digits, ImageFolders, Synthetic
from zoo.functional import mix_seeds


def make(source=None, **kwargs):
    source = source if source is not None else Synthetic(num_classes=10, image_size=4, train_per_class=8)
    return FewShotIncrementalDataModule(source, **{"base_classes": 4, "ways": 2, "shots": 3, **kwargs})


def ready(data):
    data.prepare_data()
    data.setup("fit")
    return data


def folders(root: Path, classes: str = "dcba", images: int = 6) -> ImageFolders:
    for name in classes:
        for split, count in (("train", images), ("test", 1)):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                Image.fromarray(np.full((4, 4), number, dtype=np.uint8)).save(root / split / name / f"{number}.png")
    return ImageFolders(root)


def write_lists(folder: Path, *sessions: list[str]) -> str:
    folder.mkdir(exist_ok=True)
    for index, lines in enumerate(sessions):
        (folder / f"session_{index + 1}.txt").write_text("\n".join(lines) + "\n")
    return str(folder)


def test_sessions_have_all_base_images_then_shots() -> None:
    data = ready(make(Digits(), base_classes=6, ways=2, shots=5, base_epochs=7, session_epochs=2))
    assert [task.classes for task in data.tasks] == [range(6), range(6, 8), range(8, 10)]
    assert [task.epochs for task in data.tasks] == [7, 2, 2]
    targets = Digits().train().targets
    assert data.train_set(0).indices.tolist() == (targets < 6).nonzero().flatten().tolist()
    for index in (1, 2):
        assert torch.bincount(data.train_set(index).labels, minlength=10)[list(data.tasks[index].classes)].tolist() == [
            5,
            5,
        ]
    assert [len(data.evaluation_set(index, "test")) for index in range(3)] == [216, 72, 72]


def test_published_settings_are_the_defaults() -> None:
    data = FewShotIncrementalDataModule(Synthetic(num_classes=100))
    assert [len(task.classes) for task in data.tasks] == [60, *[5] * 8]
    assert data.class_names == Synthetic(num_classes=100).classes
    data = FewShotIncrementalDataModule(Synthetic(num_classes=200), base_classes=100, ways=10)
    assert [len(task.classes) for task in data.tasks] == [100, *[10] * 10]


def test_shots_are_the_first_of_a_permutation_drawn_from_seed_and_session() -> None:
    data = ready(make(seed=5))
    targets = Synthetic(num_classes=10, train_per_class=8).train().targets
    generator = torch.Generator().manual_seed(mix_seeds(5, 2))
    expected = []
    for label in (6, 7):
        own = (targets == label).nonzero().flatten()
        expected += own[torch.randperm(8, generator=generator)[:3]].tolist()
    assert sorted(data.train_set(2).indices.tolist()) == sorted(expected)
    other = ready(make(seed=6))
    assert other.train_set(2).indices.tolist() != data.train_set(2).indices.tolist()


def test_class_order_and_classes_that_are_left_out() -> None:
    data = ready(make(num_sessions=2, class_order=[9, 8, 7, 6, 5, 4, "class3", 2, 1, 0]))
    assert data.class_names == [f"class{number}" for number in (9, 8, 7, 6, 5, 4, 3, 2)]
    assert data.num_classes == 8
    assert set(data.train_set(2).labels.tolist()) == {6, 7}
    source = Synthetic(num_classes=10, train_per_class=8).train()
    view = data.train_set(2)
    assert [int(source.targets[index]) for index in view.indices] == [9 - label for label in view.labels.tolist()]
    assert len(data.predict_dataloader().dataset) == 4 * 4  # of session 0, of the classes of the stream only


def test_joint_training_has_all_base_images_and_all_shots() -> None:
    data, stream = ready(make(joint=True, base_epochs=3)), ready(make())
    assert data.num_tasks == 1
    assert data.num_epochs == 3
    assert data.tasks[0].classes == range(10)
    indices = sorted(index for task in range(4) for index in stream.train_set(task).indices.tolist())
    assert data.train_set(0).indices.tolist() == indices
    assert len(data.evaluation_set(0, "test")) == 10 * 4


def test_plain_images_are_those_of_the_session_with_the_transform_of_evaluation() -> None:
    data = ready(make(train_transform=v2.RandomErasing(1.0), batch_size=5))
    data._restored_epoch = 1
    loader = data.plain_train_dataloader()
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert labels.tolist() == data.train_set(1).labels.tolist()
    source = Synthetic(num_classes=10, image_size=4, train_per_class=8).train()
    for image, index in zip(images, data.train_set(1).indices.tolist(), strict=True):
        torch.testing.assert_close(image, source[index][0] / 255)


def test_every_process_trains_on_all_shots_and_on_its_share_of_the_base() -> None:
    parts = []
    for rank in range(2):
        data = ready(make(batch_size=4))
        data.trainer = SimpleNamespace(
            global_rank=rank, world_size=2, current_epoch=1, reload_dataloaders_every_n_epochs=1
        )
        assert data.steps_per_epoch(0) == 4  # 32 images, 16 of a process, 4 a batch
        assert data.steps_per_epoch(1) == 2  # 6 shots
        assert [len(labels) for _, labels in data.train_dataloader()] == [4, 2]
        parts.append(torch.cat([labels for _, labels in data.train_dataloader()]))
        data.trainer.current_epoch = 0
        data._restored_epoch = 0
        parts.append(torch.cat([labels for _, labels in data.train_dataloader()]))
    assert parts[0].tolist() == parts[2].tolist()
    assert sorted(parts[0].tolist()) == [4, 4, 4, 5, 5, 5]
    assert torch.bincount(torch.cat([parts[1], parts[3]])).tolist() == [8, 8, 8, 8]


# Lists ---------------------------------------------------------------------------------------------------------------


def test_lists_that_were_written_give_the_same_sessions(tmp_path) -> None:
    data = ready(make(seed=3))
    data.write_lists(tmp_path)
    assert len((tmp_path / "session_1.txt").read_text().splitlines()) == 32  # the base session is number 1
    assert (tmp_path / "session_4.txt").read_text().endswith("\n")
    again = ready(make(seed=8, index_dir=str(tmp_path)))
    for index in range(4):
        assert again.train_set(index).indices.tolist() == data.train_set(index).indices.tolist()


def test_lists_of_paths_are_compared_by_folder_and_file(tmp_path) -> None:
    source = folders(tmp_path / "data")
    lists = write_lists(
        tmp_path / "lists", ["X/train/a/0.png", "X/train/b/5.png"], ["Y/c/1.png", "c/2.png"], ["d/0.png", "d/4.png"]
    )
    data = ready(make(source, base_classes=2, ways=1, shots=2, index_dir=lists))
    paths = [[Path(source.train().samples[i][0]) for i in data.train_set(index).indices] for index in range(3)]
    assert [[f"{path.parent.name}/{path.name}" for path in part] for part in paths] == [
        ["a/0.png", "b/5.png"], ["c/1.png", "c/2.png"], ["d/0.png", "d/4.png"],
    ]  # fmt: skip
    data.write_lists(tmp_path / "written")
    assert (tmp_path / "written" / "session_2.txt").read_text() == "c/1.png\nc/2.png\n"


def test_lists_in_another_order_print_it(tmp_path) -> None:
    lists = write_lists(tmp_path, ["0", "3"], ["1"], ["2"])  # one image of each of the classes 0, 3, 1, 2
    source = Synthetic(num_classes=4, train_per_class=1)
    with pytest.raises(ValueError, match=r"session_1.txt holds 2 classes, class0 first.*\[2, 1, 1\].*\[0, 3, 1, 2\]"):
        ready(make(source, base_classes=2, ways=1, shots=1, index_dir=lists))
    data = ready(make(source, base_classes=2, ways=1, shots=1, index_dir=lists, class_order=[0, 3, 1, 2]))
    assert data.train_set(1).indices.tolist() == [1]


@pytest.mark.parametrize(
    ("sessions", "error", "message"),
    [
        ([["0", "1"], ["2"]], FileNotFoundError, r"There is no .*session_3\.txt"),
        ([["0", "1"], ["2"], ["99"]], FileNotFoundError, r"session_3\.txt names 99, which is not among the 8"),
        ([["0", "1"], ["2"], ["x/y.png"]], ValueError, r"names files, as x/y\.png, but .* positions only"),
        ([["0", "1"], ["2"], ["6"]], ValueError, r"Class class2 stands in session_2\.txt and in session_3\.txt"),
        ([["0", "1"], ["2", "6"], ["3"]], ValueError, r"session_2\.txt holds 2 images of class class2; shots=1"),
        ([["0", "1"], ["2", "2"], ["3"]], ValueError, r"session_2\.txt names 2 twice"),
        ([["0", "1"], [""], ["3"]], ValueError, r"session_2\.txt is empty"),
        ([["0"], ["2"], ["3"]], ValueError, r"session_1\.txt holds 1 classes"),
    ],
)
def test_lists_that_do_not_fit_are_refused(sessions, error, message, tmp_path) -> None:
    source = Synthetic(num_classes=4, train_per_class=2)  # image i is of class i modulo 4
    data = make(source, base_classes=2, ways=1, shots=1, index_dir=write_lists(tmp_path, *sessions))
    with pytest.raises(error, match=message):
        ready(data)


def test_a_list_that_names_a_missing_file_is_refused(tmp_path) -> None:
    source = folders(tmp_path / "data", "ab")
    lists = write_lists(tmp_path / "lists", ["a/0.png"], ["b/77.png"])
    with pytest.raises(FileNotFoundError, match=r"session_2\.txt names b/77\.png, which is not among the 12"):
        ready(make(source, base_classes=1, ways=1, shots=1, index_dir=lists))


# What is refused -----------------------------------------------------------------------------------------------------


def test_fewer_images_than_shots_are_refused_before_training() -> None:
    with pytest.raises(ValueError, match="Class class4 has 8 training images, fewer than shots=9"):
        ready(make(shots=9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_classes": 0}, "base_classes=0 must be at least 1"),
        ({"base_classes": 11}, "base_classes=11 is more than the 10 classes"),
        ({"ways": 4}, r"ways=4: 2 would be left over. Give num_sessions=1"),
        ({"shots": 0}, "shots=0 must be at least 1"),
        ({"num_sessions": 4}, r"num_sessions=4 .* must be from 0 to 3"),
        ({"class_order": [0, 0, *range(2, 10)]}, r"classes \[0\] stand more than once"),
        ({"index_dir": "lists", "val_fraction": 0.1}, "would hold out images that the lists"),
        ({"session_epochs": 0}, "epochs_per_task"),
    ],
)
def test_bad_arguments_are_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


# Checkpoints ---------------------------------------------------------------------------------------------------------


def at(data, epoch: int):
    data._restored_epoch = epoch
    return data


def test_sessions_that_have_not_begun_may_change() -> None:
    state = at(ready(make(base_epochs=2)), 2).state_dict()
    data = ready(make(base_epochs=2, session_epochs=10, seed=4))
    data.load_state_dict(state)
    assert data.epoch == 2
    assert data.task.index == 1


@pytest.mark.parametrize(
    ("epoch", "arguments", "message"),
    [
        (1, {"base_epochs": 3}, "other numbers of epochs"),  # in the middle of the base session
        (2, {"base_epochs": 3}, "other numbers of epochs"),
        (3, {"session_epochs": 2}, "other numbers of epochs"),
        (3, {"seed": 4}, "other shots"),
        (2, {"class_order": [1, 0, *range(2, 10)]}, "other classes"),
    ],
)
def test_what_a_checkpoint_has_learned_must_not_change(epoch, arguments, message) -> None:
    state = at(ready(make(base_epochs=2)), epoch).state_dict()
    data = ready(make(**{"base_epochs": 2, **arguments}))
    with pytest.raises(ValueError, match=message):
        data.load_state_dict(state)
