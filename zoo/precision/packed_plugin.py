"""What Lightning's bitsandbytes plugin would do to a module without a word.

``lightning.pytorch.plugins.BitsandbytesPrecision`` converts every linear layer of a module whose name begins with none
of ``ignore_modules``, heads included, makes new parameters for it that train or not as the mode has it, and casts the
inputs of the module to ``dtype`` while layers that stay keep theirs (Lightning 2.6, tried on a CPU; it runs on CUDA).
"""

from typing import Any

from torch import nn

INSTEAD = "or use the callback QuantizeFrozen, which packs a frozen part and leaves the rest alone"


def check_bitsandbytes(plugin: Any, module: nn.Module) -> None:
    """Raise ValueError if Lightning's bitsandbytes plugin would change what of a module trains, or break it.

    ``zoo fit`` does so before the fit; in code, call it with ``trainer.precision_plugin``.

    Args:
        plugin: A precision plugin. Any other than :class:`lightning.pytorch.plugins.BitsandbytesPrecision` passes.
        module: The module that it is going to convert.

    Raises:
        ValueError: If a layer that trains would be packed, or one whose weight is read past it; if a frozen parameter
            would train; or if the layers that stay have another type than their inputs will have.
    """
    if type(plugin).__name__ != "BitsandbytesPrecision":
        return
    ignored = tuple(plugin.ignore_modules)
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and not (ignored and name.startswith(ignored))
    }
    trained = [name for name, layer in layers.items() if layer.weight.requires_grad]
    frozen = [name for name in layers if name not in trained]
    attention = [name for name, part in module.named_modules() if isinstance(part, nn.MultiheadAttention)]
    inside = [name for name in layers if name.startswith(tuple(f"{part}." for part in attention))]
    mode = plugin._linear_cls.__name__  # the plugin does not keep the mode
    if trained and mode != "_Linear8bitLt":
        raise ValueError(
            f"BitsandbytesPrecision would pack {named(trained)}, which train: give their names as ignore_modules, "
            f"{INSTEAD}."
        )
    if frozen and mode in ("_Linear8bitLt", "_Int8LinearInference"):
        what = "weights and biases" if mode == "_Linear8bitLt" else "biases"
        raise ValueError(
            f"BitsandbytesPrecision in its int8 modes would train the {what} of {named(frozen)}, which are frozen: "
            f"take mode='nf4' with dtype=torch.float32, {INSTEAD}."
        )
    if inside:
        raise ValueError(
            f"BitsandbytesPrecision would pack {named(inside)}, of which nn.MultiheadAttention reads the weight past "
            f"the layer: give their names as ignore_modules, {INSTEAD}."
        )
    packed = {id(parameter) for layer in layers.values() for parameter in layer.parameters()}
    others = (p.dtype for p in module.parameters() if p.is_floating_point() and id(p) not in packed)
    other = next((dtype for dtype in others if dtype != plugin.dtype), None)
    if other is None:
        return
    casts = f"BitsandbytesPrecision casts inputs to {plugin.dtype}, and layers that stay have parameters of {other}: "
    if "8" in mode:
        raise ValueError(
            f"{casts}int8 has no other type, so make the module half (module.half()), train by the callback "
            "Int8Training, or pack a frozen part by QuantizeFrozen."
        )
    raise ValueError(f"{casts}give dtype={other}, {INSTEAD}.")


def named(layers: list[str]) -> str:
    """Return some names, and how many more there are."""
    return ", ".join(layers[:3]) + (f" and {len(layers) - 3} more linear layers" if len(layers) > 3 else "")
