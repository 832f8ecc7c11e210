import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torchvision import tv_tensors
from torchvision.transforms import v2

from zoo.functional import downsample, low_frequency_crop
from zoo.nn import LowFrequencyCrop


def test_module_on_a_batch_is_the_function_without_gradient():
    images = torch.rand(4, 3, 28, 28, requires_grad=True)
    crop = LowFrequencyCrop(16)
    assert_close(crop(images), low_frequency_crop(images, 16).detach())
    assert not crop(images).requires_grad
    crop.size = (12, 20)  # as a curriculum does
    assert crop(images).shape == (4, 3, 12, 20)
    assert not list(crop.parameters()) + list(crop.state_dict())


def test_transform_in_a_pipeline_leaves_labels_and_masks_alone():
    pipeline = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), LowFrequencyCrop(16)])
    image, label = pipeline(Image.new("RGB", (28, 28), (255, 0, 0)), 3)
    assert isinstance(image, tv_tensors.Image)
    assert image.shape == (3, 16, 16)
    assert label == 3
    mask = tv_tensors.Mask(torch.ones(28, 28))
    sample = LowFrequencyCrop(16)({"image": tv_tensors.Image(torch.rand(3, 28, 28)), "mask": mask})
    assert sample["image"].shape == (3, 16, 16)
    assert sample["mask"] is mask


def test_single_images_and_videos():
    assert LowFrequencyCrop(4)(torch.rand(3, 8, 8)).shape == (3, 4, 4)
    video = torch.rand(2, 5, 3, 8, 8)
    assert_close(LowFrequencyCrop(4)(video)[1], low_frequency_crop(video[1], 4))


def test_window_and_filter_are_passed_on():
    images = torch.rand(1, 1, 9, 9)
    assert_close(LowFrequencyCrop(5, "odd")(images), low_frequency_crop(images, 5, "odd"))
    assert_close(LowFrequencyCrop(4, mode="bicubic")(images), downsample(images, 4, "bicubic"))
    assert repr(LowFrequencyCrop(4)) == "LowFrequencyCrop(size=4, nyquist='official', mode='fourier')"


def test_pil_images_and_impossible_sizes():
    with pytest.raises(TypeError, match=r"needs a tensor, got Image: put v2.ToImage"):
        LowFrequencyCrop(4)(Image.new("RGB", (8, 8)))
    with pytest.raises(ValueError, match="size=9 does not fit"):
        LowFrequencyCrop(9)(torch.rand(3, 8, 8))
