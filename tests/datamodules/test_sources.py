"""Sources, read from small files written in the very format of the published ones."""

import gzip
import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from zoo.datamodules import sources
from zoo.datamodules.sources import (
    CIFAR10,
    CIFAR100,
    MNIST,
    ClassRange,
    CORe50,
    Digits,
    FashionMNIST,
    ImageFolders,
    Source,
    Synthetic,
    core50,
    fashion_mnist,
)
from zoo.datamodules.sources.source import LabeledImages

RANDOM = np.random.default_rng(0)


def save_image(path, color=(200, 100, 50), size=(12, 10)):
    """Write an image of one colour; a JPEG is close to it, a PNG exact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def save_noise(path):
    """Write an image that takes enough bytes to be cut short in the middle of its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    return path


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


# All sources --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [MNIST, FashionMNIST, CIFAR10, CIFAR100, CORe50, ImageFolders])
def test_building_a_source_does_not_touch_the_disk(source, tmp_path):
    missing = source(tmp_path / "missing")
    if source is not ImageFolders:  # whose class names are folders
        assert len(missing.classes) == {CIFAR100: 100, CORe50: 50}.get(source, 10)
    with pytest.raises(FileNotFoundError, match="missing"):
        missing.prepare()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("source", [Digits(), Synthetic(num_domains=2), ClassRange(Digits(), 4, 9)])
def test_data_sets_keep_the_contract(source):
    assert isinstance(source, Source)
    source.prepare()
    for images in (source.train(), source.test()):
        assert isinstance(images, LabeledImages)
        assert len(images) == len(images.targets)
        for index in (0, len(images) - 1):
            image, label = images[index]
            assert image.dtype == torch.uint8
            assert image.ndim == 3
            assert type(label) is int
            assert label == images.targets[index]
        assert sorted(set(images.targets.tolist())) == list(range(len(source.classes)))


def test_every_exported_name_exists():
    assert all(hasattr(sources, name) for name in sources.__all__)


# Digits -------------------------------------------------------------------------------------------------------------


def test_digits_are_split_into_first_and_last_images_of_each_class():
    from sklearn.datasets import load_digits

    train, test = Digits().train(), Digits().test()
    assert (len(train), len(test)) == (1437, 360)
    assert test.targets.bincount().tolist() == [36] * 10
    raw = load_digits()
    for digit in (0, 7):
        original = torch.from_numpy(raw.images[raw.target == digit])
        restored = torch.cat((train.images[train.targets == digit], test.images[test.targets == digit]))[:, 0]
        torch.testing.assert_close(restored.double() * 16 / 255, original, atol=0.04, rtol=0)
    assert train.images.unique().numel() == 17
    assert (train.images.min(), train.images.max()) == (0, 255)


# MNIST and Fashion-MNIST --------------------------------------------------------------------------------------------


