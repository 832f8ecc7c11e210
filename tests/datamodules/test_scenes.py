"""Datamodules of segmentation: what a batch is, loaders in step, an order that can be resumed, lists, transforms."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from zoo.datamodules import (
    DomainAdaptationDataModule,
    RandomScale,
    ResizeImage,
    SceneCrop,
    SemiSupervisedSegmentationDataModule,
)
from zoo.datamodules.scene_transforms import largest_share
from zoo.datamodules.scenes import EndlessScenes, SceneView
from zoo.datamodules.sources import DigitScenes, SegmentationSource, SyntheticScenes
from zoo.datamodules.split_lists import read_split_list, scene_name


def scenes(**kwargs) -> SyntheticScenes:
    return SyntheticScenes(**{"num_classes": 3, "image_size": 8, "num_train": 12, "num_test": 5, **kwargs})


def semi(**kwargs) -> SemiSupervisedSegmentationDataModule:
    return SemiSupervisedSegmentationDataModule(**{"source": scenes(), "labeled": 4, "batch_size": 2, **kwargs})


def epoch(data, number=0) -> list:
    data.setup("fit")
    loader = data.train_dataloader()
    if number:
        for part in loader.flattened:
            part.epoch = lambda: number
    return [batch for batch, _, _ in iter(loader)]


def test_batches_are_what_is_promised() -> None:
    batches = epoch(semi(unlabeled_batch_size=3, future=2, unlabeled_truth=True))
    assert len(batches) == 2  # 8 unlabelled scenes in batches of 3, the last incomplete one dropped
    batch = batches[0]
    images, masks = batch["labeled"]
    assert images.shape == (2, 3, 8, 8)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert masks.shape == (2, 8, 8)
    assert masks.dtype == torch.int64
    assert masks.eq(255).any()
    assert batch["unlabeled"][0].shape == (3, 3, 8, 8)
    assert batch["unlabeled"][1].shape == (3, 8, 8)
    assert len(batch["future"]) == 2
    assert batch["future"][1]["labeled"][0].shape == (2, 3, 8, 8)
    assert not torch.equal(batch["future"][0]["unlabeled"][0], batch["future"][1]["unlabeled"][0])
    assert epoch(semi())[0]["unlabeled"].shape == (2, 3, 8, 8)


def test_a_pass_shows_each_scene_once_whatever_the_epoch() -> None:
    data = semi(steps_per_epoch=3)  # 6 unlabelled of 8 in an epoch, so passes run over the borders
    seen = [image for number in range(4) for batch in epoch(data, number) for image in batch["unlabeled"]]
    seen = [(255 * image).round().to(torch.uint8) for image in seen]
    unlabeled = {tuple(image.flatten().tolist()) for image in scenes().train().images[4:]}
    assert len(unlabeled) == 8
    for start in (0, 8, 16):
        lap = {tuple(image.flatten().tolist()) for image in seen[start : start + 8]}
        assert lap == unlabeled
    assert [image.sum() for image in seen[:8]] != [image.sum() for image in seen[8:16]]


def test_labelled_scenes_are_the_first_and_never_unlabelled() -> None:
    data = semi()
    data.setup("fit")
    assert data.labeled_set.names == [f"train{index}" for index in range(4)]
    assert data.unlabeled_set.names == [f"train{index}" for index in range(4, 12)]


def test_processes_share_a_batch_of_the_stream() -> None:
    class Two:
        world_size = 2
        current_epoch = 0

    whole = epoch(semi(batch_size=4))[0]["unlabeled"]
    halves = []
    for rank in range(2):
        data = semi(batch_size=2)
        data.trainer = Two()
        data.trainer.global_rank = rank
        halves.append(epoch(data)[0]["unlabeled"])
    assert torch.equal(torch.stack(halves, 1).flatten(0, 1), whole)


def test_random_transforms_follow_from_seed_and_position_alone() -> None:
    transform = [v2.RandomHorizontalFlip(), v2.RandomCrop(6)]
    view = SceneView(scenes().train(), torch.arange(12), v2.Compose(transform), 3)
    stream = EndlessScenes(view, seed=3, with_masks=True)
    first = [stream[5], stream[17]]
    torch.rand(7)
    state = torch.get_rng_state()
    again = [stream[5], stream[17]]
    assert torch.equal(state, torch.get_rng_state())
    for (image, mask), (other, other_mask) in zip(first, again, strict=True):
        assert torch.equal(image, other)
        assert torch.equal(mask, other_mask)
    other = EndlessScenes(view, seed=4, with_masks=True)
    assert any(not torch.equal(stream[i][0], other[i][0]) for i in range(3))


def test_image_and_mask_are_transformed_together() -> None:
    image = torch.arange(64.0).reshape(1, 8, 8).expand(3, -1, -1) / 255
    mask = torch.arange(64, dtype=torch.uint8).reshape(8, 8)

    class One:
        names = ("one",)

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index):
            return image, mask

    transform = v2.Compose([v2.RandomHorizontalFlip(), SceneCrop(5), v2.RandomRotation((90, 90))])
    view = SceneView(One(), torch.tensor([0]), transform, 64)
    for seed in range(5):
        torch.manual_seed(seed)
        moved, labels = view[0]
        assert torch.equal((moved[0] * 255).round().long(), labels)


class Recorder(L.LightningModule):
    """Keeps the sums of what it is shown, and stops where it is told."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[float] = []
        self.stop = stop

    def training_step(self, batch, batch_idx):
        self.seen.append(float(batch["labeled"][0].sum() + 2 * batch["unlabeled"].sum()))
        if self.stop is not None and len(self.seen) == self.stop:
            raise KeyboardInterrupt
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.filterwarnings("ignore:.*val_dataloader.*", "ignore:.*dirpath has changed.*")
def test_a_resumed_run_and_one_with_workers_see_what_an_unbroken_one_sees(tmp_path) -> None:
    transform = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]

    def fit(stop=None, ckpt_path=None, num_workers=0, max_epochs=3) -> list[float]:
        checkpoint = ModelCheckpoint(tmp_path / str(stop), save_last=True, save_on_train_epoch_end=True)
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=max_epochs, callbacks=[checkpoint], logger=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        module = Recorder(stop)
        try:
            trainer.fit(module, semi(train_transform=transform, num_workers=num_workers), ckpt_path=ckpt_path)
        except SystemExit:
            assert stop is not None
        return module.seen

    unbroken = fit()
    assert len(set(unbroken)) == 12
    killed = fit(stop=6)  # in the second epoch of four steps
    resumed = fit(ckpt_path=tmp_path / "6" / "last.ckpt")
    assert killed == unbroken[:6]
    assert resumed == unbroken[4:]
    assert fit(num_workers=1, max_epochs=1) == unbroken[:4]


