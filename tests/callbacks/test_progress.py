"""The bar that names the task."""

from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from rich import reconfigure
from torch.utils.data import DataLoader, TensorDataset

from zoo.callbacks.progress import StreamProgressBar, name_task


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.log("loss", 0.5, prog_bar=True)
        return self.weight * 0

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.seen.append(self.trainer.progress_bar_callback.get_metrics(self.trainer, self))

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Stream(L.LightningDataModule):
    num_tasks = 2

    @property
    def task(self):
        return SimpleNamespace(index=min(self.trainer.current_epoch, 1))

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(2, 1)))

    test_dataloader = train_dataloader


@pytest.fixture
def run(tmp_path, capsys):
    def run(datamodule=None, loader=None, test=False):
        bar = StreamProgressBar(console_kwargs={"force_terminal": True, "width": 150, "color_system": None})
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=2, logger=CSVLogger(tmp_path), callbacks=[bar], enable_model_summary=False,
            enable_checkpointing=False,
        )  # fmt: skip
        module = Module()
        (trainer.test if test else trainer.fit)(module, loader, datamodule=datamodule)
        return capsys.readouterr().out, module, trainer

    yield run
    reconfigure()  # the console is global


def test_the_task_stands_before_the_epoch(run):
    printed, module, trainer = run(Stream())
    assert "task 1/2 Epoch 0/1" in printed
    assert "task 2/2 Epoch 1/1" in printed
    assert "task 2/2 Epoch 0/1" not in printed
    assert name_task(trainer) == "task 2/2"
    assert module.seen[0] == {"loss": 0.5}  # without v_num


@pytest.mark.parametrize("test", [True, False])
def test_without_a_stream_or_outside_of_fit_it_is_lightnings_bar(run, test):
    printed, _, trainer = run(Stream(), test=True) if test else run(loader=Stream().train_dataloader())
    assert ("Testing" if test else "Epoch 1/1") in printed
    assert "task" not in printed
    assert name_task(trainer) == ""