def write_idx(folder, split, images, labels, packed):
    """Write the two idx files of one split: magic number, sizes as big-endian int32, bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    opener, suffix = (gzip.open, ".gz") if packed else (open, "")
    with opener(folder / f"{split}-images-idx3-ubyte{suffix}", "wb") as file:
        file.write(struct.pack(">iiii", 2051, *images.shape) + images.tobytes())
    with opener(folder / f"{split}-labels-idx1-ubyte{suffix}", "wb") as file:
        file.write(struct.pack(">ii", 2049, len(labels)) + labels.tobytes())


def write_mnist(folder, packed=True):
    train = RANDOM.integers(0, 256, (20, 28, 28), dtype=np.uint8), np.arange(20, dtype=np.uint8) % 10
    test = RANDOM.integers(0, 256, (10, 28, 28), dtype=np.uint8), np.arange(10, dtype=np.uint8)
    write_idx(folder, "train", *train, packed)
    write_idx(folder, "t10k", *test, packed)
    return train, test


@pytest.mark.parametrize("packed", [True, False], ids=["gzipped", "plain"])
@pytest.mark.parametrize("folder", ["{name}/raw", "."], ids=["torchvision", "flat"])
@pytest.mark.parametrize("source", [MNIST, FashionMNIST])
def test_mnist_files_are_read_where_they_are(source, folder, packed, tmp_path):
    written = write_mnist(tmp_path / folder.format(name=source.__name__), packed)
    before = sorted(tmp_path.rglob("*"))
    mnist = source(tmp_path)
    mnist.prepare()
    for images, (pixels, labels) in zip((mnist.train(), mnist.test()), written, strict=True):
        assert isinstance(images, LabeledImages)
        assert images.images.numpy().tolist() == pixels[:, None].tolist()
        assert images.targets.tolist() == labels.tolist()
        assert images.targets.dtype == torch.int64
    assert sorted(tmp_path.rglob("*")) == before


def test_fashion_mnist_without_a_root_is_found_in_debians_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "system")
    with pytest.raises(FileNotFoundError, match="system"):
        FashionMNIST().prepare()
    (pixels, _), _ = write_mnist(tmp_path / "system")
    FashionMNIST().prepare()
    assert FashionMNIST().train().images[3, 0].tolist() == pixels[3].tolist()
    with pytest.raises(FileNotFoundError) as error:
        FashionMNIST(tmp_path / "mine").prepare()
    assert "system" not in str(error.value)


def test_missing_mnist_files_are_named_with_a_way_out(tmp_path):
    write_mnist(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"raw \(lacks t10k-labels-idx1-ubyte\)(.|\n)*download"):
        MNIST(tmp_path).prepare()


@pytest.mark.parametrize("packed", [True, False], ids=["gzipped", "plain"])
def test_a_truncated_idx_file_is_named(packed, tmp_path):
    write_mnist(tmp_path, packed)
    path = tmp_path / ("train-images-idx3-ubyte" + ".gz" * packed)
    cut_short(path)
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        MNIST(tmp_path).train()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", struct.pack(">iiii", 2051, 1, 2, 3)])
def test_a_file_that_is_no_idx_file_is_named(content, tmp_path):
    write_mnist(tmp_path, packed=False)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte is damaged or no idx file"):
        MNIST(tmp_path).test()


def test_labels_of_other_images_are_refused(tmp_path):
    write_mnist(tmp_path)
    write_idx(tmp_path / "other", "train", np.zeros((5, 28, 28), np.uint8), np.zeros(5, np.uint8), packed=True)
    (tmp_path / "other" / "train-labels-idx1-ubyte.gz").rename(tmp_path / "train-labels-idx1-ubyte.gz")
    with pytest.raises(ValueError, match="20 images, 5 labels"):
        MNIST(tmp_path).train()


def test_mnist_downloads_only_what_is_missing_and_only_when_asked(tmp_path, monkeypatch):
    asked = []

    class Downloads(datasets.MNIST):
        def __init__(self, root, download):
            asked.append(download)
            write_mnist(root / "MNIST" / "raw")

    Downloads.__name__ = "MNIST"
    monkeypatch.setattr(MNIST, "dataset", Downloads)
    with pytest.raises(FileNotFoundError):
        MNIST(tmp_path).prepare()
    assert asked == []
    for _ in range(2):
        MNIST(tmp_path, download=True).prepare()
    assert asked == [True]
    assert len(MNIST(tmp_path).train()) == 20


@pytest.mark.parametrize("source", [MNIST, CIFAR10])
def test_a_failed_download_says_what_to_do(source, tmp_path, monkeypatch):
    class Fails(source.dataset):
        def __init__(self, root, download):
            raise OSError("no route to host")

    Fails.__name__ = source.__name__
    monkeypatch.setattr(source, "dataset", Fails)
    with pytest.raises(RuntimeError, match=f"no route to host\n{source.__name__} could not be downloaded.*{tmp_path}"):
        source(tmp_path, download=True).prepare()


# CIFAR --------------------------------------------------------------------------------------------------------------


def write_cifar(root, source, monkeypatch, per_batch=10):
    """Write the pickles of the published archive, and put their checksums into torchvision's table."""
    dataset = source.dataset
    hundred = source is CIFAR100
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)

    def dump(name, content):
        data = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batch(name):
        pixels = RANDOM.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        labels = RANDOM.integers(0, len(source.class_names), per_batch).tolist()
        written[name] = pixels, labels
        return dump(name, {"data": pixels, "fine_labels" if hundred else "labels": labels})

    written = {}
    for table in ("train_list", "test_list"):
        monkeypatch.setattr(dataset, table, [[name, batch(name)] for name, _ in getattr(dataset, table)])
    md5 = dump(dataset.meta["filename"], {dataset.meta["key"]: list(source.class_names)})
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": md5})
    return written


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100])
def test_cifar_pickles_are_read(source, tmp_path, monkeypatch):
    written = write_cifar(tmp_path, source, monkeypatch)
    cifar = source(tmp_path)
    cifar.prepare()
    train, test = cifar.train(), cifar.test()
    name = next(iter(written))
    pixels, labels = written[name]
    assert isinstance(train, LabeledImages)
    assert len(train) == 10 * (len(written) - 1)
    assert len(test) == 10
    assert list(train.targets[:10]) == labels
    image, label = train[4]
    assert label == labels[4]
    # A row is 1024 red, 1024 green, then 1024 blue bytes.
    assert np.asarray(image).tolist() == pixels[4].reshape(3, 32, 32).transpose(1, 2, 0).tolist()
    assert train.classes == cifar.classes


