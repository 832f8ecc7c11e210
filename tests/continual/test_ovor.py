"""OVOR: the phase with outliers against its worked example, and what rests in it."""

import math

import lightning.pytorch as L
import pytest
import torch
from methods import PROMPTED, SMALL
from test_oneprompt import Snapshots, sines
from torch import nn

import zoo
from zoo.continual import OutlierPhase
from zoo.functional import task_cross_entropy
from zoo.nn import Outliers, QuarterCosine, VirtualOutliers

F64 = torch.float64


def test_head_phase_of_the_worked_example() -> None:
    """Two epochs of cross-entropy, two with outliers, one full batch each; one Adam through all of them."""
    head = nn.Linear(3, 4).double()
    with torch.no_grad():
        head.weight.copy_(sines(4, 3, 0.9, 0.4, 0))
        head.bias.copy_(0.1 * torch.arange(4, dtype=F64).sin())
    start = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    features, labels = 4 * sines(6, 3, 1.1, 0.6, 0), torch.tensor([2, 3, 2, 3, 2, 3])
    phase = OutlierPhase(2)
    phase._collected = [(features, labels)]
    phase._outliers = Outliers(torch.tensor([[6, 0, 0], [0, 6, 0]], dtype=F64), torch.zeros(2, dtype=torch.long))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    schedule, losses = QuarterCosine(optimizer, 4), []
    for epoch in range(4):
        loss = task_cross_entropy(head(features), labels, range(2, 4))
        if epoch >= 2:
            loss, parts = phase.loss(head, 0, range(2, 4))
            assert parts["loss"] + 0.1 * (parts["vor_sample_hinge"] + parts["vor_outlier_hinge"]) == loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert losses == pytest.approx([2.5587850093, 1.9143474259, 2.7969479224, 2.5426522475], abs=1e-9)
    weight = [[0.7351512795, 0.5693910327, 0.2764698435], [0.6642594721, 0.2800054050, -0.1117013362]]
    torch.testing.assert_close(head.weight[2:].detach(), torch.tensor(weight, dtype=F64), atol=1e-9, rtol=0)
    bias = torch.tensor([-0.1352249485, 0.2452661678], dtype=F64)
    torch.testing.assert_close(head.bias[2:].detach(), bias, atol=1e-9, rtol=0)
    assert torch.equal(head.weight[:2], start["weight"][:2])
    assert torch.equal(head.bias[:2], start["bias"][:2])


@pytest.mark.parametrize(
    ("outliers", "steps", "expected"),
    [(7, 3, [[0, 1], [2, 3], [4, 5]]), (2, 5, [[0], [1], [0], [1], [0]]), (3, 3, [[0], [1], [2]])],
)
def test_each_step_has_its_share_of_the_outliers(outliers, steps, expected) -> None:
    made = Outliers(torch.arange(outliers).unsqueeze(1), torch.zeros(outliers))
    assert [made.of_step(step, steps).flatten().tolist() for step in range(steps)] == expected


@pytest.mark.parametrize("name", PROMPTED[1:])
def test_prompts_rest_bit_for_bit_while_the_head_learns(name, method, stream, trainer) -> None:
    snapshots = Snapshots()
    module = method(name, vor_epochs=2)
    trainer(snapshots).fit(module, stream(num_tasks=2, epochs_per_task=3, batch_size=11))
    for epoch, (before, after) in enumerate(zip(snapshots.before, snapshots.after, strict=True)):
        same = {key for key in before if torch.equal(before[key], after[key])}
        prompts = {key for key in before if key.startswith("prompts.")}
        if epoch % 3:
            assert same == prompts | {"seen"}
        else:
            assert not same & prompts
            assert "head.weight" not in same


def test_a_large_penalty_separates_the_energies(method, stream, trainer) -> None:
    """On features that the outliers are far from, both hinges can be met."""
    hinges = []
    for weight in (0.0, 50.0):
        module = method(
            "OVOR", vor_epochs=9, weight=weight, sigma=3.0, num_draws=20,
            sample_energy=-3.0, outlier_energy=-1.0, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.3),
        )  # fmt: skip
        runner = trainer()
        runner.fit(module, stream(num_tasks=1, epochs_per_task=10, batch_size=42))
        hinges.append(sum(float(runner.callback_metrics[f"train/vor_{part}_hinge"]) for part in ("sample", "outlier")))
    assert hinges[1] < 0.5 * hinges[0]


def test_what_the_outliers_are_made_of(method, stream, trainer) -> None:
    """All features of the task, of the images that the epoch shows, with prompts as in evaluation."""
    given = []

    class Spy(VirtualOutliers):
        def synthesize(self, features, num_classes, generator):
            given.append((features, num_classes, generator.initial_seed()))
            return super().synthesize(features, num_classes, generator)

    module = method("DualPrompt", vor_epochs=2, vor=Spy(num_draws=5))
    data = stream(epochs_per_task=3)
    expected = []

    class Expect(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            if pl_module.outlier_phase.is_on:
                images = torch.stack([image for image, _ in data.train_set(data.task.index)])
                with torch.no_grad():
                    expected.append(pl_module.features(images)[0])

    trainer(Expect()).fit(module, data)
    assert [number for _, number, _ in given] == [2] * 6
    assert len({seed for _, _, seed in given}) == 6
    for (features, _, _), own in zip(given, expected, strict=True):
        assert features.shape == (14, 64)
        gap = torch.cdist(features, own)
        assert gap.min(dim=1).values.max() < 1e-3
        assert gap.min(dim=0).values.max() < 1e-3


def test_phase_serves_a_head_of_somebody_else(stream, trainer) -> None:
    class Linear(zoo.SequentialFineTuning):
        def __init__(self) -> None:
            super().__init__(6, train_backbone=False, **SMALL)
            self.phase = OutlierPhase(1)

        def on_train_epoch_start(self) -> None:
            self.log_dict(self.phase.start_epoch(self, self.datamodule, self.backbone))

        def training_step(self, batch, batch_idx):
            if not self.phase.is_on:
                return super().training_step(batch, batch_idx)
            loss, values = self.phase.loss(self.head, batch_idx, self.datamodule.task.classes)
            self.log_dict(values)
            return loss

    runner = trainer()
    runner.fit(Linear(), stream(epochs_per_task=2))
    assert math.isfinite(runner.callback_metrics["vor_sample_energy"])


def test_arguments_reach_the_regulariser(method) -> None:
    given = {
        "weight": 0.2, "sample_energy": -9.0, "outlier_energy": -2.0, "penalty": "squared", "centers": "origin",
        "num_boundary": 7, "num_draws": 8, "kept_per_class": 9, "sigma": 0.3, "neighbor": 4,
        "normalize_candidates": True,
    }  # fmt: skip
    vor = method("OVOR", **given).outlier_phase.vor
    assert {name: getattr(vor, name) for name in given} == given


def test_too_few_epochs_are_refused(method, stream, trainer) -> None:
    with pytest.raises(ValueError, match="vor_epochs=2 are the last ones of a task, but one has 2 epochs"):
        trainer().fit(method("L2P", vor_epochs=2), stream(epochs_per_task=[3, 2, 3]))
    with pytest.raises(ValueError, match="vor_epochs=-1 must be at least 0"):
        method("L2P", vor_epochs=-1)
