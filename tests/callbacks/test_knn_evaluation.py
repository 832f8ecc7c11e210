"""The weighted nearest-neighbour accuracy, against one worked out image by image."""

import json
import math
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from zoo.callbacks import KNNEvaluation, knn_evaluation
from zoo.callbacks.knn_evaluation import share
from zoo.datamodules import ClassificationDataModule
from zoo.datamodules.sources import Synthetic

CLASSES, TRAIN, VAL = 3, 23, 11  # neither number of images can be shared by two processes


def images_of(seed, number):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % CLASSES
    return TensorDataset(torch.randn(number, 4, generator=generator) + 0.7 * nn.functional.one_hot(labels, 4), labels)


BANK, QUERIES = images_of(1, TRAIN), images_of(2, VAL)


def module_of(base, validates=True):
    class Module(base.LightningModule):
        """Pretrains with noise on two parts, one of which is the encoder."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.encoder = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
            self.head = nn.Linear(4, 4).eval()

        def training_step(self, batch, batch_idx):
            return (self.head(self.encoder(batch[0])) - batch[0]).square().mean()

        if validates:

            def validation_step(self, batch, batch_idx):
                self.log("val/loss", self.training_step(batch, batch_idx))

            test_step = validation_step

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def data_of(base):
    class Data(base.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(BANK, batch_size=5, shuffle=True)

        def plain_train_dataloader(self):
            return DataLoader(BANK, batch_size=5, shuffle=True)

        def val_dataloader(self):
            return DataLoader(QUERIES, batch_size=4)

        test_dataloader = val_dataloader

    return Data()


def trainer_of(base, *callbacks, **kwargs):
    settings = {
        "accelerator": "cpu", "max_epochs": 2, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "enable_checkpointing": False,
    }  # fmt: skip
    return base.Trainer(callbacks=list(callbacks), **{**settings, **kwargs})


def brute_force(encoder, k, temperature, bank=BANK, queries=QUERIES):
    """Vote image by image."""
    encoder = encoder.eval()
    with torch.no_grad():
        bank_features, features = encoder(bank[:][0]), encoder(queries[:][0])
    right = 0
    for feature, label in zip(features, queries[:][1].tolist(), strict=True):
        found = [(float(nn.functional.cosine_similarity(feature, other, dim=0)), int(y))
                 for other, y in zip(bank_features, bank[:][1], strict=True)]  # fmt: skip
        votes = [0.0] * CLASSES
        for similarity, y in sorted(found, reverse=True)[:k]:
            votes[y] += math.exp(similarity / temperature)
        right += votes.index(max(votes)) == label
    return right / len(features)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (5, 1.0), (20, 0.01), (500, 0.5)])
def test_it_is_what_images_vote_one_by_one(k, temperature, monkeypatch):
    monkeypatch.setattr(knn_evaluation, "ROWS", 3)
    module = module_of(L)
    trainer = trainer_of(L, KNNEvaluation("encoder", k=k, temperature=temperature))
    trainer.fit(module, data_of(L))
    expected = brute_force(module.encoder, k, temperature)
    assert 0.3 < expected < 1
    assert trainer.callback_metrics["val/knn"].item() == pytest.approx(expected)


def test_a_small_temperature_does_not_overflow():
    module = module_of(L)
    trainer = trainer_of(L, KNNEvaluation("encoder", k=9, temperature=1e-4))
    trainer.validate(module, data_of(L), verbose=False)
    # The nearest one outvotes all others.
    assert trainer.callback_metrics["val/knn"].item() == pytest.approx(brute_force(module.encoder, 1, 1.0))


@pytest.mark.parametrize("devices", [1, 2])
def test_processes_share_the_work_and_agree_on_the_result(devices, tmp_path):
    class Write(L.Callback):
        def on_train_end(self, trainer, pl_module):
            value = trainer.callback_metrics["val/knn"].item()
            result = {"measured": value, "expected": brute_force(pl_module.encoder, 5, 0.07)}
            (tmp_path / str(trainer.global_rank)).write_text(json.dumps(result))

    strategy = "ddp_fork" if devices > 1 else "auto"
    trainer = trainer_of(L, KNNEvaluation("encoder", k=5), Write(), devices=devices, strategy=strategy)
    trainer.fit(module_of(L), data_of(L))  # Lightning's sampler would repeat an image
    for rank in range(devices):
        result = json.loads((tmp_path / str(rank)).read_text())
        assert result["measured"] == pytest.approx(result["expected"])


@pytest.mark.parametrize("largest", [None, 10])
def test_shares_are_all_images_once(largest):
    loaders = [DataLoader(BANK, 4, shuffle=True), DataLoader(QUERIES)]
    parts = [share(loaders, SimpleNamespace(global_rank=rank, world_size=3), largest) for rank in range(3)]
    chosen = [index for part in parts for index in part.dataset.indices]
    assert len(chosen) == len(set(chosen)) == (largest or TRAIN + VAL)
    read = torch.cat([labels for _, labels in parts[1]])
    assert torch.equal(read, torch.cat([BANK[:][1], QUERIES[:][1]])[parts[1].dataset.indices])


@pytest.mark.parametrize("validates", [True, False])
def test_training_goes_on_as_if_nothing_had_been_measured(validates):
    def fit(*callbacks):
        module = module_of(L, validates)
        torch.manual_seed(3)
        trainer = trainer_of(L, *callbacks, max_epochs=3)
        trainer.fit(module, data_of(L))
        return module, trainer

    with_it, trainer = fit(KNNEvaluation("encoder", features=lambda module, x: module.encoder(x) + 0 * torch.rand(1)))
    without, _ = fit()
    torch.testing.assert_close(with_it.state_dict(), without.state_dict(), rtol=0, atol=0)
    assert with_it.encoder.training
    assert not with_it.head.training
    assert trainer.callback_metrics["val/knn"].item() == pytest.approx(brute_force(with_it.encoder, 20, 0.07))


def test_hooks_that_change_training_batches_stay_away():
    """Where nothing is validated, the Trainer would say that it trains."""

    class Augmented(type(module_of(L, validates=False))):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return [torch.zeros_like(batch[0]), batch[1]] if self.trainer.training else batch

    module = Augmented()
    trainer = trainer_of(L, KNNEvaluation("encoder", k=5), max_epochs=1)
    trainer.fit(module, data_of(L))
    assert module.encoder.training
    assert trainer.callback_metrics["val/knn"].item() == pytest.approx(brute_force(module.encoder, 5, 0.07))


def test_explicit_loaders_and_part_of_the_bank():
    few = TensorDataset(*QUERIES[:6])
    knn = KNNEvaluation("encoder", 3, bank=DataLoader(BANK, 7), queries=DataLoader(few, 2), max_bank=10)
    module = module_of(L)
    trainer = trainer_of(L, knn)
    trainer.fit(module, DataLoader(BANK, 5), DataLoader(QUERIES, 5))
    chosen = share([knn.bank], trainer, largest=10).dataset.indices
    assert len(set(chosen)) == 10
    assert chosen == share([knn.bank], trainer, largest=10).dataset.indices
    expected = brute_force(module.encoder, 3, 0.07, TensorDataset(*BANK[chosen]), few)
    assert trainer.callback_metrics["val/knn"].item() == pytest.approx(expected)


def test_several_loaders_count_together():
    halves = [DataLoader(TensorDataset(*QUERIES[:4]), 3), DataLoader(TensorDataset(*QUERIES[4:]), 3)]
    module = module_of(L)
    trainer = trainer_of(L, KNNEvaluation("encoder", 3, bank=DataLoader(BANK, 7), queries=halves))
    trainer.fit(module, DataLoader(BANK, 5), DataLoader(QUERIES, 5))
    assert trainer.callback_metrics["val/knn"].item() == pytest.approx(brute_force(module.encoder, 3, 0.07))


def test_epochs_between_are_left_out_and_the_last_is_measured():
    measured = []

    class Watch(KNNEvaluation):
        def _measure(self, trainer, pl_module):
            measured.append(trainer.current_epoch)

    trainer_of(L, Watch("encoder", every_n_epochs=2), max_epochs=5).fit(module_of(L), data_of(L))
    trainer_of(L, Watch("encoder", every_n_epochs=3), max_epochs=4).fit(module_of(L, validates=False), data_of(L))
    assert measured == [1, 3, 4, 2, 3]


def test_splits_of_a_datamodule_of_zoo(tmp_path):
    class Pixels(L.LightningModule):
        def test_step(self, batch, batch_idx): ...

        validation_step = test_step

    data = ClassificationDataModule(Synthetic(num_classes=3, image_size=4), evaluate="test", batch_size=4)
    knn = KNNEvaluation(features=lambda module, images: images.flatten(1), k=1)
    trainer = trainer_of(L, knn)
    trainer.validate(Pixels(), data, verbose=False)
    fresh = ClassificationDataModule(Synthetic(num_classes=3, image_size=4), batch_size=4)
    tested = trainer_of(L, knn)
    tested.test(Pixels(), fresh, verbose=False)
    data.setup("fit")
    bank, queries = ([torch.cat(parts) for parts in zip(*loader, strict=True)]
                     for loader in (data.plain_train_dataloader(), data.test_dataloader()))  # fmt: skip
    bank[0], queries[0] = bank[0].flatten(1), queries[0].flatten(1)
    expected = brute_force(nn.Identity(), 1, 0.07, TensorDataset(*bank), TensorDataset(*queries))
    assert trainer.callback_metrics["test/knn"].item() == pytest.approx(expected)
    assert "test/knn" in tested.callback_metrics


def test_in_a_trainer_of_pytorch_lightning():
    base = pytest.importorskip("pytorch_lightning")
    module = module_of(base)
    trainer = trainer_of(base, KNNEvaluation("encoder", k=5))
    trainer.fit(module, datamodule=data_of(base))
    assert trainer.callback_metrics["val/knn"].item() == pytest.approx(brute_force(module.encoder, 5, 0.07))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"k": 0}, "k=0"), ({"temperature": 0.0}, "temperature=0.0"), ({"max_bank": 0}, "max_bank=0"),
     ({"every_n_epochs": 0}, "every_n_epochs=0")],
)  # fmt: skip
def test_numbers_that_mean_nothing(arguments, message):
    with pytest.raises(ValueError, match=message):
        KNNEvaluation(**arguments)


def test_what_is_missing_is_named():
    with pytest.raises(AttributeError, match="no part 'backbone'; it has encoder, head"):
        trainer_of(L, KNNEvaluation()).fit(module_of(L), data_of(L))
    with pytest.raises(ValueError, match=r"no plain_train_dataloader\(\).*KNNEvaluation\(bank=\.\.\.\)"):
        trainer_of(L, KNNEvaluation("encoder")).fit(module_of(L), DataLoader(BANK, 5), DataLoader(QUERIES, 5))
    with pytest.raises(ValueError, match=r"KNNEvaluation\(queries=\.\.\.\)"):
        trainer_of(L, KNNEvaluation("encoder")).fit(module_of(L), DataLoader(BANK, 5))
    with pytest.raises(ValueError, match=r"got \(4, 4, 1\)"):
        trainer_of(L, KNNEvaluation(features=lambda module, x: x[..., None])).fit(module_of(L), data_of(L))
