"""DMAE: a small masked autoencoder that also learns what a large one thinks of the same few patches.

Student and teacher see the same visible patches. The student paints the hidden ones, as MAE does, and what it thinks
after three quarters of its blocks is held against what the frozen teacher thinks after three quarters of its own. The
teacher sees a quarter of the tokens and runs three quarters of its blocks, so it is cheap.

Bai, Wang, Xiao, Wei, Wang, Yuille, Zhou, Xie, "Masked Autoencoders Enable Efficient Knowledge Distillers", CVPR 2023,
https://arxiv.org/abs/2208.12256. Official code: https://github.com/UCSC-VLAA/DMAE at a0f4959.

What differs: the teacher's blocks behind the last tap are dropped, where the code runs them, and the teacher's decoder,
for nothing; the loss is the same. A file that does not fit the teacher is an error, where the code goes on with random
weights. Like the code, and unlike the formula in the paper, both sides are scaled to unit length.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.functional import count_visible
from zoo.nn import CosineWithWarmup
from zoo.precision import restore_quantization, save_quantization
from zoo.pretraining.cost import decoder_macs, transformer_macs
from zoo.pretraining.encoders import build_teacher, check_grids, drop_teacher, restore_teacher
from zoo.pretraining.mae import MAE, masked_mean

Distance = Literal["l1", "l2", "smooth_l1", "cosine"]
Tokens = Literal["all", "patch", "cls"]
Head = Literal["linear", "mlp", "none"]

DISTANCES = {"l1": F.l1_loss, "l2": F.mse_loss, "smooth_l1": F.smooth_l1_loss}
TOKENS = {"all": slice(None), "patch": slice(1, None), "cls": slice(0, 1)}


class DMAE(MAE):
    """Masked autoencoder that learns from a larger, frozen one, on the visible patches only.

    It needs what :class:`zoo.MAE` needs. The encoder is ``backbone``; teacher, projections and decoder are thrown away
    after the pretraining.

    Args:
        backbone: The student, see :class:`zoo.MAE`.
        teacher: The teacher: a timm model by name, such as ``"vit_large_patch16_224.mae"``, or the file of a checkpoint
            of :class:`zoo.MAE`, or of another method of zoo with such a network, which says its network, mean and std.
            Its grid of patches is that of the student.
        teacher_pretrained: Whether a teacher by name has the weights of the hub.
        teacher_checkpoint: A file with the weights of a teacher by name, in place of those of the hub.
        teacher_args: More arguments of ``timm.create_model`` for the teacher.
        taps: Blocks of the student whose output is compared, from 0; negative ones count from the end. Default: the one
            after which three quarters of the blocks are done (8 of 12).
        teacher_taps: As many blocks of the teacher; the first belongs to the first of ``taps``. Default: by the same
            rule (17 of 24).
        alpha: Weight of the feature loss.
        distance: Of features: "l1" (mean absolute error), "l2" (mean squared error), "smooth_l1", or "cosine" (one
            minus the cosine).
        head: What makes the student's features as long as the teacher's: "linear", "mlp" (two layers), or "none".
        normalize: Scale both sides to unit length. Default: if there is a head, as in the official code.
        tokens: Which tokens are compared.
        mask_ratio: See :class:`zoo.MAE`; the paper goes up to 0.98.
        num_visible: See there.
        norm_pix_loss: See there. Default: as the official script, whose teacher predicts plain pixels too.
        decoder_dim: See there.
        decoder_depth: See there.
        decoder_heads: See there.
        pretrained: See there; of the student.
        checkpoint_path: See there; of the student.
        mean: See there; of the student.
        std: See there; of the student.
        backbone_args: See there; of the student.
        mask_seed: See there.
        optimizer: See there.
        schedule: See there. Default: as published for 100 epochs.

    Good to know:
        Logged, beside ``<split>/loss``, which is minimised: ``<split>/loss_pixel``, ``<split>/loss_feature`` (both:
        lower is better) and ``<split>/cosine`` of student and teacher (higher is better). Judge by these: the feature
        loss is tiny beside the pixels', and depends on the teacher's width. A teacher that can be rebuilt, by name or
        from a file, is not in checkpoints.

    Raises:
        ValueError: If an argument is out of range, or teacher and student do not fit.
        FileNotFoundError: If there is no such file.

    Source:
        Bai et al., "Masked Autoencoders Enable Efficient Knowledge Distillers", CVPR 2023.
    """

    LOSSES: ClassVar[tuple[str, ...]] = ("loss", "loss_pixel", "loss_feature", "cosine")

    def __init__(
        self,
        backbone: str = "vit_base_patch16_224.mae",
        teacher: str = "vit_large_patch16_224.mae",
        teacher_pretrained: bool = True,
        teacher_checkpoint: str | None = None,
        teacher_args: dict[str, Any] | None = None,
        taps: list[int] | None = None,
        teacher_taps: list[int] | None = None,
        alpha: float = 1.0,
        distance: Distance = "l1",
        head: Head = "linear",
        normalize: bool | None = None,
        tokens: Tokens = "all",
        mask_ratio: float = 0.75,
        num_visible: int | None = None,
        norm_pix_loss: bool = False,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        pretrained: bool = False,
        checkpoint_path: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        backbone_args: dict[str, Any] | None = None,
        mask_seed: int = 0,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(
            parameters, lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05
        ),
        schedule: Callable[[Optimizer, int], LRScheduler] = lambda optimizer, num_steps: CosineWithWarmup(
            optimizer, num_steps, warmup_share=0.2
        ),
    ) -> None:
        check_choices(distance, head, tokens, alpha)
        super().__init__(
            backbone, mask_ratio, num_visible, norm_pix_loss, decoder_dim, decoder_depth, decoder_heads, pretrained,
            checkpoint_path, mean, std, backbone_args, mask_seed, optimizer, schedule,
        )  # fmt: skip
        self.save_hyperparameters(ignore=["optimizer", "schedule"])
        self.alpha = alpha
        self.distance: Distance = distance
        self.normalize = head != "none" if normalize is None else normalize
        self.tokens: Tokens = tokens

        student: Any = self.backbone.model
        self.teacher, self.teacher_can_be_rebuilt = build_teacher(
            teacher, teacher_pretrained, teacher_checkpoint, teacher_args
        )
        check_grids(student, self.teacher.model)
        expert: Any = self.teacher.model
        self.teacher_depth = len(expert.blocks)
        self.taps = resolve_taps(taps, len(student.blocks), "taps")
        self.teacher_taps = resolve_taps(teacher_taps, self.teacher_depth, "teacher_taps")
        if len(self.taps) != len(self.teacher_taps):
            raise ValueError(f"taps={self.taps} and teacher_taps={self.teacher_taps} must have one partner each.")
        # What lies behind the last tap is never run: free its memory before the first step.
        expert.prune_intermediate_layers([max(self.teacher_taps)], prune_norm=True, prune_head=True)
        self.heads = nn.ModuleList(build_head(head, student.embed_dim, expert.embed_dim) for _ in self.taps)

    def train(self, mode: bool = True) -> "DMAE":
        """Keep the teacher in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def networks(self) -> list[nn.Module]:
        """Return the parts that are called by themselves, the teacher too."""
        return [*super().networks(), *self.heads, self.teacher]

    def losses(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return the losses of images in [0, 1]; student and teacher see the same patches of the same images."""
        masking = self.hide(images, noise)
        tokens, found = self.backbone.forward_visible(images, masking.ids_keep, self.taps)
        with torch.no_grad():
            _, wanted = self.teacher.forward_visible(images, masking.ids_keep, self.teacher_taps)
        predicted = self.decoder(tokens, masking.ids_restore, self.grid(images))
        pixel = masked_mean(self.errors(images, predicted), masking.mask)
        pairs = [
            (head(found[tap]), wanted[teacher_tap])
            for head, tap, teacher_tap in zip(self.heads, self.taps, self.teacher_taps, strict=True)
        ]
        feature = torch.stack(
            [feature_loss(mine, theirs, self.distance, self.normalize, self.tokens) for mine, theirs in pairs]
        ).sum()
        with torch.no_grad():
            cosine = torch.stack([1 - feature_loss(*pair, "cosine", tokens=self.tokens) for pair in pairs]).mean()
        return {
            "loss": pixel + self.alpha * feature,
            "loss_pixel": pixel.detach(),
            "loss_feature": feature.detach(),
            "cosine": cosine,
        }

    def on_fit_start(self) -> None:
        """Say what the teacher costs."""
        rank_zero_info(self.describe_cost())

    def describe_cost(self) -> str:
        """Return what a training step costs, and the share of the teacher that is saved."""
        student, teacher = self.backbone.model, self.teacher.model
        length: int = student.patch_embed.num_patches  # type: ignore[union-attr,assignment]
        visible = count_visible(length, self.mask_ratio, self.num_visible)
        decoder = decoder_macs(
            length,
            visible,
            self.backbone.num_features,
            self.decoder.pred.in_features,
            len(self.decoder.blocks),
            self.decoder.pred.out_features,
        )
        mine = 3 * (transformer_macs(student, visible) + decoder)
        cut, whole = transformer_macs(teacher, visible), transformer_macs(teacher, length, self.teacher_depth)
        return (
            f"DMAE: {visible} of {length} patches are visible. For each image a training step of the student takes "
            f"{mine / 1e6:,.1f} million multiply-accumulates, the teacher {cut / 1e6:,.1f}: {100 * cut / whole:.3g} % "
            f"of what it would take with all patches and {self.teacher_depth} blocks."
        )

    # Checkpoints ----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out a teacher that can be rebuilt, and note whether it is quantised."""
        save_quantization(self, checkpoint)
        if self.teacher_can_be_rebuilt:
            drop_teacher(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fill in the teacher, and check that the checkpoint fits.

        Raises:
            ValueError: If it has another network, or belongs to another class.
        """
        restore_quantization(self, checkpoint)
        if self.teacher_can_be_rebuilt:
            restore_teacher(self, checkpoint)
        super().on_load_checkpoint(checkpoint)


def feature_loss(
    student: Tensor, teacher: Tensor, distance: Distance = "l1", normalize: bool = True, tokens: Tokens = "all"
) -> Tensor:
    """Return the distance of two sets of features, a mean over images, tokens and channels, in float32 at least.

    Args:
        student: Shape (B, 1 + V, D), the class token first.
        teacher: The same.
        distance: "l1", "l2", "smooth_l1" or "cosine", which is a mean over tokens.
        normalize: Scale the features of each token to unit length.
        tokens: Which tokens count.
    """
    kept = TOKENS[tokens]
    # The gradient of a mean over so many numbers is below what float16 holds.
    student, teacher = (part[:, kept].to(torch.promote_types(part.dtype, torch.float32)) for part in (student, teacher))
    if distance == "cosine":
        return 1 - F.cosine_similarity(student, teacher, dim=-1).mean()
    if normalize:
        student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    return DISTANCES[distance](student, teacher)


def build_head(kind: Head, dim: int, teacher_dim: int) -> nn.Module:
    """Return what turns the student's features into ones as long as the teacher's."""
    if kind == "none":
        if dim != teacher_dim:
            raise ValueError(
                f"head='none' compares features as they are, of {dim} and {teacher_dim} channels: use one."
            )
        return nn.Identity()
    linear = nn.Linear(dim, teacher_dim)  # with torch's own first weights, as published
    return linear if kind == "linear" else nn.Sequential(linear, nn.GELU(), nn.Linear(teacher_dim, teacher_dim))


def resolve_taps(taps: Sequence[int] | None, depth: int, name: str) -> list[int]:
    """Return numbers of blocks from 0, by default the one after which three quarters of them are done.

    Args:
        taps: Numbers of blocks; negative ones count from the end.
        depth: How many blocks there are.
        name: Of the argument, for the error.

    Raises:
        ValueError: If there is no such block, or none is named.
    """
    if taps is None:
        return [max(0, depth * 3 // 4 - 1)]
    if not taps or any(not -depth <= tap < depth for tap in taps):
        raise ValueError(f"{name}={list(taps)} must be blocks from 0 to {depth - 1}, or from -{depth} to -1.")
    return [tap % depth for tap in taps]


def check_choices(distance: str, head: str, tokens: str, alpha: float) -> None:
    """Raise ValueError if an argument is none of those there are."""
    for name, value, known in (
        ("distance", distance, (*DISTANCES, "cosine")),
        ("head", head, ("linear", "mlp", "none")),
        ("tokens", tokens, tuple(TOKENS)),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, known))}.")
    if alpha < 0:
        raise ValueError(f"alpha={alpha} must not be negative: a weight of the feature loss.")
