"""FST: three iterations by hand, equality with what is taken literally, wide steps, precision, processes, bad input."""

import copy
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from test_mean_teacher import PLAIN, Notes, constant, make_trainer, method, scenes
from torch import nn
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader

import zoo
from zoo.functional import VirtualSteps
from zoo.segmentation import DomainMixing, Outcome

# Optimizer and variant; then student and teacher, three numbers each, after iterations 1, 2, 3.
WORKED = """
sgd: k0
0.9831470985 0.5766615157 -0.3600040052 1.0000000000 0.5403023059 -0.4161468365
0.8835520115 0.4738255774 -0.3715339074 0.9983147098 0.5439382268 -0.4105325534
0.6139495741 0.3086303691 -0.2804421739 0.9868384400 0.5369269619 -0.4066326888
sgd: k1
0.9829785695 0.5770251078 -0.3594425769 0.9966294197 0.5475741478 -0.4049182703
0.8819831395 0.4740332639 -0.3697406084 0.9728324148 0.5353735052 -0.3943053361
0.6066672980 0.3060724311 -0.2759240175 0.8930385389 0.4850479860 -0.3688934483
sgd: deep restored
0.9828391960 0.5773257984 -0.3589782757 0.9938419498 0.5535879611 -0.3956322460
0.8808888342 0.4737667319 -0.3689343188 0.9558215923 0.5195247045 -0.3944208007
0.6024675023 0.3038545251 -0.2741209012 0.8448127033 0.4554255895 -0.3526777110
sgd: deep carried
0.9562352056 0.6347224470 -0.2703512022 0.9938419498 0.5535879611 -0.3956322460
0.7187455744 0.3220498474 -0.3707370241 0.9436645903 0.5457527689 -0.3539216314
0.1567740842 -0.0063570746 -0.1636435683 0.7680172076 0.3919267601 -0.3444993432
sgd: deep carried last
0.9562352056 0.6347224470 -0.2703512022 0.9900812754 0.5617014097 -0.3831041416
0.7183535743 0.3228955661 -0.3694311365 0.9186119802 0.5289070648 -0.3470725668
0.1536702682 -0.0070506543 -0.1612892378 0.6896236803 0.3410818950 -0.3210490115
sgd: wide restored
0.9828599533 0.5766407977 -0.3597392480 0.9931173829 0.5435632315 -0.4057404481
0.8824024791 0.4738143624 -0.3703964940 0.9750718068 0.5373762138 -0.3943805919
0.6102450278 0.3074075118 -0.2780590529 0.9140350931 0.4919810246 -0.3823981290
sgd: wide carried
0.8888935407 0.5668945702 -0.2763046538 0.9793795861 0.5436444968 -0.3919148357
0.6663951800 0.3496403537 -0.2885722014 0.9280756369 0.5245364384 -0.3612591426
0.2423388451 0.0033782306 -0.2386883135 0.8144598916 0.4317734451 -0.3478835156
adamw: k0
0.8990000063 0.6397620009 -0.3157306915 1.0000000000 0.5403023059 -0.4161468365
0.8110930488 0.5837514923 -0.3311089358 0.9899000006 0.5502482754 -0.4061052220
0.7252399870 0.5138207525 -0.2922532717 0.9720193055 0.5535985971 -0.3986055934
adamw: k1
0.8990000059 0.6397620009 -0.3157306915 0.9798000013 0.5601942449 -0.3960636075
0.8108088643 0.5844411681 -0.3291801935 0.9394906759 0.5714043565 -0.3763445393
0.7247184417 0.5149389322 -0.2886722393 0.8862102482 0.5611734108 -0.3550798387
adamw: deep restored
0.8990000058 0.6397620010 -0.3157306915 0.9734570027 0.5687400092 -0.3872181877
0.8106998159 0.5846644392 -0.3287502634 0.9270855713 0.5700650769 -0.3749553961
0.7245180539 0.5152569619 -0.2880203853 0.8699752108 0.5532968057 -0.3487100282
adamw: deep carried
0.9140968501 0.6376202106 -0.3165832812 0.9734570027 0.5687400092 -0.3872181877
0.8242203367 0.5712335425 -0.3456774944 0.9343168699 0.5776119062 -0.3630756230
0.7300431651 0.4939185114 -0.3008375396 0.8788827778 0.5549758420 -0.3540742843
adamw: deep carried last
0.9140968501 0.6376202106 -0.3165832812 0.9675209874 0.5756280294 -0.3801546970
0.8242416688 0.5712652659 -0.3454914573 0.9194261976 0.5815129909 -0.3566275193
0.7300745179 0.4939689673 -0.3004163956 0.8542423050 0.5514493254 -0.3443631190
adamw: wide restored
0.8990000061 0.6397620009 -0.3157306915 0.9808100013 0.5501996481 -0.4060677687
0.8109418157 0.5838244024 -0.3306413651 0.9500902338 0.5632407688 -0.3866847226
0.7249757041 0.5139277117 -0.2912003884 0.9082569363 0.5537660033 -0.3737971188
adamw: wide carried
0.9343831647 0.5714752996 -0.3561758229 0.9856217395 0.5471033819 -0.4033879578
0.8555016295 0.5159561553 -0.3509770937 0.9623321033 0.5469031267 -0.3897761489
0.7710876677 0.4404989584 -0.3294093117 0.9269558663 0.5275090838 -0.3808268692
"""

