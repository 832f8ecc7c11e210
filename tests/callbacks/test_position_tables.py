import lightning.pytorch as L
import pytest
import timm
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from zoo.callbacks import EfficientTrain
from zoo.callbacks.position_tables import PositionTables, resize_table
from zoo.functional import Stage

STAGES = [Stage(32, 1), Stage(48, 1), Stage(64, 1)]
NETWORKS = {
    "vit": ("vit_tiny_patch16_224", {"depth": 1, "num_heads": 2, "embed_dim": 12}),
    "deit": ("deit_tiny_distilled_patch16_224", {"depth": 1, "num_heads": 2, "embed_dim": 12}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"depths": (1, 1), "num_heads": (1, 1), "embed_dim": 12, "drop_path_rate": 0},  # drop path draws at random
    ),
}


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    name, kwargs = NETWORKS[kind]
    return timm.create_model(name, num_classes=3, img_size=64, **kwargs)


class Module(L.LightningModule):
    def __init__(self, kind: str = "vit") -> None:
        super().__init__()
        self.net = network(kind)
        self.sizes = []

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        self.sizes.append(batch[0].shape[-1])
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def data():
    torch.manual_seed(1)
    return DataLoader(TensorDataset(torch.rand(6, 3, 64, 64), torch.arange(6) % 3), batch_size=3)


def make_trainer(*callbacks, **kwargs):
    settings = {"max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return L.Trainer(callbacks=list(callbacks), **{**settings, **quiet, **kwargs})


def resampling(stages=STAGES, **kwargs) -> EfficientTrain:
    return EfficientTrain(stages, base_size=64, positions="resample", evaluation="stage", augment=False, **kwargs)


def test_worked_example():
    table = torch.tensor([[0.0, 1.0], [2.0, 5.0]]).reshape(1, 4, 1)
    expected = torch.tensor([[0, 0.5, 1], [1, 2, 3], [2, 3.5, 5]]).reshape(1, 9, 1)
    assert_close(resize_table(table, (1, 9, 1)), expected)
    with_class_token = torch.cat([torch.full((1, 1, 1), 7.0), table], dim=1)
    resized = resize_table(with_class_token, (1, 10, 1), num_prefix=1)
    assert_close(resized[:, 1:], expected)
    assert resized[0, 0] == 7
    assert_close(resize_table(table[0], (9, 1)), expected[0])  # as of Swin


@pytest.mark.parametrize("kind", NETWORKS)
def test_tables_take_the_sizes_of_the_stages_with_the_optimizers_moments(kind):
    seen = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            optimizer = trainer.optimizers[0]
            parameters = list(pl_module.parameters())
            assert {id(p) for p in parameters} == {id(p) for g in optimizer.param_groups for p in g["params"]}
            assert set(optimizer.state) == {p for p in parameters if p.grad is not None}
            for parameter, state in optimizer.state.items():
                assert state["exp_avg"].shape == parameter.shape
            seen.append(pl_module.net.patch_embed.img_size[0])

    module = Module(kind)
    make_trainer(resampling(), Watch()).fit(module, data(), data())
    assert module.sizes == seen == [32, 32, 48, 48, 64, 64]
    module.eval()(torch.rand(1, 3, 64, 64))


def test_moments_are_interpolated_and_other_state_is_kept():
    module = Module("vit")
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.rand(2, 3, 64, 64)).sum().backward()
    optimizer.step()
    table = module.net.pos_embed
    value, moment, steps = table.detach().clone(), optimizer.state[table]["exp_avg"], optimizer.state[table]["step"]
    PositionTables(module).resize(32, [optimizer])
    new = module.net.pos_embed
    assert new.shape == (1, 5, 12)
    assert table not in optimizer.state
    assert_close(new.detach(), resize_table(value, (1, 5, 12), 1))
    assert_close(optimizer.state[new]["exp_avg"], resize_table(moment, (1, 5, 12), 1))
    assert optimizer.state[new]["step"] == steps


def test_a_frozen_table_stays_frozen():
    module = Module("vit")
    module.net.pos_embed.requires_grad_(False)
    PositionTables(module).resize(32)
    assert module.net.pos_embed.shape == (1, 5, 12)
    assert not module.net.pos_embed.requires_grad
    assert module.net.cls_token.requires_grad


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_trial_leaves_the_network_as_it_was(kind):
    module, images = Module(kind).eval(), torch.rand(1, 3, 64, 64)
    answer = module(images)
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in module.named_parameters()}
    with PositionTables(module).at(32):
        module(torch.rand(1, 3, 32, 32))
    for name, parameter in module.named_parameters():
        assert parameter is before[name][0]
        assert torch.equal(parameter, before[name][1])
    assert torch.equal(module(images), answer)  # Swin's windows too, which are no parameter
    with pytest.raises(AssertionError), PositionTables(module).at(32):
        module(images)
    assert torch.equal(module(images), answer)


@pytest.mark.parametrize("kind", NETWORKS)
def test_resumes_at_the_size_of_the_stage(kind, tmp_path):
    checkpoints = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    unbroken = Module(kind)
    make_trainer(resampling(), checkpoints, enable_checkpointing=True).fit(unbroken, data())
    resumed = Module(kind)
    trainer = make_trainer(resampling())
    trainer.fit(resumed, data(), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)
    assert resumed.sizes == [48, 48, 64, 64]
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert "on_load_checkpoint" not in vars(resumed)


def test_ends_at_full_size_whatever_the_last_stage_is():
    module = Module("vit")
    make_trainer(resampling([Stage(48, 3)])).fit(module, data())
    assert module.net.pos_embed.shape == (1, 17, 12)


def test_an_error_leaves_a_network_of_full_size():
    class Fails(Module):
        def training_step(self, batch, batch_idx):
            if self.current_epoch == 1:
                raise RuntimeError("in the second stage")
            return super().training_step(batch, batch_idx)

    module = Fails("vit")
    with pytest.raises(RuntimeError, match="in the second stage"):
        make_trainer(resampling()).fit(module, data())
    assert module.net.pos_embed.shape == (1, 17, 12)
    module.eval()(torch.rand(1, 3, 64, 64))


def test_tables_stay_where_images_do():
    module = Module("vit")
    make_trainer(resampling(mode=None)).fit(module, data())
    assert module.sizes == [64] * 6


def test_what_does_not_go_together():
    with pytest.raises(ValueError, match="use evaluation='stage'"):
        EfficientTrain(positions="resample")
    with pytest.raises(ValueError, match="averaged weights do not follow"):
        make_trainer(resampling(), EMAWeightAveraging()).fit(Module(), data())
    with pytest.raises(ValueError, match="there is none in Linear"):
        PositionTables(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"fit none of the curriculum's sizes, \[32, 48\]"):
        PositionTables(module := Module()).fit(module, {"net.pos_embed": torch.zeros(1, 2, 12)}, [48, 32])


def test_several_processes_are_refused(tmp_path):
    with pytest.raises(Exception, match="other processes would not notice"):
        make_trainer(resampling(), strategy="ddp_fork", devices=2).fit(Module(), data())
