"""The report of a stream: whatever module logs, whatever Trainer runs it, killed or not."""

import json
import math
import time
import warnings
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from rich.console import Console
from torch.utils.data import DataLoader, TensorDataset

from zoo.callbacks.stream_figures import draw_curve, draw_matrix, to_png
from zoo.callbacks.stream_report import StreamReport, to_plain
from zoo.callbacks.stream_tables import build_table, compile_pattern, pooled, read_row, sizes_of, summarise

NAN = float("nan")
# Fractions after each task; what a fake module logs. All are exact in float32.
ACCURACY = [[1.0], [0.75, 0.5], [0.5, 0.25, 1.0]]
SIZES = [4, 8, 4]


def stream_of(base, evaluate="test"):
    """A stream of three tasks with one epoch each, for either of the two Lightning packages."""

    class Stream(base.LightningDataModule):
        num_tasks, num_classes, class_names = 3, 6, ["cat", "dog", "hen", "cow", "pig", "owl"]

        def __init__(self):
            super().__init__()
            self.evaluate = evaluate

        @property
        def task(self):
            return SimpleNamespace(index=min(self.trainer.current_epoch, 2), classes=range(2))

        @property
        def tasks(self):
            return [SimpleNamespace(classes=range(2 * j, 2 * j + 2)) for j in range(3)]

        def train_dataloader(self):
            return DataLoader(TensorDataset(torch.zeros(2, 1)))

        def val_dataloader(self):
            return [DataLoader(TensorDataset(torch.zeros(n, 1)), batch_size=8) for n in SIZES[: self.task.index + 1]]

        test_dataloader = val_dataloader

    return Stream()


def module_of(base, name="test/task{j:02d}/acc", known="test/task{j:02d}/acc_task_known", first=0, table=None):
    """A module that learns nothing and logs given accuracies."""

    class Module(base.LightningModule):
        def __init__(self, width: int = 1):
            super().__init__()
            self.save_hyperparameters()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch, batch_idx):
            return self.weight * 0

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            pass

        def on_validation_epoch_end(self):
            if self.trainer.sanity_checking:
                self.log(name.format(j=first), 0.125)
                return
            for j, value in enumerate((table or ACCURACY)[min(self.trainer.current_epoch, 2)]):
                self.log(name.format(j=j + first), value)
                if known:
                    self.log(known.format(j=j + first), 1.0)

        test_step, on_test_epoch_end = validation_step, on_validation_epoch_end

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    return Module()


def trainer_of(base, folder, report, *callbacks, **kwargs):
    defaults = {
        "accelerator": "cpu", "max_epochs": 3, "reload_dataloaders_every_n_epochs": 1, "default_root_dir": folder,
        "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
    }  # fmt: skip
    return base.Trainer(callbacks=[report, *callbacks], **{**defaults, **kwargs})


def check_results(results):
    assert results["accuracy_matrix"]["class_incremental"] == [[100, None, None], [75, 50, None], [50, 25, 100]]
    assert results["accuracy_matrix"]["task_known"] == [[100, None, None], [100, 100, None], [100, 100, 100]]
    assert results["test_sizes"] == SIZES
    assert results["split"] == "test"
    summary = results["class_incremental"]
    assert summary["average_accuracy"] == 58.3333
    assert summary["average_incremental_accuracy"] == 69.4444
    assert summary["forgetting"] == 37.5
    assert summary["forward_transfer"] is None
    assert results["task_known"]["average_accuracy"] == 100


def test_a_stream_is_printed_and_written(tmp_path, capsys):
    report = StreamReport()
    logger = CSVLogger(tmp_path, name="run", version="one")
    trainer_of(L, tmp_path, report, logger=logger).fit(module_of(L), datamodule=stream_of(L))
    folder = tmp_path / "run" / "one"
    results = json.loads((folder / "results.json").read_text())
    check_results(results)
    assert results["settings"]["model"] == {"class": results["settings"]["model"]["class"], "width": 1}
    assert results["settings"]["trainer"]["precision"] == "32-true"
    assert results["versions"]["torch"] == torch.__version__.partition("+")[0] or torch.__version__
    assert results["wall_seconds"] > 0
    for name in ("accuracy_matrix", "accuracy_curve"):
        with Image.open(folder / f"{name}.png") as image:
            assert image.width > 300
    printed = capsys.readouterr().out
    assert printed.count("Accuracy (%) on test") == 3
    assert "12.5" not in printed  # of the sanity check
    last = printed.split("Accuracy (%) on test")[-1]
    assert "cat, dog" in last
    assert "50.0 25.0 100.0" in " ".join(last.split())
    assert " ".join(last.split()).count("58.33") == 2  # average after task 3, pooled after task 2