VARIANTS = {
    "k0": {"ahead_steps": 0},
    "k1": {"ahead_steps": 1, "future_momentum": 0.8},
    "deep restored": {"ahead_steps": 2},
    "deep carried": {"ahead_steps": 2, "optimizer_state": "carried"},
    "deep carried last": {"ahead_steps": 2, "optimizer_state": "carried", "ema_last": True},
    "wide restored": {"ahead_steps": 2, "variant": "wide"},
    "wide carried": {"ahead_steps": 2, "variant": "wide", "optimizer_state": "carried"},
}
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: AdamW(p, lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01),
}
INDEX = torch.arange(3.0, dtype=torch.float64)


def worked_examples() -> list[tuple[str, str, list[list[float]]]]:
    """Return optimizer, variant and three rows of six numbers."""
    lines = WORKED.strip().splitlines()
    blocks = [lines[start : start + 4] for start in range(0, len(lines), 4)]
    return [(*block[0].split(": "), [[float(x) for x in row.split()] for row in block[1:]]) for block in blocks]


class Toy(nn.Module):
    """Three parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(INDEX.cos())


class ToyObjective(nn.Module):
    """A loss whose gradient is (theta - sin(1 + i + 2 b)) + (theta - phi) / 2; the batch is the number b."""

    def attach(self, student: Any, num_classes: int) -> None:
        pass

    def forward(self, student: Any, teacher: Any, batch: Any, generator: Any, own_statistics: bool) -> Outcome:
        number = float(batch["labeled"])
        pull = 0.5 * (student.theta - (1 + INDEX + 2 * number).sin()).square().sum()
        return Outcome(pull + 0.25 * (student.theta - teacher.theta).square().sum(), {})


def toy(optimizer: Any, **options: Any) -> zoo.FST:
    return zoo.FST(
        3, network=Toy(), objective=ToyObjective(), momentum=0.9, momentum_warmup=False, start_step=0,
        schedule=constant, optimizer=optimizer, **options,
    )  # fmt: skip


def toy_batches() -> DataLoader[Any]:
    def batch(number: int) -> dict[str, Any]:
        return {"labeled": torch.tensor(number), "unlabeled": torch.zeros(1)}

    batches = [{**batch(t), "future": [batch(100 + 10 * t + n) for n in range(2)]} for t in range(3)]
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def fit_toy(optimizer: Any, **options: Any) -> list[list[float]]:
    notes = Notes()
    make_trainer(notes, max_epochs=1, precision="64-true").fit(toy(optimizer, **options), toy_batches())
    return [[*row["student"].tolist(), *row["teacher"].tolist()] for row in notes.rows]


@pytest.mark.filterwarnings("ignore:.*val_dataloader.*")
@pytest.mark.parametrize(("optimizer", "variant", "rows"), worked_examples())
def test_three_iterations_are_those_of_the_worked_example(optimizer: str, variant: str, rows: Any) -> None:
    found = fit_toy(OPTIMIZERS[optimizer], **VARIANTS[variant])
    for row, expected in zip(found, rows, strict=True):
        assert row == pytest.approx(expected, abs=1e-10)


@pytest.mark.filterwarnings("ignore:.*val_dataloader.*")
def test_first_iteration_by_hand() -> None:
    """g = 1.5 theta - a - 0.5 phi; the virtual student enters the teacher with 0.2; theta moves by the new labels."""
    theta, a = INDEX.cos(), (1 + INDEX).sin()
    virtual = theta - 0.1 * (1.5 * theta - a - 0.5 * theta + 0.01 * theta)
    phi = 0.8 * theta + 0.2 * virtual
    real = theta - 0.1 * (1.5 * theta - a - 0.5 * phi + 0.01 * theta)
    assert virtual.tolist() == pytest.approx([0.9831470985, 0.5766615157, -0.3600040052], abs=1e-10)
    found = fit_toy(OPTIMIZERS["sgd"], **VARIANTS["k1"])[0]
    assert found == pytest.approx([*real.tolist(), *phi.tolist()], abs=1e-12)


@pytest.mark.filterwarnings("ignore:.*val_dataloader.*")
def test_skipping_the_real_student_skips_one_update() -> None:
    deep = fit_toy(OPTIMIZERS["sgd"], ahead_steps=1, ema_real=False)[0]
    theta, a = INDEX.cos(), (1 + INDEX).sin()
    virtual = theta - 0.1 * (1.01 * theta - a)
    assert deep[3:] == pytest.approx((0.9 * theta + 0.1 * virtual).tolist(), abs=1e-12)
    with_real = fit_toy(OPTIMIZERS["sgd"], **VARIANTS["wide restored"])[0]
    without = fit_toy(OPTIMIZERS["sgd"], **VARIANTS["wide restored"], ema_real=False)[0]
    assert with_real[:3] == without[:3]
    real = torch.tensor(without[:3], dtype=torch.float64)
    expected = 0.9 * torch.tensor(without[3:], dtype=torch.float64) + 0.1 * real
    assert with_real[3:] == pytest.approx(expected.tolist(), abs=1e-12)
    assert fit_toy(OPTIMIZERS["sgd"], ahead_steps=0, ema_real=False) == fit_toy(OPTIMIZERS["sgd"], ahead_steps=0)


@pytest.mark.filterwarnings("ignore:.*val_dataloader.*")
def test_first_iterations_are_those_of_a_mean_teacher() -> None:
    notes = []
    for options in ({"ahead_steps": 2}, {"ahead_steps": 0}):
        notes.append(Notes())
        module = toy(OPTIMIZERS["adamw"], **options)
        module.start_step = 2
        make_trainer(notes[-1], max_epochs=1, precision="64-true").fit(module, toy_batches())
    for step, same in enumerate((True, True, False)):
        assert torch.equal(notes[0].rows[step]["teacher"], notes[1].rows[step]["teacher"]) == same


# Real networks -----------------------------------------------------------------------------------------------------


class Literal(zoo.FST):
    """As FST, but virtual students are deep copies of network and optimizer, which step and are thrown away."""

    def prepare_teacher(self, batch: Any, step: int) -> None:
        real, optimizer = self.student, self.torch_optimizer
        self.average(self.momentum)
        wide = self.variant == "wide"
        batches = batch["future"] if wide else [batch] * self.ahead_steps
        students, moments = [], copy.deepcopy(optimizer.state_dict())
        current = real
        for number, other in enumerate(batches, start=1):
            if number > 1 and not wide:
                self.teacher_takes(current)
            current = copy.deepcopy(real if wide else current)
            virtual = self.optimizer(current.parameters())
            virtual.load_state_dict(copy.deepcopy(moments))  # it would share them
            generator = torch.Generator().manual_seed(self.draw(number))
            virtual.zero_grad()
            self.objective(current, self.teacher, other, generator, False).loss.backward()
            virtual.step()
            moments = moments if wide else virtual.state_dict()
            students.append(current)
        last = students if wide else students[-1:]
        mean = [torch.stack(values).mean(0) for values in zip(*(list(s.parameters()) for s in last), strict=True)]
        for mine, value in zip(self.teacher.parameters(), mean, strict=True):
            mine.data = self.future_momentum * mine + (1 - self.future_momentum) * value.detach()

    def teacher_takes(self, student: nn.Module) -> None:
        for mine, value in zip(self.teacher.parameters(), student.parameters(), strict=True):
            mine.data = self.momentum * mine + (1 - self.momentum) * value.detach()


SGDM: Any = lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True)  # noqa: E731
ADAMW: Any = lambda p: AdamW(p, lr=0.01, weight_decay=0.1)  # noqa: E731


@pytest.mark.parametrize("optimizer", [SGDM, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("options", [{"ahead_steps": 1}, {"ahead_steps": 3}, {"ahead_steps": 2, "variant": "wide"}])
def test_a_network_with_batch_statistics_equals_the_literal_copy_in_float64(optimizer: Any, options: Any) -> None:
    states = []
    for kind in (zoo.FST, Literal):
        module = method(
            kind, optimizer=optimizer, momentum=0.9, future_momentum=0.7, momentum_warmup=False, start_step=0,
            ema_real=options.get("variant") != "wide", objective=DomainMixing(0.5, **PLAIN), **options,
        )  # fmt: skip
        if kind is Literal and options.get("variant") == "wide":
            module.average = lambda momentum: None  # its first update and its last are those of ema_real
        data = scenes(future=2, steps_per_epoch=3)
        make_trainer(max_epochs=1, precision="64-true").fit(module, data)
        states.append(module.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-11, atol=1e-12, msg=name)


def test_virtual_steps_leave_no_trace_in_student_optimizer_and_statistics() -> None:
    """With a teacher that says the same whatever it takes in, FST's student is the mean teacher's."""
    states = []
    for kind, options in ((zoo.MeanTeacher, {}), (zoo.FST, {"ahead_steps": 3}), (zoo.FST, {"variant": "wide"})):
        module = method(kind, optimizer=ADAMW, objective=DomainMixing(unlabeled_weight=0.0), **options)
        trainer = make_trainer()
        trainer.fit(module, scenes(future=1))
        states.append((module.student.state_dict(), str(trainer.optimizers[0].state_dict())))
    for student, optimizer in states[1:]:
        for name, value in states[0][0].items():
            assert torch.equal(value, student[name]), name
        assert optimizer == states[0][1]


def test_one_optimizer_step_is_counted_in_an_iteration_and_gradients_are_told() -> None:
    for state in ("restored", "carried"):
        module = method(zoo.FST, ahead_steps=3, optimizer_state=state, supervised_steps=1, optimizer=ADAMW)
        trainer = make_trainer(max_epochs=1)
        trainer.fit(module, scenes(steps_per_epoch=4))
        assert trainer.global_step == 4
        # One supervised, one of the mean teacher, two of four gradients.
        assert trainer.callback_metrics["train/gradients"] == 1 + 1 + 2 * 4
        count = next(iter(trainer.optimizers[0].state.values()))["step"]
        assert count == (4 if state == "restored" else 10)


class Draws(DomainMixing):
    """Keeps what each call draws."""

    def forward(self, student: Any, teacher: Any, batch: Any, generator: Any, own_statistics: bool) -> Outcome:
        self.drawn = [*getattr(self, "drawn", []), float(torch.rand((), generator=generator))]
        return super().forward(student, teacher, batch, generator, own_statistics)


def test_each_call_draws_anew_or_as_the_real_one_and_the_real_one_as_a_mean_teacher() -> None:
    drawn = {}
    for name, kind, options in (
        ("mt", zoo.MeanTeacher, {}),
        ("anew", zoo.FST, {"ahead_steps": 2, "start_step": 0}),
        ("same", zoo.FST, {"ahead_steps": 2, "start_step": 0, "same_augmentation": True}),
        ("seed", zoo.MeanTeacher, {"seed": 1}),
    ):
        objective = Draws(**PLAIN)
        make_trainer(max_epochs=1).fit(method(kind, objective=objective, **options), scenes())
        drawn[name] = objective.drawn
    assert len(drawn["anew"]) == 6
    assert len(set(drawn["anew"])) == 6
    assert drawn["anew"][2::3] == drawn["mt"]
    assert drawn["same"] == [value for value in drawn["mt"] for _ in range(3)]
    assert drawn["seed"] != drawn["mt"]


def test_wide_variant_of_sgd_is_one_step_of_the_mean_gradient_unless_gradients_are_clipped(monkeypatch: Any) -> None:
    calls: list[int] = []
    original = VirtualSteps.lerp_into_
    monkeypatch.setattr(VirtualSteps, "lerp_into_", lambda *args: (calls.append(1), original(*args))[1])
    states = []
    for clip in (None, 1e6):  # a norm that no gradient reaches: the same result on the other way
        module = method(
            zoo.FST, ahead_steps=2, variant="wide", gradient_clip=clip, start_step=0, optimizer=SGDM,
            objective=DomainMixing(0.5),
        )  # fmt: skip
        make_trainer(max_epochs=1, precision="64-true").fit(module, scenes(future=2))
        states.append((module.state_dict(), len(calls)))
        calls.clear()
    assert (states[0][1], states[1][1]) == (2, 4)
    for name, value in states[0][0].items():
        torch.testing.assert_close(value, states[1][0][name], rtol=1e-12, atol=1e-13)


def test_virtual_gradients_are_clipped_too() -> None:
    """With a tiny norm the virtual student hardly differs from the real one; without it does."""
    gaps = []
    for clip in (1e-6, None):
        module = method(
            zoo.FST, gradient_clip=clip, momentum=0.5, future_momentum=0.0, momentum_warmup=False, start_step=0,
            optimizer=lambda p: SGD(p, lr=1.0), schedule=constant,
        )  # fmt: skip
        start = torch.cat([p.detach().flatten() for p in module.student.parameters()])
        notes = Notes()
        make_trainer(notes, max_epochs=1, limit_train_batches=1).fit(module, scenes())
        gaps.append((notes.rows[0]["teacher"] - start).norm().item())
    assert gaps[0] < 1e-5 < 1e-2 < gaps[1]


def test_loss_scale_changes_nothing() -> None:
    """Powers of two are exact: with a scaler all is as without one."""
    for options in ({"ahead_steps": 1}, {"ahead_steps": 2}, {"ahead_steps": 2, "variant": "wide"}):
        for optimizer in (SGDM, ADAMW):
            states = []
            for scaled in (False, True):
                module = method(zoo.FST, optimizer=optimizer, start_step=0, gradient_clip=0.5, **options)
                plugins = [Scaled(1024.0)] if scaled else []
                make_trainer(max_epochs=1, plugins=plugins).fit(module, scenes(future=2))
                states.append(module.state_dict())
            for name, value in states[0].items():
                torch.testing.assert_close(value, states[1][name], rtol=1e-5, atol=1e-6, msg=name)


class Scaled(MixedPrecision):
    """Automatic mixed precision with a loss scale, computing in float32 so that results can be compared."""

    def __init__(self, scale: float) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6))

    def autocast_context_manager(self) -> Any:  # type: ignore[override]
        return torch.autocast("cpu", enabled=False)


def test_a_virtual_gradient_that_overflows_is_skipped_and_the_scaler_not_told() -> None:
    class Overflow(DomainMixing):
        calls = 0

        def forward(self, *args: Any) -> Outcome:
            outcome = super().forward(*args)
            self.calls += 1
            return outcome._replace(loss=outcome.loss * float("inf")) if self.calls in (1, 2) else outcome

    precision = Scaled(1024.0)
    module = method(zoo.FST, ahead_steps=2, start_step=0, objective=Overflow(**PLAIN), momentum_warmup=False)
    start = torch.cat([p.detach().flatten() for p in module.student.parameters()])
    notes = Notes()
    make_trainer(notes, max_epochs=1, limit_train_batches=1, plugins=[precision]).fit(module, scenes())
    assert precision.scaler.get_scale() == 1024
    torch.testing.assert_close(notes.rows[0]["teacher"], start)  # the average of students that did not move
    assert not torch.equal(notes.rows[0]["student"], start)


@pytest.mark.filterwarnings("ignore:.*has no functional form")
def test_other_optimizers_look_ahead_literally_and_say_so() -> None:
    from torch.optim import RMSprop

    module = method(zoo.FST, ahead_steps=2, start_step=0, optimizer=lambda p: RMSprop(p, lr=0.01, momentum=0.5))
    trainer = make_trainer(max_epochs=1)
    with pytest.warns(UserWarning, match="RMSprop has no functional form"):
        trainer.fit(module, scenes())
    assert next(iter(trainer.optimizers[0].state.values()))["step"] == 2


def test_parameters_are_put_back_if_an_iteration_breaks_off() -> None:
    class Break(DomainMixing):
        calls = 0

        def forward(self, *args: Any) -> Outcome:
            self.calls += 1
            if self.calls == 3:
                raise RuntimeError("out of memory")
            return super().forward(*args)

    module = method(zoo.FST, ahead_steps=3, start_step=0, objective=Break(**PLAIN))
    start = copy.deepcopy(module.student.state_dict())
    with pytest.raises(RuntimeError, match="out of memory"):
        make_trainer(max_epochs=1).fit(module, scenes())
    for name, value in start.items():
        assert torch.equal(value, module.student.state_dict()[name]), name


# Processes -----------------------------------------------------------------------------------------------------------


class NoStatistics(nn.Module):
    """A small network without batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


