"""Frozen layers in 8 and 4 bits: the arithmetic, the state, the callback and the methods under it."""

import copy
import logging
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
import torch.nn.functional as F
from processes import in_two_processes
from projects import Classifier, loader, quiet
from torch import Tensor, nn

import zoo
from zoo.callbacks import FeatureCache, QuantizeFrozen, TaskLoop
from zoo.datamodules import ClassificationDataModule, ClassIncrementalDataModule
from zoo.datamodules.sources import Synthetic
from zoo.nn import create_backbone, freeze
from zoo.precision import QuantizedLinear, quantize_frozen
from zoo.precision.frozen import bytes_of, find_library

EVERY = [
    ("int8", "bitsandbytes"), ("nf4", "bitsandbytes"), ("nf4-dq", "bitsandbytes"), ("fp4", "bitsandbytes"),
    ("fp4-dq", "bitsandbytes"), ("int8", "torchao"), ("int8-dynamic", "torchao"),
]  # fmt: skip


def frozen(*layers: nn.Module) -> nn.Sequential:
    network = nn.Sequential(*layers)
    freeze(network)
    return network


def quantized_layers(module: nn.Module) -> list[QuantizedLinear]:
    return [part for part in module.modules() if isinstance(part, QuantizedLinear)]


# The arithmetic -----------------------------------------------------------------------------------------------------


def test_int8_is_the_product_of_whole_numbers() -> None:
    network = frozen(nn.Linear(64, 32))
    weight, bias, x = network[0].weight.clone(), network[0].bias.clone(), torch.randn(5, 64)

    def codes(rows: Tensor) -> tuple[Tensor, Tensor]:
        largest = rows.half().float().abs().amax(dim=1, keepdim=True)
        return (rows.half().float() * 127 / largest).round(), largest / 127

    (a, scale_a), (b, scale_b) = codes(x), codes(weight)
    quantize_frozen(network, "int8", library="bitsandbytes")
    torch.testing.assert_close(network(x), (a @ b.T) * scale_a * scale_b.T + bias, atol=2e-3, rtol=2e-3)


def test_nf4_is_a_table_of_16_numbers_times_the_largest_of_a_block() -> None:
    network = frozen(nn.Linear(64, 64, bias=False))
    blocks = network[0].weight.clone()  # a row is a block of 64
    largest = blocks.abs().amax(dim=1, keepdim=True)
    quantize_frozen(network, "nf4")
    rounded = network(torch.eye(64)).T / largest
    table = bitsandbytes.functional.get_4bit_type("nf4", device="cpu")
    nearest = table[(blocks.div(largest).unsqueeze(-1) - table).abs().argmin(dim=-1)]
    assert len(table) == 16
    # A number in the middle between two entries may go either way.
    assert (rounded - nearest).abs().gt(1e-4).float().mean() < 0.005


@pytest.mark.parametrize(("mode", "library"), EVERY)
def test_error_bytes_and_gradient_of_every_mode(mode: Any, library: Any) -> None:
    network, x = frozen(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 128)), torch.randn(4, 3, 128, requires_grad=True)
    exact, before = network(x), bytes_of(network)
    (gradient,) = torch.autograd.grad(exact.square().sum(), x)
    report = quantize_frozen(network, mode, library=library)
    assert len(quantized_layers(network)) == 2
    assert not any(parameter.requires_grad for parameter in network.parameters())
    # Two matrices of 32 768 numbers and biases of 384 floats; 384 scales of rows, or 1024 of blocks.
    packed = 65536 // (2 if "4" in mode else 1)
    assert packed <= bytes_of(network) - 4 * 384 <= 1.15 * packed + 4 * 1024
    assert report.endswith(f"{before / 1e6:.2f} MB before and {bytes_of(network) / 1e6:.2f} MB after.")
    assert report.startswith(f"{mode} ({library}): 2 of 2 linear layers, 99% of the parameters")
    with torch.no_grad():
        error = (network(x) - exact).norm() / exact.norm()
    assert 1e-4 < error < (0.2 if "4" in mode else 0.03)
    if mode == "int8-dynamic":
        with pytest.raises(RuntimeError, match=r"no gradient .* Use mode='int8'"):
            network(x)
        return
    (found,) = torch.autograd.grad(network(x).square().sum(), x)
    assert F.cosine_similarity(found.flatten(), gradient.flatten(), dim=0) > (0.95 if "4" in mode else 0.999)


