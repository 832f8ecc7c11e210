import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from zoo.functional import downsample, low_frequency_crop
from zoo.functional.low_frequency import crop_matrix, nyquist_wave

ROUTES = ("matmul", "fft")
SIZES = [  # image, crop
    ((8, 8), 4), ((8, 8), 2), ((8, 12), 4), ((12, 20), (6, 10)), ((28, 28), 16), ((31, 33), 16), ((9, 9), 8),
    ((7, 7), 7), ((224, 192), 160), ((224, 224), 96),
]  # fmt: skip


def published(images: torch.Tensor, size) -> torch.Tensor:
    """The definition: transform, cut the window -h ... h-1 of each axis out, scale, transform back, real part."""
    height, width = images.shape[-2:]
    rows, columns = (size, size) if isinstance(size, int) else size
    rows, columns = rows // 2, columns // 2
    spectrum = torch.fft.fft2(images)
    spectrum = torch.cat([spectrum[..., :rows, :], spectrum[..., height - rows :, :]], dim=-2)
    spectrum = torch.cat([spectrum[..., :columns], spectrum[..., width - columns :]], dim=-1)
    return torch.fft.ifft2(spectrum * (4 * rows * columns / (height * width))).real


def exact(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def wave(height: int, width: int) -> torch.Tensor:
    i, j = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    return torch.sin(i + 2 * j)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_equals_the_published_transform(shape, size, route):
    images = torch.randn(2, 3, *shape, dtype=torch.float64)
    expected = published(images, size)
    assert_close(low_frequency_crop(images, size, route=route), expected, rtol=0, atol=1e-12)
    assert_close(low_frequency_crop(images.float(), size, route=route).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("nyquist", ["symmetric", "odd"])
@pytest.mark.parametrize(("shape", "size"), [((8, 8), 5), ((12, 20), 7), ((31, 33), 17), ((9, 9), 9)])
def test_the_two_routes_agree_for_the_other_windows(shape, size, nyquist):
    images = torch.randn(2, *shape, dtype=torch.float64)
    by_matmul, by_fft = (low_frequency_crop(images, size, nyquist, route) for route in ROUTES)
    assert_close(by_matmul, by_fft, rtol=0, atol=1e-12)


def test_matrix_worked_by_hand():
    a, b = (1 + 2**0.5) / 8, (1 - 2**0.5) / 8
    expected = [
        [0.5, a, 0, b, 0, b, 0, a],
        [0, a, 0.5, a, 0, b, 0, b],
        [0, b, 0, a, 0.5, a, 0, b],
        [0, b, 0, b, 0, a, 0.5, a],
    ]
    matrix = crop_matrix(8, 4, "official")
    assert_close(matrix, exact(expected), rtol=0, atol=1e-15)
    assert_close(nyquist_wave(8, 4), exact([0, 1, 0, -1] * 2), rtol=0, atol=1e-15)
    assert_close(matrix @ torch.arange(8).double(), exact([2, 1.5857864376, 4, 6.4142135624]))


@pytest.mark.parametrize(("side", "size"), [(8, 4), (28, 16), (224, 96), (31, 16)])
def test_rows_of_the_matrix_sum_to_one_and_columns_to_the_ratio(side, size):
    matrix = crop_matrix(side, size, "official")
    assert_close(matrix.sum(1), torch.ones(size).double(), rtol=0, atol=1e-13)
    assert_close(matrix.sum(0), torch.full((side,), size / side, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("route", ROUTES)
def test_worked_example_8_to_4(route):
    official = exact([
        [0.7456485376, -0.2305667032, 0.0983738128, -0.0361923147],
        [0.0970037962, -0.0407063031, -0.0475063232, 0.1775315811],
        [-0.6895369809, 0.2450100280, -0.1023629933, 0.0009844666],
        [0.4155254882, -0.1649819796, 0.1547304773, -0.2147777767],
    ])  # fmt: skip
    checkerboard = exact([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2)
    images = wave(8, 8)
    assert_close(low_frequency_crop(images, 4, route=route), official, rtol=0, atol=1e-9)
    symmetric = low_frequency_crop(images, 4, "symmetric", route)
    assert_close(symmetric - official, 0.027919104868689183 * checkerboard, rtol=0, atol=1e-9)


@pytest.mark.parametrize("route", ROUTES)
def test_worked_examples_of_odd_sizes(route):
    images = wave(6, 6)
    floored = exact([[0.0597868024, -0.0114827820], [-0.0712521778, 0.0127613267]])
    odd = exact([
        [0.1630856046, -0.0727240762, 0.0621906558],
        [-0.1420997387, 0.0262076925, 0.0070090429],
        [-0.0477418692, 0.0551898629, -0.0740375437],
    ])  # fmt: skip
    assert_close(low_frequency_crop(images, 3, route=route), floored, rtol=0, atol=1e-9)
    assert_close(low_frequency_crop(images, 2, route=route), floored, rtol=0, atol=1e-9)
    assert_close(low_frequency_crop(images, 3, "odd", route), odd, rtol=0, atol=1e-9)


@pytest.mark.parametrize("route", ROUTES)
def test_worked_example_28_to_16(route):
    i, j = torch.meshgrid(torch.arange(28).double(), torch.arange(28).double(), indexing="ij")
    images = torch.cos(0.3 * i * j) + 0.1 * i - 0.05 * j
    cropped = low_frequency_crop(images, 16, route=route)
    corner = [[1.1990147677, 1.2995029894, 1.2609670679], [0.4068564119, 0.7849445482, -0.4738226501]]
    assert_close(cropped[:2, :3], exact(corner), rtol=0, atol=1e-7)
    assert cropped[15, 15].item() == pytest.approx(0.8417832277, abs=1e-9)
    assert cropped.mean().item() == pytest.approx(0.7684993663757197, abs=1e-12)
    assert cropped.std(correction=0).item() == pytest.approx(0.9963275581, abs=1e-9)
    assert cropped.max().item() == pytest.approx(3.1343894615, abs=1e-9)


@pytest.mark.parametrize("route", ROUTES)
def test_worked_example_of_a_rectangle_and_of_overshoot(route):
    cropped = low_frequency_crop(wave(8, 12), 4, route=route)
    assert_close(cropped[0], exact([0.2004656032, -0.0399248162, 0.0029056832, 0.0331516239]), rtol=0, atol=1e-9)
    assert cropped.mean().item() == pytest.approx(0.00980263030507558, abs=1e-12)
    step = torch.cat([torch.zeros(16, 8), torch.ones(16, 8)], dim=1).double()
    row = [0.25, -0.0766407412, 0.0586582838, -0.0766407412, 0.75, 1.0766407412, 0.9413417162, 1.0766407412]
    assert_close(low_frequency_crop(step, 8, route=route), exact(row).expand(8, 8), rtol=0, atol=1e-9)


@pytest.mark.parametrize("route", ROUTES)
def test_waves_on_the_highest_frequency(route):
    i = torch.arange(8).double()
    cosine, sine = torch.cos(torch.pi * i / 2), torch.sin(torch.pi * i / 2)
    signs = exact([1.0, -1.0, 1.0, -1.0])

    def crop(down, across, nyquist="official"):
        return low_frequency_crop(torch.outer(down, across), 4, nyquist, route)

    one = torch.ones(8).double()
    assert_close(crop(cosine, one), 0.5 * signs[:, None].expand(4, 4), rtol=0, atol=1e-12)
    assert_close(crop(sine, one), torch.zeros(4, 4).double(), rtol=0, atol=1e-12)
    assert_close(crop(cosine, cosine), torch.outer(signs, signs) / 4, rtol=0, atol=1e-12)
    assert_close(crop(sine, sine), -torch.outer(signs, signs) / 4, rtol=0, atol=1e-12)
    assert_close(crop(sine, sine, "symmetric"), torch.zeros(4, 4).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("route", ROUTES)
def test_low_waves_and_means_are_kept_and_normalisation_commutes(route):
    n, m = torch.arange(224).double() / 224, torch.arange(96).double() / 96
    low = torch.cos(2 * torch.pi * 40 * n) + 3
    cropped = low_frequency_crop(low.expand(224, 224), 96, route=route)
    assert_close(cropped, (torch.cos(2 * torch.pi * 40 * m) + 3).expand(96, 96), rtol=0, atol=1e-11)
    images = torch.rand(3, 20, 20).double()
    crop = low_frequency_crop(images, 12, route=route)
    assert_close(crop.mean((1, 2)), images.mean((1, 2)))
    assert_close(low_frequency_crop((images - 0.4) / 0.2, 12, route=route), (crop - 0.4) / 0.2)


def test_same_size_is_the_identity():
    images = torch.randn(3, 8, 8)
    assert low_frequency_crop(images, 8) is images
    assert low_frequency_crop(images[..., :7, :7], 7).shape == (3, 6, 6)  # odd: floored, as published


def test_large_batches_go_through_in_parts_with_the_same_result():
    images = torch.randn(30, 3, 96, 96, dtype=torch.float64)  # more than PIXELS_IN_CACHE
    assert_close(low_frequency_crop(images, 40), published(images, 40), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(28, 16), (96, 40)])
def test_autocast_half_precision_and_memory_format(size):
    side, crop = size
    images = torch.randn(4, 3, side, side).to(memory_format=torch.channels_last)
    expected = low_frequency_crop(images, crop)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(low_frequency_crop(images, crop), expected)
    half = low_frequency_crop(images.bfloat16(), crop)
    assert half.dtype == torch.bfloat16
    assert_close(half.float(), expected, rtol=0, atol=2e-2)
    assert low_frequency_crop(torch.full((1, side, side), 200, dtype=torch.uint8), crop).mean() == pytest.approx(200)
    assert low_frequency_crop(images[:0], crop).shape == (0, 3, crop, crop)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("nyquist", ["official", "symmetric", "odd"])
def test_gradient(route, nyquist):
    images = torch.randn(2, 8, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: low_frequency_crop(x, 5, nyquist, route), images)


def test_matrices_made_in_inference_mode_serve_training():
    crop_matrix.cache_clear()
    nyquist_wave.cache_clear()
    with torch.inference_mode():
        low_frequency_crop(torch.randn(1, 10, 10), 4, route="matmul")
    images = torch.randn(1, 10, 10, requires_grad=True)
    low_frequency_crop(images, 4, route="matmul").sum().backward()
    assert images.grad is not None


def test_under_torch_compile():
    images = torch.randn(2, 3, 20, 20)
    compiled = torch.compile(lambda x: low_frequency_crop(x, 8), backend="eager")
    assert_close(compiled(images), low_frequency_crop(images, 8))


@pytest.mark.parametrize(
    ("size", "nyquist", "message"),
    [
        (9, "official", "size=9 does not fit images with a side of 8 pixels: use 2 to 8"),
        ((4, 1), "official", "size=1 .* use 2 to 8"),
        (4, "odd", "needs an odd size, got 4: use 3 or 5"),
    ],
)
def test_impossible_sizes(size, nyquist, message):
    with pytest.raises(ValueError, match=message):
        low_frequency_crop(torch.rand(3, 8, 8), size, nyquist)


def test_misspelt_options():
    with pytest.raises(ValueError, match="nyquist='oficial' is unknown: use one of 'official', 'symmetric', 'odd'"):
        low_frequency_crop(torch.rand(3, 8, 8), 4, "oficial")
    with pytest.raises(ValueError, match="route='matrix' is unknown"):
        low_frequency_crop(torch.rand(3, 8, 8), 4, route="matrix")
    with pytest.raises(ValueError, match="mode='cubic' is unknown"):
        downsample(torch.rand(1, 3, 8, 8), 4, "cubic")


def test_filters_of_torch():
    images = torch.rand(2, 3, 24, 24)
    assert_close(downsample(images, 12, "fourier"), low_frequency_crop(images, 12))
    for mode in ("bicubic", "bilinear"):
        smaller = downsample(images, (12, 8), mode)
        assert smaller.shape == (2, 3, 12, 8)
        assert_close(downsample(torch.full_like(images, 0.3), 12, mode), torch.full((2, 3, 12, 12), 0.3))
    expected = downsample(images, 12, "bicubic")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(downsample(images, 12, "bicubic"), expected)
    of_8_bits = (images * 255).to(torch.uint8)
    assert_close(downsample(of_8_bits, 12, "bicubic"), downsample(of_8_bits.float(), 12, "bicubic"))
    with pytest.raises(ValueError, match=r"must have shape \(B, C, H, W\) for mode='bicubic', got \(3, 24, 24\)"):
        downsample(images[0], 12, "bicubic")
    with pytest.raises(ValueError, match="size=30 does not fit"):
        downsample(images, 30, "bicubic")


def has_lanczos() -> bool:
    try:
        torch.nn.functional.interpolate(torch.rand(1, 1, 8, 8), 4, mode="lanczos", antialias=True)
    except (NotImplementedError, ValueError):  # the first is of a kernel, the second of a mode that is missing
        return False
    return True


@pytest.mark.skipif(not has_lanczos(), reason="this torch has no Lanczos filter")
def test_lanczos_is_pillows_without_its_rounding():
    image = torch.randint(0, 256, (40, 40), dtype=torch.uint8)
    smaller = downsample(image[None, None].float(), 16, "lanczos")[0, 0]
    pillow = Image.fromarray(image.numpy()).resize((16, 16), Image.Resampling.LANCZOS)
    expected = torch.tensor(list(pillow.tobytes())).reshape(16, 16).float()
    assert (smaller.clamp(0, 255) - expected).abs().max() < 1.5


def test_a_torch_without_lanczos_says_what_to_do(monkeypatch):
    def interpolate(*args, **kwargs):
        raise NotImplementedError("no such mode")

    monkeypatch.setattr("torch.nn.functional.interpolate", interpolate)
    with pytest.raises(ValueError, match=r"cannot resize with mode='lanczos' .*update torch, or use 'bicubic'"):
        downsample(torch.rand(1, 3, 8, 8), 4, "lanczos")
