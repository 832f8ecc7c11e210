"""Files of weights for networks without a classifier."""

import sys
from pathlib import Path
from typing import Any

from timm.models import load_checkpoint
from torch import nn


def load_weights(model: nn.Module, path: str) -> None:
    """Load a file of weights into a timm model that was built without a classifier.

    The file may hold a classifier, which is left out, or belong to another image size, for which timm resamples tables
    of positions. It may come from a transformer that pools by its class token where the model takes the mean of the
    patches: then the last normalisation starts anew, because timm's stands behind the mean.

    Args:
        model: The timm model, with ``num_classes=0``.
        path: A file that timm can read: a state, alone or under ``state_dict`` or ``model``, or safetensors.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If anything else is missing or unknown.
        RuntimeError: If a tensor has another shape.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint_path={path!r} is no file.")
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)  # timm's name in each family
    result: Any = load_checkpoint(model, path, strict=False, filter_fn=adapt)
    if result is None:  # a file of numpy arrays, which the model reads by itself
        return
    classifiers: Any = model.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr,operator]  # a dict
    left_out = [classifiers] if isinstance(classifiers, str) else list(classifiers)
    new = []
    if any(name.startswith("fc_norm.") for name in result.missing_keys):
        left_out, new = [*left_out, "norm"], ["fc_norm"]
    missing, unknown = without(result.missing_keys, new), without(result.unexpected_keys, left_out)
    if missing or unknown:
        raise ValueError(
            f"{path} does not fit {type(model).__name__}: missing {', '.join(missing[:3]) or 'nothing'}; unknown "
            f"{', '.join(unknown[:3]) or 'nothing'}. Are the weights of another network?"
        )


def without(names: list[str], parts: list[str]) -> list[str]:
    """Return the names of tensors that belong to none of some parts of a module."""
    return [name for name in names if not any(name.startswith(f"{part}.") for part in parts)]
