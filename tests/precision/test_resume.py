"""Runs that go on at another precision, and averages of weights that must not lose theirs."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from projects import quiet
from torch import Tensor, nn
from torchao.float8.float8_linear import Float8Linear

import zoo
from zoo.callbacks import QuantizeFrozen, TaskLoop
from zoo.datamodules import (
    ClassificationDataModule,
    ClassIncrementalDataModule,
    FewShotIncrementalDataModule,
    SemiSupervisedSegmentationDataModule,
)
from zoo.datamodules.sources import Synthetic, SyntheticScenes
from zoo.precision import Float8Precision

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
THERE = ["32-true", "bf16-mixed", "float8", "bf16-true", "32-true"]


def sgd(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9)


def constant(optimizer: Any, length: int) -> Any:
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def classifier() -> tuple[Any, Any, list[L.Callback]]:
    torch.manual_seed(1)
    module = zoo.ImageClassifier(10, "test_vit", backbone_args=VIT, optimizer=sgd, schedule=constant)
    source = Synthetic(num_classes=10, image_size=16, train_per_class=8, test_per_class=2)
    return module, ClassificationDataModule(source, batch_size=16), []


def stream() -> tuple[Any, Any, list[L.Callback]]:
    """Five tasks of two classes: what is seen so far has to go on too."""
    torch.manual_seed(1)
    module = zoo.SequentialFineTuning(
        10, "test_vit", "task", pretrained=False, backbone_args=VIT, optimizer=sgd, schedule=constant
    )
    source = Synthetic(num_classes=10, image_size=16, train_per_class=8, test_per_class=2)
    return module, ClassIncrementalDataModule(source, num_tasks=5, batch_size=4), [TaskLoop()]


class Start(L.Callback):
    """What a fit begins with."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.epoch, self.steps = trainer.current_epoch, trainer.global_step
        self.weights = {name: value.detach().clone() for name, value in pl_module.named_parameters()}
        self.momenta = [s["momentum_buffer"] for s in trainer.optimizers[0].state.values() if "momentum_buffer" in s]
        self.float8 = sum(isinstance(part, Float8Linear) for part in pl_module.modules())


def fit(make: Any, precision: str, folder: Path, path: Path | None = None) -> tuple[Any, Start, Any]:
    module, data, callbacks = make()
    start = Start()
    saving = L.callbacks.ModelCheckpoint(
        folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    how = {"plugins": Float8Precision(emulate=True)} if precision == "float8" else {"precision": precision}
    trainer = quiet(folder, callbacks=[*callbacks, start, saving], max_epochs=5, **how)
    trainer.fit(module, data, ckpt_path=path)
    return module, start, trainer


@pytest.mark.parametrize("make", [classifier, stream])
@pytest.mark.parametrize("order", [THERE, ["32-true", "bf16-true", "float8", "bf16-mixed", "32-true"]])
@pytest.mark.filterwarnings("ignore")
def test_a_run_goes_on_at_another_precision_after_each_epoch(make: Any, order: list[str], tmp_path: Path) -> None:
    first = {name: value.detach().clone() for name, value in make()[0].named_parameters()}
    exact, _, whole = fit(make, "32-true", tmp_path / "0")
    for number, precision in enumerate(order[1:], start=1):
        path = tmp_path / str(number - 1) / f"epoch={number - 1}.ckpt"
        module, start, trainer = fit(make, precision, tmp_path / str(number), path)
        saved = torch.load(path, weights_only=True)
        kind = torch.bfloat16 if precision == "bf16-true" else torch.float32
        assert (start.epoch, start.steps) == (number, saved["global_step"])
        assert start.float8 == (8 if precision == "float8" else 0)
        assert {value.dtype for value in start.weights.values()} == {kind}
        for name, value in start.weights.items():
            assert torch.equal(value, saved["state_dict"][name].to(kind)), name
        if make is classifier:  # a task has an optimizer of its own
            assert len(start.momenta) == len(start.weights)
            assert {value.dtype for value in start.momenta} == {kind}
        assert trainer.global_step == whole.global_step
    # Five epochs at five precisions lead where five exact ones do.
    moves = [
        torch.cat([(value.detach() - first[name]).flatten() for name, value in one.named_parameters()])
        for one in (module, exact)
    ]
    assert nn.functional.cosine_similarity(*moves, dim=0) > 0.95
    assert float(moves[0].norm()) == pytest.approx(float(moves[1].norm()), rel=0.1)


# Averages -------------------------------------------------------------------------------------------------------------


class Pixelwise(nn.Module):
    """A network of linear layers, which can be quantised."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images.movedim(1, -1)).movedim(-1, 1)


def scenes() -> SemiSupervisedSegmentationDataModule:
    return SemiSupervisedSegmentationDataModule(
        SyntheticScenes(image_size=8), labeled=4, batch_size=2, steps_per_epoch=2
    )


@pytest.mark.filterwarnings("ignore")
def test_a_teacher_that_is_an_average_is_not_quantised(tmp_path: Path) -> None:
    module = zoo.MeanTeacher(4, network=Pixelwise())
    with pytest.raises(ValueError, match="The teacher is quantised, and as an average of weights it has to move"):
        quiet(tmp_path, callbacks=QuantizeFrozen(part="teacher")).fit(module, scenes())


@pytest.mark.parametrize(("precision", "kind"), [("bf16-mixed", torch.float32), ("bf16-true", None)])
@pytest.mark.filterwarnings("ignore")
def test_the_encoder_of_keys_is_an_average_in_float32(precision: Any, kind: Any, tmp_path: Path) -> None:
    module = zoo.FewShotClassIncremental(
        6, backbone="test_resnet", pretrained=False, tricks=["contrastive"], contrastive_form="queue", queue_size=8,
        projection_size=8,
    )  # fmt: skip
    source = Synthetic(num_classes=6, image_size=32, train_per_class=4, test_per_class=2)
    data = FewShotIncrementalDataModule(
        source, base_classes=4, ways=2, shots=2, num_sessions=1, base_epochs=1, session_epochs=1, batch_size=4
    )
    trainer = quiet(tmp_path, callbacks=TaskLoop(), max_epochs=2, precision=precision)
    if kind is None:
        with pytest.raises(ValueError, match=r"The key encoder's parameters are torch\.bfloat16"):
            trainer.fit(module, data)
        return
    trainer.fit(module, data)
    assert {parameter.dtype for parameter in module.contrast.key_encoder.parameters()} == {kind}
