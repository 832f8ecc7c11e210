"""The stream of few-shot sessions end to end: what each trick moves and what stays, resume, processes, checkpoints."""

import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from sessions import ALL, Snapshots, changed, class_means, fit, make_data, make_module
from torchvision.transforms import v2

import zoo
from zoo.callbacks import StreamReport
from zoo.datamodules import ClassIncrementalDataModule, FewShotIncrementalDataModule
from zoo.datamodules.sources import Synthetic
from zoo.fewshot.tricks import TRICKS

# The baseline --------------------------------------------------------------------------------------------------------


def test_baseline_classifies_by_the_means_of_a_frozen_encoder() -> None:
    module, data, watch = make_module(), make_data(), Snapshots()
    trainer = fit(module, data, watch)
    for session in range(3):
        classes = data.session_classes(session)
        rows = module.classifier.weight[classes.start : classes.stop]
        torch.testing.assert_close(rows, class_means(module, data, session), rtol=1e-4, atol=1e-5)
    after_base = {"classifier.weight", "session", "seen"}
    assert changed(watch.end[0], watch.end[2]) <= after_base
    assert torch.equal(watch.end[0]["classifier.weight"][:4], watch.end[2]["classifier.weight"][:4])
    assert any("running_mean" in name for name in changed(watch.begin[0], watch.end[0]))
    images = torch.rand(5, 3, 8, 8)
    features = F.normalize(module.backbone(images), dim=1)
    scores = 16 * features @ F.normalize(module.classifier.weight, dim=1).T
    torch.testing.assert_close(module(images), scores)
    tests = [data.evaluation_set(session, "test") for session in range(3)]
    right = [int(module(view[i][0][None]).argmax()) == view[i][1] for view in tests for i in range(len(view))]
    assert float(trainer.callback_metrics["test/acc"]) == pytest.approx(sum(right) / 24)
    assert float(trainer.callback_metrics["test/acc_novel"]) == pytest.approx(sum(right[12:]) / 12)
    names = {"acc_base", "acc_novel", "harmonic_mean", "novel_as_base", "base_as_novel", "acc_class_mean"}
    assert {f"test/{name}" for name in names} <= trainer.callback_metrics.keys()
    assert all(torch.isfinite(value) for value in trainer.callback_metrics.values())


def test_classes_to_come_are_no_candidates() -> None:
    module = make_module()
    fit(module, make_data(num_sessions=None, base_epochs=1), Stop(1))
    scores = module(torch.rand(3, 3, 8, 8))
    assert torch.isneginf(scores[:, 6:]).all()
    assert torch.isfinite(scores[:, :6]).all()


class Stop(L.Callback):
    """End a fit after a session, as if it had been interrupted."""

    def __init__(self, session: int) -> None:
        self.session = session

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        trainer.should_stop = int(pl_module.session) == self.session


def test_unit_features_can_be_averaged() -> None:
    module, data = make_module(normalize_before_mean=True), make_data()
    fit(module, data)
    view = data.train_set(1)
    images = torch.stack([view[i][0] for i in range(len(view))])
    features = F.normalize(module.eval().backbone(images), dim=1)
    expected = features[view.labels == 4].mean(dim=0)
    torch.testing.assert_close(module.classifier.weight[4], expected, rtol=1e-4, atol=1e-5)


def test_classes_are_added_without_a_trainer() -> None:
    module, data = make_module(["pseudo_classes"]), make_data()
    fit(module, data, Stop(1))
    expected, reference = make_module(["pseudo_classes"]), make_data()
    fit(expected, reference)
    view = data.train_set(2)
    module.train()
    module.add_classes(torch.stack([view[i][0] for i in range(len(view))]), view.labels)
    assert module.training
    torch.testing.assert_close(module.classifier.weight, expected.classifier.weight)
    assert module.seen.all()


