"""A prefix is what its definition says, in timm's own transformer, and leaves it as it was without one."""

import copy

import pytest
import timm
import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from zoo.nn import PrefixAttention, attach_prefix, is_frozen, set_prefix

F64 = torch.float64


def sines(rows: int, columns: int, a: float, b: float, c: float) -> Tensor:
    """Return sin(a i + b j + c), so that nobody has to ship numbers."""
    i, j = torch.arange(rows, dtype=F64).unsqueeze(1), torch.arange(columns, dtype=F64)
    return torch.sin(a * i + b * j + c)


def example() -> tuple[PrefixAttention, Tensor, Tensor]:
    """Return attention of two heads of width 2, three tokens, and a prefix of length 2."""
    attention = Attention(4, num_heads=2, qkv_bias=True).double()
    weights = [sines(4, 4, 1 + r, 0.7, r) for r in range(4)]
    biases = [0.1 * torch.sin(1.3 * torch.arange(4, dtype=F64) + r) for r in range(4)]
    with torch.no_grad():
        attention.qkv.weight.copy_(torch.cat(weights[:3]))
        attention.qkv.bias.copy_(torch.cat(biases[:3]))
        attention.proj.weight.copy_(weights[3])
        attention.proj.bias.copy_(biases[3])
    keys = sines(2, 4, 0.5, 0.3, 0)
    prefix = torch.stack([keys, keys.cos()]).requires_grad_()
    return PrefixAttention(attention), sines(3, 4, 1, 2, 0).unsqueeze(0), prefix


WITHOUT = [
    [0.3915158478, -0.1260790655, -0.3954781610, 0.5267853203],
    [0.3856492763, -0.1061490199, -0.4156658838, 0.5332464272],
    [0.3756815019, -0.0567725070, -0.4702473948, 0.5552236273],
]
WITH = [
    [-0.7198522132, 1.0048331511, -0.7625372123, -0.1242752816],
    [-0.6226704174, 0.9514575942, -0.7899418236, -0.0350740259],
    [-0.3250642189, 0.8007550448, -0.8905365019, 0.2471346630],
]
GRADIENT = [
    [
        [-0.3558788098, 0.4504914668, 0.4546521072, 0.2150602568],
        [-0.2619501883, 0.3321422732, 0.2661191546, 0.1275786909],
    ],
    [
        [1.6542172366, 2.2275850274, 2.1015809810, 0.6102416910],
        [1.6690417909, 2.2448652172, 2.5170568339, 0.7816726264],
    ],
]


def test_attention_of_the_worked_example() -> None:
    attention, tokens, prefix = example()
    torch.testing.assert_close(attention(tokens)[0], torch.tensor(WITHOUT, dtype=F64), atol=1e-9, rtol=0)
    attention.prefix = tuple(prefix)
    out = attention(tokens)
    torch.testing.assert_close(out[0], torch.tensor(WITH, dtype=F64), atol=1e-9, rtol=0)
    out.square().sum().backward()
    torch.testing.assert_close(prefix.grad, torch.tensor(GRADIENT, dtype=F64), atol=1e-8, rtol=0)


def test_prefix_is_a_gate_between_two_attentions() -> None:
    attention, tokens, prefix = example()
    q, k, v = attention.qkv(tokens).view(3, 3, 2, 2).permute(1, 2, 0, 3)  # each (heads, N, d)
    keys, values = prefix.view(2, 2, 2, 2).transpose(1, 2)  # each (heads, L, d)
    on_prefix, on_tokens = (q @ part.transpose(1, 2) / 2**0.5 for part in (keys, k))
    mass = torch.cat([on_prefix, on_tokens], dim=2).softmax(dim=2)[:, :, :2].sum(dim=2, keepdim=True)
    expected = [[0.4155111729, 0.4105872684, 0.3987892444], [0.6328283211, 0.5586243912, 0.3370715634]]
    torch.testing.assert_close(mass[:, :, 0], torch.tensor(expected, dtype=F64), atol=1e-9, rtol=0)
    gated = mass * (on_prefix.softmax(2) @ values) + (1 - mass) * (on_tokens.softmax(2) @ v)
    gated = attention.proj(gated.transpose(0, 1).flatten(1))
    torch.testing.assert_close(gated, torch.tensor(WITH, dtype=F64), atol=1e-9, rtol=0)


def vit(**kwargs) -> nn.Module:
    return timm.create_model("test_vit", num_classes=0, img_size=32, patch_size=8, **kwargs).eval()


