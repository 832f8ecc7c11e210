"""The calendar: hooks, epochs, optimizers, validation, and what is left behind."""

import lightning.pytorch as L
import pytest
import torch
from torch import nn


class Diary(L.LightningModule):
    """A stranger's module that writes down what it is told."""

    def __init__(self, num_classes: int = 6, fail_at: int | None = None) -> None:
        super().__init__()
        self.head = nn.Linear(192, num_classes)
        self.entries: list[str] = []
        self.rates: list[float] = []
        self.labels: dict[int, set[int]] = {}
        self.optimizers_made = 0
        self.fail_at = fail_at

    def on_task_start(self, task) -> None:
        self.entries.append(f"start {task.index} {task.classes} x{task.epochs} of {task.steps_per_epoch}")

    def on_task_end(self, task) -> None:
        self.entries.append(f"end {task.index}")

    def training_step(self, batch, batch_idx):
        if self.current_epoch == self.fail_at:
            raise RuntimeError("out of luck")
        self.labels.setdefault(self.current_epoch, set()).update(batch[1].tolist())
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return nn.functional.cross_entropy(self.head(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch, batch_idx, dataloader_idx=0) -> None:
        if batch_idx == 0:
            self.entries.append(f"validate {dataloader_idx}")

    def configure_optimizers(self):
        self.optimizers_made += 1
        optimizer = torch.optim.AdamW(self.parameters(), lr=1.0)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]


def test_hooks_come_in_order_and_validation_after_the_end_of_a_task(stream, trainer) -> None:
    diary = Diary()
    trainer(num_sanity_val_steps=0).fit(diary, stream(epochs_per_task=[1, 3, 2]))
    assert diary.entries == [
        "start 0 range(0, 2) x1 of 3", "end 0", "validate 0",
        "start 1 range(2, 4) x3 of 3", "end 1", "validate 0", "validate 1",
        "start 2 range(4, 6) x2 of 3", "end 2", "validate 0", "validate 1", "validate 2",
    ]  # fmt: skip
    tasks = [{0, 1}, {2, 3}, {2, 3}, {2, 3}, {4, 5}, {4, 5}]
    assert diary.labels == dict(enumerate(tasks))


def test_optimizer_and_schedule_are_new_for_each_task(stream, trainer) -> None:
    diary = Diary()
    trainer().fit(diary, stream(epochs_per_task=[1, 3, 2]))
    assert diary.optimizers_made == 4  # one that Lightning makes before the first task, and one a task
    assert diary.rates[::3] == [1.0, 1.0, 0.5, 0.25, 1.0, 0.5]


def test_trainer_gets_its_own_calendar_back(stream, trainer) -> None:
    fit = trainer(check_val_every_n_epoch=3, reload_dataloaders_every_n_epochs=0)
    fit.fit(Diary(), stream())
    assert (fit.check_val_every_n_epoch, fit.reload_dataloaders_every_n_epochs) == (3, 0)
    fit = trainer(check_val_every_n_epoch=3)
    with pytest.raises(RuntimeError, match="out of luck"):
        fit.fit(Diary(fail_at=1), stream())
    assert (fit.check_val_every_n_epoch, fit.reload_dataloaders_every_n_epochs) == (3, 0)


def test_same_trainer_twice(stream, trainer) -> None:
    first, second = Diary(), Diary()
    trainer().fit(first, stream())
    trainer().fit(second, stream())
    assert first.entries == second.entries


def test_numbers_of_epochs_that_do_not_fit_are_refused(stream, trainer) -> None:
    trainer(max_epochs=3).fit(Diary(), stream())
    with pytest.raises(ValueError, match="max_epochs=4 does not fit the stream, which has 3 epochs"):
        trainer(max_epochs=4).fit(Diary(), stream())
    with pytest.raises(ValueError, match="max_steps=7"):
        trainer(max_steps=7).fit(Diary(), stream())


def test_needs_a_stream_and_a_stream_needs_it(stream, trainer) -> None:
    with pytest.raises(ValueError, match="TaskLoop needs a stream"):
        trainer().fit(Diary(), torch.utils.data.DataLoader([]))
    with pytest.raises(ValueError, match="A stream needs the callback TaskLoop"):
        trainer(callbacks=[], enable_checkpointing=False, max_epochs=3).fit(Diary(), stream())


def test_checkpoint_inside_an_epoch_is_refused(stream, trainer, tmp_path) -> None:
    checkpoint = L.callbacks.ModelCheckpoint(tmp_path / "inside", every_n_train_steps=2, save_top_k=-1)
    trainer(checkpoint).fit(Diary(), stream())
    path = tmp_path / "inside" / "epoch=1-step=4.ckpt"
    with pytest.raises(ValueError, match="middle of an epoch"):
        trainer().fit(Diary(), stream(), ckpt_path=path)


def test_fast_dev_run(stream, trainer) -> None:
    diary = Diary()
    trainer(fast_dev_run=2).fit(diary, stream())
    assert diary.entries == ["start 0 range(0, 2) x1 of 3", "end 0", "validate 0"]


def test_module_without_hooks(stream, trainer) -> None:
    class Plain(Diary):
        on_task_start = None
        on_task_end = None

    plain = Plain()
    trainer(num_sanity_val_steps=0).fit(plain, stream())
    assert plain.entries == ["validate 0", "validate 0", "validate 1", "validate 0", "validate 1", "validate 2"]


def test_upstream_validation_comes_before_the_end_of_the_epoch(stream, trainer) -> None:
    """Why ``on_task_end`` is called at the last batch: Lightning's own hook would come too late."""

    class Late(Diary):
        def on_train_epoch_end(self) -> None:
            self.entries.append("epoch end")

    late = Late()
    trainer(num_sanity_val_steps=0).fit(late, stream())
    assert late.entries[:4] == ["start 0 range(0, 2) x1 of 3", "end 0", "validate 0", "epoch end"]