# Every trick ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trick", [[], *[[trick] for trick in TRICKS if trick != "subnet"], ALL])
def test_each_trick_trains_what_it_should(trick) -> None:
    module, watch = make_module(trick), Snapshots()
    trainer = fit(module, make_data(session_epochs=2), watch)
    assert torch.isfinite(module(torch.rand(2, 3, 8, 8))).all()
    moved = changed(watch.begin[0], watch.end[0])
    parts = {
        "contrastive": "contrast.projector", "pretraining": "instances.projector", "rotation": "rotation.",
        "prototypes": "neck.",
    }  # fmt: skip
    for name, part in parts.items():
        assert any(key.startswith(part) for key in moved) == (name in trick)
    weights = {key for key in changed(watch.end[0], watch.end[2]) if key.startswith(("backbone", "neck"))}
    stages = {key.split(".")[2] for key in weights if key.startswith("backbone")}
    assert stages == ({"layer4"} if "finetuning" in trick else set())
    assert not any("running" in key or "num_batches" in key for key in weights)
    m = len(module.pseudo)
    assert m == (2 if "pseudo_classes" in trick else 1)
    assert torch.equal(watch.end[0]["classifier.weight"][: 4 * m], watch.end[2]["classifier.weight"][: 4 * m])
    assert trainer.current_epoch == 6


def test_larger_encoder_is_another_network() -> None:
    small, large = make_module(), make_module(["larger_encoder"])
    assert small.backbone.num_features == 16
    assert type(large.backbone.model).__name__ == "ResNet"
    assert large.backbone.num_features != 16


def test_queue_form_runs_and_keeps_the_key_encoder_out_of_the_optimizer() -> None:
    module, watch = make_module(["contrastive", "pseudo_classes"], contrastive_form="queue"), Snapshots()
    fit(module, make_data(), watch)
    keys = {id(parameter) for parameter in module.contrast.key_encoder.parameters()}
    assert keys.isdisjoint(id(parameter) for parameter in module.base_parameters())
    assert any(key.startswith("contrast.key_encoder") for key in changed(watch.begin[0], watch.end[0]))
    assert set(module.contrast.labels.tolist()) <= set(range(8))  # pseudo-classes of the base classes, all enqueued
    assert not changed(watch.end[0], watch.end[1]) & {key for key in watch.end[0] if key.startswith("contrast")}


def test_prototypes_are_the_targets_and_means_the_classifier() -> None:
    module, data = make_module(["prototypes", "pseudo_classes"]), make_data()
    fit(module, data)
    assert module.prototypes.assignment.tolist() == list(range(16))
    assert module.classifier.weight.shape == (16, 24)
    view = data.train_set(1)
    image = torch.stack([view[i][0] for i in range(len(view)) if view.labels[i] == 5])
    upside_down = F.normalize(module.neck(module.eval().backbone(image.flip(2, 3))), dim=1).mean(dim=0)
    torch.testing.assert_close(module.classifier.weight[11], upside_down, rtol=1e-4, atol=1e-5)
    module.task = data.tasks[0]
    features, labels = torch.randn(6, 16), torch.tensor([0, 2, 3])
    known = module.classification_loss(features, labels)
    logits = 16 * module.embed(features) @ module.prototypes.vectors[:8].T  # four base classes, two turns of each
    torch.testing.assert_close(known, F.cross_entropy(logits, torch.tensor([0, 1, 4, 5, 6, 7])))
    module.options.prototype_negatives = "all"
    assert module.classification_loss(features, labels) > known
    module.options.prototype_loss = "dr"
    targets = module.prototypes.vectors[[0, 1, 4, 5, 6, 7]]
    expected = 5 * ((module.embed(features) * targets).sum(dim=1) - 1).square().mean()
    torch.testing.assert_close(module.classification_loss(features, labels), expected)


