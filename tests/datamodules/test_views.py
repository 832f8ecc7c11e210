import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from zoo.datamodules.sources.images import ImageFiles, TensorImages
from zoo.datamodules.views import ImageView, compose, is_fixed


class Listed:
    """A data set of the images that it is given."""

    def __init__(self, *images):
        self.images = images
        self.targets = [0] * len(images)

    def __getitem__(self, index):
        return self.images[index], 0

    def __len__(self):
        return len(self.images)


def view(*images, transform=None):
    count = len(images)
    return ImageView(Listed(*images), torch.arange(count), torch.zeros(count, dtype=torch.int64), transform)


def test_images_leave_as_float_rgb_between_0_and_1():
    gray = Image.fromarray(np.array([[0, 51], [255, 102]], dtype=np.uint8))
    image, label = view(gray)[0]
    assert type(image) is torch.Tensor
    torch.testing.assert_close(image, torch.tensor([[0, 0.2], [1, 0.4]]).expand(3, 2, 2))
    assert (label, type(label)) == (0, int)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"])
def test_every_mode_of_8_bits_becomes_rgb(mode):
    image = view(Image.new("RGB", (4, 2), (255, 255, 255)).convert(mode))[0][0]
    torch.testing.assert_close(image, torch.ones(3, 2, 4), atol=0.01, rtol=0)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_8_bits_are_refused_instead_of_clipped(mode):
    with pytest.raises(ValueError, match=f"image 0 of Listed has more than 8 bits a channel .mode {mode}"):
        view(Image.new(mode, (4, 4), 1000))[0]


def test_a_tensor_of_one_channel_becomes_rgb_and_others_are_refused():
    image = view(torch.full((1, 2, 2), 51, dtype=torch.uint8))[0][0]
    torch.testing.assert_close(image, torch.full((3, 2, 2), 0.2))
    for shape in ((2, 4, 4), (4, 4), (4, 4, 4)):
        with pytest.raises(ValueError, match=r"it must be \(1, H, W\) or \(3, H, W\)"):
            view(torch.zeros(shape, dtype=torch.uint8))[0]


def test_a_view_selects_and_renames_without_copying():
    images = TensorImages("the set", torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1), torch.arange(10))
    chosen = ImageView(images, torch.tensor([7, 2]), torch.tensor([1, 0]), None)
    assert len(chosen) == 2
    assert chosen.images is images
    assert [round(255 * float(image[0, 0, 0])) for image, _ in chosen] == [7, 2]
    assert [label for _, label in chosen] == [1, 0]


@pytest.mark.parametrize("kind", ["pil", "tensor"])
def test_v2_transforms_take_pil_images_and_tensors(kind):
    image = Image.new("RGB", (20, 10), (51, 51, 51))
    image = v2.functional.pil_to_tensor(image) if kind == "tensor" else image
    transform = compose([v2.Resize(8), v2.CenterCrop(6), v2.RandomHorizontalFlip()])
    torch.testing.assert_close(view(image, transform=transform)[0][0], torch.full((3, 6, 6), 0.2))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.1] * 3)]),
            "remove Normalize",
        ),
        (v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32)]), r"\[200, 200\]"),
        (lambda image: v2.functional.to_image(image).float() * float("nan"), "not finite"),
        (v2.Grayscale(), r"shape \(1, 4, 4\).*num_output_channels=3"),
    ],
)
def test_a_transform_that_breaks_the_contract_is_explained(transform, message):
    with pytest.raises(ValueError, match=f"image 0 of Listed has .*{message}"):
        view(Image.new("RGB", (4, 4), (200, 200, 200)), transform=transform)[0]


def test_an_unreadable_file_is_named(tmp_path):
    path = tmp_path / "broken.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    files = ImageFiles([(str(path), 3)])
    whole = ImageView(files, torch.tensor([0]), torch.tensor([3]), None)
    assert whole[0][1] == 3
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"Cannot read .*broken\.png: .*truncated"):
        whole[0]
    path.unlink()
    with pytest.raises(ValueError, match=r"Cannot read .*broken\.png"):
        whole[0]


def test_images_without_a_file_are_named_by_their_set_and_position():
    images = TensorImages("the test set of X", torch.zeros(2, 2, 4, 4, dtype=torch.uint8), torch.zeros(2))
    with pytest.raises(ValueError, match="image 1 of the test set of X"):
        ImageView(images, torch.tensor([1]), torch.tensor([0]), None)[0]


def test_compose_takes_one_several_or_none():
    assert compose(None) is None
    assert compose([]) is None
    one = v2.Resize(4)
    assert compose(one) is one
    assert compose([one, v2.CenterCrop(2)])(torch.zeros(3, 8, 8)).shape == (3, 2, 2)


@pytest.mark.parametrize(
    ("transform", "fixed"),
    [
        (None, True),
        (v2.Resize(4), True),
        (v2.Compose([v2.Resize(4), v2.CenterCrop(2)]), True),
        (v2.RandomCrop(2), False),
        (v2.Compose([v2.Resize(4), v2.Compose([v2.RandomHorizontalFlip()])]), False),
        (lambda image: image, False),
    ],
)
def test_only_transforms_known_to_be_fixed_count_as_fixed(transform, fixed):
    assert is_fixed(transform) is fixed
