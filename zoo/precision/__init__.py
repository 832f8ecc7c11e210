"""Precision plugins that Lightning lacks, and what they share: which layers are converted, and how networks shard."""

from zoo.precision.float8 import Float8Precision
from zoo.precision.layers import LayerChoice, choose_layers
from zoo.precision.sharding import shard

__all__ = ["Float8Precision", "LayerChoice", "choose_layers", "shard"]