@pytest.mark.parametrize("inference", ["class_mean", "assigned"])
def test_prototypes_are_matched_to_means(inference) -> None:
    module = make_module(["prototypes", "pretraining"], assignment="hungarian", neck="identity", inference=inference)
    fit(module, make_data(base_epochs=3))
    assert sorted(module.prototypes.assignment.tolist()) == list(range(8))
    rows = module.classifier.weight
    if inference == "assigned":
        rows = module.prototypes.vectors[module.prototypes.assignment]
    images = torch.rand(3, 3, 8, 8)
    scores = 16 * module.embed(module.eval().backbone(images)) @ F.normalize(rows, dim=1).T
    torch.testing.assert_close(module(images), scores)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_subnet_moves_and_the_rest_is_bit_equal(precision) -> None:
    optimizer = lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)  # noqa: E731  # which decays every weight
    # Its last stage has 2 x 2 pixels: on one pixel, torch's CPU kernel of bfloat16 gives NaN as the gradient of weights
    # that meet padding only.
    network = {"backbone": "cifar_resnet20", "backbone_args": {"layers": (1, 1, 1)}}
    module, watch = make_module(["finetuning", "subnet"], finetune_optimizer=optimizer, **network), Snapshots()
    fit(module, make_data(session_epochs=3), watch, precision=precision)
    masks = {
        f"backbone.model.layer3.{name.removeprefix('stage.')}": mask
        for (name, mask) in zip(
            module.subnet.names, [mask for _, mask in module.subnet.tunable(module.tuned_parameters())], strict=True
        )
    }
    before, after = watch.end[0], watch.end[2]
    moved = {name for name in changed(before, after) if name.startswith("backbone")}
    assert moved == masks.keys()
    for name, mask in masks.items():
        assert torch.equal(before[name][~mask], after[name][~mask])
        assert (before[name][mask] != after[name][mask]).float().mean() > 0.9
        assert mask.float().mean() == pytest.approx(0.3, abs=0.02)


def test_finetuning_starts_at_the_means_and_moves_new_rows_only() -> None:
    module, watch = make_module(["finetuning"], refresh_means=False), Snapshots()
    data = make_data(session_epochs=3)
    fit(module, data, watch)
    start, end = watch.begin[1]["classifier.weight"], watch.end[1]["classifier.weight"]
    assert {index: steps for index, steps in watch.pulled.items() if index > 0} == {1: {4, 5}, 2: {6, 7}}
    assert torch.equal(start[:4], end[:4])
    assert torch.equal(start[6:], end[6:])
    assert (start[4:6] != end[4:6]).any(dim=1).all()
    refreshed = make_module(["finetuning"])
    fit(refreshed, make_data(session_epochs=3))
    torch.testing.assert_close(refreshed.classifier.weight[6:8], class_means(refreshed, data, 2), rtol=1e-4, atol=1e-5)


def test_pretraining_sees_no_label_and_the_base_session_begins_anew() -> None:
    class Watch(L.Callback):
        rates, labels = [], []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            self.rates.append((trainer.current_epoch, trainer.optimizers[0].param_groups[0]["lr"]))
            if trainer.current_epoch < 1:
                batch[1].fill_(-7)  # an error, if anybody looked

    watch = Watch()
    module = make_module(["pretraining"], pretraining_lr=0.05, schedule=constant)
    fit(module, make_data(base_epochs=3), watch)
    assert watch.rates[0] == (0, 0.05)
    assert watch.rates[1][1] == pytest.approx(0.025)  # half of two steps of a cosine
    assert [rate for epoch, rate in watch.rates if epoch in (1, 2)] == [0.1] * 4


def constant(optimizer, num_steps: int):
    assert num_steps == 4  # two epochs of two batches: those of the pretraining do not count
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def test_joint_training_is_one_session() -> None:
    module = make_module()
    trainer = fit(module, make_data(joint=True))
    assert module.seen.all()
    assert trainer.callback_metrics["test/task00/acc"] == trainer.callback_metrics["test/acc"]


def test_a_class_incremental_stream_will_do() -> None:
    source = Synthetic(num_classes=8, image_size=8, train_per_class=6, test_per_class=3)
    module = make_module()
    trainer = fit(module, ClassIncrementalDataModule(source, num_tasks=2, batch_size=12))
    assert module.seen.all()
    assert 0 <= trainer.callback_metrics["test/task01/acc"] <= 1
    assert trainer.callback_metrics["test/acc_base"] == trainer.callback_metrics["test/task00/acc"]


# Checkpoints ---------------------------------------------------------------------------------------------------------


def run(folder: Path, *callbacks: L.Callback, resume: Path | None = None) -> dict[str, torch.Tensor]:
    """Fit a stream of three epochs, one of them pretraining, and twice two, with everything that draws or remembers."""
    module = make_module(ALL, prototype_kind="optimized", assignment="hungarian")
    data = make_data(session_epochs=2, base_epochs=3, train_transform=v2.RandomCrop(8, padding=1))
    trainer = fit(module, data, *callbacks, folder=folder, ckpt_path=resume)
    return {**module.state_dict(), **trainer.callback_metrics}


