"""The confusion matrix against one counted by hand, by whatever way predictions come."""

import csv
from types import SimpleNamespace

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from zoo.callbacks import ConfusionMatrix
from zoo.callbacks.confusion_matrix import draw_confusion, to_csv

# What is true of seven images, and what the modules below say of them: an odd number, so that two processes repeat one.
TRUE, SAID = torch.tensor([0, 0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 0, 1, 1, 0, 2])
COUNTS = [[2, 1, 0], [0, 2, 0], [1, 0, 1]]
SETTINGS = {"accelerator": "cpu", "max_epochs": 2, "logger": False, "enable_progress_bar": False,
            "enable_model_summary": False, "enable_checkpointing": False}  # fmt: skip


def scores_of(said):
    return torch.nn.functional.one_hot(said, 3).float()


def data_of(base, **attributes):
    class Data(base.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(TensorDataset(SAID, TRUE), batch_size=7)

        def val_dataloader(self):
            return DataLoader(TensorDataset(SAID, TRUE), batch_size=2)

        test_dataloader = val_dataloader

    data = Data()
    vars(data).update(attributes)
    return data


def module_of(base, answer=lambda said, true: None):
    """A module whose forward gives scores, and whose steps return ``answer``."""

    class Module(base.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.forwards = 0

        def forward(self, said):
            self.forwards += 1
            return scores_of(said) + self.weight

        def training_step(self, batch, batch_idx):
            return self.weight * 0

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            return answer(*batch)

        test_step = validation_step

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    return Module()


def trainer_of(base, folder, *callbacks, **kwargs):
    return base.Trainer(callbacks=list(callbacks), **{**SETTINGS, "default_root_dir": folder, **kwargs})


def table_of(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


NAMED = [["true class", "cat", "dog", "hen"], ["cat", "2", "1", "0"], ["dog", "0", "2", "0"], ["hen", "1", "0", "1"]]


@pytest.mark.parametrize(
    ("answer", "predict", "forwards"),
    [
        (lambda said, true: None, None, 4),
        (lambda said, true: {"scores": scores_of(said), "targets": true}, None, 0),
        (lambda said, true: {"preds": said, "targets": true}, None, 0),
        (lambda said, true: {"loss": torch.zeros(())}, None, 4),
        (lambda said, true: {"preds": true, "targets": true}, lambda module, batch: (batch[0], batch[1]), 0),
    ],
    ids=["forward", "scores", "labels", "other outputs", "predict"],
)
def test_predictions_come_from(answer, predict, forwards, tmp_path):
    confusion = ConfusionMatrix(predict=predict)
    module = module_of(L, answer)
    data = data_of(L, class_names=["cat", "dog", "hen"])
    trainer_of(L, tmp_path, confusion).validate(module, data, verbose=False)
    assert confusion.matrix.tolist() == COUNTS
    assert module.forwards == forwards
    assert table_of(tmp_path / "confusion_matrix_val.csv") == NAMED
    with Image.open(tmp_path / "confusion_matrix_val.png") as image:
        assert image.width > 500


def test_fit_writes_its_last_validation_and_a_test_its_own(tmp_path):
    confusion = ConfusionMatrix(class_names=["cat", "dog", "hen"])
    trainer = trainer_of(L, tmp_path, confusion, logger=CSVLogger(tmp_path, name="run", version="one"))
    module, data = module_of(L), data_of(L, evaluate="dev")
    trainer.fit(module, data)
    assert confusion.matrix.tolist() == COUNTS  # of one validation, not of both
    assert module.forwards == 8  # none in the sanity check
    folder = tmp_path / "run" / "one"
    assert {path.suffix for path in folder.glob("confusion_matrix_dev*")} == {".png", ".csv"}
    trainer.test(module, data, verbose=False)
    assert table_of(folder / "confusion_matrix_test.csv") == NAMED


@pytest.mark.parametrize("sampler", ["of Lightning", "shuffled", "none"])
def test_two_processes_count_each_image_once(sampler, tmp_path):
    class Data(type(data_of(L))):
        def val_dataloader(self):
            images = TensorDataset(SAID, TRUE)
            shuffled = DistributedSampler(images, 2, self.trainer.global_rank) if sampler == "shuffled" else None
            return DataLoader(images, batch_size=2, sampler=shuffled)

    exact = sampler != "none"
    trainer = trainer_of(L, tmp_path, ConfusionMatrix(), devices=2, strategy="ddp_fork", use_distributed_sampler=exact)
    trainer.fit(module_of(L), Data())
    table = np.array(table_of(tmp_path / "confusion_matrix_val.csv"))[1:, 1:].astype(int)
    # Without a sampler every process sees every image; nobody repeats one, so all are counted as they come.
    assert table.tolist() == (np.array(COUNTS) * (1 if exact else 2)).tolist()


def test_several_loaders_count_together(tmp_path):
    class Data(type(data_of(L))):
        def val_dataloader(self):
            return [DataLoader(TensorDataset(SAID[part], TRUE[part]), 2) for part in (slice(3), slice(3, 7))]

    confusion = ConfusionMatrix()
    trainer_of(L, tmp_path, confusion).validate(module_of(L), Data(), verbose=False)
    assert confusion.matrix.tolist() == COUNTS


def test_pixels_and_a_target_that_is_not_counted(tmp_path):
    said, true = SAID[:6].view(1, 2, 3), torch.where(TRUE[:6] == 1, 255, TRUE[:6]).view(1, 2, 3)
    answer = {"scores": scores_of(said).movedim(-1, 1), "targets": true}
    confusion = ConfusionMatrix(ignore_index=255)
    trainer_of(L, tmp_path, confusion, limit_val_batches=1).validate(
        module_of(L, lambda *batch: answer), data_of(L), verbose=False
    )
    assert confusion.matrix.tolist() == [[2, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_labels_alone_do_not_say_how_many_classes_there_are(tmp_path):
    module = module_of(L, lambda said, true: {"preds": said, "targets": true})
    with pytest.raises(ValueError, match=r"neither class_names nor num_classes.*ConfusionMatrix\(class_names=\.\.\.\)"):
        trainer_of(L, tmp_path, ConfusionMatrix()).validate(module, data_of(L))
    confusion = ConfusionMatrix()
    trainer_of(L, tmp_path, confusion).validate(module, data_of(L, num_classes=4), verbose=False)
    assert confusion.matrix.shape == (4, 4)


def test_in_a_trainer_of_pytorch_lightning(tmp_path):
    base = pytest.importorskip("pytorch_lightning")
    data = data_of(base, class_names=["cat", "dog", "hen"])
    trainer_of(base, tmp_path, ConfusionMatrix()).fit(module_of(base), datamodule=data)
    assert table_of(tmp_path / "confusion_matrix_val.csv") == NAMED


def test_a_trial_writes_nothing(tmp_path):
    trainer_of(L, tmp_path, ConfusionMatrix(), fast_dev_run=True).fit(module_of(L), data_of(L))
    assert list(tmp_path.iterdir()) == []


def test_the_picture_goes_to_a_logger_that_takes_figures(tmp_path):
    taken = []

    class FigureLogger(CSVLogger):
        @property
        def experiment(self):
            def add_figure(name, figure, global_step, close):
                taken.append((name, global_step))

            return SimpleNamespace(add_figure=add_figure)

        def log_metrics(self, metrics, step=None): ...

        def log_hyperparams(self, params=None): ...

        def save(self): ...

    trainer_of(L, tmp_path, ConfusionMatrix(), logger=FigureLogger(tmp_path)).fit(module_of(L), data_of(L))
    assert taken == [("confusion_matrix_val", 2)]


def test_the_picture_shows_shares_or_counts():
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 200]])
    for percent, numbers in ((True, {"75", "25", "100"}), (False, {"3", "1", "200"})):
        figure = draw_confusion(counts, ["cat", "dog", "hen"], percent)
        assert {text.get_text() for text in figure.axes[0].texts} == numbers
        assert "accuracy 99.51 %" in figure.axes[0].get_title(loc="left")
        right, mistaken = (image.get_array() for image in figure.axes[0].collections)
        assert [*map(bool, np.ma.getmaskarray(right).diagonal())] == [False, percent, False]  # a class without images
        assert np.ma.getmaskarray(mistaken).diagonal().all()


@pytest.mark.parametrize(("number", "named", "numbered"), [(25, True, True), (100, True, False), (300, False, False)])
def test_many_classes_stay_readable(number, named, numbered):
    figure = draw_confusion(
        np.eye(number, dtype=int), [f"a name that is much too long {i}" for i in range(number)], True
    )
    axes = figure.axes[0]
    assert len(axes.texts) == (number if numbered else 0)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a name that is much too…"] * number * named
    assert max(figure.get_size_inches()) < 25


def test_names_with_commas_stay_one_cell():
    text = to_csv(np.array([[1, 0], [2, 3]]), ["a, b", "c"])
    assert text == 'true class,"a, b",c\n"a, b",1,0\nc,2,3\n'
