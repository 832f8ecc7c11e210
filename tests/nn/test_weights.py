"""Weights of a file in networks that differ from the one that wrote it."""

from pathlib import Path

import pytest
import timm
import torch

from zoo.nn.weights import load_weights


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, torch.Tensor]:
    """Write a transformer with and without its classifier, and return its state."""
    model = timm.create_model("test_vit", num_classes=10, img_size=32)
    torch.save(model.state_dict(), tmp_path / "classifier.pt")
    model.reset_classifier(0)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "encoder.pt")
    return model.state_dict()


@pytest.mark.parametrize("name", ["classifier.pt", "encoder.pt"])
def test_classifier_of_the_file_is_left_out(name: str, saved, tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=0, img_size=32)
    load_weights(model, str(tmp_path / name))
    torch.testing.assert_close(model.state_dict(), saved, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["classifier.pt", "encoder.pt"])
def test_mean_pooling_starts_its_own_normalisation(name: str, saved, tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=0, img_size=32, global_pool="avg")
    load_weights(model, str(tmp_path / name))
    state = model.state_dict()
    assert state.keys() - saved.keys() == {"fc_norm.weight", "fc_norm.bias"}
    assert saved.keys() - state.keys() == {"norm.weight", "norm.bias"}
    assert all(torch.equal(state[key], saved[key]) for key in state.keys() & saved.keys())


def test_positions_are_resampled_for_another_image_size(saved, tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=0, img_size=64)
    load_weights(model, str(tmp_path / "encoder.pt"))
    assert saved["pos_embed"].shape[1] == 1 + 2**2
    assert model.pos_embed.shape[1] == 1 + 4**2
    grid = saved["pos_embed"][:, 1:].unflatten(1, (2, 2)).permute(0, 3, 1, 2)
    larger = torch.nn.functional.interpolate(grid, (4, 4), mode="bicubic", antialias=True).flatten(2).mT
    torch.testing.assert_close(model.pos_embed[:, 1:], larger)


def test_network_without_adapter_of_timm(tmp_path: Path) -> None:
    written, read = (timm.create_model("test_resnet", num_classes=number) for number in (3, 0))
    torch.save(written.state_dict(), tmp_path / "resnet.pt")
    load_weights(read, str(tmp_path / "resnet.pt"))
    assert all(torch.equal(value, written.state_dict()[name]) for name, value in read.state_dict().items())


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit2"])
def test_weights_of_another_network_are_refused(architecture: str, saved, tmp_path: Path) -> None:
    model = timm.create_model(architecture, num_classes=0)
    with pytest.raises(ValueError, match=r"does not fit .*: missing (conv1|reg_token).*; unknown cls_token"):
        load_weights(model, str(tmp_path / "classifier.pt"))


def test_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint_path='nowhere.pt' is no file"):
        load_weights(torch.nn.Identity(), "nowhere.pt")
