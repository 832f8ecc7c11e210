"""Precision plugins that Lightning lacks, and what they share: which layers are converted, and how networks shard."""

from zoo.precision.averages import check_average
from zoo.precision.float8 import Float8Precision
from zoo.precision.frozen import QuantizedLinear, quantize_frozen, restore_quantization, save_quantization
from zoo.precision.layers import LayerChoice, choose_layers
from zoo.precision.packed_plugin import check_bitsandbytes
from zoo.precision.sharding import check_optimizer, shard

__all__ = [
    "Float8Precision",
    "LayerChoice",
    "QuantizedLinear",
    "check_average",
    "check_bitsandbytes",
    "check_optimizer",
    "choose_layers",
    "quantize_frozen",
    "restore_quantization",
    "save_quantization",
    "shard",
]