def test_evaluation_keeps_the_masks_resolution() -> None:
    data = semi(test_transform=ResizeImage([4, 4]), eval_batch_size=5)
    data.setup("test")
    images, masks = next(iter(data.test_dataloader()))
    assert images.shape == (5, 3, 4, 4)
    assert masks.shape == (5, 8, 8)
    assert torch.equal(masks, scenes().test().masks.long())


def test_validation_scenes_are_held_out_of_the_labelled_ones() -> None:
    data = semi(labeled=8, evaluate="val", val_fraction=0.25)
    data.setup("fit")
    assert len(data.val_set) == 2
    assert {*data.val_set.names, *data.labeled_set.names} == {f"train{index}" for index in range(8)}
    assert len(data.unlabeled_set) == 4


def test_domains_are_source_and_target() -> None:
    data = DomainAdaptationDataModule(DigitScenes(num_train=4, num_test=2), DigitScenes("target", 6, 3), batch_size=2)
    batches = epoch(data)
    assert len(batches) == 3
    source, target = (set(DigitScenes(domain, number).train().images.double().sum((1, 2, 3)).tolist()) for domain, number in (("source", 4), ("target", 6)))  # fmt: skip  # noqa: E501
    assert {float(image.double().sum()) for batch in batches for image in batch["labeled"][0]} == source
    assert {float(image.double().sum()) for batch in batches for image in batch["unlabeled"]} == target
    assert len(data.test_set) == 3
    assert data.test_set.names[0] == "target_test_0000"


# Lists ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("2007_000032", "2007_000032"),
        ("JPEGImages/2007_000032.jpg SegmentationClass/2007_000032.png", "2007_000032"),
        ("leftImg8bit/train/hamburg/hamburg_000000_080169_leftImg8bit.png", "hamburg_000000_080169"),
        (
            "leftImg8bit/train/a/a_1_2_leftImg8bit.png gtFine/train/a/a_1_2_gtFine_labelTrainIds.png",
            "a_1_2",
        ),
        (
            "/images/train/jena_000078_000019.png\t/segmentation/train/jena_000078_000019_gtFine.png",
            "jena_000078_000019",
        ),
    ],
)
def test_lines_of_published_lists_name_a_scene(line: str, name: str) -> None:
    assert scene_name(line) == name


