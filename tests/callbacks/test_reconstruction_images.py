"""Pictures of reconstructions: what stands where, when they are made, and that a run does not notice."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import matplotlib.image
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from zoo.callbacks import ReconstructionImages
from zoo.callbacks.reconstruction_images import draw_pictures
from zoo.callbacks.stream_figures import to_png

BLUE, RED = torch.tensor([0.0, 0, 1]).view(3, 1, 1), torch.tensor([1.0, 0, 0]).view(3, 1, 1)


class Module(L.LightningModule):
    """Knows nothing of zoo; reconstructs red pictures from whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 12)
        self.drop = nn.Dropout()
        self.asked: list[tuple[int, int, bool]] = []

    def reconstruct(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        torch.rand(1)
        self.asked.append((self.current_epoch, len(images), self.training or torch.is_grad_enabled()))
        return {"original": images, "red": RED.expand_as(images)}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.drop(self.layer(batch["picture"].flatten(1))).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Pictures(TensorDataset):
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"picture": self.tensors[0][index]}


def loader(number: int = 6) -> DataLoader[Any]:
    return DataLoader(Pictures(BLUE.expand(number, 3, 2, 2).clone()), batch_size=4)


def make_trainer(tmp_path: Path, *callbacks: L.Callback, **kwargs: Any) -> L.Trainer:
    settings = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "max_epochs": 3, "default_root_dir": tmp_path,
    }  # fmt: skip
    return L.Trainer(callbacks=list(callbacks), **{**settings, **kwargs})


def pixels(path: Path) -> np.ndarray:
    return matplotlib.image.imread(path)[..., :3]


def test_a_row_for_each_image_and_a_column_for_each_kind() -> None:
    kinds = {"a": torch.zeros(2, 1, 2, 2), "b": RED.expand(2, 3, 2, 2), "c": torch.ones(2, 4, 2, 2) * 0.5}
    picture = matplotlib.image.imread(io.BytesIO(to_png(draw_pictures(kinds))))[..., :3]
    height, width, _ = picture.shape
    for row in (0.35, 0.8):
        found = [picture[int(row * height), int(column * width / 3)] for column in (0.5, 1.5, 2.5)]
        assert np.allclose(found, [[0, 0, 0], [1, 0, 0], [0.5, 0.5, 0.5]], atol=0.01)


@pytest.mark.parametrize(("every", "epochs"), [(1, [0, 1, 2]), (2, [1, 2])])
def test_pictures_are_made_when_due_without_a_trace(every: int, epochs: list[int], tmp_path: Path) -> None:
    states = []
    for callbacks in ([ReconstructionImages(num_images=3, every_n_epochs=every, key="picture")], []):
        torch.manual_seed(0)
        module = Module()
        make_trainer(tmp_path, *callbacks).fit(module, loader(), loader())
        states.append(module.state_dict())
        if callbacks:
            assert module.asked == [(epoch, 3, False) for epoch in epochs]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    found = pixels(tmp_path / "reconstructions_val.png").reshape(-1, 3)
    assert np.isclose(found, [0, 0, 1]).all(axis=1).mean() > 0.1
    assert np.isclose(found, [1, 0, 0]).all(axis=1).mean() > 0.1


def test_training_images_serve_where_nothing_is_validated(tmp_path: Path) -> None:
    make_trainer(tmp_path, ReconstructionImages(key="picture")).fit(Module(), loader())
    assert (tmp_path / "reconstructions_train.png").exists()


def test_other_splits_images_functions_and_folders(tmp_path: Path) -> None:
    asked = []

    def reconstruct(module: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
        asked.append(images)
        return {"same": images}

    given = torch.rand(9, 1, 2, 2)
    callback = ReconstructionImages(
        reconstruct=reconstruct, images=given, key="picture", directory=str(tmp_path / "here")
    )
    make_trainer(tmp_path, callback).test(Module(), loader(), verbose=False)
    make_trainer(tmp_path, callback).validate(Module(), loader(), verbose=False)
    assert torch.equal(asked[0], given[:8])
    assert {path.name for path in (tmp_path / "here").iterdir()} == {
        "reconstructions_test.png",
        "reconstructions_val.png",
    }


def test_loggers_with_figures_get_them(tmp_path: Path) -> None:
    figures = []
    experiment = SimpleNamespace(
        add_figure=lambda name, figure, global_step, close: figures.append((name, global_step))
    )

    class Logger(L.loggers.CSVLogger):
        @property
        def experiment(self) -> Any:
            return experiment

        def save(self) -> None:
            pass

        def log_metrics(self, *args: Any, **kwargs: Any) -> None:
            pass

        log_hyperparams = finalize = log_metrics

    trainer = make_trainer(tmp_path, ReconstructionImages(key="picture"), logger=Logger(tmp_path), max_epochs=2)
    trainer.fit(Module(), loader(), loader())
    assert figures == [("reconstructions_val", 2), ("reconstructions_val", 4)]


def test_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    make_trainer(tmp_path, ReconstructionImages(key="picture"), fast_dev_run=True).fit(Module(), loader(), loader())
    assert not list(tmp_path.glob("*.png"))


def test_module_without_the_method_is_refused_before_training(tmp_path: Path) -> None:
    class Other(L.LightningModule):
        pass

    with pytest.raises(AttributeError, match=r"Other has no method reconstruct.*reconstruct="):
        ReconstructionImages().setup(make_trainer(tmp_path), Other(), "fit")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.rand(2, 3, 2, 2), r"pictures by name.* got Tensor"),
        ({"a": torch.rand(3, 2, 2)}, r"got {'a': \(3, 2, 2\)}"),
        ({"a": torch.rand(2, 3, 2, 2), "b": torch.rand(1, 3, 2, 2)}, "with the same B"),
        ({}, "pictures by name"),
    ],
)
def test_what_is_no_picture_is_refused(returned: Any, message: str, tmp_path: Path) -> None:
    callback = ReconstructionImages(reconstruct=lambda module, images: returned, key="picture")
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, callback).validate(Module(), loader(), verbose=False)


@pytest.mark.parametrize("name", ["num_images", "every_n_epochs"])
def test_numbers_are_at_least_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        ReconstructionImages(**{name: 0})


def test_processes_write_one_picture(tmp_path: Path) -> None:
    callback = ReconstructionImages(key="picture")
    make_trainer(tmp_path, callback, devices=2, strategy="ddp_fork", max_epochs=1).fit(Module(), loader(), loader())
    assert [path.name for path in tmp_path.glob("*.png")] == ["reconstructions_val.png"]
