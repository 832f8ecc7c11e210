"""The figures of a stream against worked examples, and the metrics that count it."""

import math

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from zoo.metrics import AccuracyMatrix, TaskAccuracy, stream_summary

NAN = float("nan")
FOUR_TASKS = [
    [90.00, 13.62, 10.75, 9.03],
    [84.28, 86.99, 9.03, 10.04],
    [77.44, 83.81, 88.98, 12.85],
    [72.82, 75.41, 79.00, 84.43],
]
SIZES = [100, 200, 100, 50]
NEED_OTHER_TASKS = ("forgetting", "forgetting_clipped", "step_forgetting", "backward_transfer", "forward_transfer")


def lower(matrix):
    return [[value if j <= i else NAN for j, value in enumerate(row)] for i, row in enumerate(matrix)]


def test_summary_of_the_worked_example():
    assert stream_summary(FOUR_TASKS, SIZES, baseline=[10, 11, 9, 10.5]) == pytest.approx(
        {
            "average_accuracy": 77.915,
            "average_incremental_accuracy": 84.0577777778,
            "forgetting": 12.9133333333,
            "forgetting_clipped": 12.9133333333,
            "step_forgetting": 6.1322222222,
            "backward_transfer": -12.9133333333,
            "forward_transfer": 1.6666666667,
            "learning_accuracy": 87.60,
        },
        abs=5e-11,
    )


@pytest.mark.parametrize(("tasks", "average", "forgetting"), [(2, 85.635, 5.72), (3, 83.41, 7.87)])
def test_summary_after_fewer_tasks(tasks, average, forgetting):
    summary = stream_summary([row[:tasks] for row in FOUR_TASKS[:tasks]])
    assert summary["average_accuracy"] == pytest.approx(average, abs=1e-10)
    assert summary["forgetting"] == pytest.approx(forgetting, abs=1e-10)


def test_without_sizes_all_tasks_weigh_the_same():
    assert stream_summary(FOUR_TASKS)["average_incremental_accuracy"] == pytest.approx(84.24, abs=1e-10)


def test_only_forward_transfer_reads_above_the_diagonal():
    whole = stream_summary(FOUR_TASKS, SIZES, baseline=[10, 11, 9, 10.5])
    half = stream_summary(torch.tensor(lower(FOUR_TASKS), dtype=torch.float64), SIZES, baseline=[10, 11, 9, 10.5])
    assert math.isnan(half.pop("forward_transfer"))
    whole.pop("forward_transfer")
    assert half == whole


def test_forms_of_forgetting_differ_where_a_task_gets_better_later():
    summary = stream_summary([[50, NAN, NAN], [55, 60, NAN], [58, 59, 70]])
    assert summary["forgetting"] == pytest.approx(-1.0)
    assert summary["forgetting_clipped"] == pytest.approx(0.5)
    assert summary["backward_transfer"] == pytest.approx(3.5)


def test_what_one_task_leaves_undefined_is_nan():
    summary = stream_summary([[80.0]], baseline=[10.0])
    assert summary["average_accuracy"] == summary["average_incremental_accuracy"] == summary["learning_accuracy"] == 80
    assert all(math.isnan(summary[name]) for name in NEED_OTHER_TASKS)


def test_one_common_test_set():
    summary = stream_summary([[60.0], [70.0], [65.0]], test_sizes=[45])
    assert summary["average_accuracy"] == 65
    assert summary["average_incremental_accuracy"] == 65
    assert all(math.isnan(summary[name]) for name in (*NEED_OTHER_TASKS, "learning_accuracy"))


def test_task_without_test_images_is_left_out():
    matrix = lower(FOUR_TASKS)
    for row in matrix:
        row[1] = NAN
    with_sizes = stream_summary(matrix, [100, 0, 100, 50])
    assert with_sizes["average_accuracy"] == pytest.approx((72.82 + 79.00 + 84.43) / 3)
    assert with_sizes["average_incremental_accuracy"] == pytest.approx(
        (90 + 90 * 0 + 84.28 + (77.44 + 88.98) / 2 + (7282 + 7900 + 84.43 * 50) / 250) / 4
    )
    assert with_sizes["forgetting"] == pytest.approx((90 - 72.82 + 88.98 - 79.00) / 2)
    assert with_sizes["step_forgetting"] == pytest.approx(
        (90 - 84.28 + 84.28 - 77.44 + (77.44 - 72.82 + 88.98 - 79.00) / 2) / 3
    )
    assert stream_summary(matrix)["learning_accuracy"] == pytest.approx((90 + 88.98 + 84.43) / 3)