def test_a_few_shot_stream_shows_base_and_novel_classes(tmp_path, capsys):
    stream = stream_of(L)
    stream.shots = 5
    trainer_of(L, tmp_path, StreamReport()).fit(module_of(L), datamodule=stream)
    results = json.loads((tmp_path / "results.json").read_text())["few_shot"]
    # Test sizes 4, 8, 4: after session 1 novel is 50, after session 2 it is (8 * 25 + 4 * 100) / 12.
    assert results["novel_by_session"] == [None, 50, 50]
    assert results["all_by_session"] == [100, 58.3333, 50]
    assert results["base_by_session"] == [100, 75, 50]
    assert results["performance_drop"] == 50
    assert results["average_harmonic_mean"] == (60 + 50) / 2
    lines = [line.split() for line in capsys.readouterr().out.split("Accuracy (%) on test")[-1].splitlines()]
    assert ["after", "session", "classes", "all", "base", "novel", "harmonic", "mean"] in lines
    assert ["0", "2", "100.00", "100.00"] in lines
    assert ["1", "4", "58.33", "75.00", "50.00", "60.00"] in lines
    with Image.open(tmp_path / "accuracy_curve.png") as image:
        assert image.width > 300


def test_few_shot_can_be_said_and_a_session_that_is_missing_leaves_no_summary(tmp_path):
    report = StreamReport(few_shot=True, task_index=lambda trainer: 2 * trainer.current_epoch)
    trainer_of(L, tmp_path, report, max_epochs=2).fit(module_of(L), datamodule=stream_of(L))
    assert json.loads((tmp_path / "results.json").read_text())["few_shot"] is None


class Costly(torch.nn.Module):
    """Stands in for a network; a pass takes two milliseconds."""

    def forward(self, images):
        time.sleep(0.002)
        return images


def costly_module():
    """A module whose network sees an image once in training and twice in evaluation."""
    module = module_of(L)
    module.backbone = Costly()
    module.register_parameter("frozen", torch.nn.Parameter(torch.zeros(5), requires_grad=False))
    kind = type(module)
    kind.training_step = lambda self, batch, batch_idx: self.weight * self.backbone(batch[0]).sum()
    kind.validation_step = lambda self, batch, batch_idx, dataloader_idx=0: self.backbone(self.backbone(batch[0]))
    return module


