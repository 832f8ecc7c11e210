"""What the tests of few-shot sessions share: a small stream, a small network, and what moved in a fit."""

import lightning.pytorch as L
import torch

import zoo
from zoo.callbacks import TaskLoop
from zoo.datamodules import FewShotIncrementalDataModule
from zoo.datamodules.sources import Synthetic
from zoo.fewshot.tricks import TRICKS

NARROW = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16], "stem_type": "deep", "stem_width": 4}
ALL = [trick for trick in TRICKS if trick != "larger_encoder"]


def make_data(**kwargs) -> FewShotIncrementalDataModule:
    source = Synthetic(num_classes=8, image_size=8, train_per_class=6, test_per_class=3)
    settings = {"base_classes": 4, "ways": 2, "shots": 2, "batch_size": 12, "base_epochs": 2}
    return FewShotIncrementalDataModule(source, **{**settings, **kwargs})


def make_module(tricks=(), **kwargs) -> zoo.FewShotClassIncremental:
    torch.manual_seed(1)
    settings = {
        "backbone": "resnet18", "backbone_args": NARROW, "larger_backbone": "test_resnet", "embedding_size": 24,
        "projection_size": 8, "queue_size": 16, "pretraining_epochs": 1, "encoder_lr": 0.01,
    }  # fmt: skip
    return zoo.FewShotClassIncremental(8, tricks=list(tricks), **{**settings, **kwargs})


class Snapshots(L.Callback):
    """Remember the weights at the begin and the end of each session, and which rows got a gradient."""

    def __init__(self) -> None:
        self.begin, self.end, self.pulled = {}, {}, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        state = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
        self.begin.setdefault(trainer.datamodule.task.index, state)

    def on_after_backward(self, trainer, pl_module) -> None:
        grad = pl_module.classifier.weight.grad
        if grad is not None:
            rows = grad.abs().sum(dim=1).nonzero().flatten().tolist()
            self.pulled.setdefault(trainer.datamodule.task.index, set()).update(rows)

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        state = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
        self.end[int(pl_module.session)] = state


def fit(module, data, *callbacks, folder=None, ckpt_path=None, **kwargs) -> L.Trainer:
    every = {"filename": "{epoch}", "save_top_k": -1, "save_last": True, "save_on_train_epoch_end": True}
    saver = [L.callbacks.ModelCheckpoint(folder, **every)] if folder else []
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[TaskLoop(), *callbacks, *saver], enable_checkpointing=folder is not None, **kwargs,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer


def class_means(module, data, session: int) -> torch.Tensor:
    """Class means of the embeddings of a session's training images, by hand."""
    view, module = data.train_set(session), module.eval()
    images, labels = torch.stack([view[i][0] for i in range(len(view))]), view.labels
    with torch.no_grad():
        features = module.embed(module.backbone(images))
    return torch.stack([features[labels == label].mean(dim=0) for label in data.session_classes(session)])


def changed(before, after) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}