def test_an_entry_that_was_not_measured_is_not_averaged_over():
    matrix = lower(FOUR_TASKS)
    matrix[2][0] = NAN
    summary = stream_summary(matrix)
    assert math.isnan(summary["average_incremental_accuracy"])
    assert math.isnan(summary["forgetting"])
    assert summary["average_accuracy"] == pytest.approx(77.915)
    assert summary["backward_transfer"] == pytest.approx(-12.9133333333)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1.0, 2.0]],), r"shape \(1, 2\)"),
        (([],), "shape"),
        (([[101.0]],), "from 0 to 100"),
        (([[50.0]], [1, 2]), "test_sizes has 2 values for 1 columns"),
        (([[50.0]], None, [1, 2]), "baseline has 2 values"),
    ],
)
def test_bad_arguments_of_the_summary(arguments, message):
    with pytest.raises(ValueError, match=message):
        stream_summary(*arguments)


SCORES = torch.tensor([[3.0, 2.0, 1.0, -torch.inf], [0.0, 5.0, 1.0, -torch.inf], [4.0, 0.0, 1.0, -torch.inf]])


def test_task_accuracy_with_and_without_the_task_known():
    metric = TaskAccuracy()
    metric.update(SCORES, torch.tensor([0, 1, 0]), task=0, classes=range(0, 2))
    metric.update(SCORES, torch.tensor([2, 2, 3]), task=1, classes=range(2, 4))
    values = {name: value.item() for name, value in metric.compute().items()}
    assert values == pytest.approx(
        {"task00/acc": 1, "task00/acc_task_known": 1, "task01/acc": 0, "task01/acc_task_known": 2 / 3, "acc": 1 / 2}
    )


def test_task_accuracy_is_pooled_over_images_not_tasks():
    metric = TaskAccuracy()
    metric.update(SCORES, torch.tensor([0, 1, 0]), task=0)
    metric.update(SCORES[:1], torch.tensor([1]), task=2)
    metric.update(SCORES[:0], torch.tensor([], dtype=torch.int64), task=1)
    values = {name: value.item() for name, value in metric.compute().items()}
    assert values == {"task00/acc": 1, "task02/acc": 0, "acc": 0.75}


def test_reset_forgets_the_tasks():
    metric = TaskAccuracy()
    metric.update(SCORES, torch.tensor([0, 1, 0]), task=3, classes=range(0, 2))
    metric.compute()
    metric.reset()
    assert len(metric.total) == 0
    metric.update(SCORES, torch.tensor([1, 1, 0]), task=0)
    assert set(metric.compute()) == {"task00/acc", "acc"}
    assert metric.compute()["acc"].item() == pytest.approx(2 / 3)


def test_an_image_without_any_score_is_wrong():
    metric = TaskAccuracy()
    metric.update(torch.full((1, 3), -torch.inf), torch.tensor([0]), task=0, classes=range(0, 1))
    metric.update(torch.tensor([[torch.nan, 0.0]]), torch.tensor([0]), task=0)
    assert metric.compute()["acc"] == 0
    assert metric.compute()["task00/acc_task_known"] == 0


def test_forward_gives_the_batch_and_keeps_the_sum():
    metric = TaskAccuracy()
    metric.update(SCORES, torch.tensor([0, 1, 0]), task=1)
    assert metric(SCORES[:1], torch.tensor([1]), task=0) == {"task00/acc": 0, "acc": 0}
    assert metric.compute()["acc"] == 0.75


@pytest.mark.parametrize(
    ("scores", "labels", "task", "classes", "message"),
    [
        (SCORES, torch.tensor([0]), 0, None, r"\(3, 4\) and labels of shape \(1,\)"),
        (SCORES[0], torch.tensor([0]), 0, None, r"must be \(B, C\)"),
        (SCORES, torch.tensor([0, 1, 0]), -1, None, "task=-1"),
        (SCORES, torch.tensor([0, 1, 0]), 0, range(2, 6), r"range\(2, 6\) is not a range of the 4 classes"),
        (SCORES, torch.tensor([0, 1, 0]), 0, range(0), "is not a range"),
    ],
)
def test_bad_batches(scores, labels, task, classes, message):
    with pytest.raises(ValueError, match=message):
        TaskAccuracy().update(scores, labels, task, classes)


def test_states_of_an_evaluation_can_be_used_after_it():
    accuracy, matrix = TaskAccuracy(), AccuracyMatrix(1)
    with torch.inference_mode():
        accuracy.update(SCORES, torch.tensor([0, 1, 0]), task=0)
        matrix.reset()
        matrix.update(SCORES, torch.tensor([0, 1, 0]), 0, 0)
    accuracy.update(SCORES, torch.tensor([1, 0, 1]), task=0)
    matrix.update(SCORES, torch.tensor([1, 0, 1]), 0, 0)
    assert accuracy.compute()["acc"] == 0.5
    assert matrix.compute() == 50


