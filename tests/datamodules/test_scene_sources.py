"""Sources of scenes: DigitScenes against its check sums, synthetic scenes, and the published formats on disk."""

import numpy as np
import pytest
import torch

from zoo.datamodules import sources
from zoo.datamodules.sources import DigitScenes, LabeledScenes, SegmentationSource, SyntheticScenes
from zoo.datamodules.sources.digit_scenes import enlarge, handwriting
from zoo.functional import color_map

# Domain, split, index; sum of the image in float64, sum of the labels with the 255s, ignored pixels, classes.
CHECK_SUMS = [
    ("source", "train", 0, 3069.6478, 14640, 56, [0, 1, 3]),
    ("source", "train", 1, 4758.6720, 31706, 115, [0, 2, 3, 7]),
    ("source", "test", 0, 3960.1151, 49507, 188, [0, 1, 4, 5]),
    ("source", "test", 1, 3364.9572, 39855, 148, [0, 1, 5, 6]),
    ("target", "train", 0, 2982.3917, 36087, 134, [0, 1, 2, 7]),
    ("target", "train", 1, 3224.9766, 20759, 71, [0, 4, 7, 8]),
    ("target", "test", 0, 3511.8407, 58393, 217, [0, 2, 4, 5]),
    ("target", "test", 1, 3071.1812, 44146, 171, [0, 1]),
]


@pytest.mark.parametrize(("domain", "split", "index", "total", "labels", "ignored", "classes"), CHECK_SUMS)
def test_digit_scenes_are_those_of_the_definition(domain, split, index, total, labels, ignored, classes) -> None:
    source = DigitScenes(domain, num_train=2, num_test=2)
    image, mask = getattr(source, split)()[index]
    assert image.dtype == torch.float32
    assert mask.dtype == torch.uint8
    assert float(image.double().sum()) == pytest.approx(total, abs=1e-4)
    assert (int(mask.long().sum()), int((mask == 255).sum())) == (labels, ignored)
    assert sorted(set(mask[mask != 255].tolist())) == classes


def test_digit_scenes_have_the_stated_statistics() -> None:
    masks = DigitScenes(num_train=64).train().masks
    assert DigitScenes().num_train == 512
    occurs = torch.stack([(masks == label).flatten(1).any(1) for label in range(1, 11)])
    assert occurs[:, :32].sum(1).min() >= 6
    assert occurs.sum(1).min() >= 14
    assert (masks == 0).sum() / (masks != 255).sum() == pytest.approx(0.853, abs=0.01)
    assert (masks == 255).float().mean() == pytest.approx(0.0335, abs=0.003)


def test_handwriting_of_test_scenes_stands_in_no_training_scene() -> None:
    (train, _), (test, _) = handwriting(0), handwriting(1)
    assert (len(train), len(test)) == (1437, 360)


def test_enlarging_keeps_a_constant_and_meets_corners() -> None:
    assert np.allclose(enlarge(np.full((8, 8), 0.3), 19), 0.3)
    ramp = enlarge(np.tile(np.arange(8.0), (8, 1)), 16)
    assert ramp[3, :3].tolist() == [0.0, 0.25, 0.75]  # (i + 0.5) / 2 - 0.5, clamped at 0
    assert ramp[3, -1] == 7


def test_synthetic_scenes_are_drawn_from_the_seed() -> None:
    source = SyntheticScenes(num_classes=3, image_size=8, num_train=2, class_names=["a", "b", "c"])
    image, mask = source.train()[0]
    assert image.shape == (3, 8, 8)
    assert mask[4].eq(255).all()
    assert torch.equal(image, source.train()[0][0])
    assert not torch.equal(image, SyntheticScenes(3, 8, seed=1).train()[0][0])
    assert set(mask[:4].unique().tolist()) <= {0, 1, 2}
    color = torch.tensor(source.palette[int(mask[0, 0])])
    assert (image[:, 0, 0].long() - color).abs().max() <= 32


def test_palette_is_that_of_pascal_voc() -> None:
    colors = color_map(22)
    assert colors[0] == (0, 0, 0)
    assert colors[15] == (192, 128, 128)  # person
    assert colors[20] == (0, 64, 128)  # television
    assert len(set(color_map(256))) == 256


def test_sources_of_scenes_keep_the_contract() -> None:
    for source in (DigitScenes(num_train=1, num_test=1), SyntheticScenes()):
        scenes = source.train()
        assert isinstance(scenes, LabeledScenes)
        assert len(scenes.names) == len(scenes)
        assert len(source.palette) == len(source.classes)
    assert issubclass(sources.DigitScenes, SegmentationSource)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: DigitScenes("moon"), "domain='moon'"),
        (lambda: DigitScenes(num_test=0), "num_test=0"),
        (lambda: SyntheticScenes(image_size=7), "image_size=7"),
        (lambda: SyntheticScenes(num_classes=2, class_names=["a"]), "1 names"),
    ],
)
def test_bad_arguments_are_refused(make, text) -> None:
    with pytest.raises(ValueError, match=text):
        make()
