"""OnePrompt, and what all prompt methods share: what is trained, what rests, what is saved, what is refused."""

import math
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from methods import PROMPTED
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import DataLoader, TensorDataset

import zoo
from zoo.callbacks import FeatureCache
from zoo.continual.oneprompt import SharedPrompts
from zoo.functional import task_cross_entropy
from zoo.nn import Backbone, create_backbone

F64 = torch.float64


def sines(rows: int, columns: int, a: float, b: float, c: float) -> torch.Tensor:
    i, j = torch.arange(rows, dtype=F64).unsqueeze(1), torch.arange(columns, dtype=F64)
    return torch.sin(a * i + b * j + c)


def test_only_classes_of_the_task_compete() -> None:
    logits, labels = 2 * sines(3, 6, 1, 2, 0), torch.tensor([2, 3, 2])
    assert task_cross_entropy(logits, labels, range(2, 4)).item() == pytest.approx(1.310921670497, abs=1e-11)
    assert task_cross_entropy(logits, labels, range(4)).item() == pytest.approx(2.614416788214, abs=1e-11)


def test_other_rows_of_the_head_have_no_gradient() -> None:
    weight, features = sines(6, 2, 0.9, 0.4, 0).requires_grad_(), sines(3, 2, 1.1, 0.6, 0)
    task_cross_entropy(features @ weight.T, torch.tensor([2, 3, 2]), range(2, 4)).backward()
    expected = torch.zeros(6, 2, dtype=F64)
    expected[2] = torch.tensor([0.1412859640, 0.1456729101], dtype=F64)
    expected[3] = -expected[2]
    torch.testing.assert_close(weight.grad, expected, atol=1e-9, rtol=0)
    assert (weight.grad[[0, 1, 4, 5]] == 0).all()


@pytest.mark.parametrize(
    ("name", "arguments", "head", "expected"),
    [
        ("OnePrompt", {}, 100, 184_420),
        ("OnePrompt", {}, 200, 261_320),
        ("OVOR", {}, 200, 261_320),
        ("DualPrompt", {"max_tasks": 10}, 100, 1_036_900),
        ("L2P", {}, 100, 560_740),
        ("L2P", {"layers": (0, 1, 2, 3, 4)}, 200, 2_573_000),
        ("CodaPrompt", {}, 200, 3_993_800),
    ],
)
def test_learnable_parameters_of_the_papers_model(name, arguments, head, expected) -> None:
    # What counts of ViT-B/16 are its width and five of its blocks.
    model = VisionTransformer(16, 16, num_classes=0, embed_dim=768, depth=5, num_heads=12, mlp_ratio=1 / 64)
    method = getattr(zoo, name)(head, Backbone(model, [0, 0, 0], [1, 1, 1]), **arguments)
    assert sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad) == expected


def test_prompts_start_uniform_between_zero_and_one() -> None:
    prefixes, loss = SharedPrompts((0, 3), (50, 60), 64)(None, 0)
    assert {layer: tuple(prefix.shape) for layer, prefix in prefixes.items()} == {0: (2, 50, 64), 3: (2, 60, 64)}
    values = torch.cat([prefix.flatten() for prefix in prefixes.values()])
    assert 0 <= values.min() < 0.01
    assert 0.99 < values.max() < 1
    assert values.mean().item() == pytest.approx(0.5, abs=0.01)
    assert loss == 0


@pytest.mark.parametrize("name", PROMPTED)
def test_backbone_rests_and_the_optimizer_holds_prompts_and_head_only(name, method, stream, trainer) -> None:
    module = method(name, **({"vor_epochs": 1} if name == "OVOR" else {}))
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    runner = trainer(max_epochs=None)
    runner.fit(module, stream(epochs_per_task=2))
    after = module.state_dict()
    frozen = [key for key in before if key.startswith("backbone.")]
    assert frozen
    assert all(torch.equal(before[key], after[key]) for key in frozen)
    held = {id(p) for group in runner.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in (*module.prompts.parameters(), *module.head.parameters())}
    assert not any(p.requires_grad for p in module.backbone.parameters())
    assert not module.backbone.training
    assert all(not torch.equal(before[key], after[key]) for key in before if key.startswith(("prompts.", "head.")))
    assert after["seen"].all()


class Snapshots(L.Callback):
    """Keeps all but the backbone before the first step and after the last one of each epoch."""

    def __init__(self) -> None:
        self.before, self.after = [], []

    def state(self, module):
        return {key: v.clone() for key, v in module.state_dict().items() if not key.startswith("backbone.")}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 0:
            self.before.append(self.state(pl_module))

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.after.append(self.state(pl_module))


def test_rows_of_other_tasks_rest_and_prompts_go_on(method, stream, trainer) -> None:
    snapshots = Snapshots()
    trainer(snapshots).fit(method("OnePrompt"), stream())
    for task, (before, after) in enumerate(zip(snapshots.before, snapshots.after, strict=True)):
        own = torch.zeros(6, dtype=torch.bool)
        own[2 * task : 2 * task + 2] = True
        for name in ("head.weight", "head.bias"):
            moved = (before[name] != after[name]).view(6, -1).any(dim=1)
            assert torch.equal(moved, own)
        prompts = [name for name in before if name.startswith("prompts.")]
        assert len(prompts) == 5
        assert all((before[name] != after[name]).any() for name in prompts)


