"""FP8 as a precision plugin, emulated."""

import copy
import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy
from processes import in_two_processes
from projects import Classifier, loader, quiet
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torchao.float8.float8_linear import Float8Linear

import zoo
from zoo.datamodules import ClassificationDataModule
from zoo.datamodules.sources import Synthetic
from zoo.precision import Float8Precision, choose_layers, shard
from zoo.precision.float8 import check_rows

RECIPES = [("tensorwise", "bf16-mixed"), ("rowwise", "bf16-true"), ("rowwise_with_gw_hp", "32-true")]


def converted(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if isinstance(part, Float8Linear)]


# Which layers -------------------------------------------------------------------------------------------------------


class ManyKinds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.good = nn.Linear(32, 48)
        self.odd = nn.Linear(32, 30)
        self.narrow = nn.Linear(16, 64)
        self.attention = nn.MultiheadAttention(32, 2)
        self.prompt_pool = nn.Sequential(nn.Linear(32, 32))
        self.net = nn.Module()
        self.net.head_dist = nn.Linear(32, 32)
        self.subclass = type("Mine", (nn.Linear,), {})(32, 32)
        self.norm = nn.LayerNorm(32)
        self.overhead = nn.Linear(32, 32)  # "head" at the end of a word is no head


def test_rule_of_the_layers_and_its_reasons() -> None:
    choice = choose_layers(ManyKinds(), multiple=16, min_features=32)
    assert list(choice.chosen) == ["good", "overhead"]
    assert choice.kept == {
        "with sizes that are no multiples of 16": 1,
        "too small": 1,
        "inside nn.MultiheadAttention": 1,
        "ignored": 2,
        "of type Mine": 1,
    }
    assert list(choose_layers(ManyKinds(), ignore=["good", "net"], multiple=16).chosen) == [
        "narrow", "prompt_pool.0", "overhead",
    ]  # fmt: skip


def test_torchaos_own_table_of_sizes() -> None:
    # Its table for tensorwise: inputs up to 4096 with outputs up to 1024 are too small.
    module = nn.ModuleDict({"small": nn.Linear(768, 768), "wide": nn.Linear(768, 3072), "down": nn.Linear(3072, 768)})
    assert list(Float8Precision(auto_filter=True).choose(module).chosen) == ["wide"]
    assert list(Float8Precision("rowwise", auto_filter=True).choose(module).chosen) == []
    with pytest.raises(ValueError, match="has no table"):
        Float8Precision("rowwise_with_gw_hp", auto_filter=True)


def test_hooks_are_not_lost_in_silence() -> None:
    module = ManyKinds()
    module.good.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="good has hooks"):
        Float8Precision(emulate=True).convert(module)
    Float8Precision(emulate=True, ignore=["good"]).convert(module)
    assert "good" not in converted(module)


# The conversion -----------------------------------------------------------------------------------------------------


def test_conversion_keeps_parameters_keys_modes_and_flags(caplog: pytest.LogCaptureFixture) -> None:
    module = Classifier()
    module.net[0].requires_grad_(False).eval()
    before = {name: id(parameter) for name, parameter in module.named_parameters()}
    keys, plugin = list(module.state_dict()), Float8Precision(emulate=True)
    with caplog.at_level(logging.INFO):
        assert plugin.convert(module) is module
    assert converted(module) == ["net.0", "net.2"]
    assert {name: id(parameter) for name, parameter in module.named_parameters()} == before
    assert list(module.state_dict()) == keys
    assert [module.net[0].training, module.net[2].training] == [False, True]
    assert not module.net[0].weight.requires_grad
    # 64 x 64 + 32 x 64 of 6 372 parameters
    assert caplog.messages[-1] == (
        "float8 tensorwise (emulated): 2 of 3 linear layers, 96% of the parameters; kept: 1 ignored; parameters "
        "0.03 MB before and 0.03 MB after."
    )
    layers, number = [module.net[0], module.net[2]], len(caplog.messages)
    plugin.convert(module)
    assert [module.net[0], module.net[2]] == layers
    assert len(caplog.messages) == number
    module.head = nn.Linear(32, 8)  # a head that grows later stays as it is
    plugin.convert(module)
    assert converted(module) == ["net.0", "net.2"]


def test_shared_layers_and_tied_weights_stay_shared() -> None:
    module = nn.ModuleDict({"a": nn.Linear(32, 32), "b": nn.Linear(32, 32), "deep": nn.Sequential(nn.Linear(32, 32))})
    module["b"].weight = module["a"].weight
    module["deep"].append(module["deep"][0])
    module["again"] = module["deep"][0]
    plugin = Float8Precision(emulate=True)
    report = plugin.choose(module).describe(module)
    plugin.convert(module)
    assert report.startswith("3 of 3 linear layers, 96% ")  # 2 weights of 1024 among 2144 numbers
    assert module["a"].weight is module["b"].weight
    assert module["again"].weight is module["deep"][0].weight is module["deep"][1].weight
    assert not plugin.choose(module).chosen


