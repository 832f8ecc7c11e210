"""The references: what is trained, what forgets, and what the memory of replay holds."""

from collections import Counter
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from zoo.continual.experience_replay import Reservoir


class Losses(L.Callback):
    """Keeps the loss of each step, and the size of what it was computed on."""

    def __init__(self) -> None:
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"].item())


@pytest.mark.parametrize("compete", ["seen", "task"])
def test_classes_that_compete(compete, method, stream, trainer) -> None:
    """With a rate of zero the loss of a task is the cross-entropy over the classes in question."""
    losses, still = Losses(), lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    module, data = method("SequentialFineTuning", compete=compete, optimizer=still), stream(batch_size=14)
    trainer(losses).fit(module, data)
    module.eval()
    for task, loss in zip(data.tasks, losses.losses, strict=True):
        images, labels = (
            torch.stack([torch.as_tensor(part) for part in parts])
            for parts in zip(*data.train_set(task.index), strict=True)
        )
        first = task.classes.start if compete == "task" else 0
        expected = torch.nn.functional.cross_entropy(module(images)[:, first : task.classes.stop], labels - first)
        assert loss == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("train_backbone", [True, False])
def test_what_is_trained(train_backbone, method, stream, trainer) -> None:
    module = method("SequentialFineTuning", train_backbone=train_backbone)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trainer().fit(module, stream())
    moved = {
        name.partition(".")[0] for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert moved == ({"backbone", "head", "seen"} if train_backbone else {"head", "seen"})
    assert module.train().backbone.training == train_backbone


def fit(module, data, trainer) -> dict[str, float]:
    runner = trainer()
    runner.fit(module, data)
    return {name: float(value) for name, value in runner.callback_metrics.items()}


class Perceptron(nn.Sequential):
    """A network of the caller's."""

    num_features = 32

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(192, 32), nn.ReLU())


def test_a_sequence_forgets_and_replay_and_joint_training_do_not(method, stream, trainer) -> None:
    fast = {"optimizer": lambda parameters: torch.optim.Adam(parameters, lr=0.01)}
    settings = {"epochs_per_task": 12, "batch_size": 7}
    sequence = fit(method("SequentialFineTuning", backbone=Perceptron(), **fast), stream(**settings), trainer)
    memory = {"memory_size": 30, "replay_batch_size": 14}
    replay = fit(method("ExperienceReplay", backbone=Perceptron(), **memory, **fast), stream(**settings), trainer)
    joint = fit(
        method("SequentialFineTuning", backbone=Perceptron(), **fast),
        stream(num_tasks=1, epochs_per_task=36, batch_size=7),
        trainer,
    )
    assert sequence["test/task00/acc"] == 0
    assert sequence["test/acc"] < 0.4 < 0.8 < replay["test/acc"]
    assert joint["test/acc"] > 0.8


def offer(reservoir: Reservoir, count: int, size: int, seed: int) -> None:
    """Offer images whose only pixel is their number."""
    for start in range(0, count, size):
        numbers = torch.arange(start, min(start + size, count))
        generator = torch.Generator().manual_seed(seed * 1000 + start)
        reservoir.offer((numbers / 255).view(-1, 1, 1, 1), numbers, generator)


def test_reservoir_keeps_each_image_equally_often() -> None:
    counts: Counter[int] = Counter()
    for seed in range(600):
        reservoir = Reservoir(5)
        offer(reservoir, 20, 3, seed)
        assert len(reservoir) == 5
        assert len(set(reservoir.labels.tolist())) == 5
        assert torch.equal(reservoir.images.flatten().long(), reservoir.labels)
        counts.update(reservoir.labels.tolist())
    assert len(counts) == 20
    # 600 tries with probability 1/4: 150 of each, standard deviation 10.6.
    assert all(abs(count - 150) < 4 * 10.6 for count in counts.values())


def test_reservoir_keeps_all_while_there_is_room() -> None:
    reservoir = Reservoir(10)
    offer(reservoir, 7, 3, 0)
    assert reservoir.labels.tolist() == list(range(7))
    images, labels = reservoir.draw(4, torch.Generator().manual_seed(0))
    assert len(set(labels.tolist())) == 4
    torch.testing.assert_close(images.flatten(), labels / 255)
    assert len(reservoir.draw(100, torch.Generator())[1]) == 7


def test_memory_is_offered_each_image_once_whatever_the_epochs(method, stream, trainer) -> None:
    module = method("ExperienceReplay", memory_size=100, replay_batch_size=3)
    data = stream(epochs_per_task=2)
    trainer().fit(module, data)
    assert module.memory.num_offered == 42
    assert sorted(module.memory.labels.tolist()) == sorted(list(range(6)) * 7)
    kept = {tuple(image.flatten().tolist()) for image in module.memory.images}
    shown = {
        tuple((image * 255).round().byte().flatten().tolist()) for task in range(3) for image, _ in data.train_set(task)
    }
    assert kept == shown


def test_memory_is_in_the_checkpoint(method, stream, trainer, tmp_path: Path) -> None:
    module = method("ExperienceReplay", memory_size=9, replay_batch_size=3)
    trainer().fit(module, stream())
    path = tmp_path / "checkpoints" / "last.ckpt"
    loaded = type(module).load_from_checkpoint(path)
    assert torch.equal(loaded.memory.images, module.memory.images)
    assert loaded.memory.num_offered == 42
    trainer().fit(method("SequentialFineTuning"), stream())
    with pytest.raises(ValueError, match="no memory of images"):
        type(module).load_from_checkpoint(tmp_path / "checkpoints" / "last-v1.ckpt")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("SequentialFineTuning", {"compete": "all"}, "compete='all' 'seen' or 'task'"),
        ("SequentialFineTuning", {"num_classes": 0}, "num_classes=0"),
        ("ExperienceReplay", {"memory_size": 0}, "memory_size=0"),
        ("ExperienceReplay", {"replay_batch_size": 0}, "replay_batch_size=0"),
    ],
)
def test_bad_arguments_are_refused(name, arguments, message, method) -> None:
    with pytest.raises(ValueError, match=message):
        method(name, **arguments)