def test_classes_not_seen_yet_never_win(method, stream, trainer) -> None:
    seen = []

    class Look(L.Callback):
        def on_validation_start(self, trainer, pl_module) -> None:
            if not trainer.sanity_checking:
                seen.append((pl_module(torch.rand(2, 3, 8, 8)) > -math.inf).sum(dim=1).tolist())

    trainer(Look()).fit(method("OnePrompt"), stream())
    assert seen == [[2, 2], [4, 4], [6, 6]]


def test_rate_follows_the_schedule_in_each_task(method, stream, trainer) -> None:
    rates = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if batch_idx == 0:
                rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer(Look()).fit(method("OnePrompt"), stream(epochs_per_task=[3, 1, 2]))
    cosines = [math.cos(99 * math.pi * e / 400) for e in range(3)]
    expected = [*cosines, 1, 1, math.cos(99 * math.pi / 200)]
    assert rates == pytest.approx([1e-3 * factor for factor in expected], rel=1e-12)


def test_training_learns(method, stream, trainer) -> None:
    module = method("OnePrompt", optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.03))
    runner = trainer()
    runner.fit(module, stream(num_tasks=1, epochs_per_task=40, batch_size=42))
    assert runner.callback_metrics["train/loss"] < 0.2 * math.log(6)
    assert runner.callback_metrics["test/acc"] > 0.8


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_learns_as_full_precision_does(precision, method, stream, trainer) -> None:
    values = []
    for chosen in ("32-true", precision):
        runner = trainer(precision=chosen)
        runner.fit(method("OVOR", vor_epochs=1), stream(num_tasks=1, epochs_per_task=3))
        values.append([float(runner.callback_metrics[f"train/{name}"]) for name in ("loss", "vor_sample_energy")])
    assert values[0] == pytest.approx(values[1], rel=0.05)


def test_gradient_clipping_bounds_the_steps(method, stream, trainer) -> None:
    moved = []
    for clip in (1e-4, None):
        module = method("OnePrompt", optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))
        before = module.head.weight.detach().clone()
        trainer(gradient_clip_val=clip).fit(module, stream(num_tasks=1, batch_size=42))
        moved.append((module.head.weight.detach() - before).norm().item())
    assert moved[0] < 1.0001e-4 < moved[1]  # one step


def test_accumulated_batches_equal_one_large_batch(method, stream, trainer) -> None:
    modules = []
    for batch_size, accumulate in ((7, 1), (1, 7)):
        module = method("OnePrompt", optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        data = stream(num_tasks=6, batch_size=batch_size)
        trainer(accumulate_grad_batches=accumulate).fit(module, data)
        modules.append(module)
    for first, second in zip(*(module.prompts.parameters() for module in modules), strict=True):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", PROMPTED)
def test_checkpoint_gives_the_same_scores_without_the_backbone(name, method, stream, trainer, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save(create_backbone("test_vit", False, img_size=8, patch_size=4).model.state_dict(), weights)
    module = method(name, checkpoint_path=str(weights), **({"vor_epochs": 1} if name == "OVOR" else {}))
    trainer().fit(module, stream(epochs_per_task=2))
    path = tmp_path / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert {key.partition(".")[0] for key in saved} == {"prompts", "head", "seen"}
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(type(module).load_from_checkpoint(path).eval()(images), module.eval()(images))
    with pytest.raises(ValueError, match="number of classes"):
        type(module).load_from_checkpoint(path, num_classes=7)


def test_features_of_a_prompted_network_are_not_cached(method, stream, trainer) -> None:
    with_cache, without = FeatureCache(), trainer()
    cached = trainer(with_cache)
    cached.fit(method("OnePrompt"), stream())
    without.fit(method("OnePrompt"), stream())
    assert with_cache.hits == 0
    assert cached.callback_metrics == without.callback_metrics


def test_a_backbone_of_ones_own_with_registers(stream, trainer) -> None:
    backbone = create_backbone("test_vit", False, img_size=8, patch_size=4, reg_tokens=2)
    module = zoo.OnePrompt(6, backbone)
    trainer().fit(module, stream())
    assert module(torch.rand(1, 3, 8, 8)).isfinite().all()
    assert "backbone" not in module.hparams


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"layers": (0, 6), "lengths": (1, 1)}, "no block 6: the model has blocks 0 to 5"),
        ({"lengths": (5, 5)}, r"lengths=\(5, 5\) must be one positive number for each of layers=\(0, 1, 2, 3, 4\)"),
        ({"backbone": "test_resnet", "backbone_args": None}, "VisionTransformer; got ResNet"),
        ({"backbone_args": {"global_pool": "avg"}}, "pools by 'avg': take backbone_args={'global_pool': 'token'}"),
        ({"backbone": "test_vit3"}, "pools by 'map': take a model with a class token"),
        ({"backbone": "deit_tiny_distilled_patch16_224"}, "got VisionTransformerDistilled"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message, method) -> None:
    with pytest.raises(ValueError, match=message):
        method("OnePrompt", **arguments)


def test_a_stream_is_needed(method) -> None:
    loader = DataLoader(TensorDataset(torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)))
    runner = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    for name in ("OnePrompt", "SequentialFineTuning"):
        with pytest.raises(ValueError, match=f"{name} learns a stream of tasks, got NoneType: give a datamodule"):
            runner.fit(method(name), loader)
