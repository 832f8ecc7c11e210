"""EfficientTrain in a stranger's project: what the network sees, what is left behind, the augmentation that grows."""

import time
from collections import namedtuple
from dataclasses import dataclass

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from strangers import IMAGES, LABELS, TWO_BATCHES_AN_EPOCH, Stranger, efficient, loader, make_trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms import v2

from zoo.datamodules import ScheduledRandAugment
from zoo.functional import low_frequency_crop

# What the network sees ---------------------------------------------------------------------------------------------


def test_the_network_sees_the_size_of_the_stage_and_evaluation_whole_images():
    module, trainer = Stranger(), make_trainer(efficient())
    trainer.fit(module, loader(), loader())
    logged = dict(trainer.callback_metrics)
    trainer.test(module, loader(), verbose=False)
    assert module.seen["train"] == TWO_BATCHES_AN_EPOCH
    assert set(module.seen["val"]) == set(module.seen["test"]) == {32}
    assert logged["curriculum/size"] == 32
    assert logged["curriculum/equivalent_epochs"].item() == pytest.approx(3 * (24 / 32) ** 2 + (28 / 32) ** 2 + 1)


def test_the_images_are_the_low_frequency_crops():
    seen = []

    class Recorder(Stranger):
        def training_step(self, batch, batch_idx):
            seen.append(batch[0])
            return super().training_step(batch, batch_idx)

    make_trainer(efficient(), max_epochs=1, limit_train_batches=1).fit(Recorder(), loader())
    assert torch.equal(seen[0], IMAGES[:4])  # one epoch is the last stage
    seen.clear()
    make_trainer(efficient(), limit_train_batches=1).fit(Recorder(), loader())
    assert torch.equal(seen[0], low_frequency_crop(IMAGES[:4], 24))


def test_evaluation_at_the_size_of_the_stage():
    module, trainer = Stranger(), make_trainer(efficient(evaluation="stage"), num_sanity_val_steps=0)
    trainer.fit(module, loader(), loader())
    trainer.test(module, loader(), verbose=False)
    assert module.seen["val"] == TWO_BATCHES_AN_EPOCH
    assert set(module.seen["test"]) == {32}


def as_named_tuple(samples):
    images, labels = torch.utils.data.default_collate(samples)
    return namedtuple("Batch", "labels image")(labels, image=images)


@dataclass
class DataBatch:
    image: torch.Tensor
    label: torch.Tensor


COLLATE = {
    "list": torch.utils.data.default_collate,
    "tuple": lambda samples: tuple(torch.utils.data.default_collate(samples)),
    "named tuple": as_named_tuple,
    "dict": lambda samples: dict(zip("xy", torch.utils.data.default_collate(samples), strict=True)),
    "nested": lambda samples: {
        "a": [{"x": torch.utils.data.default_collate(samples)[0]}, "name"],
        "y": torch.utils.data.default_collate(samples)[1],
    },
    "tensor": lambda samples: torch.utils.data.default_collate(samples)[0],
    "dataclass": lambda samples: DataBatch(*torch.utils.data.default_collate(samples)),
}
UNPACK = {
    "named tuple": lambda batch: (batch.image, batch.labels),
    "dict": lambda batch: (batch["x"], batch["y"]),
    "tensor": lambda batch: (batch, LABELS[:4]),
    "nested": lambda batch: (batch["a"][0]["x"], batch["y"]),
    "dataclass": lambda batch: (batch.image, batch.label),
}


@pytest.mark.parametrize("kind", COLLATE)
def test_whatever_the_batch_is(kind):
    module = Stranger()
    module.unpack = UNPACK.get(kind, lambda batch: batch)
    make_trainer(efficient()).fit(module, loader(COLLATE[kind]))
    assert module.seen["train"] == TWO_BATCHES_AN_EPOCH


