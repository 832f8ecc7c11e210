"""Runs of masked autoencoders that must agree: killed and resumed, on two processes, compiled, in half precision."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from tiny_autoencoders import VIT, images, mae, make_trainer
from torch import Tensor

import zoo
from zoo.callbacks import EfficientTrain, ReconstructionImages, SeedEpochs
from zoo.functional import Stage

METHODS = {"mae": zoo.MAE, "dmae": zoo.DMAE, "self_distillation": zoo.SelfDistillation}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write the checkpoint of an autoencoder."""
    path = tmp_path_factory.mktemp("teacher") / "last.ckpt"
    trainer = make_trainer(max_epochs=1)
    trainer.fit(mae(backbone_args={"dynamic_img_size": True}), images())
    trainer.save_checkpoint(path)
    return str(path)


def make(name: str, teacher: str, kind: type[zoo.MAE] | None = None, **kwargs: Any) -> Any:
    """Make a method, with a teacher where it has one."""
    needs = {} if name == "mae" else {"teacher": teacher}
    return mae(kind or METHODS[name], **needs, **kwargs)


def fit(name: str, teacher: str, folder: Path, *callbacks: L.Callback, resume: bool = False) -> dict[str, Tensor]:
    """Fit three epochs and return weights and metrics."""
    module = make(name, teacher, optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2))
    checkpoint = ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=True)
    average = [EMAWeightAveraging(decay=0.8)] if name == "dmae" else []
    trainer = make_trainer(*callbacks, *average, checkpoint, max_epochs=3, enable_checkpointing=True)
    trainer.fit(module, images(), ckpt_path=folder / "last.ckpt" if resume else None)
    return {**module.state_dict(), **trainer.callback_metrics}


class Kill(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.current_epoch == 2 and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("name", METHODS)
def test_killed_and_resumed_run_is_bitwise_the_same(name: str, teacher: str, tmp_path: Path) -> None:
    """Without any seed of the run: masks follow from numbers."""
    unbroken = fit(name, teacher, tmp_path / "unbroken")
    child = multiprocessing.get_context("fork").Process(target=fit, args=(name, teacher, tmp_path / "killed", Kill()))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    saved = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)
    assert saved["epoch"] == 1
    states = [saved[key] for key in ("state_dict", "current_model_state") if key in saved]
    assert len(states) == (2 if name == "dmae" else 1)
    assert not any(key.startswith("teacher.") for state in states for key in state)
    torch.rand(5)
    resumed = fit(name, teacher, tmp_path / "killed", resume=True)
    assert resumed.keys() == unbroken.keys()
    assert not [key for key in unbroken if not torch.equal(resumed[key], unbroken[key])]


def by_image(kind: type[zoo.MAE]) -> type[zoo.MAE]:
    """Return a class whose masks depend on the image alone, wherever it is computed."""

    class ByImage(kind):  # type: ignore[valid-type,misc]
        def draw_noise(self, images: Tensor, *key: int) -> Tensor:
            seeds = [int(1000 * image.double().sum()) for image in images]
            return torch.stack([torch.rand(16, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    return ByImage


def fit_processes(name: str, teacher: str, devices: int, folder: Path) -> dict[str, Tensor]:
    """Fit on one or two processes with the same images in each step, and return what the first one has."""

    class Write(L.Callback):
        def on_train_end(self, trainer, pl_module) -> None:
            metrics = {key: value.cpu() for key, value in trainer.callback_metrics.items()}
            torch.save({**pl_module.state_dict(), **metrics}, folder / f"{devices}-{trainer.global_rank}.pt")

    sgd = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.05)}
    trainer = make_trainer(Write(), devices=devices, strategy="ddp_fork" if devices > 1 else "auto")
    trainer.fit(make(name, teacher, by_image(METHODS[name]), **sgd), images(batch_size=8 // devices))
    return torch.load(folder / f"{devices}-0.pt", weights_only=True)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_learn_and_measure_as_one(name: str, teacher: str, tmp_path: Path) -> None:
    one, two = (fit_processes(name, teacher, devices, tmp_path) for devices in (1, 2))
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.load(tmp_path / "2-1.pt", weights_only=True), two, atol=0, rtol=0)
    start = make(name, teacher).state_dict()["decoder.pred.bias"]
    assert (one["decoder.pred.bias"] - start).norm() > 1e-3


def test_processes_hide_other_patches(tmp_path: Path) -> None:
    class Watch(zoo.MAE):
        def losses(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
            if self.trainer.training:
                torch.save(noise, tmp_path / f"{self.global_rank}.pt")
            return super().losses(images, noise)

    make_trainer(devices=2, strategy="ddp_fork", max_epochs=1).fit(mae(Watch), images(batch_size=4))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", METHODS)
def test_mixed_precision_stays_near(name: str, teacher: str) -> None:
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        module, trainer = make(name, teacher), make_trainer(precision=precision)
        trainer.fit(module, images())
        losses.append(trainer.callback_metrics)
        assert module.decoder.pred.weight.dtype == torch.float32
    assert losses[1].keys() == losses[0].keys()
    for key, value in losses[0].items():
        assert losses[1][key].dtype == torch.float32
        assert losses[1][key] == pytest.approx(value.item(), rel=0.05, abs=0.02)
    assert losses[0]["train/loss"] != losses[1]["train/loss"]


@pytest.mark.parametrize("name", METHODS)
def test_compiled_module_learns_the_same_and_is_compiled_once(name: str, teacher: str) -> None:
    graphs, after_epoch = [], []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.extend([graph] * (len(graph.graph.nodes) > 50))  # not the small ones of Lightning's log
        return graph.forward

    class Count(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            after_epoch.append(len(graphs))

    modules = [make(name, teacher) for _ in range(2)]
    for module in (modules[0], torch.compile(modules[1], backend=backend)):
        make_trainer(SeedEpochs(0), Count(), limit_val_batches=1).fit(module, images())
    torch.testing.assert_close(modules[0].state_dict(), modules[1].state_dict())
    assert after_epoch[2] > 0
    assert after_epoch[3] == after_epoch[2]


@pytest.mark.parametrize("name", METHODS)
def test_sizes_of_a_curriculum_pass_through_student_and_teacher(name: str, teacher: str, tmp_path: Path) -> None:
    curriculum = EfficientTrain([Stage(8, 1), Stage(16, 1)], base_size=16, divisor=4)
    average = EMAWeightAveraging(decay=0.8)
    trainer = make_trainer(curriculum, average, ReconstructionImages(num_images=2), default_root_dir=tmp_path)
    module = make(name, teacher, backbone_args={**VIT, "dynamic_img_size": True})
    trainer.fit(module, images(batch_size=24))
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert trainer.callback_metrics["curriculum/size"] == 16
    assert (tmp_path / "reconstructions_test.png").exists()
