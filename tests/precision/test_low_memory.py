"""8-bit optimizers, training in int8, and quantisation-aware training."""

import copy
import logging
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import ModelParallelStrategy
from processes import in_two_processes
from projects import Classifier, loader, quiet
from torch import nn

import zoo
from zoo.callbacks import QAT, Int8Training
from zoo.cli.lightning import run
from zoo.datamodules import ClassificationDataModule
from zoo.datamodules.sources import Synthetic
from zoo.precision import shard

TINY = {"img_size": 32, "patch_size": 8}


def images() -> ClassificationDataModule:
    return ClassificationDataModule(Synthetic(num_classes=4, image_size=32, train_per_class=8), batch_size=8)


def state_bytes(optimizer: Any) -> int:
    def size(value: Any) -> int:
        if isinstance(value, torch.Tensor):
            return value.numel() * value.element_size()
        return sum(map(size, value.values())) if isinstance(value, dict) else 0

    return sum(size(state) for state in optimizer.state_dict()["state"].values())


# 8-bit optimizers -----------------------------------------------------------------------------------------------------


class Wide(Classifier):
    """Layers above 4096 numbers, below which bitsandbytes keeps 32 bits."""

    def __init__(self, optimizer: Any = None) -> None:
        super().__init__(optimizer)
        self.net = nn.Sequential(nn.Linear(64, 512), nn.GELU(), nn.Linear(512, 32), nn.GELU())


def test_states_take_a_quarter_and_learning_and_resuming_go_on(tmp_path: Path) -> None:
    trainers = []
    for kind in (torch.optim.AdamW, bitsandbytes.optim.AdamW8bit):
        module = Wide(lambda parameters, kind=kind: kind(parameters, lr=0.01))
        trainer = quiet(tmp_path, max_epochs=4)
        trainer.fit(module, loader(), loader())
        assert trainer.callback_metrics["val/loss"] < 0.05
        trainers.append(trainer)
    plain, small = (state_bytes(trainer.optimizers[0]) for trainer in trainers)
    assert 8 * 49_152 < plain < 8 * 51_000  # two moments of 32 bits
    assert small / plain < 0.30
    trainers[1].save_checkpoint(tmp_path / "8bit.ckpt")

    def go_on(path: Path | None, epochs: int) -> Any:
        module = Wide(lambda parameters: bitsandbytes.optim.AdamW8bit(parameters, lr=0.01))
        trainer = quiet(tmp_path, max_epochs=epochs)
        trainer.fit(module, loader(), ckpt_path=path)
        return module.state_dict()

    torch.testing.assert_close(go_on(tmp_path / "8bit.ckpt", 6), go_on(None, 6), atol=0, rtol=0)


def test_an_8_bit_optimizer_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run([
        "fit", "--model", "ImageClassifier", "--model.backbone", "test_vit",
        "--model.backbone_args", "{img_size: 32, patch_size: 8}",
        "--model.optimizer", "bitsandbytes.optim.AdamW8bit", "--model.optimizer.lr", "1e-3",
        "--model.optimizer.weight_decay", "0.03",
        "--data", "ClassificationDataModule", "--data.source", "Synthetic", "--data.source.image_size", "32",
        "--data.batch_size", "4", "--trainer.max_steps", "2", "--trainer.accelerator", "cpu",
        "--trainer.limit_val_batches", "1", "--trainer.enable_progress_bar", "false",
    ])  # fmt: skip
    checkpoint = torch.load("runs/imageclassifier/0/checkpoints/last.ckpt", weights_only=True)
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.03}  # biases and norms are spared
    states = checkpoint["optimizer_states"][0]["state"].values()
    kinds = {v.dtype for s in states for v in s.get("__bnb_optimizer_quant_state__", {}).values()}
    assert torch.uint8 in kinds


# int8 -----------------------------------------------------------------------------------------------------------------


