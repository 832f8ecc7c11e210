"""A progress bar that says which task of a stream is running."""

from typing import Any

from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import ProgressColumn, Task
from rich.text import Text


class TaskColumn(ProgressColumn):
    """A column that shows a text which changes from task to task."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def render(self, task: Task) -> Text:
        """Return the text."""
        return Text(self.text)


class StreamProgressBar(RichProgressBar):
    """Lightning's rich progress bar with ``task 3/5`` before the epoch, and without the version of the logger.

    The datamodule is asked for ``task``, which has an ``index`` from 0, and ``num_tasks``. Without them, and outside of
    fit, the bar is Lightning's own. Put it in the Trainer's callbacks; it replaces the default bar.

    Args:
        **kwargs: Of ``RichProgressBar``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.task_column = TaskColumn()

    def configure_columns(self, trainer: Any) -> list[Any]:
        """Return Lightning's columns, behind that of the task where there is one."""
        columns: list[Any] = super().configure_columns(trainer)
        self.task_column.text = name_task(trainer)
        return [self.task_column, *columns] if self.task_column.text else columns

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Name the task of this epoch."""
        self.task_column.text = name_task(trainer)
        super().on_train_epoch_start(trainer, pl_module)

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        """Return what is shown behind the bar."""
        items: dict[str, Any] = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        return items


def name_task(trainer: Any) -> str:
    """Return ``task 3/5`` while a stream is fitted, else nothing."""
    index = getattr(getattr(trainer.datamodule, "task", None), "index", None)
    total = getattr(trainer.datamodule, "num_tasks", None)
    if index is None or total is None or trainer.state.fn != "fit":
        return ""
    return f"task {index + 1}/{total}"
