"""What Lightning's bitsandbytes plugin would do in silence is refused; what it does well passes."""

from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import BitsandbytesPrecision, HalfPrecision
from torch import nn

import zoo
from zoo.precision import check_bitsandbytes


def network() -> nn.ModuleDict:
    """A frozen backbone, and a head that trains."""
    backbone = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(32, 64))
    return nn.ModuleDict({"backbone": backbone.requires_grad_(False), "head": nn.Linear(64, 4)})


def plugin(mode: Any, keep: set[str], dtype: torch.dtype | None = None) -> BitsandbytesPrecision:
    return BitsandbytesPrecision(mode, dtype=dtype, ignore_modules=keep)


def trainable(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("mode", "keep", "dtype", "message"),
    [
        ("nf4", set(), torch.float32, "would pack head, which train: give their names as ignore_modules"),
        ("fp4-dq", {"backbone"}, torch.float32, "would pack head, which train"),
        ("int8", set(), None, "would pack head, which train"),
        ("int8", {"head"}, None, r"would train the biases of backbone\.2, which are frozen: take mode='nf4'"),
        ("int8-training", {"head"}, None, r"would train the weights and biases of backbone\.2, which are frozen"),
        ("nf4", {"head"}, torch.bfloat16, r"casts inputs to torch\.bfloat16, and .* give dtype=torch\.float32"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_goes_wrong_in_silence_is_refused(
    mode: str, keep: set[str], dtype: torch.dtype | None, message: str
) -> None:
    module, chosen = network(), plugin(mode, keep, dtype)
    before = trainable(module)
    with pytest.raises(ValueError, match=message) as error:
        check_bitsandbytes(chosen, module)
    assert "QuantizeFrozen" in str(error.value)
    if "casts" not in message:  # the plugin does what is said
        chosen.convert_module(module)
        assert trainable(module) != before


@pytest.mark.filterwarnings("ignore")
def test_a_frozen_part_in_four_bits_passes_and_stays_frozen() -> None:
    module, chosen = network(), plugin("nf4", {"head"}, torch.float32)
    check_bitsandbytes(chosen, module)
    chosen.convert_module(module)
    assert trainable(module) == {"head.weight", "head.bias"}
    assert "4bit" in str(type(module["backbone"][2]).__mro__)


def test_the_rest_passes() -> None:
    check_bitsandbytes(HalfPrecision("bf16-true"), network())
    whole = nn.Sequential(nn.Linear(8, 8)).half()
    check_bitsandbytes(plugin("int8-training", set()), whole)


def test_only_what_stays_has_to_have_the_type_of_the_inputs() -> None:
    whole = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 8)).requires_grad_(False)
    check_bitsandbytes(plugin("nf4", set(), torch.bfloat16), whole)
    with pytest.raises(ValueError, match="int8 has no other type, so make the module half"):
        check_bitsandbytes(plugin("int8-training", {"norm"}), nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)))


def test_attention_that_reads_the_weight_is_refused() -> None:
    block = nn.TransformerEncoderLayer(64, 4, batch_first=True).requires_grad_(False).eval()
    with pytest.raises(ValueError, match=r"would pack self_attn\.out_proj, of which nn\.MultiheadAttention reads"):
        check_bitsandbytes(plugin("nf4", set(), torch.float32), block)
    check_bitsandbytes(plugin("nf4", {"self_attn"}, torch.float32), block)


@pytest.mark.filterwarnings("ignore")
def test_means_of_packed_features_load_only_where_they_are_packed() -> None:
    def learner() -> zoo.NMC:
        torch.manual_seed(0)
        backbone = zoo.nn.create_backbone("test_vit", pretrained=False)
        return zoo.NMC(3, backbone=backbone)

    packed, plain = learner(), learner()
    chosen = plugin("nf4", set(), torch.float32)
    check_bitsandbytes(chosen, packed)
    chosen.convert_module(packed)
    checkpoint: dict[str, Any] = {"state_dict": packed.state_dict()}
    packed.on_save_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="backbone was packed by Lightning's BitsandbytesPrecision"):
        plain.on_load_checkpoint(checkpoint)
    unpacked: dict[str, Any] = {"state_dict": plain.state_dict()}
    plain.on_save_checkpoint(unpacked)
    with pytest.raises(ValueError, match="is quantised, and was not in the run of the checkpoint"):
        packed.on_load_checkpoint(unpacked)


def test_many_layers_are_counted() -> None:
    with pytest.raises(ValueError, match="would pack 0, 1, 2 and 2 more linear layers, which train"):
        check_bitsandbytes(plugin("nf4", set()), nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))))
