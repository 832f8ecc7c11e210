"""Networks that give each pixel a class, windows, and the schedule of their recipes."""

import sys

import pytest
import torch
from torch import nn

from zoo.nn import PolyWithWarmup, SegmentationNetwork, SmallUNet, create_segmentation_network, sliding_window
from zoo.nn.segmentation import last_features, window_starts


def test_small_network_has_the_stated_size_and_scores_at_half_the_resolution() -> None:
    network = SmallUNet(11, width=12)
    assert sum(parameter.numel() for parameter in network.parameters()) == 63_215
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 11, 32, 32)
    assert create_segmentation_network("small_unet", 11)(torch.rand(2, 3, 40, 56)).shape == (2, 11, 40, 56)


def test_images_are_normalised_and_scores_have_their_size_and_precision() -> None:
    class Halves(nn.Module):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"out": images[..., ::2, ::2].bfloat16()}

    network = SegmentationNetwork(Halves(), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    logits = network(torch.ones(1, 3, 8, 8))
    assert logits.shape == (1, 3, 8, 8)
    assert logits.dtype == torch.float32
    assert logits.eq(2).all()
    assert "mean" not in network.state_dict()
    assert network.encoder is None


def test_images_of_other_sides_are_padded_with_the_mean_and_scores_are_cut() -> None:
    class Same(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.seen = images
            return images

    network = SegmentationNetwork(Same(), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), multiple=4)
    images = torch.rand(1, 3, 5, 8)
    assert torch.equal(network(images), (images - 0.5) / 0.25)
    assert network.model.seen.shape == (1, 3, 8, 8)
    assert network.model.seen[..., 5:, :].eq(0).all()


def test_smp_networks_take_images_of_any_size() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    network = create_segmentation_network("smp/deeplabv3plus/resnet18", 4, encoder_output_stride=8).eval()
    images = torch.rand(1, 3, 33, 50)
    logits = network(images)
    assert logits.shape == (1, 4, 33, 50)
    # What is padded is the mean of the weights: an image that ends with it gives the same scores.
    whole = network.mean.expand(1, 3, 40, 56).clone()
    whole[..., :33, :50] = images
    torch.testing.assert_close(network(whole)[..., :33, :50], logits)


def test_torchvision_networks_have_an_encoder() -> None:
    network = create_segmentation_network("torchvision/lraspp_mobilenet_v3_large", 5)
    assert network.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 5, 32, 32)
    assert network.encoder is network.model.backbone
    with last_features(network.encoder) as features:
        network(torch.rand(1, 3, 32, 32))
    network(torch.rand(1, 3, 32, 32))
    assert [tuple(feature.shape) for feature in features] == [(1, 960, 2, 2)]  # the last stage, one call


def test_smp_networks_take_any_timm_encoder() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    for name, size in (
        ("smp/unet/tu-test_resnet", 32),
        ("smp/deeplabv3plus/resnet18", 32),
        ("smp/segformer/mit_b0", 64),
    ):
        network = create_segmentation_network(name, 4).eval()
        assert network(torch.rand(2, 3, size, size)).shape == (2, 4, size, size)
        assert network.encoder is not None
    with pytest.raises(ValueError, match="has no network 'moonnet/resnet18'"):
        create_segmentation_network("smp/moonnet/resnet18", 4)


def test_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-zoo\[segmentation\]'"):
        create_segmentation_network("smp/unet/resnet18", 4)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("unet", {}, "network='unet' is none of"),
        ("smp/", {}, "network='smp/' is none of"),
        ("torchvision/moonnet", {}, "it has deeplabv3_mobilenet_v3_large"),
        ("small_unet", {"pretrained": True}, "no pretrained weights"),
    ],
)
def test_unknown_networks_are_refused(name: str, options: dict[str, bool], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        create_segmentation_network(name, 4, **options)


def test_windows_cover_an_image_and_end_with_it() -> None:
    assert window_starts(2048, 769, 513) == [0, 513, 1026, 1279]
    assert window_starts(769, 769, 513) == [0]
    assert window_starts(500, 769, 513) == [0]
    assert window_starts(1282, 769, 513) == [0, 513]


def test_logits_of_windows_are_averaged() -> None:
    class Position(nn.Module):
        """Answers with a number for each call."""

        calls = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return torch.full_like(images, float(self.calls))

    logits = sliding_window(Position(), torch.zeros(1, 3, 2, 5), size=3, stride=2)
    assert logits[0, 0].tolist() == [[1, 1, 1.5, 2, 2], [1, 1, 1.5, 2, 2]]
    pixelwise = nn.Conv2d(3, 4, 1)
    images = torch.rand(2, 3, 7, 9)
    torch.testing.assert_close(sliding_window(pixelwise, images, 4), pixelwise(images))


def test_rates_of_the_published_schedules() -> None:
    def rates(peak: float, steps: int, shown: list[int], **options: float) -> list[float]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
        schedule = PolyWithWarmup(optimizer, steps, **options)
        found = []
        for step in shown:
            schedule.last_epoch = step
            found.append(schedule.get_lr()[0])
        return found

    adaptation = rates(6e-5, 40_000, [0, 1, 750, 1499, 1500, 20_000, 39_999], warmup_steps=1500)
    assert adaptation == pytest.approx(
        [6.0000000002e-11, 4.0058958501e-08, 2.9437529438e-05, 5.7712999039e-05, 5.7750000000e-05, 3e-05, 1.5e-09]
    )
    semi = rates(0.001, 1000, [0, 1, 500, 999, 1000, 1001], power=0.9)
    assert semi == pytest.approx([1e-3, 9.9909995498e-04, 5.3588673127e-04, 1.9952623150e-06, 0, 0])
    held = [rates(1.0, steps, [0, 1, 2, 3, 4], warmup_steps=2, warmup_ratio=0.5, hold_steps=3) for steps in (5, 9)]
    assert held == [[0.5, 0.75, 1, 1, 0.5], [0.5, 0.75, 1, 1, 5 / 6]]
    with pytest.raises(ValueError, match="power=-1"):
        rates(1.0, 10, [0], power=-1)