class CountsInTwoProcesses(LightningModule):
    def __init__(self, folder):
        super().__init__()
        self.folder, self.accuracy, self.matrix = folder, TaskAccuracy(), AccuracyMatrix(2)

    def validation_step(self, batch, batch_idx):
        rank, labels = self.global_rank, torch.tensor([0, 1, 1])
        mine = slice(0, 2) if rank == 0 else slice(2, 3)
        self.accuracy.update(SCORES[mine], labels[mine], task=0, classes=range(0, 2))
        self.matrix.update(SCORES[mine], labels[mine], trained=0, task=0)
        if rank == 0:  # the second process has no image of the second task
            self.accuracy.update(SCORES[:1], torch.tensor([0]), task=1)

    def on_validation_epoch_end(self):
        values = {name: value.item() for name, value in self.accuracy.compute().items()}
        entry = self.matrix.compute()[0, 0].item()
        self.accuracy.update(SCORES[:1], torch.tensor([1]), task=0)  # goes on with this process's own counts
        saved = self.matrix.state_dict()["counts"][1, 0, 0].item()
        torch.save((values, entry, saved, self.accuracy.total.tolist()), self.folder / f"{self.global_rank}.pt")


def test_two_processes_with_unequal_shares(tmp_path):
    trainer = Trainer(
        accelerator="cpu", strategy="ddp_fork", devices=2, logger=False, enable_progress_bar=False, limit_val_batches=1
    )
    trainer.validate(CountsInTwoProcesses(tmp_path), DataLoader(range(2)), verbose=False)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    expected = {"task00/acc": 2 / 3, "task00/acc_task_known": 2 / 3, "task01/acc": 1, "acc": 3 / 4}
    assert first[0] == second[0] == pytest.approx(expected)
    assert first[1] == second[1] == pytest.approx(200 / 3)
    assert first[2] == second[2] == 3  # so the file of process 0 knows the images of both
    assert (first[3], second[3]) == ([3, 1], [2])


def test_matrix_entries_and_what_was_not_tested():
    matrix = AccuracyMatrix(num_tasks=2)
    matrix.update(SCORES, torch.tensor([0, 1, 1]), trained=0, task=0)
    matrix.update(torch.tensor([1, 1]), torch.tensor([1, 0]), trained=1, task=0)
    torch.testing.assert_close(
        matrix.compute(), torch.tensor([[200 / 3, torch.nan], [50.0, torch.nan]]), equal_nan=True
    )
    matrix.reset()
    assert matrix.compute().isnan().all()


def test_a_second_evaluation_replaces_the_first():
    matrix = AccuracyMatrix(num_tasks=2)
    matrix.update(torch.tensor([0]), torch.tensor([1]), 0, 0)
    matrix.update(torch.tensor([0]), torch.tensor([0]), 1, 0)
    assert matrix.compute()[:, 0].tolist() == [0, 100]
    matrix.update(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 1, 0]), 0, 0)
    assert matrix.compute()[:, 0].tolist() == [75, 100]


def test_forward_of_the_matrix_goes_on_counting():
    matrix = AccuracyMatrix(num_tasks=1)
    assert matrix(torch.tensor([0]), torch.tensor([1]), 0, 0) == 0
    assert matrix(torch.tensor([0]), torch.tensor([0]), 0, 0) == 50


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrix_survives_a_checkpoint(tmp_path, dtype):
    class Holder(torch.nn.Module):
        def __init__(self, num_tasks=2):
            super().__init__()
            self.matrix = AccuracyMatrix(num_tasks)

    before, after = Holder().to(dtype), Holder()
    before.matrix.update(torch.arange(1000) % 3, torch.arange(1000) % 2, 0, 0)
    row = before.matrix.compute()[0, 0].item()
    torch.save(before.state_dict(), tmp_path / "file.ckpt")
    after.load_state_dict(torch.load(tmp_path / "file.ckpt", weights_only=True))
    after.matrix.update(torch.tensor([0]), torch.tensor([0]), 1, 1)
    assert after.matrix.compute()[0, 0].item() == row == pytest.approx(33.4)
    assert after.matrix.compute()[1, 1] == 100
    with pytest.raises(RuntimeError, match="size mismatch"):
        Holder(3).load_state_dict(before.state_dict())


@pytest.mark.parametrize(("trained", "task", "name"), [(2, 0, "trained=2"), (0, 2, "task=2"), (-1, 0, "trained=-1")])
def test_matrix_refuses_a_task_it_has_no_place_for(trained, task, name):
    with pytest.raises(ValueError, match=f"{name}; with num_tasks=2 it is 0 to 1"):
        AccuracyMatrix(2).update(SCORES, torch.tensor([0, 1, 0]), trained, task)


def test_logged_by_a_module_in_a_trainer():
    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.accuracy = TaskAccuracy()

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.accuracy.update(torch.eye(3)[batch], (batch + dataloader_idx) % 3, dataloader_idx, range(3))

        def on_validation_epoch_end(self):
            self.log_dict({f"val/{name}": value for name, value in self.accuracy.compute().items()})
            self.accuracy.reset()

    trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    (values,) = trainer.validate(Module(), [DataLoader(range(3)), DataLoader(range(1))], verbose=False)[:1]
    assert values["val/acc"] == 0.75
    assert (values["val/task00/acc"], values["val/task01/acc_task_known"]) == (1, 0)