@pytest.mark.parametrize(("source", "count"), [(CIFAR10, 10), (CIFAR100, 100)])
def test_cifar_names_its_classes_without_files(source, count):
    names = source().classes
    assert len(set(names)) == count
    assert list(names) == sorted(names)


def test_a_damaged_cifar_file_is_named(tmp_path, monkeypatch):
    write_cifar(tmp_path, CIFAR10, monkeypatch)
    cut_short(tmp_path / "cifar-10-batches-py" / "data_batch_3")
    with pytest.raises(ValueError, match="data_batch_3 is damaged"):
        CIFAR10(tmp_path).prepare()


# Folders ------------------------------------------------------------------------------------------------------------


def write_folders(root, counts, suffix=".jpg"):
    for name, count in counts.items():
        for index in range(count):
            save_image(root / name / f"{name}_{index}{suffix}", (index * 20, 0, 0))


def file_names(images):
    return [path.rsplit("/", 1)[1] for path, _ in images.samples]


def test_bare_class_folders_are_split_by_class(tmp_path):
    write_folders(tmp_path, {"bee": 10, "ant": 5, "cat": 2})
    (tmp_path / ".cache").mkdir()
    (tmp_path / "readme.txt").write_text("not a class")
    (tmp_path / "bee" / "notes.txt").write_text("not an image")
    source = ImageFolders(tmp_path, test_fraction=0.2)
    source.prepare()
    train, test = source.train(), source.test()
    assert source.classes == ["ant", "bee", "cat"]
    assert train.targets.bincount().tolist() == [4, 8, 1]
    assert test.targets.bincount().tolist() == [1, 2, 1]
    assert not {*file_names(train)} & {*file_names(test)}
    image, label = train[0]
    assert (image.size, label) == ((12, 10), 0)
    assert all(path.split("/")[-2] == source.classes[label] for path, label in (*train.samples, *test.samples))


