"""SelfDistillation: further pretraining on a small set of images that does not forget where it started.

Continue a masked autoencoder on the images of the target: that is the teacher. Start again from the weights that the
teacher started from, and train by the same loss, and besides for the teacher's representation of the whole image. What
comes out is fine-tuned.

Lee, Kang, Lee, Hwang, Kawaguchi, "Self-Distillation for Further Pre-training of Transformers", ICLR 2023,
https://arxiv.org/abs/2210.02871. Official code: https://github.com/seanie12/self-distillation at 4f6436f.

What differs: the network is timm's, with a last normalisation of eps 1e-6 instead of 1e-12; both losses go through one
backward pass instead of two, with the same gradient, which several processes need; ``tokens="all"`` is ours.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, PolynomialLR

from zoo.nn import Backbone
from zoo.nn.visible_patches import check_final_norm
from zoo.precision import restore_quantization, save_quantization
from zoo.pretraining.encoders import build_teacher, check_grids, drop_teacher, restore_teacher
from zoo.pretraining.mae import MAE, masked_mean


class SelfDistillation(MAE):
    """Masked autoencoder that is pretrained further, and held near what its elder self makes of whole images.

    It needs what :class:`zoo.MAE` needs, and two sets of weights: those the teacher started from, which are the start
    here too (``checkpoint_path``, with the decoder), and the teacher, which is a :class:`zoo.MAE` trained on from
    there. A further round takes the student of the last one as its teacher, and the same start.

    Args:
        teacher: The file of a checkpoint of :class:`zoo.MAE`, or of this class; or a timm model by name with the
            weights of the hub. Its network is that of the student.
        backbone: See :class:`zoo.MAE`.
        weight: Of the distance to the teacher.
        tokens: What is compared after the last normalisation: the class token ("cls", as in the official code) or
            "all".
        mask_ratio: See :class:`zoo.MAE`.
        num_visible: See there.
        norm_pix_loss: See there.
        decoder_dim: See there.
        decoder_depth: See there.
        decoder_heads: See there.
        pretrained: See there.
        checkpoint_path: See there; the weights that the teacher started from.
        mean: See there.
        std: See there.
        backbone_args: See there.
        mask_seed: See there.
        optimizer: See there. Default: the published one, for batches of 64.
        schedule: See there. Default: falls linearly to zero, as published.

    Good to know:
        Logged: ``<split>/loss``, ``<split>/loss_pixel`` and ``<split>/loss_feature``, lower is better. A step costs
        more than three of :class:`zoo.MAE`: student and teacher see whole images too. A teacher is not in checkpoints.

    Raises:
        ValueError: If an argument is out of range, or teacher and student are not alike.
        FileNotFoundError: If there is no such file.

    Source:
        Lee et al., "Self-Distillation for Further Pre-training of Transformers", ICLR 2023.
    """

    LOSSES: ClassVar[tuple[str, ...]] = ("loss", "loss_pixel", "loss_feature")

    def __init__(
        self,
        teacher: str,
        backbone: str = "vit_base_patch16_224.mae",
        weight: float = 1.0,
        tokens: Literal["cls", "all"] = "cls",
        mask_ratio: float = 0.75,
        num_visible: int | None = None,
        norm_pix_loss: bool = True,
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
            parameters, lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.01
        ),
        schedule: Callable[[Optimizer, int], LRScheduler] = PolynomialLR,
    ) -> None:
        if tokens not in ("cls", "all"):
            raise ValueError(f"tokens={tokens!r} must be 'cls' or 'all'.")
        if weight < 0:
            raise ValueError(f"weight={weight} must not be negative: of the distance to the teacher.")
        super().__init__(
            backbone, mask_ratio, num_visible, norm_pix_loss, decoder_dim, decoder_depth, decoder_heads, pretrained,
            checkpoint_path, mean, std, backbone_args, mask_seed, optimizer, schedule,
        )  # fmt: skip
        self.save_hyperparameters(ignore=["optimizer", "schedule"])
        self.weight = weight
        self.tokens = tokens
        self.teacher, _ = build_teacher(teacher, True, None, None)
        check_final_norm(self.teacher.model)
        check_grids(self.backbone.model, self.teacher.model)
        if self.teacher.num_features != self.backbone.num_features:
            raise ValueError(
                f"The teacher has {self.teacher.num_features} features and the student {self.backbone.num_features}: "
                "in self-distillation both are the same network. zoo.DMAE takes teachers of any width."
            )

    def train(self, mode: bool = True) -> "SelfDistillation":
        """Keep the teacher in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def networks(self) -> list[nn.Module]:
        """Return the parts that are called by themselves, the teacher too."""
        return [*super().networks(), self.teacher]

    def represent(self, encoder: Backbone, images: Tensor) -> Tensor:
        """Return the tokens of whole images that are compared, (B, T, D)."""
        tokens: Tensor = encoder.forward_tokens(images)
        return tokens[:, :1] if self.tokens == "cls" else tokens

    def losses(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return the losses of images in [0, 1]: hidden patches by noise, and whole images beside the teacher's."""
        predicted, mask = self(images, noise)
        pixel = masked_mean(self.errors(images, predicted), mask)
        with torch.no_grad():
            wanted = self.represent(self.teacher, images)
        feature = representation_loss(self.represent(self.backbone, images), wanted)
        return {
            "loss": pixel + self.weight * feature,
            "loss_pixel": pixel.detach(),
            "loss_feature": feature.detach(),
        }

    # Checkpoints ----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the teacher, which can be rebuilt, and note whether it is quantised."""
        save_quantization(self, checkpoint)
        drop_teacher(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fill in the teacher, and check that the checkpoint fits.

        Raises:
            ValueError: If it has another network, or belongs to another class.
        """
        restore_quantization(self, checkpoint)
        restore_teacher(self, checkpoint)
        super().on_load_checkpoint(checkpoint)


def representation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance of two sets of features (…, D): a sum over channels, a mean over all else."""
    student, teacher = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (student, teacher))
    return (student - teacher).square().sum(dim=-1).mean()