class Write(L.Callback):
    """Writes what a process ends with."""

    def __init__(self, folder: Any) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        state = {**pl_module.state_dict(), "miou": trainer.callback_metrics["test/miou_teacher"]}
        torch.save(state, self.folder / f"{trainer.world_size}_{trainer.global_rank}.pt")


@pytest.mark.parametrize(
    ("optimizer", "options"), [(SGDM, {"ahead_steps": 2}), (ADAMW, {"ahead_steps": 2, "variant": "wide"})]
)
def test_two_processes_end_as_one(tmp_path: Any, optimizer: Any, options: Any) -> None:
    for devices in (1, 2):
        torch.manual_seed(0)
        module = zoo.FST(
            3, network=NoStatistics(), objective=DomainMixing(0.4, quality="image", **PLAIN), momentum=0.9,
            optimizer=optimizer, gradient_clip=1.0, **options,
        )  # fmt: skip
        strategy = "ddp_fork" if devices == 2 else "auto"
        trainer = make_trainer(Write(tmp_path), devices=devices, strategy=strategy, max_epochs=2, precision="64-true")
        trainer.fit(module, scenes(batch_size=4 // devices, future=2))
    one, *two = (torch.load(tmp_path / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))
    for name, value in one.items():
        assert torch.equal(two[0][name], two[1][name]), name
        torch.testing.assert_close(value, two[0][name], rtol=1e-9, atol=1e-10, msg=name)


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ahead_steps": -1}, "ahead_steps=-1"),
        ({"start_step": -1}, "start_step=-1"),
        ({"variant": "tall"}, "variant='tall'"),
        ({"optimizer_state": "lost"}, "optimizer_state='lost'"),
        ({"future_momentum": 1.5}, "future_momentum=1.5"),
        ({"momentum": 2.0}, "momentum=2.0"),
        ({"variant": "wide", "ahead_steps": 3, "start_step": 0}, "give future=3 to the datamodule"),
    ],
)
def test_what_does_not_fit_is_refused(options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_trainer().fit(method(zoo.FST, **options), scenes())
