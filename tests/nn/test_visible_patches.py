"""timm's transformer on some patches: a worked example, its own forward on all of them, and what is refused."""

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from zoo.functional import position_table
from zoo.nn import encode_visible, start_transformer
from zoo.nn.visible_patches import check_final_norm, check_transformer


def tiny(**kwargs) -> VisionTransformer:
    settings = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 0, "embed_dim": 8, "depth": 2}
    return VisionTransformer(**{**settings, "num_heads": 2, "mlp_ratio": 2, **kwargs}).eval()


def everything(images: torch.Tensor, length: int) -> torch.Tensor:
    return torch.arange(length).expand(len(images), -1)


def test_worked_example_on_two_of_four_patches() -> None:
    model = tiny().double()
    with torch.no_grad():
        for index, (name, parameter) in enumerate(model.named_parameters()):
            flat = torch.arange(parameter.numel(), dtype=torch.float64)
            values = 0.2 * (0.7 * index + 0.3 * flat + 0.1).sin() + float("norm" in name and name.endswith("weight"))
            parameter.copy_(values.view(parameter.shape))
        model.pos_embed.copy_(position_table(8, (2, 2)))
    i, j = torch.meshgrid(torch.arange(8.0).double(), torch.arange(8.0).double(), indexing="ij")
    images = torch.stack([(i + 2 * j).sin(), (i - j).cos()])[:, None]
    tokens, tapped = encode_visible(model, images, torch.tensor([[2, 0], [1, 3]]), taps=[0])

    def close(found: torch.Tensor, expected: list[float]) -> None:
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)

    close(
        tapped[0][0, 0],
        [-0.188201901, -0.034287353, 0.068982956, -0.053464561, 0.560547867, 0.268668616, 0.129726947, 0.508502035],
    )
    close(
        tapped[0][1, 2],
        [0.854139983, 0.050123292, 0.625554227, 0.694292269, 1.040478229, 0.152296665, 0.342888256, 1.078534862],
    )
    assert tapped[0].abs().sum().item() == pytest.approx(22.046665788873, abs=1e-10)
    close(
        tokens[0, 0],
        [-0.691406702, 0.061567347, 0.248229861, -1.606102453, 2.289064365, 0.759126219, -1.066023748, 0.602845717],
    )
    close(
        tokens[1, 2],
        [1.177036319, -1.007276701, 0.638293310, -0.449337787, 1.966096007, -0.974271670, -1.507960725, 0.793022782],
    )
    assert tokens.sum().item() == pytest.approx(3.639318974360, abs=1e-10)
    assert tokens.abs().sum().item() == pytest.approx(45.051871843606, abs=1e-10)
    close(
        encode_visible(model, images, everything(images, 4))[0][0, 0],
        [-0.586927950, -0.078994580, 0.308764680, -1.596862851, 2.209862146, 0.904243072, -1.163143122, 0.601573654],
    )


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 8),
        ({"no_embed_class": True, "pre_norm": True, "init_values": 0.1}, 8),
        ({"dynamic_img_size": True}, 8),
        ({"dynamic_img_size": True}, 12),
    ],
)
def test_all_patches_in_order_are_timms_own_forward(options: dict, size: int) -> None:
    model, images = tiny(**options), torch.rand(3, 1, size, size)
    tokens, _ = encode_visible(model, images, everything(images, (size // 4) ** 2))
    torch.testing.assert_close(tokens, model.forward_features(images), rtol=0, atol=0)


def test_order_of_patches_changes_the_order_of_tokens_only() -> None:
    model, images = tiny(img_size=16), torch.rand(2, 1, 16, 16)
    ids = torch.stack([torch.randperm(16)[:5] for _ in range(2)])
    tokens, _ = encode_visible(model, images, ids)
    sorted_ids, order = ids.sort(dim=1)
    again, _ = encode_visible(model, images, sorted_ids)
    torch.testing.assert_close(again[:, 0], tokens[:, 0], atol=1e-6, rtol=0)
    moved = tokens[:, 1:].gather(1, order[..., None].expand(-1, -1, 8))
    torch.testing.assert_close(again[:, 1:], moved, atol=1e-6, rtol=0)


def test_blocks_that_were_cut_off_do_not_run() -> None:
    whole, images = tiny(depth=3), torch.rand(2, 1, 8, 8)
    expected = whole.forward_intermediates(
        images, indices=[1], stop_early=True, output_fmt="NLC", intermediates_only=True
    )
    whole.prune_intermediate_layers([1], prune_norm=True, prune_head=True)
    tokens, tapped = encode_visible(whole, images, everything(images, 4), taps=[1])
    assert len(whole.blocks) == 2
    assert torch.equal(tokens, tapped[1])
    torch.testing.assert_close(tokens[:, 1:], expected[0], rtol=0, atol=0)


def test_checkpointed_gradients_are_the_same() -> None:
    gradients = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = tiny()
        model.set_grad_checkpointing(enable)
        encode_visible(model, torch.ones(1, 1, 8, 8), torch.tensor([[1, 2]]))[0].square().sum().backward()
        gradients.append(model.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_first_weights_are_those_of_a_masked_autoencoder() -> None:
    model = timm.create_model("test_vit", num_classes=0, img_size=32)
    bias = model.patch_embed.proj.bias.clone()
    start_transformer(model)
    qkv, patch = model.blocks[0].attn.qkv.weight, model.patch_embed.proj.weight
    for weight, fan_in, fan_out in ((qkv, 64, 192), (patch, 3 * 16 * 16, 64)):
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.98 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert torch.equal(model.patch_embed.proj.bias, bias)
    assert not model.blocks[0].attn.qkv.bias.any()
    assert 0.01 < model.cls_token.std() < 0.03
    torch.testing.assert_close(model.pos_embed[0], position_table(64, (2, 2)).float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: timm.create_model("test_resnet"), "ResNet cannot be run on some patches only: use a plain vision"),
        (lambda: tiny(pos_embed="none"), "has no table of positions"),
        (lambda: tiny(class_token=False, global_pool="avg"), "has 0 tokens beside the patches, and has to have one"),
        (lambda: tiny(reg_tokens=3), "has 4 tokens beside the patches"),
        (lambda: tiny(patch_drop_rate=0.5), "patch_drop_rate hides patches a second time"),
    ],
)
def test_networks_without_places_or_a_class_token_are_refused(model, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_transformer(model())


def test_mean_pooling_may_keep_the_last_normalisation() -> None:
    with pytest.raises(ValueError, match="leave that out, or add fc_norm=False"):
        check_final_norm(tiny(global_pool="avg"))
    check_final_norm(tiny(global_pool="avg", fc_norm=False))