@pytest.mark.parametrize("kind", ["dataclass", "named tuple"])
def test_images_by_the_name_of_a_field(kind):
    module = Stranger()
    module.unpack = UNPACK[kind]
    make_trainer(efficient(key="image")).fit(module, loader(COLLATE[kind]))
    assert module.seen["train"] == TWO_BATCHES_AN_EPOCH
    with pytest.raises(ValueError, match="key='picture' is not in the batch"):
        make_trainer(efficient(key="picture")).fit(module, loader(COLLATE[kind]))


def test_images_by_key_and_images_of_other_sizes():
    module = Stranger()
    module.unpack = lambda batch: (batch["x"], batch["y"])

    def collate(samples):
        images, labels = torch.utils.data.default_collate(samples)
        return {"x": images, "y": labels, "mask": (images[:, 0] > 0.5).long(), "thumbnail": images[..., ::4, ::4]}

    make_trainer(efficient(key="x")).fit(module, loader(collate))
    assert module.seen["train"] == TWO_BATCHES_AN_EPOCH
    with pytest.raises(ValueError, match=r"a map of whole numbers .* int64 \(4, 32, 32\).*by key"):
        make_trainer(efficient()).fit(module, loader(collate))
    with pytest.raises(ValueError, match="key='z' is not in the batch, a dict"):
        make_trainer(efficient(key="z")).fit(module, loader(collate))


def test_rectangles_keep_their_shape():
    module = Stranger()
    module.unpack = lambda batch: (batch[0].mT, batch[1])
    wide = DataLoader(TensorDataset(torch.rand(4, 3, 32, 64), LABELS[:4]), batch_size=4)
    make_trainer(efficient()).fit(module, wide)
    assert module.seen["train"] == [24, 24, 24, 28, 32]
    module.unpack, module.seen["train"] = (lambda batch: batch), []
    make_trainer(efficient()).fit(module, wide)
    assert module.seen["train"] == [48, 48, 48, 56, 64]


def test_other_filters_and_none():
    for mode in ("bicubic", "bilinear"):
        module = Stranger()
        make_trainer(efficient(mode=mode)).fit(module, loader())
        assert module.seen["train"] == TWO_BATCHES_AN_EPOCH
    module, trainer = Stranger(), make_trainer(efficient(mode=None))
    trainer.fit(module, loader())
    assert set(module.seen["train"]) == {32}
    assert trainer.callback_metrics["curriculum/equivalent_epochs"] == 5


def test_manual_optimisation_and_autocast():
    class Manual(Stranger):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    module = Manual()
    make_trainer(efficient(), precision="bf16-mixed").fit(module, loader())
    assert module.seen["train"] == TWO_BATCHES_AN_EPOCH


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_half_precision_modules(precision):
    class Half(Stranger):
        def training_step(self, batch, batch_idx):
            assert batch[0].dtype == next(self.parameters()).dtype
            return super().training_step(batch, batch_idx)

    module = Half()
    make_trainer(efficient(), precision=precision).fit(module, loader())
    assert module.seen["train"] == TWO_BATCHES_AN_EPOCH


def test_under_torch_compile():
    module = Stranger()
    compiled = torch.compile(module, backend="eager")
    make_trainer(efficient()).fit(compiled, loader())
    assert module.seen["train"] == TWO_BATCHES_AN_EPOCH


