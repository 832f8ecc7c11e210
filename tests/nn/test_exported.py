"""Networks as files of timm: the same features, and what a reader has to know."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open

import zoo
from zoo.cli.main import main
from zoo.nn.exported import export_checkpoint, export_weights

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
KINDS = {
    "mae": lambda: zoo.MAE("test_vit", decoder_dim=8, decoder_depth=1, decoder_heads=2, backbone_args=VIT),
    "classifier": lambda: zoo.ImageClassifier(3, "test_vit", backbone_args={**VIT, "global_pool": "avg"}),
}


def save(module: torch.nn.Module, path: Path) -> str:
    """Write what Lightning would."""
    checkpoint = {"state_dict": dict(module.state_dict()), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
def test_timm_loads_the_network_of_a_checkpoint(kind: str, tmp_path: Path) -> None:
    module, path = KINDS[kind](), str(tmp_path / "here" / "encoder.safetensors")
    facts = export_checkpoint(save(module, tmp_path / "last.ckpt"), path)
    model = timm.create_model(facts["backbone"], num_classes=0, checkpoint_path=path, **facts["backbone_args"])
    images = torch.rand(2, 3, 16, 16)
    normal = (images - torch.tensor(facts["mean"]).view(3, 1, 1)) / torch.tensor(facts["std"]).view(3, 1, 1)
    torch.testing.assert_close(model.eval()(normal), module.eval().backbone(images))
    with safe_open(path, "pt") as file:
        assert {name: json.loads(file.metadata()[name]) for name in facts} == facts


def test_command_says_how_to_load_what_it_writes(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    module = KINDS["mae"]()
    save(module, tmp_path / "last.ckpt")
    assert main(["export", "last.ckpt", "encoder.safetensors"]) == 0
    printed = capsys.readouterr().out
    (call,) = [line.strip() for line in printed.splitlines() if "create_model" in line]
    model = eval(call, {"timm": timm})
    torch.testing.assert_close(model.state_dict(), module.backbone.model.state_dict(), rtol=0, atol=0)
    assert "mean=[0.5, 0.5, 0.5]" in printed


def test_what_cannot_be_exported_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    frozen = zoo.NMC(2, "test_efficientnet", pretrained=False, save_backbone=False)
    save(frozen, tmp_path / "nmc.ckpt")
    save(KINDS["mae"](), tmp_path / "mae.ckpt")
    Path("empty.ckpt").touch()
    for words, message in (
        (["nmc.ckpt", "a.safetensors"], "nmc.ckpt holds no network of timm"),
        (["gone.ckpt", "a.safetensors"], "gone.ckpt is no file"),
        (["empty.ckpt", "a.safetensors"], "zoo export: "),
        (["mae.ckpt", "a.pth"], "a.pth must end with .safetensors"),
        (["mae.ckpt"], "zoo export --help"),
    ):
        assert main(["export", *words]) == 2
        assert message in capsys.readouterr().err
    assert not Path("a.safetensors").exists()


def test_tensors_of_any_layout_are_written(tmp_path: Path) -> None:
    state = {"weight": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)}
    export_weights(state, tmp_path / "a.safetensors", {})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("weight"), state["weight"])
