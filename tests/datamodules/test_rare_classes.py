"""Rare-class sampling: its probabilities, which scenes and crops it takes, and its statistics on disk."""

import json
from pathlib import Path

import pytest
import torch
from torchvision.transforms import v2

from zoo.datamodules import DomainAdaptationDataModule, RareClassSampling, SceneCrop
from zoo.datamodules.rare_classes import RareClassScenes, class_probabilities, count_pixels, read_statistics
from zoo.datamodules.scenes import SceneView
from zoo.datamodules.sources import SyntheticScenes
from zoo.datamodules.sources.segmentation import SceneTensors, SegmentationSource


def striped() -> SceneTensors:
    """Four scenes of 8 x 8 pixels: class 2 stands in one column of the last, class 1 in the left half of the third."""
    masks = torch.zeros(4, 8, 8, dtype=torch.uint8)
    masks[2, :, :4] = 1
    masks[3, :, 7] = 2
    masks[0, 0] = 255
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8) / 4
    return SceneTensors(images, masks, [f"s{index}" for index in range(4)])


COUNTS = torch.tensor([[56, 0, 0, 0], [64, 0, 0, 0], [32, 32, 0, 0], [56, 0, 8, 0]])  # a fourth class nowhere


def stream(transform=None, seed: int = 0, **kwargs) -> RareClassScenes:
    sampling = RareClassSampling(**{"temperature": 0.5, "min_pixels": 7, **kwargs})
    return RareClassScenes(SceneView(striped(), torch.arange(4), transform, 4), seed, sampling, COUNTS)


def test_probabilities_are_those_of_the_worked_example() -> None:
    pixels = torch.tensor([900, 90, 10])
    expected = {0.5: [0.0834519273, 0.4216901258, 0.4948579469], 0.01: [0.0, 0.0003353501, 0.9996646499]}
    for temperature, values in expected.items():
        torch.testing.assert_close(
            class_probabilities(pixels, temperature), torch.tensor(values, dtype=torch.double), atol=1e-9, rtol=0
        )


def test_a_class_that_does_not_occur_is_never_drawn() -> None:
    with_absent = class_probabilities(torch.tensor([900, 0, 90, 10]), 0.5)
    assert with_absent[1] == 0
    torch.testing.assert_close(with_absent[[0, 2, 3]], class_probabilities(torch.tensor([900, 90, 10]), 0.5))


def test_pixels_are_counted_without_ignored_ones() -> None:
    assert torch.equal(count_pixels(striped(), 4), COUNTS)

    class WithoutMasksAlone:
        names = striped().names

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index):
            return striped()[index]

    assert torch.equal(count_pixels(WithoutMasksAlone(), 4), COUNTS)


def test_scenes_are_drawn_by_class_with_their_probabilities() -> None:
    drawn = stream()
    which = torch.tensor([round(float(drawn[position][0][0, 0, 0] * 4)) for position in range(2000)])
    p = class_probabilities(COUNTS.sum(0), 0.5)
    # Class 0 is held by all four, classes 1 and 2 by one scene each.
    expected = p[0] / 4 + torch.stack([torch.zeros(()), torch.zeros(()), p[1], p[2]])
    shares = torch.bincount(which, minlength=4) / 2000
    torch.testing.assert_close(shares.double(), expected.double(), atol=0.035, rtol=0)  # three standard deviations


def test_a_crop_without_the_class_is_drawn_again() -> None:
    # At temperature 0.01 only classes 1 and 2 are drawn. A crop of 4 shows class 2 if it ends at the right, 1 of 5.
    def share_with_rare(min_crop_share: float) -> float:
        drawn = stream(SceneCrop(4), temperature=0.01, min_pixels=7, min_crop_share=min_crop_share)
        return sum(bool((drawn[position][1] == 2).any()) for position in range(300)) / 300

    of_class_2 = float(class_probabilities(COUNTS.sum(0), 0.01)[2])
    assert of_class_2 > 0.9
    assert share_with_rare(0.0) == pytest.approx(0.2 * of_class_2, abs=0.07)
    assert share_with_rare(0.5) == pytest.approx((1 - 0.8**11) * of_class_2, abs=0.05)  # 4 pixels > 7 / 2


def test_crops_are_drawn_at_most_eleven_times() -> None:
    class Counting(v2.Identity):
        calls = 0

        def forward(self, *inputs):
            type(self).calls += 1
            return inputs

    stream(Counting(), min_crop_share=100.0)[0]
    assert Counting.calls == 11