def test_in_a_trainer_of_pytorch_lightning():
    base = pytest.importorskip("pytorch_lightning")

    class Theirs(base.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
            self.sizes = []

        def forward(self, images):
            return self.net(images)

        def training_step(self, batch, batch_idx):
            self.sizes.append(batch[0].shape[-1])
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Theirs()
    trainer = make_trainer(efficient(), base=base)
    trainer.fit(module, loader())
    assert module.sizes == TWO_BATCHES_AN_EPOCH
    assert "batch_to_device" not in vars(trainer.strategy)


def test_after_the_modules_own_hook():
    class WithHook(Stranger):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            assert batch[0].shape[-1] == 32
            return [batch[0] * 0 + 1, batch[1]]

        def training_step(self, batch, batch_idx):
            torch.testing.assert_close(batch[0], torch.ones_like(batch[0]))
            return super().training_step(batch, batch_idx)

    module = WithHook()
    make_trainer(efficient()).fit(module, loader())
    assert module.seen["train"] == TWO_BATCHES_AN_EPOCH


class MaskedAutoencoder(L.LightningModule):
    """A module without labels, whose targets, positions and mask follow the size of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3 * 4 * 4, 8)
        self.decoder = nn.Linear(8, 3 * 4 * 4)
        self.grids: list[int] = []

    def forward(self, images):
        patches = nn.functional.unfold(images, 4, stride=4).mT
        angles = torch.arange(patches.shape[1], device=images.device)[:, None] / torch.tensor(
            [1.0, 10.0, 100.0, 1000.0]
        )
        positions = torch.cat([angles.sin(), angles.cos()], dim=1)
        visible = torch.rand(patches.shape[:2]).argsort(dim=1)[:, : patches.shape[1] // 4, None] == 0
        return nn.functional.mse_loss(self.decoder(self.encoder(patches) + positions), patches) + 0 * visible.sum()

    def training_step(self, images, batch_idx):
        self.grids.append(images.shape[-1] // 4)
        return self(images)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_masked_autoencoder_takes_the_curriculum_of_sizes():
    module = MaskedAutoencoder()
    make_trainer(efficient(augment=False)).fit(module, loader(COLLATE["tensor"]))
    assert module.grids == [6] * 6 + [7] * 2 + [8] * 2


def fit_in_two_processes(folder: str) -> None:
    """Runs in a child process each; what each has seen goes into a file."""
    module = Stranger()
    trainer = make_trainer(efficient(), strategy="ddp_fork", devices=2)

    class Save(L.Callback):
        def on_fit_end(self, trainer, pl_module):
            torch.save(pl_module.seen["train"], f"{folder}/{trainer.global_rank}.pt")

    trainer.callbacks.append(Save())
    trainer.fit(module, loader())


def test_two_processes(tmp_path):
    fit_in_two_processes(str(tmp_path))
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)] == [[24, 24, 24, 28, 32]] * 2


# Where it stands ---------------------------------------------------------------------------------------------------


def test_nothing_is_left_behind_after_a_fit_and_after_an_error():
    callback = efficient()
    trainer = make_trainer(callback)
    trainer.fit(Stranger(), loader())
    assert "batch_to_device" not in vars(trainer.strategy)

    class Fails(Stranger):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("in the step")

    trainer = make_trainer(callback)
    with pytest.raises(RuntimeError, match="in the step"):
        trainer.fit(Fails(), loader())
    assert "batch_to_device" not in vars(trainer.strategy)
    module = Stranger()
    make_trainer(callback).fit(module, loader())  # the same object once more
    assert module.seen["train"] == TWO_BATCHES_AN_EPOCH


@pytest.mark.parametrize("where", ["end of an epoch", "middle of an epoch"])
def test_resumes_in_mid_curriculum(tmp_path, where):
    module = Stranger()
    checkpoints = ModelCheckpoint(
        tmp_path,
        filename="{epoch}-{step}",
        save_top_k=-1,
        every_n_train_steps=1 if where == "middle of an epoch" else None,
        save_on_train_epoch_end=where != "middle of an epoch",
    )
    make_trainer(efficient(), checkpoints, enable_checkpointing=True).fit(module, loader())
    path = next(tmp_path.glob("epoch=2-step=6.ckpt" if where == "end of an epoch" else "epoch=2-step=5.ckpt"))
    resumed = Stranger()
    make_trainer(efficient()).fit(resumed, loader(), ckpt_path=path, weights_only=True)
    done = 6 if where == "end of an epoch" else 5
    assert resumed.seen["train"] == TWO_BATCHES_AN_EPOCH[done:]


# The augmentation --------------------------------------------------------------------------------------------------


class Augmented(Dataset):
    """Images of one colour: the strength that a worker saw."""

    def __init__(self, augment: ScheduledRandAugment) -> None:
        self.augment = augment

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int):
        return torch.full((3, 32, 32), self.augment.magnitude), index % 3


class AugmentedData(L.LightningDataModule):
    def __init__(self, num_workers: int = 0) -> None:
        super().__init__()
        self.train_transform = v2.Compose([v2.Identity(), ScheduledRandAugment(5)])
        self.num_workers = num_workers

    def train_dataloader(self):
        data = Augmented(self.train_transform.transforms[1])
        return DataLoader(data, 4, num_workers=self.num_workers, persistent_workers=self.num_workers > 0)


class Strengths(Stranger):
    def __init__(self, wait: float = 0.0) -> None:
        super().__init__()
        self.strengths: list[float] = []
        self.wait = wait

    def on_train_start(self):
        time.sleep(self.wait)  # workers have fetched what they were asked for

    def training_step(self, batch, batch_idx):
        self.strengths += batch[0].mean((1, 2, 3)).round().tolist()
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_strength_grows_with_the_stages_in_workers_too(num_workers, tmp_path):
    module, trainer = Strengths(), make_trainer(efficient(augment=None))
    trainer.fit(module, AugmentedData(num_workers))
    assert module.strengths == [1] * 8 + [3] * 8 + [5] * 8 + [7] * 8 + [9] * 8
    assert trainer.callback_metrics["curriculum/magnitude"] == 9


def test_the_strength_is_given_back_and_found_anew_in_another_fit():
    callback, first, second = efficient(augment=None), AugmentedData(), AugmentedData()
    for data in (first, second):
        module = Strengths()
        make_trainer(callback).fit(module, data)
        assert module.strengths[-1] == 9
        assert data.train_transform.transforms[1].magnitude == 5


def test_the_strength_is_given_back_after_an_error():
    class Fails(Strengths):
        def on_train_epoch_end(self):
            raise RuntimeError("at the end of the first epoch")

    data, module = AugmentedData(), Fails()
    with pytest.raises(RuntimeError, match="at the end"):
        make_trainer(efficient(augment=None)).fit(module, data)
    assert set(module.strengths) == {1}
    assert data.train_transform.transforms[1].magnitude == 5


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_fit_that_goes_on_has_the_strength_of_its_epoch(num_workers):
    trainer, data, module = make_trainer(efficient(augment=None, total=5)), AugmentedData(num_workers), Strengths()
    trainer.fit_loop.max_epochs = 2
    with pytest.warns(UserWarning, match="has 5 epochs, but the Trainer has max_epochs=2"):
        trainer.fit(module, data)
    trainer.fit_loop.max_epochs = 5
    trainer.fit(module, data)
    assert module.strengths == [1] * 8 + [3] * 8 + [5] * 8 + [7] * 8 + [9] * 8


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_stale_strength_after_a_resume(num_workers, tmp_path):
    """Workers fetch the first batches before the epoch's first hook."""
    checkpoints = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    first = make_trainer(efficient(augment=None), checkpoints, enable_checkpointing=True)
    first.fit(Strengths(), AugmentedData())
    module = Strengths(wait=0.5)
    make_trainer(efficient(augment=None)).fit(
        module, datamodule=AugmentedData(num_workers), ckpt_path=tmp_path / "epoch=2.ckpt", weights_only=True
    )
    assert module.strengths == [7] * 8 + [9] * 8


def test_augmentation_handed_over_and_switched_off():
    augment, module = ScheduledRandAugment(5), Strengths()
    make_trainer(efficient(augment=augment)).fit(module, DataLoader(Augmented(augment), 4))
    assert module.strengths == [1] * 8 + [3] * 8 + [5] * 8 + [7] * 8 + [9] * 8
    data, module = AugmentedData(), Strengths()
    make_trainer(efficient(augment=False)).fit(module, data)
    assert set(module.strengths) == {5}
    with pytest.warns(UserWarning, match="leaves the strength of the augmentation alone"):
        make_trainer(efficient(augment=None)).fit(Stranger(), loader())
