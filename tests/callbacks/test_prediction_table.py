"""One row an image, in the order of the data, from one process or two."""

import csv

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from zoo.callbacks import PredictionTable


class Doubler(L.LightningModule):
    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        values = batch[0]
        return {"scores": torch.rand(len(values), 3), "twice": values * 2, "name": [f"n{int(v)}" for v in values]}


@pytest.mark.parametrize("devices", [1, 2])
def test_table(tmp_path, devices) -> None:
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp_fork" if devices > 1 else "auto", logger=False,
        enable_progress_bar=False, callbacks=[PredictionTable(tmp_path)],
    )  # fmt: skip
    loader = DataLoader(TensorDataset(torch.arange(7)), batch_size=2)
    trainer.predict(Doubler(), loader, return_predictions=False)
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert [row["image"] for row in rows] == [str(i) for i in range(7)]
    assert [row["twice"] for row in rows] == [str(2 * i) for i in range(7)]
    assert [row["name"] for row in rows] == [f"n{i}" for i in range(7)]
    assert "scores" not in rows[0]
