"""The networks of masked autoencoders: timm's vision transformers, trained or frozen."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.nn import Backbone, create_backbone, drop_part, freeze, restore_part
from zoo.nn.visible_patches import check_transformer
from zoo.nn.weights import load_weights


def build_encoder(
    name: str,
    pretrained: bool,
    checkpoint_path: str | None,
    mean: list[float] | None,
    std: list[float] | None,
    backbone_args: dict[str, Any] | None,
) -> tuple[Backbone, dict[str, Tensor]]:
    """Return a vision transformer that can be run on some patches, and the decoder's tensors that its file has too.

    Args:
        name: A timm model by name.
        pretrained: Whether to download weights; a file has precedence.
        checkpoint_path: A file of weights, see :func:`zoo.nn.weights.load_weights`.
        mean: See :func:`zoo.nn.create_backbone`, as the next.
        std: See there.
        backbone_args: More arguments of ``timm.create_model``.

    Raises:
        ValueError: If the network or an argument does not fit.
    """
    arguments = dict(backbone_args or {})
    reserved = {"num_classes", "pretrained", "checkpoint_path"} & arguments.keys()
    if reserved:
        raise ValueError(f"backbone_args holds {sorted(reserved)}: use the arguments of the method for that.")
    backbone = create_backbone(name, pretrained and checkpoint_path is None, None, mean, std, **arguments)
    check_transformer(backbone.model)
    channels: int = backbone.model.patch_embed.proj.in_channels  # type: ignore[union-attr,assignment]
    for label, values in (("mean", backbone.mean), ("std", backbone.std)):
        if len(values) != channels:
            raise ValueError(
                f"{label} holds {len(values)} numbers, and the images have {channels} channels: give one for each."
            )
    decoder = {} if checkpoint_path is None else load_weights(backbone.model, checkpoint_path)
    return backbone, decoder


def build_teacher(
    teacher: str, pretrained: bool, checkpoint_path: str | None, teacher_args: dict[str, Any] | None
) -> tuple[Backbone, bool]:
    """Return a frozen vision transformer, and whether it can be built again with the same weights.

    Args:
        teacher: A timm model by name, or the file of a checkpoint of zoo.
        pretrained: Whether a teacher by name has the weights of the hub.
        checkpoint_path: A file with the weights of a teacher by name.
        teacher_args: More arguments of ``timm.create_model``.

    Raises:
        ValueError: If the file is no such checkpoint, or the network does not fit.
        FileNotFoundError: If there is no such file.
    """
    name, mean, std, arguments = teacher, None, None, dict(teacher_args or {})
    if is_file(teacher):
        if checkpoint_path is not None:
            raise ValueError(
                f"teacher={teacher!r} is a checkpoint with weights of its own: leave teacher_checkpoint out."
            )
        settings = read_settings(teacher)
        name, mean, std = settings["backbone"], settings.get("mean"), settings.get("std")
        arguments = {**(settings.get("backbone_args") or {}), **arguments}
        checkpoint_path = teacher
    backbone, _ = build_encoder(name, pretrained, checkpoint_path, mean, std, arguments)
    freeze(backbone)
    return backbone, pretrained or checkpoint_path is not None


def is_file(teacher: str) -> bool:
    """Say whether a teacher is named by a file."""
    return teacher.endswith((".ckpt", ".pt", ".pth", ".safetensors")) or Path(teacher).is_file()


def read_settings(path: str) -> dict[str, Any]:
    """Return the settings that a checkpoint of zoo was made with.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint of a method with a network of timm.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"teacher={path!r} is no file.")
    settings = {}
    if not path.endswith(".safetensors"):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        settings = dict(checkpoint.get("hyper_parameters", {}))
    if not isinstance(settings.get("backbone"), str):
        raise ValueError(
            f"{path} does not say what network its weights are of, as checkpoints of zoo.MAE do: give the network as "
            "teacher, by its name in timm, and the file as teacher_checkpoint."
        )
    return settings


def check_grids(student: Any, teacher: Any) -> None:
    """Raise ValueError unless two transformers cut an image into the same patches."""
    own, theirs = ((model.patch_embed.img_size, model.patch_embed.patch_size) for model in (student, teacher))
    if own != theirs:
        raise ValueError(
            f"Student and teacher must see the same patches, but the student has images of {own[0]} pixels with "
            f"patches of {own[1]}, the teacher {theirs[0]} with {theirs[1]}: give teacher_args, or another teacher."
        )
    if student.dynamic_img_size and not teacher.dynamic_img_size:
        raise ValueError(
            "The student takes images of several sizes and the teacher of one: give both dynamic_img_size=True."
        )


# Where a checkpoint holds weights of the module; the second is written by Lightning's WeightAveraging.
STATES = ("state_dict", "current_model_state")


def drop_teacher(checkpoint: dict[str, Any]) -> None:
    """Remove the teacher from a checkpoint."""
    for name in STATES:
        if name in checkpoint:
            drop_part(checkpoint[name], "teacher.")


def restore_teacher(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Fill in the teacher that :func:`drop_teacher` removed with that of the module."""
    for name in STATES:
        if name in checkpoint:
            restore_part(module, checkpoint[name], "teacher.")
