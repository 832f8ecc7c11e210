"""Few-shot sessions on an encoder that stays as it is, quantised or not."""

from pathlib import Path

import pytest
import torch
from sessions import Snapshots, changed, class_means, fit, make_data, make_module

from zoo.callbacks import QuantizeFrozen

VIT = {"backbone": "test_vit", "backbone_args": {"img_size": 8, "patch_size": 4}, "train_backbone": False}


def test_a_frozen_encoder_stays_as_it_is_and_the_rest_learns() -> None:
    module, data, watch = make_module(["prototypes", "pseudo_classes"], **VIT), make_data(), Snapshots()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fit(module, data, watch)
    moved = changed(before, module.state_dict())
    assert any(name.startswith("neck.") for name in moved)
    assert not any(name.startswith("backbone.") for name in moved)
    assert not module.train().backbone.training
    torch.testing.assert_close(
        module.classifier.weight[: 2 * 4 : 2], class_means(module, data, 0), rtol=1e-4, atol=1e-5
    )


def test_a_quantised_encoder_learns_its_own_means_and_is_resumed(tmp_path: Path) -> None:
    quantized, plain, data = make_module(**VIT), make_module(**VIT), make_data()
    fit(quantized, data, QuantizeFrozen(), folder=tmp_path)
    fit(plain, make_data())
    images = torch.rand(6, 3, 8, 8)
    features = quantized.backbone(images)
    assert not torch.equal(features, plain.backbone(images))
    torch.testing.assert_close(features, plain.backbone(images), rtol=0.1, atol=0.1)
    for session in range(3):
        classes = data.session_classes(session)
        rows = quantized.classifier.weight[classes.start : classes.stop]
        torch.testing.assert_close(rows, class_means(quantized, data, session), rtol=1e-2, atol=1e-2)

    # Any checkpoint, the one in the middle too, ends at the same weights; the same encoder in full precision does not.
    again = make_module(**VIT)
    fit(again, make_data(), QuantizeFrozen(), ckpt_path=str(tmp_path / "epoch=2.ckpt"))
    assert not changed(quantized.state_dict(), again.state_dict())
    loaded = make_module(**VIT)
    restored = torch.load(tmp_path / "last.ckpt", weights_only=True)
    loaded.on_load_checkpoint(restored)
    loaded.load_state_dict(restored["state_dict"])
    torch.testing.assert_close(loaded.eval()(images), quantized.eval()(images))
    fit(plain, make_data(), folder=tmp_path / "plain")
    with pytest.raises(ValueError, match="is quantised, and was not in the run of the checkpoint"):
        fit(make_module(**VIT), make_data(), QuantizeFrozen(), ckpt_path=str(tmp_path / "plain" / "epoch=2.ckpt"))


def test_a_frozen_encoder_takes_the_weights_of_a_base_session(tmp_path: Path) -> None:
    trained = make_module(**{**VIT, "train_backbone": True})
    fit(trained, make_data(), folder=tmp_path)
    frozen = make_module(**VIT, checkpoint_path=str(tmp_path / "epoch=1.ckpt"))
    fit(frozen, make_data(base_epochs=1), QuantizeFrozen())
    images = torch.rand(6, 3, 8, 8)
    torch.testing.assert_close(frozen.eval()(images), trained.eval()(images), rtol=0.1, atol=0.5)
    assert frozen.backbone.quantization["mode"] == "int8"


def test_a_base_session_is_not_continued_with_its_encoder_frozen(tmp_path: Path) -> None:
    fit(make_module(**{**VIT, "train_backbone": True}), make_data(), folder=tmp_path)
    with pytest.raises(ValueError, match="give the file as checkpoint_path of the model instead"):
        fit(make_module(**VIT), make_data(), QuantizeFrozen(), ckpt_path=str(tmp_path / "epoch=1.ckpt"))


def test_an_encoder_that_trains_is_not_quantised() -> None:
    with pytest.raises(ValueError, match="has parameters that train"):
        fit(make_module(**{**VIT, "train_backbone": True}), make_data(), QuantizeFrozen())


@pytest.mark.parametrize("trick", ["contrastive", "finetuning", "pretraining", "rotation"])
def test_tricks_that_train_a_frozen_encoder_are_refused(trick: str) -> None:
    with pytest.raises(ValueError, match=f"The tricks {trick} train the encoder"):
        make_module([trick], **VIT)
