"""The calendar of a task stream."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.functional import seed_all

UNSET_MAX_EPOCHS = 1000  # what Lightning makes of Trainer(max_epochs=None)


class TaskLoop(Callback):
    """Run a stream of tasks as one ``trainer.fit``.

    It sets the number of epochs, reloads the loaders at each epoch, seeds each epoch from (seed, epoch, process),
    calls ``on_task_start(task)`` and ``on_task_end(task)`` of the module where it has them, renews optimizer and
    schedule after each ``on_task_start``, and lets validation run at the end of each task, after ``on_task_end``. It
    holds no state: all follows from the current epoch, so a run that was killed and is resumed ends as one that was
    not. An interrupted epoch restarts; do not checkpoint in the middle of one (``every_n_train_steps``).

    Put it first in the list of callbacks: weight averaging must see what ``on_task_end`` wrote. Add a
    ``ModelCheckpoint(save_last=True, save_on_train_epoch_end=True)``; with Lightning's default a file is written only
    after a validation, so once a task.

    It expects a datamodule that says which epoch is which task (``zoo.datamodules.TaskStream``): ``num_epochs``,
    ``seed``, ``task``, ``starts_task()`` and ``ends_task()``.

    Raises:
        ValueError: If the datamodule is no stream, or ``max_epochs`` or ``max_steps`` of the Trainer do not
            fit it.
    """

    def __init__(self) -> None:
        self._calendar: tuple[int, int | None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the Trainer against the stream and take over its calendar."""
        if stage != "fit":
            return
        stream: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by fit
        if not hasattr(stream, "starts_task"):
            raise ValueError(
                f"TaskLoop needs a stream such as ClassIncrementalDataModule, got {type(stream).__name__}. Leave "
                "TaskLoop out to train on one data set."
            )
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            if trainer.max_steps != -1:
                raise ValueError(
                    f"max_steps={trainer.max_steps} would end the stream in the middle of a task; remove it."
                )
            if trainer.max_epochs not in (stream.num_epochs, UNSET_MAX_EPOCHS):
                raise ValueError(
                    f"max_epochs={trainer.max_epochs} does not fit the stream, which has {stream.num_epochs} epochs in "
                    f"{stream.num_tasks} tasks. Use max_epochs={stream.num_epochs} or leave it out, and set the "
                    "datamodule's epochs_per_task."
                )
            trainer.fit_loop.max_epochs = stream.num_epochs
        self._calendar = (
            trainer.reload_dataloaders_every_n_epochs,  # type: ignore[attr-defined]
            trainer.check_val_every_n_epoch,
        )
        trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to go on in the middle of an epoch, which no loader can do exactly.

        Raises:
            ValueError: If the run is resumed from such a checkpoint.
        """
        if trainer.fit_loop.restarted_mid_epoch:
            raise ValueError(
                "The checkpoint was saved in the middle of an epoch, and a stream resumes at the start of one. Use a "
                "checkpoint of ModelCheckpoint(save_last=True, save_on_train_epoch_end=True), without "
                "every_n_train_steps."
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed the epoch; at the start of a task tell the module and renew the optimizer."""
        stream: Any = trainer.datamodule  # type: ignore[attr-defined]
        # Lightning validates after an epoch if (epoch + 1) is a multiple of this number.
        trainer.check_val_every_n_epoch = trainer.current_epoch + (1 if stream.ends_task() else 2)
        seed_all(stream.seed, trainer.current_epoch, trainer.global_rank)
        if stream.starts_task():
            call_hook(pl_module, "on_task_start", stream.task)  # may change which parameters train
            trainer.strategy.setup_optimizers(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the task at its last batch: validation runs before Lightning's own hooks of the epoch's end."""
        stream: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_last_batch and stream.ends_task():
            call_hook(pl_module, "on_task_end", stream.task)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the Trainer its own calendar back."""
        if self._calendar is not None:
            trainer.reload_dataloaders_every_n_epochs, trainer.check_val_every_n_epoch = self._calendar  # type: ignore[attr-defined]
            self._calendar = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Undo as after a fit: Lightning does not call ``teardown`` after an exception."""
        self.teardown(trainer, pl_module, "fit")


def call_hook(pl_module: LightningModule, name: str, task: Any) -> None:
    """Call a task hook of a module that has it."""
    hook = getattr(pl_module, name, None)
    if hook is not None:
        hook(task)