def test_costs_are_counted_and_survive_an_interruption(tmp_path):
    class Kill(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt

    saver = ModelCheckpoint(tmp_path / "saved", save_last=True, save_on_train_epoch_end=True)
    module = costly_module()
    with pytest.raises(SystemExit):
        trainer_of(L, tmp_path, StreamReport(), saver, Kill(), enable_checkpointing=True).fit(
            module, datamodule=stream_of(L)
        )
    assert not module.backbone._forward_pre_hooks
    report, module = StreamReport(plots=False), costly_module()
    trainer_of(L, tmp_path, report).fit(
        module, datamodule=stream_of(L), ckpt_path=tmp_path / "saved" / "last.ckpt", weights_only=True
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["learnable_parameters"] == 1
    assert results["training_passes_per_image"] == 1
    assert results["evaluation_passes_per_image"] == 2
    # 2 images in each of 3 tasks; 4, then 4 and 8, then 4, 8 and 4. The sanity check does not count.
    assert report._costs.counts["training"][1:] == [6, 6]
    assert report._costs.counts["evaluation"][1:] == [32, 64]
    assert results["training_ms_per_image"] > 2  # a batch of one image
    assert 2 * 2 * 6 / 32 < results["evaluation_ms_per_image"] < results["training_ms_per_image"]
    assert not module.backbone._forward_pre_hooks


def test_passes_are_unknown_without_a_network(tmp_path):
    trainer_of(L, tmp_path, StreamReport(plots=False)).fit(module_of(L), datamodule=stream_of(L))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["training_passes_per_image"] is results["evaluation_passes_per_image"] is None
    assert results["evaluation_ms_per_image"] > 0


def test_a_killed_run_ends_with_the_same_files(tmp_path):
    class Kill(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt

    saver = ModelCheckpoint(tmp_path / "saved", save_last=True, save_on_train_epoch_end=True)
    with pytest.raises(SystemExit):
        trainer_of(L, tmp_path, StreamReport(), saver, Kill(), enable_checkpointing=True).fit(
            module_of(L), datamodule=stream_of(L)
        )
    assert not (tmp_path / "results.json").exists()
    report = StreamReport()
    trainer_of(L, tmp_path, report).fit(
        module_of(L), datamodule=stream_of(L), ckpt_path=tmp_path / "saved" / "last.ckpt", weights_only=True
    )
    check_results(json.loads((tmp_path / "results.json").read_text()))


def test_a_run_killed_after_its_last_checkpoint_still_gets_its_files(tmp_path):
    saver = ModelCheckpoint(tmp_path / "saved", save_last=True, save_on_train_epoch_end=True)
    trainer_of(L, tmp_path, StreamReport(directory=str(tmp_path / "a")), saver, enable_checkpointing=True).fit(
        module_of(L), datamodule=stream_of(L)
    )
    again = trainer_of(L, tmp_path, StreamReport(directory=str(tmp_path / "b"), plots=False))
    again.fit(module_of(L), datamodule=stream_of(L), ckpt_path=tmp_path / "saved" / "last.ckpt", weights_only=True)
    results = json.loads((tmp_path / "b" / "results.json").read_text())
    check_results(results)
    saved = torch.load(tmp_path / "saved" / "last.ckpt", weights_only=True)["callbacks"]["StreamReport"]["seconds"]
    assert results["wall_seconds"] > saved > 0.01  # of the first run and of the second
    assert not (tmp_path / "b" / "accuracy_matrix.png").exists()


def test_values_of_an_earlier_validation_are_not_read_again(tmp_path):
    """The second validation logs other names; the first one's stay in ``callback_metrics``."""
    report = StreamReport()
    table = [[1.0, 0.5], [0.5], [0.25, 0.75, 1.0]]
    trainer_of(L, tmp_path, report).fit(module_of(L, known=None, table=table), datamodule=stream_of(L))
    assert report.rows == {0: {0: 100, 1: 50}, 1: {0: 50}, 2: {0: 25, 1: 75, 2: 100}}


def test_a_stranger_with_other_names_and_no_datamodule(tmp_path, capsys):
    report = StreamReport(pattern="acc_of_{task}", first_task=1, scale=1, plots=False)
    percent = [[100 * value for value in row] for row in ACCURACY]
    module = module_of(L, name="acc_of_{j}", known=None, first=1, table=percent)
    stream = stream_of(L)
    trainer = trainer_of(L, tmp_path, report)
    stream.trainer = trainer
    module.train_dataloader, module.val_dataloader = stream.train_dataloader, stream.val_dataloader
    trainer.fit(module)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["accuracy_matrix"]["class_incremental"] == [[100, None, None], [75, 50, None], [50, 25, 100]]
    assert results["accuracy_matrix"]["task_known"] is results["task_known"] is results["split"] is None
    assert results["settings"]["data"] is None
    assert "task known" not in capsys.readouterr().out


def test_in_a_trainer_of_pytorch_lightning(tmp_path):
    base = pytest.importorskip("pytorch_lightning")
    saver = base.callbacks.ModelCheckpoint(tmp_path / "saved", save_last=True, save_on_train_epoch_end=True)
    trainer = trainer_of(base, tmp_path, StreamReport(), saver, enable_checkpointing=True)
    trainer.fit(module_of(base), datamodule=stream_of(base))
    check_results(json.loads((tmp_path / "results.json").read_text()))
    state = torch.load(tmp_path / "saved" / "last.ckpt", weights_only=True)["callbacks"]["StreamReport"]
    assert state["rows"][1] == {0: 75, 1: 50}


def test_two_processes_write_once(tmp_path, capfd):
    trainer_of(L, tmp_path, StreamReport(), strategy="ddp_fork", devices=2).fit(module_of(L), datamodule=stream_of(L))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["accuracy_matrix"]["class_incremental"][2] == [50, 25, 100]
    assert results["settings"]["trainer"]["devices"] == 2
    printed = capfd.readouterr().out
    assert (printed.count("Accuracy (%)"), printed.count("Results:")) == (3, 1)


def test_figures_go_to_a_logger_that_takes_figures(tmp_path):
    class Experiment:
        def __init__(self):
            self.names = []

        def add_figure(self, name, figure, global_step, close):
            self.names.append((name, global_step))

    class FigureLogger(CSVLogger):
        taken = Experiment()

        @property
        def experiment(self):
            return self.taken

        def log_metrics(self, metrics, step=None): ...

        def log_hyperparams(self, params=None): ...

        def save(self): ...

    logger = FigureLogger(tmp_path)
    trainer_of(L, tmp_path, StreamReport(), logger=logger).fit(module_of(L), datamodule=stream_of(L))
    assert logger.taken.names == [("accuracy_matrix", 6), ("accuracy_curve", 6)]


def test_one_row_after_validate_and_test_alone(tmp_path, capsys):
    report = StreamReport()
    trainer = trainer_of(L, tmp_path, report)
    trainer.validate(module_of(L), datamodule=stream_of(L), verbose=False)
    trainer.test(module_of(L), datamodule=stream_of(L), verbose=False)
    assert capsys.readouterr().out.count("Accuracy (%) on test") == 2
    assert report.rows == {}
    assert list(tmp_path.iterdir()) == []


def test_one_warning_names_pattern_and_metrics(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer_of(L, tmp_path, StreamReport(pattern="{split}/t{task}")).fit(module_of(L), datamodule=stream_of(L))
    (message,) = [str(w.message) for w in caught if "StreamReport" in str(w.message)]
    assert "'{split}/t{task}'" in message
    assert "test/task00/acc, test/task00/acc_task_known" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("arguments", "what"), [({"scale": 1000}, "1000"), ({"first_task": 1}, "first_task")])
def test_impossible_values_are_not_reported(tmp_path, arguments, what):
    with pytest.warns(UserWarning, match=rf"(?s)cannot be.*|{what}"):
        trainer_of(L, tmp_path, StreamReport(**arguments)).fit(module_of(L), datamodule=stream_of(L))
    assert not (tmp_path / "results.json").exists()


def test_fast_dev_run_writes_nothing(tmp_path):
    trainer_of(L, tmp_path, StreamReport(), fast_dev_run=True).fit(module_of(L), datamodule=stream_of(L))
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_with_the_same_callback_starts_afresh(tmp_path):
    report = StreamReport(plots=False)
    trainer_of(L, tmp_path, report).fit(module_of(L), datamodule=stream_of(L))
    trainer_of(L, tmp_path, report, max_epochs=1).fit(module_of(L), datamodule=stream_of(L))
    assert report.rows == {0: {0: 100}}


def test_the_table_stands_whole_above_a_live_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    bar = RichProgressBar(console_kwargs={"force_terminal": True, "width": 120, "color_system": None})
    trainer_of(L, tmp_path, StreamReport(plots=False), bar, enable_progress_bar=True).fit(
        module_of(L), datamodule=stream_of(L)
    )
    printed = capsys.readouterr().out
    from rich import reconfigure

    reconfigure()  # the console is global; later tests want the plain one
    lines = [line.split("\x1b[2K")[-1].strip() for line in printed.splitlines()]
    title = [index for index, line in enumerate(lines) if line.endswith("Accuracy (%) on test")][-1]
    body = [line.split() for line in lines[title + 1 : title + 8] if "." in line and line[0].isdigit()]
    assert body == [
        ["1", "100.0", "100.00", "100.00", "100.00"],
        ["2", "75.0", "50.0", "62.50", "58.33", "100.00"],
        ["3", "50.0", "25.0", "100.0", "58.33", "50.00", "100.00"],
    ]


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        ("{split}/task{task}/acc", "test/task03/acc", ("test", 3)),
        ("{split}/task{task}/acc", "test/task03/acc_task_known", None),
        ("{split}/task{task}/acc", "a/b/task03/acc", None),
        ("val.acc[{task}]", "val.acc[12]", (None, 12)),
        ("val.acc[{task}]", "valxacc[12]", None),
    ],
)
def test_patterns(pattern, name, found):
    row, split = read_row({name: 0.5}, compile_pattern(pattern))
    assert (row, split) == (({found[1]: 50.0}, found[0]) if found else ({}, None))


@pytest.mark.parametrize("pattern", ["val/acc", "{task}/{task}", "{split}{split}{task}"])
def test_patterns_that_say_nothing(pattern):
    with pytest.raises(ValueError, match="once"):
        StreamReport(pattern=pattern)


def test_the_split_that_is_evaluated_is_read():
    metrics = {"val/task00/acc": 0.5, "test/task00/acc": 0.25}
    pattern = compile_pattern("{split}/task{task}/acc")
    assert read_row(metrics, pattern, split="test") == ({0: 25.0}, "test")
    assert read_row(metrics, pattern) == ({0: 50.0}, "val")


def test_sizes_are_known_only_where_a_loader_is_a_task():
    loaders = [DataLoader(range(3)), DataLoader(range(5))]
    assert sizes_of(loaders, 2) == [3, 5]
    assert sizes_of(loaders[0], 1) == [3]
    assert sizes_of(loaders, 3) is None
    assert sizes_of({"a": loaders[0]}, 1) is None
    assert sizes_of([DataLoader(iter(()))], 1) is None


def test_pooled_accuracy_weighs_images():
    assert pooled([50.0, 80.0, NAN], 1, [10, 30, 99]) == 72.5
    assert pooled([50.0, 80.0, 20.0], 1, None) == 65
    assert pooled([70.0], 4, [10]) == 70  # one common test set
    assert math.isnan(pooled([NAN], 0, [10]))


def test_summary_of_unfinished_and_overfull_matrices():
    assert summarise([[60.0, 50.0, 1.0], [40.0, 70.0, 2.0]], [1, 3, 5])["average_accuracy"] == 55
    assert summarise([[60.0], [70.0]], [9])["average_incremental_accuracy"] == 65
    with pytest.warns(UserWarning, match="3 rows for 2 tasks"):
        assert summarise([[60.0, 50.0]] * 3, None) is None


@pytest.mark.parametrize(
    ("tasks", "width", "header"),
    [
        (3, 80, ["1", "2", "3"]),
        (10, 80, [str(j) for j in range(1, 11)]),
        (20, 80, [str(j) for j in range(1, 21)]),
        (50, 80, ["1", "…"]),
    ],
)
def test_the_table_fits_the_terminal(tasks, width, header):
    console = Console(width=width, file=open("/dev/null", "w"))  # noqa: SIM115
    rows = {i: dict.fromkeys(range(i + 1), 88.8) for i in range(tasks)}
    table = build_table(rows, {}, "test", None, None, console)
    names = [str(column.header) for column in table.columns]
    assert names[1 : 1 + len(header)] == header
    assert [name.strip() for name in names[-2:]] == [str(tasks), "average"]
    with console.capture() as capture:
        console.print(table)
    assert all(len(line) <= width for line in capture.get().splitlines())
    assert "88.80" in capture.get().splitlines()[-2]


def test_settings_become_plain():
    class Thing:
        pass

    value = {1: (1, 2.5, NAN, float("inf")), "c": Thing, "t": torch.ones(2), "r": range(2), "n": None, "b": True}
    plain = to_plain(value)
    assert plain["1"] == [1, 2.5, None, "inf"]
    assert plain["c"].endswith("Thing")
    assert (plain["t"], plain["r"], plain["n"], plain["b"]) == ([1.0, 1.0], [0, 1], None, True)


@pytest.mark.parametrize("tasks", [1, 2, 20])
def test_heat_map_shows_every_number_and_leaves_the_rest_blank(tasks):
    cells = [[80.0 + j if j <= i else NAN for j in range(tasks)] for i in range(tasks)]
    axes = draw_matrix(cells, [70.0] * tasks).axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert len(texts) == tasks * (tasks + 1) // 2 + tasks
    assert texts[0] == ("80" if tasks > 12 else "80.0")
    assert texts.count("70.0") == tasks


def test_figures_leave_pyplot_alone():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    assert to_png(draw_curve({"one": [90.0, NAN, 70.0]})).startswith(b"\x89PNG")
    assert plt.get_fignums() == before


def test_labels_of_a_curve_do_not_overlap():
    figure = draw_curve({"a": [90.0, 80.1], "b": [95.0, 80.0], "c": [70.0, 80.2]})
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 3
    assert not any(one.overlaps(two) for k, one in enumerate(boxes) for two in boxes[:k])
