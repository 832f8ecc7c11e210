"""After a pretraining: each evaluation of the encoder in one command, from the checkpoint or the exported file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_autoencoders import VIT, images, mae, make_trainer

import zoo
from zoo.callbacks import TaskLoop
from zoo.cli.lightning import run
from zoo.datamodules import ClassIncrementalDataModule
from zoo.datamodules.sources import Synthetic
from zoo.nn import create_backbone


@pytest.fixture
def pretrained(tmp_path: Path) -> tuple[zoo.MAE, dict[str, str]]:
    """Return an autoencoder, its checkpoint, and its exported encoder."""
    trainer, module = make_trainer(max_epochs=1), mae(mean=[0.4, 0.4, 0.4], std=[0.2, 0.2, 0.2])
    trainer.fit(module, images())
    paths = {name: str(tmp_path / file) for name, file in (("checkpoint", "a.ckpt"), ("file", "a.safetensors"))}
    trainer.save_checkpoint(paths["checkpoint"])
    module.export_encoder(paths["file"])
    return module, paths


@pytest.mark.parametrize("source", ["checkpoint", "file"])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_fine_tuning_starts_from_the_encoder(source: str, pool: str, pretrained: Any) -> None:
    module, paths = pretrained
    arguments = {**VIT, "global_pool": pool}
    classifier = zoo.ImageClassifier(
        3, "test_vit", mode="finetune", checkpoint_path=paths[source], backbone_args=arguments
    )
    learned, expected = classifier.backbone.model.state_dict(), module.backbone.model.state_dict()
    fresh = {"fc_norm.weight", "fc_norm.bias"} if pool == "avg" else set()
    assert learned.keys() - expected.keys() == fresh
    assert all(torch.equal(learned[name], expected[name]) for name in learned.keys() - fresh)
    assert classifier.backbone.model.pos_embed.requires_grad


@pytest.mark.parametrize("mode", ["finetune", "linear_probe"])
def test_evaluations_are_one_command_each(mode: str, pretrained: Any, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = f"""
        --model ImageClassifier --model.mode {mode} --model.backbone test_vit
        --model.checkpoint_path {pretrained[1]["checkpoint"]}
        --data ClassificationDataModule --data.source Synthetic --data.source.image_size 16
        --data.source.num_classes 3 --data.evaluate test
        --trainer.max_epochs 1 --trainer.accelerator cpu --trainer.enable_progress_bar false --run_dir out
    """
    run(["fit", *options.split(), "--model.backbone_args", str(VIT)])
    saved = torch.load("out/checkpoints/last.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["mode"] == mode


def test_class_means_of_the_encoder_learn_a_stream(pretrained: Any) -> None:
    module, paths = pretrained
    backbone = create_backbone("test_vit", False, paths["file"], [0.4] * 3, [0.2] * 3, **VIT)
    batch = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(backbone.eval()(batch), module.eval().backbone(batch), rtol=0, atol=0)
    source = Synthetic(num_classes=3, image_size=16)
    stream = ClassIncrementalDataModule(source, num_tasks=3, pad=False)
    trainer = make_trainer(TaskLoop(), max_epochs=3)
    nmc = zoo.NMC(3, backbone)
    trainer.fit(nmc, stream)
    assert nmc.means.count.tolist() == [8, 8, 8]