def test_the_split_of_bare_folders_follows_from_the_seed(tmp_path):
    write_folders(tmp_path, {"a": 20, "b": 20})
    first, again, other = (file_names(ImageFolders(tmp_path, seed=seed).test()) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", ["val", "test"])
def test_train_and_val_folders_are_seen(name, tmp_path):
    write_folders(tmp_path / "train", {"n01": 3, "n02": 2})
    write_folders(tmp_path / name, {"n01": 1, "n02": 2}, ".JPEG")
    source = ImageFolders(tmp_path)
    source.prepare()
    assert source.classes == ["n01", "n02"]
    assert source.train().targets.tolist() == [0, 0, 0, 1, 1]
    assert file_names(source.test()) == ["n01_0.JPEG", "n02_0.JPEG", "n02_1.JPEG"]


def test_folders_may_be_named(tmp_path):
    write_folders(tmp_path / "learn", {"a": 4, "b": 4})
    write_folders(tmp_path / "exam", {"a": 1, "b": 1})
    named = ImageFolders(tmp_path, train="learn", test="exam")
    assert (len(named.train()), len(named.test())) == (8, 2)
    split = ImageFolders(tmp_path, train="learn", test_fraction=0.25)
    assert (len(split.train()), len(split.test())) == (6, 2)


def write_cub(root):
    write_folders(root / "images", {"001.Albatross": 3, "002.Auk": 3}, ".jpg")
    names = sorted(path.relative_to(root / "images").as_posix() for path in (root / "images").rglob("*.jpg"))
    (root / "images.txt").write_text("".join(f"{number} {name}\n" for number, name in enumerate(names, 1)))
    (root / "train_test_split.txt").write_text("1 0\n2 1\n3 1\n4 1\n5 0\n6 0\n")


def test_cub_is_split_as_its_files_say(tmp_path):
    write_cub(tmp_path)
    source = ImageFolders(tmp_path)
    source.prepare()
    assert source.classes == ["001.Albatross", "002.Auk"]
    assert file_names(source.train()) == ["001.Albatross_1.jpg", "001.Albatross_2.jpg", "002.Auk_0.jpg"]
    assert source.test().targets.tolist() == [0, 1, 1]


def test_cub_split_files_that_do_not_fit_the_images_are_refused(tmp_path):
    write_cub(tmp_path)
    extra = save_image(tmp_path / "images" / "002.Auk" / "new.jpg")
    with pytest.raises(ValueError, match=r"new\.jpg is not in the split"):
        ImageFolders(tmp_path).prepare()
    extra.unlink()
    (tmp_path / "images" / "002.Auk" / "002.Auk_2.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 images named in .*images\.txt are missing, .*002\.Auk_2\.jpg first"):
        ImageFolders(tmp_path).prepare()


def test_a_root_without_class_folders_is_refused(tmp_path):
    save_image(tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError, match="holds no class folders"):
        ImageFolders(tmp_path).prepare()


def test_a_class_folder_without_images_is_named(tmp_path):
    write_folders(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "image.heic").touch()
    with pytest.raises(FileNotFoundError, match=r"No images in .*/c;.*\.jpg"):
        ImageFolders(tmp_path).prepare()


def test_classes_that_differ_between_the_folders_are_named(tmp_path):
    write_folders(tmp_path / "train", {"a": 1, "b": 1, "c": 1})
    write_folders(tmp_path / "val", {"a": 1, "d": 1})
    with pytest.raises(ValueError, match="lacks b, c and has besides d"):
        ImageFolders(tmp_path).prepare()


def test_a_class_with_one_image_cannot_be_split(tmp_path):
    write_folders(tmp_path, {"a": 2, "lonely": 1})
    with pytest.raises(ValueError, match="Class lonely has a single image"):
        ImageFolders(tmp_path).prepare()


@pytest.mark.parametrize("arguments", [{"test_fraction": 0.0}, {"test_fraction": 1.0}, {"test": "val"}])
def test_bad_arguments_of_folders_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ImageFolders("anywhere", **arguments)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_truncated_files_are_named_before_training(suffix, tmp_path):
    for index in range(4):
        path = save_noise(tmp_path / "a" / f"{index}{suffix}")
    cut_short(path)
    (tmp_path / "a" / f"text{suffix}").write_text("no image")
    with pytest.raises(ValueError, match=rf"2 of 5 image files cannot be read(.|\n)*3{suffix}: (.|\n)*text{suffix}: "):
        ImageFolders(tmp_path).prepare()
    ImageFolders(tmp_path, verify=False).prepare()


# CORe50 -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def core50_root(tmp_path, monkeypatch):
    """Two objects instead of fifty, one to three frames in each of eleven sessions."""
    monkeypatch.setattr(core50, "NUM_OBJECTS", 2)
    for session in range(1, 12):
        for number in (1, 2):
            for frame in range(number):
                name = f"C_{session:02d}_{number:02d}_{frame:03d}.png"
                save_image(tmp_path / f"s{session}" / f"o{number}" / name, (session, number, frame), size=(8, 8))
    return tmp_path


def test_core50_sessions_are_domains_in_published_order(core50_root):
    source = CORe50(core50_root, verify=True)
    source.prepare()
    train, test = source.train(), source.test()
    assert source.domain_names == ("s1", "s2", "s4", "s5", "s6", "s8", "s9", "s11")
    assert len(train) == 3 * 8
    for index in range(len(train)):
        image, label = train[index]
        session, number, _ = image.getpixel((0, 0))
        assert source.domain_names[train.domains[index]] == f"s{session}"
        assert label == train.targets[index] == number - 1
    assert [test[index][0].getpixel((0, 0))[0] for index in range(len(test))] == [3, 3, 3, 7, 7, 7, 10, 10, 10]
    assert not hasattr(test, "domains")


def test_core50_frames_are_sorted_by_number(core50_root):
    for frame in (10, 2):
        save_image(core50_root / "s1" / "o1" / f"C_01_01_{frame}.png", (1, 1, frame))
    train = CORe50(core50_root).train()
    assert [train[index][0].getpixel((0, 0))[2] for index in range(3)] == [0, 2, 10]


def test_core50_names_fifty_objects_of_ten_categories():
    names = CORe50().classes
    assert len(set(names)) == 50
    assert (names[0], names[5], names[49]) == ("plug_adapter1", "mobile_phone1", "remote_control5")


def test_a_core50_frame_in_the_wrong_folder_is_named(core50_root):
    save_image(core50_root / "s4" / "o2" / "C_05_02_000.png")
    with pytest.raises(ValueError, match=r"C_05_02_000\.png is not a frame of session 4, object 2"):
        CORe50(core50_root).prepare()


def test_missing_core50_folders_are_named(core50_root):
    for path in (core50_root / "s7" / "o2").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="s7/o2 holds no frame"):
        CORe50(core50_root).prepare()
    (core50_root / "s7" / "o2").rmdir()
    with pytest.raises(FileNotFoundError, match=r"no folder .*s7/o2"):
        CORe50(core50_root).prepare()