def quantized(tensor: Tensor) -> Tensor:
    """Round to e4m3 with one scale for the tensor, by hand."""
    scale = torch.finfo(torch.float8_e4m3fn).max / tensor.abs().max().double()
    return ((tensor.double() * scale).float().to(torch.float8_e4m3fn).double() / scale).float()


def test_emulated_layer_computes_what_fp8_computes() -> None:
    module = nn.Sequential(nn.Linear(64, 32))
    weight, bias, x = module[0].weight.detach().clone(), module[0].bias.detach().clone(), torch.randn(16, 64)
    Float8Precision(emulate=True, compute="32-true").convert(module)
    y = module(x)
    torch.testing.assert_close(y, F.linear(quantized(x), quantized(weight), bias), atol=1e-3, rtol=1e-3)
    assert (y - F.linear(x, weight, bias)).abs().max() > 1e-3  # it is not float32


@pytest.mark.parametrize(("recipe", "compute"), RECIPES)
def test_training_learns_and_all_commands_work_without_a_flag(recipe: Any, compute: Any, tmp_path: Path) -> None:
    module, plugin = Classifier(), Float8Precision(recipe, compute, emulate=True)
    trainer = quiet(tmp_path, plugins=plugin, max_epochs=8)
    trainer.fit(module, loader(), loader())
    assert trainer.callback_metrics["train/loss"] < 0.1
    assert converted(module) == ["net.0", "net.2"]
    assert module.net[0].weight.dtype == (torch.bfloat16 if compute == "bf16-true" else torch.float32)
    loss = trainer.validate(module, loader(), verbose=False)[0]["val/loss"]
    assert trainer.validate(module, loader(), verbose=False)[0]["val/loss"] == loss < 0.1
    assert trainer.test(module, loader(), verbose=False)[0]["test/loss"] == loss
    predictions = torch.cat(trainer.predict(module, loader()))
    assert (predictions == torch.arange(64) % 4).all()
    trainer.fit_loop.max_epochs = 9  # a second fit converts nothing anew
    trainer.fit(module, loader(), loader())
    assert copy.deepcopy(module.net)[0].weight.shape == (64, 64)


def test_checkpoints_cross_load_and_runs_resume_both_ways(tmp_path: Path) -> None:
    plain, low = quiet(tmp_path), quiet(tmp_path, plugins=Float8Precision(emulate=True))
    for first, name in ((plain, "plain.ckpt"), (low, "float8.ckpt")):
        first.fit(Classifier(), loader())
        first.save_checkpoint(tmp_path / name)
    states = [torch.load(tmp_path / name, weights_only=True)["state_dict"] for name in ("plain.ckpt", "float8.ckpt")]
    assert states[0].keys() == states[1].keys()
    assert {type(value) for value in states[1].values()} == {Tensor}
    assert {value.dtype for value in states[1].values()} == {torch.float32}
    module = Classifier()
    resumed = quiet(tmp_path, max_epochs=2)
    resumed.fit(module, loader(), ckpt_path=tmp_path / "float8.ckpt")
    assert (resumed.global_step, converted(module)) == (8, [])
    module = Classifier()
    resumed = quiet(tmp_path, max_epochs=2, plugins=Float8Precision(emulate=True))
    resumed.fit(module, loader(), ckpt_path=tmp_path / "plain.ckpt")
    assert (resumed.global_step, len(converted(module))) == (8, 2)


# What is refused ----------------------------------------------------------------------------------------------------


def test_arguments_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match=r"compute='16-mixed' must be .* no float16"):
        Float8Precision(compute="16-mixed")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="recipe='mx' must be 'tensorwise'"):
        Float8Precision("mx")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fails on a CPU with compute='bf16-mixed': use '32-true'"):
        Float8Precision("rowwise_with_gw_hp", emulate=True).convert(Classifier())


def test_a_device_without_fp8_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"8\.9 or more .*, got a device of type cpu\. Use precision='bf16-mixed'"):
        quiet(tmp_path, plugins=Float8Precision()).fit(Classifier(), loader())


def test_nothing_to_convert_is_refused() -> None:
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(16, 10))
    with pytest.raises(ValueError, match=r"no linear layer that FP8 suits .kept: 1 with sizes that are no multiples"):
        Float8Precision(emulate=True).convert(module)