def test_what_stands_at_a_position_follows_from_the_seed() -> None:
    first, again, other = stream(SceneCrop(4)), stream(SceneCrop(4)), stream(SceneCrop(4), seed=1)
    assert torch.equal(first[9][1], again[9][1])
    assert torch.equal(first[9][0], again[9][0])
    assert any(not torch.equal(first[i][0], other[i][0]) for i in range(20))
    state = torch.get_rng_state()
    first[3]
    assert torch.equal(state, torch.get_rng_state())


def test_a_class_of_which_no_scene_holds_enough_is_refused() -> None:
    with pytest.raises(ValueError, match=r"more than min_pixels=8 pixels of class 2, of which some has 8"):
        stream(min_pixels=8)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"min_pixels": -1}, {"min_crop_share": -0.1}])
def test_bad_arguments_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        RareClassSampling(**wrong)


def test_statistics_are_counted_once_and_read_afterwards(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "new" / "sample_class_stats.json"
    sampling = RareClassSampling(statistics=str(path))
    sampling.prepare(striped(), 4)
    assert json.loads(path.read_text())[2] == {"0": 32, "1": 32, "file": "s2"}
    monkeypatch.setattr("zoo.datamodules.rare_classes.count_pixels", None)
    sampling.prepare(striped(), 4)
    assert torch.equal(sampling.counts(striped(), 4), COUNTS)


def test_statistics_of_other_projects_are_read(tmp_path: Path) -> None:
    path = tmp_path / "sample_class_stats.json"
    rows = [
        {"0": 5, "18": 7, "file": "data/gta/labels/00002_labelTrainIds.png"},
        {"3": 9, "file": "data/cityscapes/gtFine/train/ulm/ulm_000000_000019_gtFine_labelTrainIds.png"},
        {"file": "data/gta/labels/00001_labelTrainIds.png"},
    ]
    path.write_text(json.dumps(rows))
    counts = read_statistics(str(path), ["00001", "00002"], 19)
    assert counts.shape == (2, 19)
    assert counts[0].sum() == 0
    assert (counts[1, 0], counts[1, 18], counts[1].sum()) == (5, 7, 12)
    assert read_statistics(str(path), ["ulm_000000_000019"], 19)[0, 3] == 9
    with pytest.raises(ValueError, match=r"lacks 1 of 2 scenes, 00003 first.*Remove it"):
        read_statistics(str(path), ["00001", "00003"], 19)
    for content in ("{", "[1]", '[{"0": 1}]', '{"a": 1}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="holds no statistics"):
            read_statistics(str(path), ["00001"], 19)


class Striped(SegmentationSource):
    classes = ("common", "half", "rare", "absent")

    def train(self) -> SceneTensors:
        return striped()

    def test(self) -> SceneTensors:
        return striped()


def adaptation(**kwargs) -> DomainAdaptationDataModule:
    target = SyntheticScenes(4, 8, num_train=4, class_names=list(Striped.classes))
    return DomainAdaptationDataModule(Striped(), target, batch_size=50, steps_per_epoch=1, **kwargs)


def labels_of_a_batch(data: DomainAdaptationDataModule) -> torch.Tensor:
    data.prepare_data()
    data.setup("fit")
    batch, _, _ = next(iter(data.train_dataloader()))
    return batch["labeled"][1]


def test_the_datamodule_draws_source_scenes_by_rare_classes(tmp_path: Path) -> None:
    def share_with_rare(data) -> float:
        return float((labels_of_a_batch(data) == 2).flatten(1).any(1).float().mean())

    assert share_with_rare(adaptation()) == pytest.approx(0.25, abs=0.02)  # passes show each scene equally often
    sampling = RareClassSampling(0.01, min_pixels=7, statistics=str(tmp_path / "stats.json"))
    assert share_with_rare(adaptation(rare_classes=sampling)) > 0.9
    assert (tmp_path / "stats.json").is_file()


def test_held_out_source_scenes_are_not_drawn() -> None:
    data = adaptation(rare_classes=RareClassSampling(0.5, min_pixels=0), evaluate="val", val_fraction=0.25)
    data.setup("fit")
    assert len(data.counts) == len(data.labeled_set) == 3
    assert torch.equal(data.counts, COUNTS[data.labeled_set.indices])