KILL = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import lightning.pytorch as L
from test_fscil import run

class Kill(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 6:
            os.kill(os.getpid(), signal.SIGKILL)

run(Path({folder!r}), Kill())
"""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, run(folder)


def test_killed_and_resumed_run_is_bitwise_the_same(tmp_path: Path, unbroken) -> None:
    script = KILL.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr.decode()
    resumed = run(tmp_path, resume=tmp_path / "last.ckpt")
    assert resumed.keys() == unbroken[1].keys()
    assert not changed(unbroken[1], resumed)


# After the pretraining, in the base session, after it, and in the middle of a later one.
@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
def test_run_resumed_from_any_epoch_is_bitwise_the_same(epoch: int, tmp_path: Path, unbroken) -> None:
    resumed = run(tmp_path, resume=unbroken[0] / f"epoch={epoch}.ckpt")
    assert not changed(unbroken[1], resumed)


def test_increments_start_from_a_base_checkpoint_with_other_options(tmp_path: Path) -> None:
    fit(make_module(["pseudo_classes"]), make_data(), folder=tmp_path)
    base = str(tmp_path / "epoch=1.ckpt")
    for tricks, options in (
        (["pseudo_classes"], {}),
        (["pseudo_classes", "finetuning", "subnet"], {"subnet_fraction": 0.1}),
    ):
        started, watch = make_module(tricks, **options), Snapshots()
        fit(started, make_data(session_epochs=3), watch, ckpt_path=base)
        whole, reference = make_module(tricks, **options), Snapshots()
        fit(whole, make_data(session_epochs=3), reference)
        assert 0 not in watch.begin  # the base session was not trained again
        assert not changed(whole.state_dict(), started.state_dict())
    other_shots = make_module(tricks, **options)
    fit(other_shots, make_data(session_epochs=3, seed=3), ckpt_path=base)
    assert "classifier.weight" in changed(whole.state_dict(), other_shots.state_dict())


@pytest.mark.filterwarnings("ignore:.*does not match")
def test_other_tricks_of_the_base_session_are_refused(tmp_path: Path) -> None:
    fit(make_module(["finetuning"]), make_data(), folder=tmp_path)
    with pytest.raises(
        ValueError, match=r"trained with tricks=\['finetuning'\], this run has \['rotation'\]: rotation cannot"
    ):
        fit(make_module(["rotation"]), make_data(), ckpt_path=str(tmp_path / "epoch=1.ckpt"))
    with pytest.raises(ValueError, match=r"this run has \['finetuning', 'subnet'\]: subnet cannot be changed"):
        fit(make_module(["finetuning", "subnet"]), make_data(), ckpt_path=str(tmp_path / "epoch=2.ckpt"))
    with pytest.raises(ValueError, match="does not fit FewShotClassIncremental"):
        fit(
            make_module(["finetuning"], backbone="test_vit", backbone_args=None),
            make_data(),
            ckpt_path=str(tmp_path / "epoch=1.ckpt"),
        )


def test_checkpoint_predicts_what_was_measured(tmp_path: Path, capsys) -> None:
    data, report = make_data(session_epochs=1), StreamReport(plots=False, directory=str(tmp_path))
    module = make_module(["prototypes", "finetuning", "subnet"], class_names=data.class_names)
    trainer = fit(module, data, report, folder=tmp_path)
    loaded = zoo.FewShotClassIncremental.load_from_checkpoint(tmp_path / "last.ckpt")
    images = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(loaded.eval()(images), module.eval()(images))
    tester = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[StreamReport()])
    tested = tester.test(loaded, make_data(), ckpt_path=str(tmp_path / "last.ckpt"), verbose=False)
    measured = {name: value for test in tested for name, value in test.items()}
    assert measured["test/harmonic_mean"] == pytest.approx(float(trainer.callback_metrics["test/harmonic_mean"]))
    assert measured["test/task02/acc"] == pytest.approx(float(trainer.callback_metrics["test/task02/acc"]))
    predictions = tester.predict(loaded, make_data(), ckpt_path=str(tmp_path / "last.ckpt"))
    names = [name for batch in predictions for name in batch["class_name"]]
    assert len(names) == 8 * 3
    assert set(names) <= set(data.class_names)
    assert "harmonic mean" in capsys.readouterr().out


# Several processes ---------------------------------------------------------------------------------------------------


class Write(L.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer, pl_module) -> None:
        state = {**pl_module.state_dict(), **trainer.callback_metrics}
        torch.save(state, self.folder / f"{trainer.world_size}-{trainer.global_rank}.pt")


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_two_processes_hold_the_same_and_sum_the_means(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(make_module(ALL), make_data(session_epochs=2), Write(tmp_path), strategy="ddp_fork", devices=2)
    ranks = [torch.load(tmp_path / f"2-{rank}.pt", weights_only=True) for rank in range(2)]
    assert not changed(*ranks)  # statistics of batch normalisation too, which each process makes for itself


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_means_of_two_processes_are_those_of_the_encoder_that_stays(tmp_path: Path) -> None:
    data = make_data()
    fit(make_module(), data, Write(tmp_path), strategy="ddp_fork", devices=2)
    state, module = torch.load(tmp_path / "2-0.pt", weights_only=True), make_module()
    module.load_state_dict({name: state[name] for name in module.state_dict()})
    data.setup("fit")
    torch.testing.assert_close(module.classifier.weight[:4].data, class_means(module, data, 0), rtol=1e-4, atol=1e-5)


def test_contrast_of_two_processes_is_that_of_one_batch(tmp_path: Path, monkeypatch) -> None:
    # An encoder without statistics of a batch, the same views, no weight decay: one step over the same 24 images.
    monkeypatch.setattr(zoo.fewshot.contrastive.StrongViews, "__call__", lambda self, images, *args: images)
    for devices in (1, 2):
        torch.manual_seed(1)
        module = zoo.FewShotClassIncremental(
            6, ["contrastive"], "test_vit", backbone_args={"img_size": 8, "patch_size": 4}, projection_size=8,
            schedule=still, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        )  # fmt: skip
        source = Synthetic(num_classes=6, image_size=16, train_per_class=6, test_per_class=2)
        data = FewShotIncrementalDataModule(source, base_classes=4, ways=2, shots=2, batch_size=24 // devices)
        strategy = "ddp_fork" if devices > 1 else "auto"
        fit(module, data, Write(tmp_path), devices=devices, strategy=strategy)
    one, two = (torch.load(tmp_path / f"{devices}-0.pt", weights_only=True) for devices in (1, 2))
    torch.testing.assert_close(
        {k: v for k, v in two.items() if k.startswith(("backbone", "contrast", "classifier"))},
        {k: v for k, v in one.items() if k.startswith(("backbone", "contrast", "classifier"))},
        atol=2e-5, rtol=1e-4,
    )  # fmt: skip


def still(optimizer, num_steps: int):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tricks", "arguments", "message"),
    [
        (["magic"], {}, "tricks has magic"),
        (["subnet"], {}, "add finetuning"),
        (["contrastive"], {"num_views": 1}, "num_views=1 must be at least 2"),
        (["finetuning", "subnet"], {"subnet_fraction": 1.5}, "subnet_fraction=1.5"),
        ([], {"temperature": 0.0}, "temperature=0.0 must be positive"),
        (["prototypes"], {"embedding_size": 7}, "A simplex of 8 vectors"),
        (["prototypes", "pseudo_classes"], {"pseudo_classes": "rotation"}, "A simplex of 32 vectors"),
        (["finetuning", "subnet"], {"tuned_stage": "layer9"}, "tuned_stage='layer9' is no part"),
    ],
)
def test_bad_arguments_are_refused(tricks, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_module(tricks, **arguments)


def test_what_is_no_stream_is_refused() -> None:
    from zoo.datamodules import ClassificationDataModule

    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1)
    with pytest.raises(TypeError, match="use FewShotIncrementalDataModule"):
        trainer.fit(make_module(), ClassificationDataModule(Synthetic(num_classes=8, image_size=8)))
    with pytest.raises(ValueError, match=r"num_classes=8 in all, but the stream has \[\(0, 4\), \(4, 6\)\]"):
        fit(make_module(), make_data(num_sessions=1))
    with pytest.raises(ValueError, match="pretraining_epochs=1 must be fewer than the 1 epochs"):
        fit(make_module(["pretraining"]), make_data(base_epochs=1))