def test_int8_products_are_near_and_parameters_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module, x = Classifier(), next(iter(loader()))[0]
    exact = module(x).detach()
    names = {name: id(parameter) for name, parameter in module.named_parameters()}
    module.net[0].requires_grad_(False).eval()
    callback = Int8Training(grad_weight=False)
    with caplog.at_level(logging.INFO):
        callback.setup(None, module, "fit")
        callback.setup(None, module, "fit")
    assert [message for message in caplog.messages if "Int8Training" in message] == [
        "Int8Training: 2 of 3 linear layers, 96% of the parameters; kept: 1 ignored; the bytes stay the same."
    ]
    assert {name: id(parameter) for name, parameter in module.named_parameters()} == names
    assert [layer.training for layer in module.net[::2]] == [False, True]
    assert not module.net[0].weight.requires_grad
    assert module.net[2].config.grad_weight is False
    error = (module(x) - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.03
    callback.setup(None, convolutions := nn.Sequential(nn.Linear(64, 64)), "test")
    assert type(convolutions[0]) is nn.Linear
    with pytest.raises(ValueError, match="no linear layer to train in int8"):
        callback.setup(None, nn.Sequential(nn.Conv2d(3, 8, 3)), "fit")


# QAT ------------------------------------------------------------------------------------------------------------------


def test_rounding_starts_on_time_and_becomes_real(tmp_path: Path) -> None:
    callback, module = QAT(start_epoch=2), Classifier()
    kinds = []

    class Watch(zoo.callbacks.SeedEpochs):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            kinds.append(type(pl_module.net[0]).__name__)

    trainer = quiet(tmp_path, max_epochs=4, callbacks=[callback, Watch(0)])
    trainer.fit(module, loader(), loader())
    assert kinds == ["Linear"] * 8 + ["FakeQuantizedLinear"] * 8
    path = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    plain = Classifier()
    plain.load_state_dict(torch.load(path, weights_only=True)["state_dict"])

    kinds.clear()
    resumed = Classifier()
    quiet(tmp_path, max_epochs=5, callbacks=[QAT(start_epoch=2), Watch(0)]).fit(resumed, loader(), ckpt_path=path)
    assert kinds == ["FakeQuantizedLinear"] * 4

    x = next(iter(loader()))[0]
    module.eval()
    rounded, real = module(x).detach(), copy.deepcopy(module)
    callback.convert(real)
    torch.testing.assert_close(real(x), rounded, atol=1e-5, rtol=1e-5)
    assert 1e-3 < (plain(x) - rounded).norm() / rounded.norm() < 0.2
    weight = module.net[0].weight_fake_quantizer(module.net[0].weight).detach().view(64, 2, 32)
    assert all(len(group.unique()) <= 16 for row in weight for group in row)  # 4 bits


def test_qat_refuses_what_it_cannot_group() -> None:
    with pytest.raises(ValueError, match=r"inputs in groups of 48 .kept: 1 ignored, 2 too small.\. Use another"):
        QAT(group_size=48).setup(None, Classifier(), "fit")
    with pytest.raises(ValueError, match="group_size=0 must be positive"):
        QAT(group_size=0)


def test_a_second_conversion_of_the_same_layers_is_refused_before_training(tmp_path: Path) -> None:
    for callbacks in ([Int8Training(), QAT(start_epoch=1)], [QAT(), Int8Training()]):
        module = Classifier()
        with pytest.raises(ValueError, match=r"2 converted already, to \w+, 1 ignored.\. Another plugin or callback"):
            quiet(tmp_path, callbacks=callbacks, max_epochs=2).fit(module, loader())
        assert not module.trainer.global_step
    plugin = zoo.precision.Float8Precision(emulate=True)
    with pytest.raises(ValueError, match="converted already, to Float8Linear"):
        quiet(tmp_path, callbacks=QAT(start_epoch=1), plugins=plugin, max_epochs=2).fit(Classifier(), loader())


def test_late_rounding_of_sharded_layers_is_refused_before_training(tmp_path: Path) -> None:
    trainer = quiet(tmp_path)
    trainer.strategy.__class__ = type("ModelParallelStrategy", (type(trainer.strategy),), {})
    with pytest.raises(ValueError, match="ModelParallelStrategy has sharded by epoch start_epoch=1: use start_epoch=0"):
        QAT(start_epoch=1).setup(trainer, Classifier(), "fit")


@pytest.mark.parametrize("callback", [QAT, Int8Training])
def test_a_part_that_is_not_there_is_named(callback: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"has no part 'encoder'; it has net, head.*{callback.__name__}\(part"):
        quiet(tmp_path, callbacks=callback(part="encoder")).fit(Classifier(), loader())


def test_an_absent_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.precision.layers.find_spec", lambda name: None)
    for make in (QAT, Int8Training):
        with pytest.raises(ModuleNotFoundError, match=r"needs torchao: pip install 'lightning-zoo\[float8\]'"):
            make()


# Strategies -----------------------------------------------------------------------------------------------------------


class Sharded(Wide):
    def configure_model(self) -> None:
        shard(self, self.net, self.head)


def fit_two(callback: Any, strategy: Any, folder: Path) -> dict[str, Any]:
    module = Sharded() if strategy == "fsdp2" else Wide()
    if strategy == "fsdp2":
        strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=False)
    trainer = quiet(folder, strategy=strategy, devices=2, max_epochs=4, callbacks=callback)
    trainer.fit(module, loader(32, 8), loader(32, 8))
    sums = [float(getattr(p, "full_tensor", lambda p=p: p)().double().sum()) for p in module.parameters()]
    return {"sums": sums, "loss": float(trainer.callback_metrics["val/loss"])}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("callback", [Int8Training(), QAT()], ids=["int8", "qat"])
def test_two_processes_stay_equal(callback: Any, strategy: str, tmp_path: Path) -> None:
    first, second = in_two_processes(fit_two, callback, strategy, tmp_path)
    assert first["sums"] == second["sums"]
    assert first["loss"] < 0.1


def sharded_8_bit(folder: Path) -> None:
    module = zoo.ImageClassifier(
        4, "test_vit", backbone_args=TINY, optimizer=lambda parameters: bitsandbytes.optim.AdamW8bit(parameters)
    )
    quiet(folder, strategy=ModelParallelStrategy(2, 1), devices=2).fit(module, images())


def test_8_bit_moments_of_sharded_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="AdamW8bit of bitsandbytes does not take parameters that are sharded"):
        in_two_processes(sharded_8_bit, tmp_path)


def test_cosine_of_int8_gradients() -> None:
    gradients = []
    for convert in (False, True):
        module, batch = Classifier(), next(iter(loader()))
        if convert:
            Int8Training().setup(None, module, "fit")
        F.cross_entropy(module(batch[0]), batch[1]).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in module.parameters()]))
    assert F.cosine_similarity(*gradients, dim=0) > 0.999
    assert not torch.equal(*gradients)
