"""The cost model: worked values, and what torch counts in a real step."""

import pytest
import timm
import torch
from tiny_autoencoders import VIT
from torch.utils.flop_counter import FlopCounterMode

from zoo.functional import mask_from_noise
from zoo.nn import MAEDecoder, encode_visible
from zoo.pretraining.cost import block_macs, decoder_macs, encoder_macs, transformer_macs


def test_worked_values() -> None:
    assert block_macs(50, 768) == 357_734_400
    assert block_macs(197, 1024) == 2_558_314_496
    base, large = (196, 49, 768, 12, 768), (196, 49, 1024, 18, 768)
    assert encoder_macs(*base) == 4_408_418_304
    assert encoder_macs(*large) == 11_570_921_472
    assert encoder_macs(196, 196, 1024, 24, 768) == 61_553_688_576
    assert decoder_macs(196, 49, 768, 512, 8, 768) == 5_372_715_008
    student = 3 * (encoder_macs(*base) + decoder_macs(196, 49, 768, 512, 8, 768))
    assert student + encoder_macs(*large) + 3 * 50 * 768 * 1024 == 41_032_286_208


@pytest.mark.parametrize("num_visible", [4, 16])
def test_torch_counts_the_same(num_visible: int) -> None:
    model = timm.create_model("test_vit", num_classes=0, **VIT)
    masking = mask_from_noise(torch.rand(1, 16), num_visible)
    decoder = MAEDecoder(16, 48, 8, 2, 2)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        tokens, _ = encode_visible(model, torch.rand(1, 3, 16, 16), masking.ids_keep)
        encoder = counter.get_total_flops()
        decoder(tokens, masking.ids_restore, (4, 4))
    assert encoder == 2 * transformer_macs(model, num_visible)
    assert counter.get_total_flops() - encoder == 2 * decoder_macs(16, num_visible, 16, 8, 2, 48)