def test_deepspeed_is_refused(tmp_path: Path) -> None:
    module, plugin = Classifier(), Float8Precision(emulate=True)
    module.trainer = quiet(tmp_path)
    module.trainer.strategy.__class__ = DeepSpeedStrategy
    with pytest.raises(RuntimeError, match=r"DeepSpeed, .* use strategy='ddp'"):
        plugin.convert_module(module)


def test_an_absent_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.precision.layers.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-zoo\[float8\]'"):
        Float8Precision(emulate=True).convert(Classifier())


def test_sizes_of_training_batches_are_checked_on_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(32, 32)
    check_rows(layer, (torch.zeros(4, 4, 32),))
    with pytest.raises(ValueError, match=r"multiple of 16, got 15 .inputs of shape \(3, 5, 32\)"):
        check_rows(layer, (torch.zeros(3, 5, 32),))
    with torch.no_grad():
        check_rows(layer, (torch.zeros(3, 5, 32),))
    check_rows(layer.eval(), (torch.zeros(3, 5, 32),))

    monkeypatch.setattr("zoo.precision.float8.why_no_float8", lambda device: "")
    module = Classifier()
    module.net[0].requires_grad_(False)
    Float8Precision().convert(module)
    assert not module.net[0]._forward_pre_hooks  # the gradient of a frozen weight is not computed
    with pytest.raises(ValueError, match="got 3 "):
        module(torch.randn(3, 64))
    module = Float8Precision(pad=True).convert(Classifier())
    assert not module.net[0]._forward_pre_hooks
    assert module.net[0].config.pad_inner_dim


# Several processes --------------------------------------------------------------------------------------------------


class Sharded(Classifier):
    def configure_model(self) -> None:
        shard(self, self.net, self.head)


class ShardedFirst(Classifier):
    def configure_model(self) -> None:
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


def fsdp2() -> ModelParallelStrategy:
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)


def fit_two(kind: type[Classifier], strategy: Any, folder: Path) -> dict[str, Any]:
    module, plugin = kind(), Float8Precision(emulate=True)
    strategy = fsdp2() if strategy == "fsdp2" else strategy
    trainer = quiet(folder, plugins=plugin, strategy=strategy, devices=2, gradient_clip_val=1.0, max_epochs=6)
    trainer.fit(module, loader(32, 8), loader(32, 8))
    trainer.save_checkpoint(folder / "two.ckpt")
    metrics = trainer.validate(module, loader(32, 8), verbose=False)[0]
    sums = [float(getattr(p, "full_tensor", lambda p=p: p)().double().sum()) for p in module.parameters()]
    kinds = {type(parameter).__name__ for parameter in module.parameters()}
    return {"sums": sums, "kinds": kinds == {"DTensor"}, "names": converted(module), **metrics}


@pytest.mark.parametrize(("kind", "strategy"), [(Classifier, "ddp"), (Sharded, "fsdp2")])
def test_two_processes_stay_equal_and_write_a_plain_checkpoint(
    kind: type[Classifier], strategy: str, tmp_path: Path
) -> None:
    first, second = in_two_processes(fit_two, kind, strategy, tmp_path)
    assert first["names"] == ["net.0", "net.2"]
    assert first["sums"] == second["sums"]
    assert first["kinds"] == (strategy == "fsdp2")
    plain = Classifier()
    plain.load_state_dict(torch.load(tmp_path / "two.ckpt", weights_only=True)["state_dict"])
    loss = quiet(tmp_path).validate(plain, loader(32, 8), verbose=False)[0]["val/loss"]
    assert loss < 0.5
    assert first["val/loss"] == pytest.approx(loss, abs=0.2)


def test_sharding_before_the_conversion_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ShardedFirst was sharded before it was converted: call zoo\.precision"):
        in_two_processes(fit_two, ShardedFirst, "fsdp2", tmp_path)


def test_a_vision_transformer_under_a_command_of_its_own(tmp_path: Path) -> None:
    data = ClassificationDataModule(Synthetic(num_classes=6, image_size=32, train_per_class=8), batch_size=8)
    module = zoo.ImageClassifier(6, "test_vit", backbone_args={"img_size": 32, "patch_size": 8})
    trainer: L.Trainer = quiet(tmp_path, plugins=Float8Precision(emulate=True))
    trainer.fit(module, data)
    fitted = trainer.callback_metrics["val/loss"]
    # timm's test_vit: 6 blocks of qkv, proj, fc1 and fc2, and zoo's head
    assert len(converted(module)) == 24
    assert trainer.validate(module, data, verbose=False)[0]["val/loss"] == fitted
