"""The report of a fit: its times, curves and results, whatever module logs and whatever Trainer runs it."""

import csv
import json
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from zoo.callbacks import training_report
from zoo.callbacks.training_report import TrainingReport, draw_curves, is_accuracy, is_loss

BATCHES, LOAD, STEP, VALIDATE, SAVE, OPEN = 4, 0.25, 2.0, 64.0, 512.0, 16.0  # seconds of the clock below
ACCURACY = [0.25, 0.75, 0.5]  # exact in float32, as everything here


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when the module, the loader or the checkpoint below say so."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(training_report, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def module_of(base, clock):
    """A module that learns nothing, logs known values and takes a known time."""

    class Images(Dataset):
        def __len__(self):
            return BATCHES

        def __getitem__(self, index):
            clock.now += LOAD
            return torch.zeros(1)

    class Module(base.LightningModule):
        def __init__(self, width: int = 1):
            super().__init__()
            self.save_hyperparameters()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch, batch_idx):
            clock.now += STEP
            loss = self.weight * 0 + self.current_epoch + batch_idx
            self.log("train/loss", loss, on_step=True, on_epoch=True)
            return loss

        def on_train_epoch_end(self):
            self.log("train/acc", 0.125 * (self.current_epoch + 1))

        def validation_step(self, batch, batch_idx):
            clock.now += VALIDATE
            self.log("val/acc", 0.125 if self.trainer.sanity_checking else ACCURACY[min(self.current_epoch, 2)])
            self.log("val/loss", 3.0 - self.current_epoch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

        def train_dataloader(self):
            return DataLoader(Images())

        def val_dataloader(self):
            clock.now += OPEN
            return DataLoader(torch.zeros(1, 1))

    return Module()


def trainer_of(base, folder, *callbacks, **kwargs):
    defaults = {
        "accelerator": "cpu", "max_epochs": 3, "default_root_dir": folder, "logger": False,
        "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
    }  # fmt: skip
    return base.Trainer(callbacks=list(callbacks), **{**defaults, **kwargs})


def saver_of(base, folder, clock, **kwargs):
    """A checkpoint that takes a known time to write."""

    class Slow(base.callbacks.ModelCheckpoint):
        def _save_checkpoint(self, trainer, filepath):
            super()._save_checkpoint(trainer, filepath)
            clock.now += SAVE

    return Slow(folder / "saved", save_last=True, **{"save_on_train_epoch_end": True, **kwargs})


def check_results(folder, epochs=3):
    results = json.loads((folder / "results.json").read_text())
    train_seconds = epochs * BATCHES * (LOAD + STEP)
    assert results["final"] == {
        "train/loss": 3.5, "train/loss_epoch": 3.5, "train/loss_step": 5.0, "train/acc": 37.5, "val/acc": 50.0,
        "val/loss": 1.0, "time/train_seconds": train_seconds,
    }  # fmt: skip
    assert results["best"] == {"val/acc": 75.0, "val/loss": 1.0}
    assert results["train_seconds"] == train_seconds
    return results


def test_time_is_that_of_batches_and_their_loading(tmp_path, clock):
    logger = CSVLogger(tmp_path, name="run", version="one")
    saver = saver_of(L, tmp_path, clock)
    settings = {"enable_checkpointing": True, "reload_dataloaders_every_n_epochs": 1}
    trainer_of(L, tmp_path, TrainingReport(), saver, logger=logger, **settings).fit(module_of(L, clock))
    with (tmp_path / "run" / "one" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    measured = [(float(row["val/acc"]), float(row["time/train_seconds"])) for row in rows if row["val/acc"]]
    epoch = BATCHES * (LOAD + STEP)
    assert measured == [(0.25, epoch), (0.75, 2 * epoch), (0.5, 3 * epoch)]
    assert [float(row["time/train_seconds"]) for row in rows if row["train/acc"]] == [epoch, 2 * epoch, 3 * epoch]
    results = check_results(tmp_path / "run" / "one")
    # Each epoch ends with two files; the first validation takes the loader of the sanity check.
    assert results["wall_seconds"] == 3 * (epoch + 2 * SAVE + OPEN + VALIDATE) + VALIDATE


def test_validation_and_checkpoints_in_the_middle_of_an_epoch_do_not_count(tmp_path, clock):
    report = TrainingReport(plots=False)
    saver = saver_of(L, tmp_path, clock, every_n_train_steps=1, save_on_train_epoch_end=False)
    trainer = trainer_of(
        L,
        tmp_path,
        report,
        saver,
        max_epochs=1,
        val_check_interval=2,
        enable_checkpointing=True,
        num_sanity_val_steps=0,
    )
    trainer.fit(module_of(L, clock))
    assert clock.now >= 4 * SAVE + 2 * VALIDATE
    # What lies between a checkpoint and the start of the next batch, its loading, cannot be told from the writing.
    assert BATCHES * STEP <= report.state_dict()["train_seconds"] <= BATCHES * (LOAD + STEP)


def test_files_at_the_end(tmp_path, clock, capsys):
    trainer_of(L, tmp_path, TrainingReport()).fit(module_of(L, clock))
    results = check_results(tmp_path)
    assert results["settings"]["model"] == {"class": results["settings"]["model"]["class"], "width": 1}
    assert results["settings"]["trainer"]["max_epochs"] == 3
    assert results["versions"]["torch"] == torch.__version__.partition("+")[0] or torch.__version__
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 600
    assert capsys.readouterr().out.count(f"Results: {tmp_path}") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "curves.png"}


def test_a_killed_run_ends_with_the_same_curves_and_times(tmp_path, clock):
    class Kill(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt

    saver = saver_of(L, tmp_path, clock)
    with pytest.raises(SystemExit):
        trainer_of(L, tmp_path, TrainingReport(), saver, Kill(), enable_checkpointing=True).fit(module_of(L, clock))
    assert not (tmp_path / "results.json").exists()
    report = TrainingReport()
    trainer_of(L, tmp_path, report).fit(
        module_of(L, clock), ckpt_path=tmp_path / "saved" / "last.ckpt", weights_only=True
    )
    check_results(tmp_path)
    assert [report.history[epoch]["val/acc"] for epoch in range(3)] == ACCURACY
    assert [report.history[epoch]["train/acc"] for epoch in range(3)] == [0.125, 0.25, 0.375]


def test_a_run_killed_after_its_last_checkpoint_still_gets_its_files(tmp_path, clock):
    saver = saver_of(L, tmp_path, clock)
    trainer_of(L, tmp_path / "a", TrainingReport(), saver, enable_checkpointing=True).fit(module_of(L, clock))
    again = trainer_of(L, tmp_path, TrainingReport(directory=str(tmp_path / "b"), plots=False))
    again.fit(module_of(L, clock), ckpt_path=tmp_path / "saved" / "last.ckpt", weights_only=True)
    check_results(tmp_path / "b")
    assert not (tmp_path / "b" / "curves.png").exists()


def test_values_of_an_earlier_validation_are_not_read_again(tmp_path, clock):
    report = TrainingReport(plots=False)
    trainer_of(L, tmp_path, report, check_val_every_n_epoch=2).fit(module_of(L, clock))
    assert [epoch for epoch, row in report.history.items() if "val/acc" in row] == [1]
    assert json.loads((tmp_path / "results.json").read_text())["final"]["val/acc"] == 75


def test_percent_that_is_logged_stays(tmp_path, clock):
    trainer_of(L, tmp_path, TrainingReport(scale=1, plots=False)).fit(module_of(L, clock))
    assert json.loads((tmp_path / "results.json").read_text())["final"]["val/acc"] == 0.5


def test_in_a_trainer_of_pytorch_lightning(tmp_path, clock):
    base = pytest.importorskip("pytorch_lightning")
    saver = saver_of(base, tmp_path, clock)
    trainer_of(base, tmp_path, TrainingReport(), saver, enable_checkpointing=True).fit(module_of(base, clock))
    check_results(tmp_path)
    files = list((tmp_path / "saved").iterdir())
    assert len(files) == 2
    for path in files:
        state = torch.load(path, weights_only=True)["callbacks"]["TrainingReport"]
        assert state["history"][2]["train/acc"] == 0.375  # logged by the module after the callback's hook
        assert state["train_seconds"] == 3 * BATCHES * (LOAD + STEP)


def test_two_processes_write_once(tmp_path, clock, capfd):
    trainer = trainer_of(L, tmp_path, TrainingReport(plots=False), strategy="ddp_fork", devices=2)
    trainer.fit(module_of(L, clock))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["final"]["val/acc"] == 50
    assert results["train_seconds"] == 3 * BATCHES / 2 * (LOAD + STEP)
    assert capfd.readouterr().out.count("Results:") == 1


def test_nothing_is_written_by_a_trial_or_an_evaluation(tmp_path, clock):
    report = TrainingReport()
    trainer_of(L, tmp_path, report, fast_dev_run=True).fit(module_of(L, clock))
    (measured,) = trainer_of(L, tmp_path, report).validate(module_of(L, clock), verbose=False)
    assert set(measured) == {"val/acc", "val/loss"}
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_with_the_same_callback_starts_afresh(tmp_path, clock):
    report = TrainingReport(plots=False)
    trainer_of(L, tmp_path, report).fit(module_of(L, clock))
    trainer_of(L, tmp_path, report, max_epochs=1).fit(module_of(L, clock))
    assert list(report.history) == [0]
    assert json.loads((tmp_path / "results.json").read_text())["train_seconds"] == BATCHES * (LOAD + STEP)


def test_a_real_clock_counts_too(tmp_path):
    report = TrainingReport(plots=False)
    trainer_of(L, tmp_path, report).fit(module_of(L, SimpleNamespace(now=0.0)))
    state = report.state_dict()
    assert 0 < state["train_seconds"] < state["wall_seconds"] < 60


@pytest.mark.parametrize(
    ("name", "accuracy", "loss"),
    [("val/acc", True, False), ("accuracy", True, False), ("val/knn", True, False), ("train/loss_ce", False, True),
     ("acc/time", False, False), ("val/miou", True, False), ("val/map", False, False)],
)  # fmt: skip
def test_names(name, accuracy, loss):
    assert (is_accuracy(name), is_loss(name)) == (accuracy, loss)


def test_curves_show_each_loss_and_accuracy_once():
    history = {
        0: {"train/loss": 1.5, "train/loss_epoch": 1.5, "train/loss_step": 9.0, "val/acc": 60.0, "lr": 0.1},
        2: {"val/acc": 70.0},
    }
    loss, accuracy = draw_curves(history).axes
    assert [line.get_label() for line in loss.lines] == ["train/loss  1.5"]
    assert [line.get_label() for line in accuracy.lines] == ["val/acc  70"]
    assert accuracy.lines[0].get_xydata().tolist() == [[1, 60], [3, 70]]
    assert draw_curves({0: {"lr": 0.1}}) is None
