import copy
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from zoo.datamodules import ScheduledRandAugment, SharedValue


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)


def picture(side: int = 24) -> Image.Image:
    pixels = np.random.RandomState(0).randint(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("magnitude", [0, 5, 8])  # from 9 on timm itself fails now and then
def test_equals_timms_of_that_strength(magnitude):
    settings = {"translate_const": int(0.45 * 24), "img_mean": (124, 116, 104)}
    theirs = rand_augment_transform(f"rand-m{magnitude}-mstd0.5-inc1", settings)
    ours = ScheduledRandAugment(3, image_size=24)
    ours.set_magnitude(magnitude)
    for number in range(40):
        seed(number)
        expected = theirs(picture())
        seed(number)
        assert ours(picture()).tobytes() == expected.tobytes()


def test_with_bicubic_interpolation_it_is_that_of_the_scripts():
    script = create_transform(24, is_training=True, auto_augment="rand-m5-mstd0.5-inc1", interpolation="bicubic")
    (theirs,) = (part for part in script.transforms if type(part).__name__ == "RandAugment")
    ours = ScheduledRandAugment(5, image_size=24, interpolation="bicubic")
    other = ScheduledRandAugment(5, image_size=24)
    drawn = []
    for number in range(40):
        seed(number)
        expected = theirs(picture())
        seed(number)
        assert ours(picture()).tobytes() == expected.tobytes()
        seed(number)
        drawn.append(other(picture()).tobytes() == expected.tobytes())
    assert not all(drawn)


def test_images_change_more_with_more_strength():
    """The strength must reach the images: a schedule that looks for a wrong class would leave them as they are."""

    def change(magnitude: float) -> float:
        augment = ScheduledRandAugment(magnitude, image_size=24)
        original = np.asarray(picture(), dtype=float)
        total = 0.0
        for number in range(150):
            seed(number)
            total += np.abs(np.asarray(augment(picture()), dtype=float) - original).mean()
        return total / 150

    weak, strong = change(0), change(9)
    assert weak > 0  # strength 0 is not off
    assert strong > 1.3 * weak


def test_ten_thousand_images_at_the_last_strength():
    """timm asks Pillow to keep no bit at all now and then; an error there would come after 80 % of the training."""
    augment, image = ScheduledRandAugment(9, image_size=8), picture(8)
    seed(0)
    for _ in range(10_000):
        augment(image)
    augment.set_magnitude(10)
    for _ in range(1_000):
        augment(image)


class Strengths(Dataset):
    """What a loader worker sees."""

    def __init__(self, augment: ScheduledRandAugment) -> None:
        self.augment = augment

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> float:
        return self.augment.magnitude


@pytest.mark.parametrize("method", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def test_reaches_persistent_workers(method):
    augment = ScheduledRandAugment(1)
    loader = DataLoader(
        Strengths(augment), num_workers=1, persistent_workers=True, multiprocessing_context=method, batch_size=4
    )
    seen = []
    for magnitude in (1, 4, 9):
        augment.set_magnitude(magnitude)
        seen += [batch.unique().tolist() for batch in loader]
    assert seen == [[1], [4], [9]]


def test_a_copy_shares_the_strength():
    augment = ScheduledRandAugment(1)
    other = copy.deepcopy(v2.Compose([augment])).transforms[0]
    augment.set_magnitude(7)
    assert other.magnitude == 7
    value = SharedValue(2.5)
    copy.deepcopy(value).set(3)
    assert value.get() == 3


def test_tensors_of_8_bits_and_labels():
    augment = ScheduledRandAugment(5, image_size=24)
    image = v2.functional.pil_to_tensor(picture())
    seed(1)
    expected = v2.functional.pil_to_tensor(augment(picture()))
    seed(1)
    augmented, label = augment(image, 4)
    assert torch.equal(augmented, expected)
    assert label == 4


def test_masks_and_boxes_are_left_alone():
    augment, mask = ScheduledRandAugment(9, image_size=24), tv_tensors.Mask(torch.randint(0, 3, (24, 24)).byte())
    boxes = tv_tensors.BoundingBoxes([[1, 2, 8, 9]], format="XYXY", canvas_size=(24, 24))
    image = tv_tensors.Image(v2.functional.pil_to_tensor(picture()))
    seed(1)
    augmented, mask_after, boxes_after = augment(image, mask, boxes)
    assert isinstance(augmented, tv_tensors.Image)
    assert not torch.equal(augmented, image)
    assert torch.equal(mask_after, mask)
    assert torch.equal(boxes_after, boxes)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"works on 8 bits, got torch.float32"):
        ScheduledRandAugment()(torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match=r"magnitude=11 must be in \[0, 10\]"):
        ScheduledRandAugment(11)
    with pytest.raises(ValueError, match="interpolation='cubic' is unknown: use one of 'random', 'bilinear'"):
        ScheduledRandAugment(interpolation="cubic")
    with pytest.raises(ValueError, match="probability=2"):
        ScheduledRandAugment(probability=2)
    assert repr(ScheduledRandAugment(4)) == "ScheduledRandAugment(magnitude=4, num_ops=2)"