# Synthetic ----------------------------------------------------------------------------------------------------------


def test_synthetic_images_follow_from_the_seed_and_leave_the_global_random_state_alone():
    state = torch.get_rng_state()
    first, again, other = (Synthetic(seed=seed).train()[5][0] for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (3, 32, 32)


def test_synthetic_splits_and_images_differ_and_classes_are_told_apart_by_their_means():
    source = Synthetic(num_classes=5, image_size=9, train_per_class=6, test_per_class=3)
    train, test = source.train(), source.test()
    pixels, tests = (torch.stack([images[i][0] for i in range(len(images))]).double() for images in (train, test))
    assert len(torch.cat((pixels, tests)).flatten(1).unique(dim=0)) == 5 * 9
    means = torch.stack([pixels[train.targets == label].mean(0) for label in range(5)]).flatten(1)
    assert torch.cdist(tests.flatten(1), means).argmin(1).tolist() == test.targets.tolist()


def test_synthetic_domains_hold_every_class_and_shift_the_images():
    source = Synthetic(num_classes=3, train_per_class=4, num_domains=2)
    train = source.train()
    assert list(source.domain_names) == ["domain0", "domain1"]
    for domain in range(2):
        assert train.targets[train.domains == domain].bincount().tolist() == [4, 4, 4]
    colors = torch.stack([train[index][0].double().mean((1, 2)) for index in range(len(train))])
    shift = (colors[train.domains == 0].mean(0) - colors[train.domains == 1].mean(0)).abs().max()
    assert shift > 5
    assert not hasattr(source.test(), "domains")
    assert Synthetic(num_domains=2, test_domains=True).test().domains.bincount().tolist() == [40, 40]
    assert not hasattr(Synthetic().train(), "domains")


def test_synthetic_refuses_an_empty_set():
    with pytest.raises(ValueError, match="train_per_class=0"):
        Synthetic(train_per_class=0)


# ClassRange ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_ranges_of_classes_share_out_the_images(split):
    whole = Synthetic(num_classes=5, num_domains=2, test_domains=True)
    parts = [ClassRange(whole, stop=2), ClassRange(whole, start=2)]
    assert [list(part.classes) for part in parts] == [["class0", "class1"], ["class2", "class3", "class4"]]
    assert parts[0].domain_names == whole.domain_names
    everything, images = getattr(whole, split)(), [getattr(part, split)() for part in parts]
    assert sum(map(len, images)) == len(everything)
    for part, start in zip(images, (0, 2), strict=True):
        assert part.domains.tolist() == [int(everything.domains[index]) for index in part.indices]
        for position, index in enumerate(part.indices.tolist()):
            assert torch.equal(part[position][0], everything[index][0])
            assert part[position][1] + start == everything[index][1]


def test_a_range_of_classes_keeps_the_names_of_files(tmp_path):
    for label in "abc":
        for number in range(5):
            save_image(tmp_path / label / f"{number}.png")
    images = ClassRange(ImageFolders(tmp_path), start=1).test()
    assert [path.split("/")[-2] for path, _ in images.samples] == ["b", "c"]
    assert [label for _, label in images.samples] == [0, 1]


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (3, 3), (0, 0)])
def test_an_empty_range_of_classes_is_refused(start, stop):
    with pytest.raises(ValueError, match=f"start={start} must be at least 0, and stop={stop} more"):
        ClassRange(Digits(), start, stop)


@pytest.mark.parametrize(("start", "stop"), [(10, None), (0, 11)])
def test_a_range_beyond_the_classes_is_refused(start, stop):
    with pytest.raises(ValueError, match=f"start={start} and stop={stop} reach beyond the 10 classes of Digits"):
        _ = ClassRange(Digits(), start, stop).classes