@pytest.mark.parametrize(("mode", "library"), EVERY)
def test_types_of_outputs_and_scales_under_every_precision(mode: Any, library: Any) -> None:
    network, x = frozen(nn.Linear(64, 128)), torch.randn(2, 2, 3, 64)
    quantize_frozen(network, mode, library=library)
    exact = network(x)
    kinds = [tensor.dtype for tensor in network[0].packed.tensors()]
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x).dtype == torch.bfloat16
    copied = copy.deepcopy(network)
    network.to(torch.bfloat16)
    assert network(x.bfloat16()).dtype == torch.bfloat16
    assert [tensor.dtype for tensor in network[0].packed.tensors()] == kinds
    torch.testing.assert_close(network(x.bfloat16()).float(), exact, atol=0.05, rtol=0.05)
    torch.testing.assert_close(copied(x), exact, atol=0, rtol=0)


# State --------------------------------------------------------------------------------------------------------------


def test_state_holds_no_packed_weight_and_takes_only_the_one_that_was_packed() -> None:
    network = frozen(nn.Linear(64, 64), nn.LayerNorm(64))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    quantize_frozen(network)
    assert list(network.state_dict()) == ["0.bias", "1.weight", "1.bias"]
    network.load_state_dict(network.state_dict())
    network.load_state_dict(state)  # of the run without quantisation
    state["0.weight"] = state["0.weight"] + 0.1
    with pytest.raises(RuntimeError, match=r"0\.weight is not the one that was quantised"):
        network.load_state_dict(state)


def test_shared_layers_stay_shared() -> None:
    layer = nn.Linear(64, 64)
    network = frozen(layer, nn.GELU(), layer)
    quantize_frozen(network)
    assert network[0] is network[2]
    assert len(quantized_layers(network)) == 1


