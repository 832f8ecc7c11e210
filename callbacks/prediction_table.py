"""Predictions as a table that any program reads."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from zoo.functional import write_atomically


class PredictionTable(BasePredictionWriter):
    """Write ``predictions.csv`` after ``trainer.predict``: one row an image, in the order of the data.

    It expects ``predict_step`` to return a dict of sequences or tensors, one entry an image, such as ``label`` and
    ``class_name``; entries with more than one number an image (scores) are left out. The column ``image`` is the
    position in the data. Under several processes the first one writes the rows of all.

    Args:
        folder: Where to write.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(write_interval="epoch")
        self.folder = Path(folder)

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Gather and write the table."""
        rows: list[dict[str, Any]] = []
        positions = [position for batch in _flat(batch_indices) for position in batch]
        for batch in predictions:
            columns = {name: _column(values) for name, values in batch.items()}
            columns = {name: values for name, values in columns.items() if values is not None}
            rows += [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        table = [{"image": position, **row} for position, row in zip(positions, rows, strict=False)]
        if trainer.world_size > 1:
            shares: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(shares, table)
            table = sorted((row for share in shares for row in share), key=lambda row: int(row["image"]))
        if not trainer.is_global_zero:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(table[0]) if table else ["image"])
        writer.writeheader()
        writer.writerows(table)
        write_atomically(self.folder / "predictions.csv", text.getvalue())


def _column(values: Any) -> list[Any] | None:
    """Return one plain value an image, or None where there are several."""
    if hasattr(values, "ndim"):
        return values.tolist() if values.ndim == 1 else None
    return list(values)


def _flat(batch_indices: Sequence[Any]) -> list[list[int]]:
    """Return the positions of each batch; Lightning nests them once more if there are several loaders."""
    if batch_indices and batch_indices[0] and isinstance(batch_indices[0][0], list):
        return [batch for loader in batch_indices for batch in loader]
    return list(batch_indices)
