"""MeanTeacher: the worked example of a real network, what each recipe's loss sees, schedules, resume, bad input."""

from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

import zoo
from zoo.callbacks import SeedEpochs
from zoo.datamodules import SemiSupervisedSegmentationDataModule
from zoo.datamodules.sources import SyntheticScenes
from zoo.nn import PolyWithWarmup, SegmentationNetwork, SmallUNet
from zoo.segmentation import DomainMixing, EntropyFiltering
from zoo.segmentation.students import parameter_groups

PLAIN = {"class_mix": None, "jitter_probability": 0.0, "blur_probability": 0.0}


def constant(optimizer: Any, steps: int) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def sgd(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def make_trainer(*callbacks: L.Callback, **kwargs: Any) -> L.Trainer:
    settings = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "max_epochs": 2,
    }  # fmt: skip
    return L.Trainer(callbacks=list(callbacks), **{**settings, **kwargs})


def scenes(**kwargs: Any) -> SemiSupervisedSegmentationDataModule:
    source = SyntheticScenes(num_classes=3, image_size=16, num_train=8, num_test=3)
    return SemiSupervisedSegmentationDataModule(source, **{"labeled": 4, "batch_size": 2, **kwargs})


def method(kind: Any = zoo.MeanTeacher, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return kind(3, **{"network_args": {"width": 2}, "optimizer": sgd, "momentum": 0.9, **kwargs})


# The worked example of a real network --------------------------------------------------------------------------------


def grid(*shape: int) -> list[torch.Tensor]:
    return list(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij"))


class Pixelwise(nn.Module):
    """One 1 x 1 convolution of two channels, with the weights of the example."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 3, 1).double()
        k, c = grid(3, 2)
        self.layer.weight.data = (0.3 * (1 + k + 2 * c).sin())[..., None, None]
        self.layer.bias.data = 0.1 * torch.arange(3, dtype=torch.float64)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images)


def example_batch() -> dict[str, Any]:
    b, c, h, w = grid(2, 2, 3, 3)
    labeled, unlabeled = (1 + b + 2 * c + 0.7 * h + 1.3 * w).sin(), (1 + 2 * b + c + 0.5 * h - 0.9 * w).cos()
    b, h, w = grid(2, 3, 3)
    return {"labeled": (labeled, ((b + h + 2 * w) % 3).long()), "unlabeled": unlabeled}


class Notes(L.Callback):
    """Keeps what is logged and where the networks are after each step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        parts = {name: [p.detach().flatten() for p in part.parameters()] for name, part in pl_module.named_children() if name in ("student", "teacher")}  # fmt: skip  # noqa: E501
        self.rows.append({name: torch.cat(values).clone() for name, values in parts.items()})


# K, iteration, loss, q, pseudo-labels; student and teacher: weights row by row, then the bias.
REAL_NETWORK = """
0 0 1.5052706297 0.4444444444 200210221222222222
0.3121783349 0.2110622308 0.3910696837 -0.1019077814 -0.1356814928 -0.5815364779
0.0003012664 -0.0983538306 0.3980525642
0.2524412954 0.0423360024 0.2727892280 -0.2270407486 0.0423360024 -0.2876772824
0.0000000000 0.1000000000 0.2000000000
0 1 1.6497966333 0.7777777778 200210220222222222
0.4859850925 0.4261675361 0.4026843708 -0.0843655033 -0.3211029374 -0.8141840614
0.0962715830 -0.2245065161 0.4282349331
0.2823098152 0.1266991166 0.3319294559 -0.1644742650 -0.0466727452 -0.4346068802
0.0001506332 0.0008230847 0.2990262821
1 0 1.8134611607 0.7777777778 200210220222222222
0.4780855219 0.3637148260 0.3684893440 -0.0504299229 -0.2790083400 -0.7856669316
0.0097407235 -0.3341737163 0.6244329929
0.2823098152 0.1266991166 0.3319294559 -0.1644742650 -0.0466727452 -0.4346068802
0.0001506332 0.0008230847 0.2990262821
1 1 1.7069647728 1.0 200200220222222222
0.6872154955 0.5376898512 0.2921967932 -0.1214672105 -0.4118457628 -0.8886046693
0.2869650641 -0.3530209383 0.3660558742
0.4821128942 0.3861178652 0.3233929011 -0.1157297760 -0.2379392693 -0.7427701177
0.0916803555 -0.2503917483 0.4587113928
2 0 1.9738215063 0.9444444444 200200220222222222
0.6234492335 0.4280298711 0.2947890560 -0.0126797412 -0.3506717636 -0.8877321585
0.0947073656 -0.5323305728 0.7376232072
0.3841474539 0.2764333264 0.3673069134 -0.1244198842 -0.1838878413 -0.6243954708
0.0482111081 -0.1118417157 0.3636306076
2 1 1.6984198625 1.0 200200220222222222
0.7427793417 0.5601946064 0.2504410572 -0.1325818333 -0.4256538730 -0.8999948017
0.3407982253 -0.3726724308 0.3318742055
0.7115744644 0.5887322604 0.2713409000 -0.1221873656 -0.4153488385 -0.9389269234
0.2342160061 -0.3595542720 0.4253382658
"""


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_two_iterations_of_a_real_network_are_those_of_the_worked_example(ahead: int) -> None:
    batch, notes = example_batch(), Notes()
    seen: list[Any] = []

    class Spy(DomainMixing):
        def forward(self, student, teacher, batch, generator, own_statistics):  # type: ignore[override]
            outcome = super().forward(student, teacher, batch, generator, own_statistics)
            labels = teacher(batch["unlabeled"]).argmax(1).flatten().tolist()
            seen.append((float(outcome.loss.detach()), float(outcome.logs["quality"]), "".join(map(str, labels))))
            return outcome

    module = zoo.FST(
        3, ahead_steps=ahead, start_step=0, network=Pixelwise(), objective=Spy(threshold=0.4, **PLAIN), momentum=0.5,
        momentum_warmup=False, schedule=constant, optimizer=lambda p: torch.optim.SGD(p, lr=2.0),
    )  # fmt: skip
    make_trainer(notes, max_epochs=1, precision="64-true").fit(module, DataLoader([batch, batch], batch_size=None))
    words = iter(REAL_NETWORK.split())
    rows = [list(islice(words, 5 + 18)) for _ in range(6)]
    for step, row in enumerate(notes.rows):
        k, t, loss, quality, labels, *numbers = rows[2 * ahead + step]
        assert (int(k), int(t)) == (ahead, step)
        of_real_step = seen[(step + 1) * (ahead + 1) - 1]
        assert of_real_step[:2] == pytest.approx((float(loss), float(quality)), abs=1e-9)
        assert of_real_step[2] == labels
        found = [*row["student"].tolist(), *row["teacher"].tolist()]
        assert found == pytest.approx([float(number) for number in numbers], abs=1e-9)


# The losses ---------------------------------------------------------------------------------------------------------


class Answers(nn.Module):
    """A network that keeps what it is shown and answers with what it is given."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer
        self.scale = nn.Parameter(torch.ones(()))
        self.norm = nn.BatchNorm2d(3, momentum=0.5)
        self.shown: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shown.append(images)
        self.norm(images)
        return self.answer(images) * self.scale


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def red_or_green(images: torch.Tensor) -> torch.Tensor:
    """Score class 0 by red, class 1 by green."""
    return 20 * images[:, :2]


def test_domain_mixing_pastes_half_of_the_classes_and_weights_the_rest_by_quality() -> None:
    objective = DomainMixing(threshold=0.9, **{**PLAIN, "class_mix": "image"})
    student, teacher = Answers(red_or_green), Answers(red_or_green).eval()
    objective.attach(student, 2)
    masks = torch.zeros(1, 4, 4, dtype=torch.int64)
    masks[:, 2:] = 1
    images = F.one_hot(masks, 3).permute(0, 3, 1, 2).float()
    unlabeled = torch.zeros(1, 3, 4, 4)
    unlabeled[:, 1, :, :3] = 1.0  # the teacher is sure of 12 of 16 pixels
    outcome = objective(student, teacher, {"labeled": (images, masks), "unlabeled": unlabeled}, generator(), False)
    shown = student.shown[1]
    pasted = (shown == images).all(dim=1) & ~(unlabeled == images).all(dim=1)
    assert pasted.any()
    assert outcome.logs["quality"] == 0.75
    top = torch.equal(shown[..., :2, :], images[..., :2, :])  # which of the two classes was drawn
    rest = slice(2, 4) if top else slice(0, 2)
    assert torch.equal(shown[..., rest, :], unlabeled[..., rest, :])
    labels = torch.where(torch.arange(4)[:, None] < 2 if top else torch.arange(4)[:, None] >= 2, masks, 0)
    labels[:, rest, :3] = 1  # argmax of equal scores is the first class
    weight = torch.full((1, 4, 4), 0.75)
    weight[:, slice(0, 2) if top else slice(2, 4)] = 1
    expected = (F.cross_entropy(red_or_green(shown), labels, reduction="none") * weight).mean()
    assert outcome.logs["loss_unlabeled"].item() == pytest.approx(expected.item())
    assert outcome.loss.item() == pytest.approx(expected.item() + outcome.logs["loss_labeled"].item())
    objective.unlabeled_weight = 0.25
    outcome = objective(student, teacher, {"labeled": (images, masks), "unlabeled": unlabeled}, generator(), False)
    assert outcome.loss.item() == pytest.approx(0.25 * expected.item() + outcome.logs["loss_labeled"].item())


def test_labelled_loss_counts_ignored_pixels_in_its_mean_as_published() -> None:
    masks = torch.full((1, 2, 2), 255)
    masks[0, 0, 0] = 0
    batch = {"labeled": (torch.zeros(1, 3, 2, 2), masks), "unlabeled": torch.zeros(1, 3, 2, 2)}
    for reduction, expected in (("all", 0.25), ("valid", 1.0)):
        objective = DomainMixing(reduction=reduction, **PLAIN)
        objective.attach(student := Answers(red_or_green), 2)
        loss = objective(student, None, batch, generator(), False).loss
        assert loss.item() == pytest.approx(expected * 0.693147, abs=1e-5)


@pytest.mark.parametrize("mix", [None, "cutmix", "classmix"])
def test_entropy_filtering_drops_uncertain_pixels_and_mixes_neighbours(mix: Any) -> None:
    objective = EntropyFiltering(drop_percent=50, mix=mix, mix_probability=1.0)
    student, teacher = Answers(red_or_green), Answers(red_or_green).eval()
    objective.attach(student, 2)
    unlabeled = torch.rand(2, 3, 8, 8)
    masks = torch.zeros(2, 8, 8, dtype=torch.int64)
    batch = {"labeled": (torch.rand(2, 3, 8, 8), masks), "unlabeled": (unlabeled, masks)}
    outcome = objective(student, teacher, batch, generator(), False)
    (shown,) = student.shown  # both kinds in one pass
    own, other = (shown[2:] == unlabeled).all(dim=1), (shown[2:] == unlabeled.roll(-1, 0)).all(dim=1)
    assert torch.equal(own | other, torch.ones_like(own))
    assert other.any() == (mix is not None)
    assert outcome.logs["quality"].item() == pytest.approx(0.5, abs=0.02)
    assert len(teacher.shown) == (1 if mix is None else 2)  # it is asked again where it has not seen the images
    said = red_or_green(unlabeled).argmax(1)
    assert outcome.logs["pseudo_acc"].item() == pytest.approx((said == 0).float().mean().item())


def test_teacher_statistics_of_its_own_are_gathered_in_its_own_passes() -> None:
    batch = {
        "labeled": (torch.rand(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64)),
        "unlabeled": torch.rand(2, 3, 8, 8) + 5,
    }
    for objective, seen in (
        (DomainMixing(**PLAIN), batch["unlabeled"]),
        (EntropyFiltering(), torch.cat([batch["labeled"][0], batch["unlabeled"]])),
    ):
        for own in (False, True):
            student, teacher = Answers(red_or_green), Answers(red_or_green).eval()
            objective.attach(student, 2)
            objective(student, teacher, batch, generator(), own)
            expected = 0.5 * seen.mean(dim=(0, 2, 3)) if own else torch.zeros(3)
            torch.testing.assert_close(teacher.norm.running_mean, expected)
            assert not teacher.training
            assert not teacher.norm.training


def test_feature_distance_is_to_the_encoder_before_training_and_is_not_saved(tmp_path: Path) -> None:
    class WithEncoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Conv2d(3, 4, 3, stride=2, padding=1)
            self.head = nn.Conv2d(4, 3, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.encoder(images))

    def make() -> Any:
        torch.manual_seed(1)
        objective = DomainMixing(feature_distance=0.5, feature_classes=[0, 1, 2], **PLAIN)
        network = SegmentationNetwork(
            WithEncoder(), [0.2, 0.3, 0.4], [0.3, 0.2, 0.1]
        )  # both encoders see it normalised
        return method(network=network, network_args=None, objective=objective)

    module = make()
    batch = {
        "labeled": (torch.rand(2, 3, 8, 8), torch.ones(2, 8, 8, dtype=torch.int64)),
        "unlabeled": torch.rand(2, 3, 8, 8),
    }
    before = module.objective(module.student, None, batch, generator(), False)
    assert before.logs["feature_distance"].item() == pytest.approx(0, abs=1e-6)
    assert before.loss.isfinite()
    with torch.no_grad():
        module.student.encoder.bias.add_(torch.tensor([3.0, 0, 4.0, 0]))
    after = module.objective(module.student, None, batch, generator(), False)
    assert after.logs["feature_distance"].item() == pytest.approx(5, abs=1e-5)
    assert after.loss.item() == pytest.approx(after.logs["loss_labeled"].item() + 2.5, abs=1e-5)

    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, scenes())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert not any("reference" in name for name in torch.load(tmp_path / "a.ckpt")["state_dict"])
    trainer.validate(make(), scenes(), ckpt_path=tmp_path / "a.ckpt", verbose=False)


# The method ---------------------------------------------------------------------------------------------------------


def test_teacher_is_an_average_and_keeps_the_students_statistics() -> None:
    module = method(momentum_warmup=False)
    first = [p.detach().clone() for p in module.teacher.parameters()]
    notes = Notes()
    make_trainer(notes, max_epochs=1).fit(module, scenes())
    teacher = torch.cat([p.flatten() for p in first])
    students = [teacher, *(row["student"] for row in notes.rows)]
    for step, row in enumerate(notes.rows):
        teacher = 0.9 * teacher + 0.1 * students[step]
        torch.testing.assert_close(row["teacher"], teacher)
    for mine, other in zip(module.teacher.buffers(), module.student.buffers(), strict=True):
        assert torch.equal(mine, other)
    assert not module.teacher.training
    assert not any(p.requires_grad for p in module.teacher.parameters())


def test_buffers_are_copied_averaged_or_the_teachers_own() -> None:
    means = {}
    for mode in ("copy", "ema", "own"):
        module = method(teacher_buffers=mode, momentum_warmup=False)
        make_trainer(max_epochs=1).fit(module, scenes())
        norms = [next(p for p in net.modules() if isinstance(p, nn.BatchNorm2d)) for net in (module.student, module.teacher)]  # fmt: skip  # noqa: E501
        means[mode] = [norm.running_mean.clone() for norm in norms]
        assert norms[0].num_batches_tracked == 4  # two iterations of two passes
        assert norms[1].num_batches_tracked == (2 if mode == "own" else 4)
    assert torch.equal(*means["copy"])
    assert 0 < means["ema"][1].norm() < 0.5 * means["ema"][0].norm()
    assert not torch.equal(*means["own"])


def test_supervised_phase_keeps_the_teacher_a_copy_and_sees_no_unlabelled_image() -> None:
    runs = []
    for shift in (0.0, 0.3):
        module, notes = method(supervised_steps=2), Notes()

        class Shift(L.Callback):
            amount = shift

            def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
                batch["unlabeled"] *= 1 - self.amount

        make_trainer(notes, Shift(), max_epochs=1).fit(module, scenes(steps_per_epoch=4))
        runs.append(notes.rows)
    assert torch.equal(runs[0][1]["student"], runs[1][1]["student"])
    assert not torch.equal(runs[0][2]["student"], runs[1][2]["student"])
    assert torch.equal(runs[0][1]["teacher"], runs[0][0]["student"])
    assert torch.equal(runs[0][2]["teacher"], runs[0][1]["student"])  # the warm-up of the momentum begins here
    assert not torch.equal(runs[0][3]["teacher"], runs[0][2]["student"])


def test_frozen_teacher_stays() -> None:
    module, notes = method(momentum=1.0, momentum_warmup=False, supervised_steps=1), Notes()
    make_trainer(notes, max_epochs=1).fit(module, scenes(steps_per_epoch=4))
    assert torch.equal(notes.rows[1]["teacher"], notes.rows[3]["teacher"])


def test_a_run_learns_and_both_networks_are_measured() -> None:
    module = method(
        network_args={"width": 6}, momentum=0.9, optimizer=lambda p: torch.optim.AdamW(p, lr=0.02),
        objective=DomainMixing(threshold=0.8, reduction="valid"),
    )  # fmt: skip
    trainer = make_trainer(max_epochs=15)
    data = scenes(unlabeled_truth=True)
    before = trainer.validate(module, data, verbose=False)[0]
    trainer.fit(module, data)
    after = trainer.callback_metrics
    assert before["test/miou_teacher"] < 0.4
    assert after["test/miou_student"] > 0.75
    assert after["test/miou_teacher"] > 0.75
    assert after["test/miou"] == after["test/miou_teacher"]
    assert after["train/pseudo_acc"] > 0.8
    assert after["train/gradients"] == 30
    tested = trainer.test(module, data, verbose=False)[0]
    of_classes = [tested[f"test/class/{label}/iou_student"] for label in range(3)]
    assert sum(of_classes) / 3 == pytest.approx(tested["test/miou_student"], abs=1e-6)


def test_measured_iou_is_that_of_the_predicted_masks_at_the_masks_resolution() -> None:
    from zoo.datamodules import ResizeImage

    module, data = method(), scenes(test_transform=ResizeImage([8, 8]), eval_batch_size=2)
    trainer = make_trainer()
    measured = trainer.test(module, data, verbose=False)[0]
    predicted = torch.cat([batch["mask"] for batch in trainer.predict(module, data)])
    truth = data.source.test().masks
    assert predicted.dtype == torch.uint8
    assert predicted.shape == truth.shape
    valid = truth != 255
    values = []
    for label in range(3):
        mine, its = (predicted == label) & valid, (truth == label) & valid
        if (mine | its).any():
            values.append(((mine & its).sum() / (mine | its).sum()).item())
    assert measured["test/miou_teacher"] == pytest.approx(sum(values) / len(values), abs=1e-6)


def test_subsets_of_classes_are_measured_too() -> None:
    module = method(class_names=["a", "b", "c"], class_subsets={"2": ["a", "c"]})
    tested = make_trainer().test(module, scenes(), verbose=False)[0]
    parts = [tested[f"test/class/{name}/iou_teacher"] for name in ("a", "c")]
    assert tested["test/miou_2_teacher"] == pytest.approx(sum(parts) / 2, abs=1e-6)


class Stop(L.Callback):
    """Ends a run as a person does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


RESUMED = [
    (zoo.MeanTeacher, {}, {}),
    (zoo.MeanTeacher, {"objective": lambda: EntropyFiltering(mix="cutmix"), "teacher_buffers": "own"}, {}),
    (zoo.FST, {"ahead_steps": 2, "optimizer": lambda p: torch.optim.AdamW(p, lr=0.01), "teacher_buffers": "ema"}, {}),
    (zoo.FST, {"ahead_steps": 2, "variant": "wide", "optimizer_state": "carried"}, {"future": 2}),
]


@pytest.mark.filterwarnings("ignore:.*dirpath has changed.*")
@pytest.mark.parametrize(("kind", "options", "data"), RESUMED)
def test_a_resumed_run_ends_as_an_unbroken_one(tmp_path: Path, kind: Any, options: Any, data: Any) -> None:
    def fit(folder: str, stop: int | None = None, ckpt_path: Path | None = None) -> Any:
        made = {name: value() if name == "objective" else value for name, value in options.items()}
        checkpoint = ModelCheckpoint(tmp_path / folder, save_last=True, save_on_train_epoch_end=True)
        callbacks = [SeedEpochs(), checkpoint, *([Stop(stop)] if stop is not None else [])]
        trainer = make_trainer(*callbacks, max_epochs=3, enable_checkpointing=True)
        module = method(kind, supervised_steps=1, **made)
        try:
            trainer.fit(module, scenes(**data), ckpt_path=ckpt_path)
        except SystemExit:
            assert stop is not None
        return module.state_dict(), trainer

    unbroken, _ = fit("whole")
    fit("killed", stop=5)
    resumed, trainer = fit("resumed", ckpt_path=tmp_path / "killed" / "last.ckpt")
    assert trainer.global_step == 6
    for name, value in unbroken.items():
        assert torch.equal(value, resumed[name]), name


def test_start_weights_are_those_of_another_runs_student(tmp_path: Path) -> None:
    first = method()
    trainer = make_trainer(max_epochs=1)
    trainer.fit(first, scenes())
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    second, notes = method(start_from=str(tmp_path / "first.ckpt"), supervised_steps=1), Notes()

    class Before(L.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            for one, other in zip(first.student.state_dict().values(), pl_module.student.state_dict().values(), strict=True):  # fmt: skip  # noqa: E501
                assert torch.equal(one, other)
            for one, other in zip(first.student.parameters(), pl_module.teacher.parameters(), strict=True):
                assert torch.equal(one, other)

    make_trainer(Before(), notes, max_epochs=1).fit(second, scenes())
    torch.save({"state_dict": {"head.weight": torch.zeros(1)}}, tmp_path / "other.ckpt")
    for path, error, text in (
        ("nowhere", FileNotFoundError, "is no file"),
        ("other.ckpt", ValueError, "holds no student"),
    ):
        with pytest.raises(error, match=text):
            make_trainer().fit(method(start_from=str(tmp_path / path)), scenes())


def test_micro_batches_average_the_gradient() -> None:
    """Without batch statistics and with a share of each image, parts of a batch have the gradient of the whole."""
    batch = example_batch()
    grads = []
    for parts in (1, 2):
        module = zoo.MeanTeacher(
            3, network=Pixelwise(), objective=DomainMixing(0.4, quality="image", **PLAIN), micro_batches=parts,
            optimizer=lambda p: torch.optim.SGD(p, lr=2.0), schedule=constant,
        )  # fmt: skip
        notes = Notes()
        make_trainer(notes, max_epochs=1, precision="64-true").fit(module, DataLoader([batch, batch], batch_size=None))
        grads.append(notes.rows[-1]["student"])
    torch.testing.assert_close(grads[0], grads[1])


def test_gradient_is_clipped() -> None:
    for clip, moves in ((1e-3, True), (None, False)):
        module, notes = method(gradient_clip=clip, optimizer=lambda p: torch.optim.SGD(p, lr=1.0), schedule=constant), Notes()  # fmt: skip  # noqa: E501
        start = torch.cat([p.detach().flatten() for p in module.student.parameters()])
        make_trainer(notes, max_epochs=1, limit_train_batches=1).fit(module, scenes())
        length = (notes.rows[0]["student"] - start).norm().item()
        assert (length <= 1.001e-3) == moves


def test_bfloat16_trains_and_keeps_the_teacher_in_float32() -> None:
    for kind, options in ((zoo.MeanTeacher, {}), (zoo.FST, {"ahead_steps": 2})):
        module = method(kind, momentum=0.999, momentum_warmup=False, **options)
        first = torch.cat([p.detach().flatten().clone() for p in module.teacher.parameters()])
        make_trainer(precision="bf16-mixed").fit(module, scenes())
        last = torch.cat([p.flatten() for p in module.teacher.parameters()])
        assert last.dtype == torch.float32
        assert (last != first).float().mean() > 0.9
        assert last.isfinite().all()
    with pytest.raises(ValueError, match=r"parameters are torch\.bfloat16"):
        make_trainer(precision="bf16-true").fit(method(), scenes())


def test_groups_have_the_heads_rate_and_the_norms_decay() -> None:
    class WithEncoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
            self.head = nn.Conv2d(4, 3, 1)

    groups = parameter_groups(SegmentationNetwork(WithEncoder()), 10.0, decay_norms=False)
    found = sorted((group["lr_scale"], group.get("weight_decay", -1), len(group["params"])) for group in groups)
    assert found == [(1.0, -1, 1), (1.0, 0.0, 3), (10.0, -1, 1), (10.0, 0.0, 1)]
    assert len(parameter_groups(SegmentationNetwork(SmallUNet(3)), 1.0, decay_norms=True)) == 1
    with pytest.raises(ValueError, match="the network has none"):
        parameter_groups(SegmentationNetwork(SmallUNet(3)), 10.0, decay_norms=True)


def test_rates_follow_the_schedule_over_iterations() -> None:
    rates: list[float] = []

    class Rates(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = method(zoo.FST, ahead_steps=2, schedule=lambda o, n: PolyWithWarmup(o, n, 1.0))
    make_trainer(Rates()).fit(module, scenes())
    assert rates == pytest.approx([0.05 * (1 - step / 4) for step in range(4)])


def test_a_checkpoint_loads_without_the_command_line_and_refuses_others(tmp_path: Path) -> None:
    module = method(zoo.FST, ahead_steps=1, class_names=["a", "b", "c"])
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, scenes())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = zoo.FST.load_from_checkpoint(tmp_path / "a.ckpt")
    assert loaded.hparams["ahead_steps"] == 1
    assert loaded.hparams["momentum"] == 0.9
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(loaded.eval()(images), module.eval()(images))
    with pytest.raises(ValueError, match="shape"):
        method(network_args={"width": 3}).on_load_checkpoint(torch.load(tmp_path / "a.ckpt"))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: method(momentum=1.1), "momentum=1.1"),
        (lambda: method(supervised_steps=-1), "supervised_steps=-1"),
        (lambda: method(micro_batches=0), "micro_batches=0"),
        (lambda: method(gradient_clip=0.0), "gradient_clip=0.0"),
        (lambda: method(class_names=["a"]), "1 names"),
        (lambda: method(class_subsets={"x": ["moon"]}), "names \\['moon'\\]"),
        (lambda: zoo.MeanTeacher(300), "num_classes=300"),
        (lambda: DomainMixing(threshold=1.5), "threshold=1.5"),
        (lambda: DomainMixing(feature_distance=0.1), "needs feature_classes"),
        (lambda: method(objective=DomainMixing(feature_distance=0.1, feature_classes=[1])), "has none"),
        (lambda: EntropyFiltering(drop_percent=0), "drop_percent=0"),
        (lambda: make_trainer(gradient_clip_val=1.0).fit(method(), scenes()), "give gradient_clip to the method"),
        (lambda: make_trainer(accumulate_grad_batches=2).fit(method(), scenes()), "micro_batches to the method"),
        (
            lambda: make_trainer().fit(method(), DataLoader([(torch.rand(1, 3, 8, 8), torch.zeros(1))])),
            "must be a dict",
        ),
        (lambda: make_trainer().fit(method(), scenes(unlabeled_batch_size=1)), "make batches and crops of both equal"),
        (lambda: make_trainer().fit(method(micro_batches=3), scenes()), "micro_batches=3 does not divide"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