def test_what_cannot_be_quantised_is_refused() -> None:
    with pytest.raises(ValueError, match=r"parameters that train .0\.weight and 1 more.*freeze it first"):
        quantize_frozen(nn.Sequential(nn.Linear(64, 64)))
    with pytest.raises(ValueError, match=r"no linear layer to quantise .kept: 1 ignored.*Convolutional"):
        quantize_frozen(frozen(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Linear(64, 64))), keep=["1"])
    with pytest.raises(ValueError, match="kept: 1 with sizes that are no multiples of 64"):
        quantize_frozen(frozen(nn.Linear(32, 64)), "nf4")
    with pytest.raises(ValueError, match="mode='int4' is unknown; known are int8, int8-dynamic, nf4"):
        QuantizeFrozen("int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="library='torchao' has no mode='nf4': use bitsandbytes"):
        QuantizeFrozen("nf4", library="torchao")
    network = frozen(nn.Linear(64, 64), nn.Linear(64, 64))
    quantize_frozen(network)
    with pytest.raises(ValueError, match=r"quantised already, as .*'int8'"):
        quantize_frozen(network, "nf4")


def test_torchao_stands_in_for_an_absent_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_library("int8") == "bitsandbytes"
    monkeypatch.setattr("zoo.precision.frozen.find_spec", lambda name: name if name == "torchao" else None)
    assert find_library("int8") == "torchao"
    with pytest.raises(ModuleNotFoundError, match=r"'nf4' needs bitsandbytes: pip install 'lightning-zoo\[quanti"):
        QuantizeFrozen("nf4")


# The callback in somebody's project -----------------------------------------------------------------------------------


class Frozen(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.net.requires_grad_(False)


def test_a_head_learns_on_a_quantised_part_and_resumes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback, module = QuantizeFrozen(part="net", keep=["2"]), Frozen()
    exact = Frozen().net(next(iter(loader()))[0].flatten(1))
    trainer = quiet(tmp_path, max_epochs=4, callbacks=callback)
    with caplog.at_level(logging.INFO):
        trainer.fit(module, loader(), loader())
    (line,) = [message for message in caplog.messages if "QuantizeFrozen" in message]
    assert line == (
        "QuantizeFrozen, net: int8 (bitsandbytes): 1 of 2 linear layers, 66% of the parameters; kept: 1 ignored; "
        "0.02 MB before and 0.01 MB after."
    )
    assert trainer.callback_metrics["val/loss"] < 1.2  # log 4 is 1.39
    assert 0 < (module.net(next(iter(loader()))[0].flatten(1)) - exact).norm() / exact.norm() < 0.03
    path = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    checkpoint = torch.load(path, weights_only=True)
    assert "net.0.weight" not in checkpoint["state_dict"]
    assert checkpoint["quantization"]["net"]["mode"] == "int8"

    longer = quiet(tmp_path, max_epochs=5, callbacks=QuantizeFrozen(part="net", keep=["2"]))
    longer.fit(Frozen(), loader(), loader(), ckpt_path=path)
    assert longer.callback_metrics["val/loss"] < trainer.callback_metrics["val/loss"]
    with pytest.raises(RuntimeError, match=r"Missing key.*net\.0\.weight"):  # nobody there who would quantise
        quiet(tmp_path).validate(Frozen(), loader(), ckpt_path=path)
    with pytest.raises(ValueError, match=r"net was quantised by mode='int8' .* and is by mode='int8-dynamic'"):
        quiet(tmp_path, callbacks=QuantizeFrozen("int8-dynamic", "net", ["2"])).validate(
            Frozen(), loader(), ckpt_path=path
        )
    other = Frozen()
    nn.init.ones_(other.net[0].weight)
    with pytest.raises(ValueError, match="weights of net are not those that were quantised"):
        quiet(tmp_path, callbacks=callback).validate(other, loader(), ckpt_path=path)


def test_what_the_callback_refuses_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has parameters that train"):
        quiet(tmp_path, callbacks=QuantizeFrozen(part="net")).fit(Classifier(), loader())
    with pytest.raises(ValueError, match="has no part 'encoder'; it has net, head"):
        quiet(tmp_path, callbacks=QuantizeFrozen(part="encoder")).fit(Classifier(), loader())
    trainer = quiet(tmp_path)
    trainer.strategy.__class__ = type("ModelParallelStrategy", (type(trainer.strategy),), {})
    with pytest.raises(ValueError, match="packs weights, which ModelParallelStrategy cannot shard: use strategy='ddp'"):
        QuantizeFrozen(part="net").setup(trainer, Frozen(), "fit")


@pytest.mark.filterwarnings("ignore")
def test_a_part_that_wakes_in_the_middle_of_a_fit_is_refused(tmp_path: Path) -> None:
    class Sleeper(Frozen):
        def on_train_epoch_start(self) -> None:
            self.net.requires_grad_(self.current_epoch == 1)

    trainer = quiet(tmp_path, max_epochs=3, callbacks=QuantizeFrozen(part="net"))
    with pytest.raises(ValueError, match="net of Sleeper is quantised and was unfrozen in epoch 1"):
        trainer.fit(Sleeper(), loader())


def test_one_linear_layer_is_no_part(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"QuantizeFrozen\(part='net\.0'\) is a linear layer itself"):
        quiet(tmp_path, callbacks=QuantizeFrozen(part="net.0")).fit(Frozen(), loader())
    with pytest.raises(ValueError, match="A linear layer cannot be replaced in itself"):
        quantize_frozen(frozen(nn.Linear(64, 64))[0])


def test_one_name_to_keep_is_one_name() -> None:
    assert QuantizeFrozen(keep="head").keep == ["head"]
    network = frozen(nn.Linear(64, 64), nn.Linear(64, 64))
    quantize_frozen(network, keep="1")
    assert [isinstance(layer, QuantizedLinear) for layer in network] == [True, False]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", [zoo.SequentialFineTuning, zoo.ExperienceReplay])
def test_a_head_on_a_quantised_network_quantises_itself_again(method: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(create_backbone("test_vit", False).model.state_dict(), tmp_path / "vit.pth")
    module = method(
        4, backbone="test_vit", pretrained=False, checkpoint_path=str(tmp_path / "vit.pth"), train_backbone=False
    )
    data = ClassIncrementalDataModule(
        Synthetic(num_classes=4, image_size=160, train_per_class=2, test_per_class=1), num_tasks=2, batch_size=4
    )
    trainer = quiet(tmp_path, max_epochs=2, callbacks=[TaskLoop(), QuantizeFrozen()])
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "done.ckpt")
    loaded = method.load_from_checkpoint(tmp_path / "done.ckpt").eval()
    images = torch.rand(2, 3, 160, 160)
    assert torch.equal(loaded(images), module.eval()(images))


def test_trained_prompts_below_a_dynamic_part_are_refused(tmp_path: Path) -> None:
    class Prompted(Frozen):
        def __init__(self) -> None:
            super().__init__()
            self.prompt = nn.Parameter(torch.zeros(64))

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.net(images.flatten(1) + self.prompt))

    with pytest.raises(RuntimeError, match="such as prompts: it would be zero"):
        quiet(tmp_path, callbacks=QuantizeFrozen("int8-dynamic", "net")).fit(Prompted(), loader())
    module = Prompted()
    quiet(tmp_path, callbacks=QuantizeFrozen("int8", "net")).fit(module, loader())
    assert module.prompt.abs().min() > 0


def fit_two(folder: Path) -> dict[str, Any]:
    module = Frozen()
    quiet(folder, callbacks=QuantizeFrozen(part="net"), strategy="ddp", devices=2).fit(module, loader(32, 8))
    return {"head": module.head.weight.detach(), "codes": module.net[0].packed.tensors()[0]}


def test_two_processes_stay_equal(tmp_path: Path) -> None:
    first, second = in_two_processes(fit_two, tmp_path)
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    assert not torch.equal(first["head"], Frozen().head.weight)


# zoo's methods ------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """A file of weights, so that checkpoints leave the backbone out."""
    torch.save(create_backbone("test_vit", pretrained=False).model.state_dict(), tmp_path / "vit.pth")
    return str(tmp_path / "vit.pth")


def stream(num_tasks: int = 2) -> ClassIncrementalDataModule:
    source = Synthetic(num_classes=4, image_size=160, train_per_class=4, test_per_class=2)
    return ClassIncrementalDataModule(source, num_tasks=num_tasks, batch_size=4, pad=False)


@pytest.mark.parametrize("mode", ["int8", "nf4"])
@pytest.mark.parametrize(("method", "num_tasks"), [(zoo.NMC, 2), (zoo.LinearProbe, 1)])
def test_features_of_a_fit_are_those_of_the_loaded_module(
    method: Any, num_tasks: int, mode: Any, weights: str, tmp_path: Path
) -> None:
    module = method(4, "test_vit", checkpoint_path=weights)
    callbacks = [TaskLoop(), FeatureCache(), QuantizeFrozen(mode)]
    trainer = quiet(tmp_path, callbacks=callbacks, max_epochs=num_tasks)
    trainer.fit(module, stream(num_tasks))
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    images = torch.rand(4, 3, 160, 160)
    scores, exact = module(images), method(4, "test_vit", checkpoint_path=weights)
    assert not torch.equal(module.features(images), exact.features(images))

    loaded = method.load_from_checkpoint(tmp_path / "it.ckpt")  # quantises itself as it was
    assert len(quantized_layers(loaded)) == len(quantized_layers(module)) == 24
    torch.testing.assert_close(loaded(images), scores, atol=0, rtol=0)
    tested = quiet(tmp_path, callbacks=QuantizeFrozen(mode)).test(
        method(4, "test_vit", checkpoint_path=weights), stream(num_tasks), ckpt_path=tmp_path / "it.ckpt", verbose=False
    )
    assert tested[0]["test/acc"] == trainer.callback_metrics["test/acc"]


def test_class_means_of_other_features_are_refused(weights: str, tmp_path: Path) -> None:
    trainer = quiet(tmp_path, callbacks=[TaskLoop()], max_epochs=2)
    trainer.fit(zoo.NMC(4, "test_vit", checkpoint_path=weights), stream())
    trainer.save_checkpoint(tmp_path / "exact.ckpt")
    module = zoo.NMC(4, "test_vit", checkpoint_path=weights)
    with pytest.raises(ValueError, match="backbone of NMC is quantised, and was not in the run of the checkpoint"):
        quiet(tmp_path, callbacks=QuantizeFrozen()).test(module, stream(), ckpt_path=tmp_path / "exact.ckpt")


def test_prompts_are_loaded_with_the_backbone_they_were_learned_on(weights: str, tmp_path: Path) -> None:
    module = zoo.OnePrompt(4, "test_vit", checkpoint_path=weights, pretrained=False)
    trainer = quiet(tmp_path, callbacks=[TaskLoop(), QuantizeFrozen()], max_epochs=2)
    trainer.fit(module, stream())
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    loaded = zoo.OnePrompt.load_from_checkpoint(tmp_path / "it.ckpt").eval()
    assert len(quantized_layers(loaded)) == 24
    images = torch.rand(2, 3, 160, 160)
    torch.testing.assert_close(loaded(images), module.eval()(images), atol=0, rtol=0)


def test_a_teacher_is_loaded_as_it_was(tmp_path: Path) -> None:
    vit = {"img_size": 32, "patch_size": 8, "global_pool": "token"}
    weights = str(tmp_path / "vit.pth")
    torch.save(create_backbone("test_vit", pretrained=False, **vit).model.state_dict(), weights)
    module = zoo.DMAE(
        "test_vit", "test_vit", teacher_checkpoint=weights, teacher_args=vit, backbone_args=vit, decoder_dim=16,
        decoder_depth=1, decoder_heads=2,
    )  # fmt: skip
    data = ClassificationDataModule(Synthetic(num_classes=2, image_size=32, train_per_class=4), batch_size=4)
    trainer = quiet(tmp_path, callbacks=QuantizeFrozen(part="teacher"), max_epochs=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    assert not any(name.startswith("teacher.") for name in torch.load(tmp_path / "it.ckpt")["state_dict"])
    loaded = zoo.DMAE.load_from_checkpoint(tmp_path / "it.ckpt").eval()
    assert len(quantized_layers(loaded.teacher)) == len(quantized_layers(module.teacher)) > 0
    assert not quantized_layers(loaded.backbone)
    images, noise = torch.rand(2, 3, 32, 32), torch.rand(2, 16)
    mine, theirs = (one.eval().losses(images, noise)["loss_feature"] for one in (loaded, module))
    assert mine == theirs


def test_linear_probe_by_sgd(weights: str, tmp_path: Path) -> None:
    data = ClassificationDataModule(
        Synthetic(num_classes=4, image_size=160, train_per_class=4, test_per_class=2), batch_size=4
    )
    module = zoo.ImageClassifier(4, "test_vit", mode="linear_probe", checkpoint_path=weights)
    trainer = quiet(tmp_path, callbacks=QuantizeFrozen(), max_epochs=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    assert {name.partition(".")[0] for name in torch.load(tmp_path / "it.ckpt")["state_dict"]} == {"head"}
    loaded = zoo.ImageClassifier.load_from_checkpoint(tmp_path / "it.ckpt").eval()
    images = torch.rand(2, 3, 160, 160)
    torch.testing.assert_close(loaded(images), module.eval()(images), atol=0, rtol=0)
    assert len(quantized_layers(loaded)) == 24