def test_lists_say_who_is_labelled(tmp_path) -> None:
    labeled, unlabeled = tmp_path / "labeled.txt", tmp_path / "unlabeled.txt"
    labeled.write_text("train5\ntrain2")
    unlabeled.write_text("train7\n\ntrain8\n")
    data = semi(labeled=str(labeled), unlabeled=str(unlabeled))
    data.setup("fit")
    assert data.labeled_set.names == ["train5", "train2"]
    assert data.unlabeled_set.names == ["train7", "train8"]
    assert read_split_list(str(unlabeled)) == ["train7", "train8"]


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "text"),
    [
        ("train1\ntrain2", "train2\ntrain3", "labelled and stand in .* train2 first"),
        ("train1\nmoon", "train3", "1 of the 2 scenes .* moon first"),
        ("train1\ntrain1", "train3", "stand twice .* train1"),
        ("\n", "train3", "is empty"),
    ],
)
def test_lists_that_do_not_fit_are_refused(tmp_path, labeled: str, unlabeled: str, text: str) -> None:
    files = [tmp_path / "labeled.txt", tmp_path / "unlabeled.txt"]
    for file, content in zip(files, (labeled, unlabeled), strict=True):
        file.write_text(content)
    with pytest.raises(ValueError, match=text):
        semi(labeled=str(files[0]), unlabeled=str(files[1])).setup("fit")


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"labeled": 0}, "labeled=0"),
        ({"labeled": 12}, "leaves none of the 12"),
        ({"labeled": "nowhere.txt"}, "no list of scenes nowhere.txt"),
        ({"future": -1}, "future=-1"),
        ({"steps_per_epoch": 0}, "steps_per_epoch=0"),
        ({"unlabeled_batch_size": 9}, "8 unlabelled scenes do not fill a batch of 9"),
        ({"labeled": 1, "evaluate": "val"}, "one only"),
    ],
)
def test_bad_arguments_are_refused(kwargs, text: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        epoch(semi(**kwargs))


def test_other_classes_in_the_target_are_refused() -> None:
    with pytest.raises(ValueError, match="other classes"):
        DomainAdaptationDataModule(DigitScenes(), scenes())


def test_labels_that_are_no_class_are_refused_by_name() -> None:
    class Raw(SegmentationSource):
        classes = ("a", "b")

        def train(self):
            return scenes(num_train=3).train()

        test = train

    data = semi(source=Raw(), labeled=1)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"scene train\d holds the label 2; with 2 classes"):
        [data.labeled_set[0], *(data.unlabeled_set[position] for position in range(2))]


def test_normalised_images_are_refused() -> None:
    transform = [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True), v2.Normalize([9.0] * 3, [1.0] * 3)]  # fmt: skip  # noqa: E501
    with pytest.raises(ValueError, match="the method normalises"):
        epoch(semi(train_transform=transform))


# Transforms ----------------------------------------------------------------------------------------------------------


def test_crop_pads_with_ignored_pixels() -> None:
    image, mask = tv_tensors.Image(torch.ones(3, 4, 6)), tv_tensors.Mask(torch.zeros(4, 6, dtype=torch.uint8))
    padded, labels = SceneCrop(8)(image, mask)
    assert padded.shape == (3, 8, 8)
    assert labels.eq(255).sum() == 64 - 24
    assert torch.equal(labels == 255, padded[0] == 0)
    assert SceneCrop(8, pad_label=0)(image, mask)[1].eq(0).all()


def test_crop_is_drawn_again_while_one_class_takes_too_much() -> None:
    mask = torch.zeros(32, 32, dtype=torch.uint8)
    mask[:, 16:] = 1
    image = tv_tensors.Image(torch.zeros(3, 32, 32))
    shares = []
    for limit in (1.0, 0.75):
        crop = SceneCrop(8, max_class_share=limit)
        shares.append([largest_share(crop(image, tv_tensors.Mask(mask))[1]) for _ in range(100)])
    assert sum(share > 0.75 for share in shares[0]) > 60
    assert sum(share > 0.75 for share in shares[1]) < 30  # ten draws in vain are possible
    ignored = torch.full((4, 4), 255)
    assert largest_share(ignored) == 0
    ignored[0] = torch.tensor([1, 1, 1, 2])
    assert largest_share(ignored) == 0.75


def test_half_of_the_scales_shrink() -> None:
    image, mask = tv_tensors.Image(torch.zeros(3, 40, 60)), tv_tensors.Mask(torch.zeros(40, 60, dtype=torch.uint8))
    sides = []
    for _ in range(200):
        scaled, labels = RandomScale(0.5, 2.0)(image, mask)
        assert scaled.shape[-2:] == labels.shape
        sides.append(scaled.shape[-2])
    assert min(sides) >= 20
    assert max(sides) <= 80
    assert 70 < sum(side < 40 for side in sides) < 130
    assert sum(side > 60 for side in sides) > 30  # uniform above 1


def test_pil_images_are_taken(tmp_path) -> None:
    class Pictures:
        names = ("grey",)

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index):
            return Image.new("L", (6, 4), 51), torch.zeros(4, 6, dtype=torch.uint8)

    image, mask = SceneView(Pictures(), torch.tensor([0]), None, 1)[0]
    assert image.shape == (3, 4, 6)
    assert torch.allclose(image, torch.tensor(0.2))
    assert mask.dtype == torch.int64