def explicit_forward(attention: nn.Module, prefix: Tensor, x: Tensor) -> Tensor:
    """Return what the definition says for one image, head by head, with a softmax that is written out."""
    q, k, v = attention.qkv(x).chunk(3, dim=1)
    heads, width = [], x.shape[1] // attention.num_heads
    for h in range(attention.num_heads):
        part = slice(h * width, (h + 1) * width)
        keys, values = (torch.cat([prefix[i, :, part], tokens[:, part]]) for i, tokens in enumerate((k, v)))
        scores = (attention.q_norm(q[:, part]) @ keys.T / width**0.5).exp()
        heads.append(scores / scores.sum(1, keepdim=True) @ values)
    return attention.proj(torch.cat(heads, dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_transformer_with_prefixes_equals_the_definition(dtype, monkeypatch) -> None:
    model = vit().to(dtype)
    attach_prefix(model, (0, 2))
    images = torch.rand(3, 3, 32, 32, dtype=dtype)
    prefixes = {0: torch.randn(2, 5, 64, dtype=dtype), 2: torch.randn(3, 2, 4, 64, dtype=dtype)}
    set_prefix(model, prefixes)
    fused = model(images)

    for number, prefix in prefixes.items():
        attention, each = model.blocks[number].attn, prefix.expand(3, -1, -1, -1)

        def by_definition(x: Tensor, attention=attention, each=each, **_) -> Tensor:
            return torch.stack(
                [explicit_forward(attention, prefix, image) for prefix, image in zip(each, x, strict=True)]
            )

        monkeypatch.setattr(attention, "forward", by_definition)
    torch.testing.assert_close(fused, model(images), atol=1e-5 if dtype == torch.float32 else 1e-12, rtol=0)


def test_fused_kernel_is_called_once_in_each_block(monkeypatch) -> None:
    model = vit()
    attach_prefix(model, (0, 2))
    set_prefix(model, {0: torch.randn(2, 5, 64), 2: torch.randn(2, 7, 64)})
    shapes, kernel = [], torch.nn.functional.scaled_dot_product_attention

    def spy(q, k, v, **kwargs):
        shapes.append((q.shape[2], k.shape[2]))
        return kernel(q, k, v, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    model(torch.rand(1, 3, 32, 32))
    assert shapes == [(17, 22), (17, 17), (17, 24), (17, 17), (17, 17), (17, 17)]


@pytest.mark.parametrize("arguments", [{}, {"reg_tokens": 4}, {"qk_norm": True, "norm_layer": nn.LayerNorm}])
def test_without_a_prefix_all_stays_bit_for_bit(arguments) -> None:
    model = vit(**arguments)
    images, names = torch.rand(2, 3, 32, 32), list(model.state_dict())
    before = model(images)
    attach_prefix(model, range(6))
    assert torch.equal(model(images), before)
    set_prefix(model, {1: torch.randn(2, 3, 64)})
    assert not torch.equal(model(images), before)
    set_prefix(model, {})
    assert torch.equal(model(images), before)
    assert list(model.state_dict()) == names
    model.load_state_dict(vit(**arguments).state_dict())  # timm's weights load as before


def test_attaching_twice_changes_nothing() -> None:
    model = vit()
    attach_prefix(model, (0, 1))
    attention = model.blocks[1].attn
    attach_prefix(model, (1, 2))
    assert model.blocks[1].attn is attention


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_prefix_of_a_half_model(dtype) -> None:
    model = vit().to(dtype)
    attach_prefix(model, [0])
    set_prefix(model, {0: torch.randn(2, 3, 64, requires_grad=True)})
    assert model(torch.rand(1, 3, 32, 32, dtype=dtype)).dtype == dtype


def test_float32_prefix_under_autocast() -> None:
    model = vit()
    attach_prefix(model, [0])
    prefix = torch.randn(2, 3, 64, requires_grad=True)
    set_prefix(model, {0: prefix})
    images = torch.rand(1, 3, 32, 32)
    full = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(images)
    torch.testing.assert_close(mixed.float(), full, atol=0.1, rtol=0)
    mixed[:, 0].sum().backward()
    assert prefix.grad.abs().sum() > 0


@pytest.mark.skipif(not hasattr(timm.layers, "set_reentrant_ckpt"), reason="timm checkpoints by inputs only")
def test_gradient_checkpointing_gives_the_same_gradient() -> None:
    gradients = []
    model = vit().train()
    attach_prefix(model, [0, 3])
    images, prefix = torch.rand(2, 3, 32, 32), torch.randn(2, 3, 64, requires_grad=True)
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        set_prefix(model, {0: prefix, 3: prefix})
        gradients.append(torch.autograd.grad(model(images).square().sum(), prefix)[0])
    assert torch.equal(*gradients)


def test_copy_and_state_hold_no_prefix() -> None:
    model, prompt = vit(), nn.Parameter(torch.randn(2, 3, 64))
    attach_prefix(model, [0])
    set_prefix(model, {0: prompt})
    assert all(parameter is not prompt for parameter in model.parameters())
    assert copy.deepcopy(model).blocks[0].attn.prefix is None
    assert model.blocks[0].attn.prefix is not None


def test_prefixed_model_does_not_count_as_frozen() -> None:
    """What is kept of a frozen network's outputs would be wrong when the prefix has changed."""
    model = vit().requires_grad_(False)
    attach_prefix(model, [0])
    assert is_frozen(model)
    set_prefix(model, {0: torch.randn(2, 3, 64)})
    assert not is_frozen(model)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="VisionTransformer, got ResNet; take a vit"):
        attach_prefix(timm.create_model("test_resnet"), [0])
    model = vit()
    with pytest.raises(ValueError, match="no block 6: the model has blocks 0 to 5"):
        attach_prefix(model, [6])
    with pytest.raises(ValueError, match=r"Blocks \[0\] take no prefix: call attach_prefix"):
        set_prefix(model, {0: torch.zeros(2, 1, 64)})
    model.blocks[2].attn = nn.Identity()
    with pytest.raises(ValueError, match=r"Block 2 does not fit.*plain Attention, got Identity"):
        attach_prefix(model, [2])
    model.blocks[1].attn.gate = nn.Linear(64, 64)
    with pytest.raises(ValueError, match="a gated attention"):
        attach_prefix(model, [1])
    attach_prefix(model, [0])
    set_prefix(model, {0: torch.zeros(2, 1, 64)})
    attention, tokens = model.blocks[0].attn, torch.rand(1, 17, 64)
    for mask in ({"is_causal": True}, {"attn_mask": torch.zeros(17, 17)}):
        with pytest.raises(ValueError, match="remove one of them"):
            attention(tokens, **mask)
