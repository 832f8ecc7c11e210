"""An epoch draws what it draws, whatever came before."""

import random

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from zoo.callbacks import SeedEpochs


def module_of(base):
    class Module(base.LightningModule):
        """Trains with dropout, so that every random number matters."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 1))
            self.draws = []

        def on_train_epoch_start(self):
            self.draws.append((random.random(), np.random.rand(), torch.rand(()).item()))

        def training_step(self, batch, batch_idx):
            return self.network(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01)

        def train_dataloader(self):
            return DataLoader(TensorDataset(torch.arange(24.0).view(6, 4)), batch_size=2, generator=torch.Generator())

    return Module()


class Kill(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt


def fit(folder, *callbacks, base=L, resume=False, **kwargs):
    module = module_of(base)
    saver = base.callbacks.ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=True)
    base.Trainer(
        accelerator="cpu", max_epochs=4, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[*callbacks, saver], **kwargs,
    ).fit(module, ckpt_path=folder / "last.ckpt" if resume else None)  # fmt: skip
    return module


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_killed_and_resumed_run_is_bitwise_the_same(tmp_path, package):
    base = pytest.importorskip(package)
    unbroken = fit(tmp_path / "unbroken", SeedEpochs(3), base=base)
    with pytest.raises(SystemExit):
        fit(tmp_path / "killed", SeedEpochs(3), Kill(), base=base)
    torch.rand(5)  # another process would stand anywhere
    resumed = fit(tmp_path / "killed", SeedEpochs(3), base=base, resume=True)
    assert resumed.draws == unbroken.draws[2:]
    torch.testing.assert_close(resumed.state_dict(), unbroken.state_dict(), rtol=0, atol=0)
    other = fit(tmp_path / "other", SeedEpochs(4), base=base)
    assert not torch.equal(other.network[0].weight, unbroken.network[0].weight)


def test_without_it_the_two_differ(tmp_path):
    """Else the test above would prove nothing."""
    unbroken = fit(tmp_path / "unbroken")
    with pytest.raises(SystemExit):
        fit(tmp_path / "killed", Kill())
    resumed = fit(tmp_path / "killed", resume=True)
    assert not torch.equal(resumed.network[0].weight, unbroken.network[0].weight)


def test_where_the_seed_comes_from(tmp_path, monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    given = fit(tmp_path, SeedEpochs(0)).draws
    with pytest.raises(ValueError, match=r"no seed.*SeedEpochs\(seed=0\)"):
        fit(tmp_path, SeedEpochs())
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    assert fit(tmp_path, SeedEpochs()).draws == given

    class Data(L.LightningDataModule):
        seed = 5

        def train_dataloader(self):
            return module_of(L).train_dataloader()

    def with_data(*seed):
        module = module_of(L)
        L.Trainer(
            accelerator="cpu", max_epochs=4, logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, callbacks=[SeedEpochs(*seed)],
        ).fit(module, datamodule=Data())  # fmt: skip
        return module.draws

    assert with_data() == fit(tmp_path, SeedEpochs(5)).draws  # before Lightning's
    assert with_data(0) == given  # an argument comes first


def test_processes_draw_differently(tmp_path):
    class Write(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            (tmp_path / f"{trainer.current_epoch}-{trainer.global_rank}").write_text(str(torch.rand(()).item()))

    fit(tmp_path / "saved", SeedEpochs(0), Write(), strategy="ddp_fork", devices=2)
    drawn = [(tmp_path / f"{epoch}-{rank}").read_text() for epoch in range(4) for rank in range(2)]
    assert len(set(drawn)) == 8


def test_a_checkpoint_of_the_middle_of_an_epoch_is_warned_of(tmp_path):
    module = module_of(L)
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    L.Trainer(max_epochs=1, callbacks=[SeedEpochs(0), saver], **settings).fit(module)
    with pytest.warns(UserWarning, match="middle of an epoch, so the rest of that epoch draws other"):
        L.Trainer(max_epochs=1, callbacks=[SeedEpochs(0)], enable_checkpointing=False, **settings).fit(
            module, ckpt_path=tmp_path / "step=2.ckpt"
        )
