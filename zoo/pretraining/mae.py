"""MAE: learn to see by painting what is hidden.

Three quarters of an image's patches are hidden. A vision transformer runs on the visible ones only; a light decoder
predicts the pixels of the hidden ones from its tokens. The encoder is what one keeps.

He, Chen, Xie, Li, Dollár, Girshick, "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022,
https://arxiv.org/abs/2111.06377. Official code: https://github.com/facebookresearch/mae at efb2a80.

What differs: the encoder is timm's own network; any number of channels, and images that are no squares; masks follow
from (``mask_seed``, epoch, process, batch) instead of the state of a device's generator, so they are the same on every
device and in a resumed run; at least one patch stays visible, and products such as 10 x (1 - 0.9) are not cut to 0.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import lightning.pytorch as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric

from zoo.functional import count_visible, grid_of, mask_from_noise, mix_seeds, patchify, unpatchify
from zoo.functional.masking import Masking
from zoo.nn import CosineWithWarmup, MAEDecoder, check_state, start_transformer
from zoo.nn.exported import export_weights, facts_of
from zoo.nn.visible_patches import check_final_norm
from zoo.precision import shard
from zoo.pretraining.encoders import build_encoder

EPSILON = 1e-6  # below the root of a patch's variance, as published
GREY = 0.5  # of a hidden patch in a picture


class MAE(L.LightningModule):
    """Masked autoencoder: a vision transformer learns from images without labels.

    It needs batches of images in [0, 1], alone or first in a tuple, of any datamodule; labels are not looked at. Its
    encoder is ``backbone``: a timm network behind its normalisation that turns whole images into features (B, D), so
    :class:`zoo.callbacks.KNNEvaluation` can watch it.

    Args:
        backbone: A plain vision transformer of timm by name. A tag says the mean and std too: ``.mae`` has ImageNet's.
        mask_ratio: Share of the patches that is hidden, 0 to 1 (exclusive).
        num_visible: Number of visible patches, instead of ``mask_ratio``.
        norm_pix_loss: Predict each patch's pixels minus their mean and divided by their standard deviation.
        decoder_dim: Length of the decoder's tokens.
        decoder_depth: Blocks of the decoder.
        decoder_heads: Attention heads of the decoder.
        pretrained: Start from timm's weights for this name, which are those of an encoder only.
        checkpoint_path: Start from a file: an encoder, a published masked autoencoder with its decoder, or a checkpoint
            of this class.
        mean: Mean of each channel. Default: what timm states for the name.
        std: Standard deviation of each channel. Default: what timm states for the name.
        backbone_args: More arguments of ``timm.create_model``, such as ``{"img_size": 32, "patch_size": 4}`` or, for
            images of several sizes, ``{"dynamic_img_size": True}``.
        mask_seed: Draws the masks, together with epoch, process and batch.
        optimizer: Makes an optimizer of parameter groups. Its weight decay spares parameters of one dimension, not the
            class and the mask token, as published. Default: the published one, with the rate for batches of 256.
        schedule: Makes a schedule of an optimizer and the number of its steps in the whole fit; stepped after each.
            Default: as published for 800 epochs.

    Good to know:
        Logged: ``train/loss`` and ``<split>/loss``, lower is better. An evaluation hides the same patches each time. A
        loss says little about features: look at ``<split>/knn`` of KNNEvaluation, and fine-tune. Position embeddings
        are a fixed table of sines, or those of the loaded weights, and do not train.

    Raises:
        ValueError: If an argument is out of range, or the network cannot be run on some patches only.

    Source:
        He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022.
    """

    LOSSES: ClassVar[tuple[str, ...]] = ("loss",)  # what is logged

    def __init__(
        self,
        backbone: str = "vit_base_patch16_224.mae",
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
            parameters, lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05
        ),
        schedule: Callable[[Optimizer, int], LRScheduler] = CosineWithWarmup,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "schedule"])
        self.mask_ratio = mask_ratio
        self.num_visible = num_visible
        self.norm_pix_loss = norm_pix_loss
        self.mask_seed = mask_seed
        self.optimizer = optimizer
        self.schedule = schedule

        self.backbone, weights = build_encoder(backbone, pretrained, checkpoint_path, mean, std, backbone_args)
        vit: Any = self.backbone.model
        check_final_norm(vit)
        count_visible(vit.patch_embed.num_patches, mask_ratio, num_visible)
        self.patch_size: tuple[int, int] = tuple(vit.patch_embed.patch_size)
        patch_dim = math.prod(self.patch_size) * vit.patch_embed.proj.in_channels
        if norm_pix_loss and patch_dim < 2:
            raise ValueError("norm_pix_loss divides by the spread within a patch, and a patch of one number has none.")
        if not pretrained and checkpoint_path is None:
            start_transformer(vit)
        vit.pos_embed.requires_grad_(False)
        self.decoder = MAEDecoder(vit.embed_dim, patch_dim, decoder_dim, decoder_depth, decoder_heads)
        if weights:
            check_state(self.decoder, weights)
            self.decoder.load_state_dict(weights)
        self.means = nn.ModuleDict({name: MeanMetric() for name in self.LOSSES})

    def configure_model(self) -> None:
        """Shard the networks where the strategy does so."""
        shard(self, *self.networks(), forwards=("forward_visible", "forward_tokens"))

    def networks(self) -> list[nn.Module]:
        """Return the parts that are called by themselves."""
        return [self.backbone, self.decoder]

    # The autoencoder ------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predict the patches of images in [0, 1], (B, C, H, W), from some of them.

        Args:
            images: The images.
            noise: One number a patch, (B, L): the smallest ones stay visible. With it nothing is random. Default:
                uniform random numbers.

        Returns:
            The prediction (B, L, pixels of a patch), with the channel running fastest and normalised as the loss
            wants it; and the mask (B, L), 1 where a patch was hidden.
        """
        masking = self.hide(images, noise)
        tokens, _ = self.backbone.forward_visible(images, masking.ids_keep)
        return self.decoder(tokens, masking.ids_restore, self.grid(images)), masking.mask

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Return the number of patches from top to bottom and from left to right.

        Raises:
            ValueError: If the network insists on another image size, or patches do not cover the images.
        """
        self.backbone.check_size(images)
        return grid_of(images, self.patch_size)

    def hide(self, images: Tensor, noise: Tensor | None = None) -> Masking:
        """Say which patches of images are visible."""
        length = math.prod(self.grid(images))
        if noise is None:
            noise = torch.rand(len(images), length).to(images.device)
        return mask_from_noise(noise, count_visible(length, self.mask_ratio, self.num_visible))

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a graph for each seed would follow
    def draw_noise(self, images: Tensor, *key: int) -> Tensor:
        """Return noise for images, (B, L), that follows from ``mask_seed`` and some numbers."""
        generator = torch.Generator().manual_seed(mix_seeds(self.mask_seed, *key))
        return torch.rand(len(images), math.prod(self.grid(images)), generator=generator).to(images.device)

    def patches(self, images: Tensor) -> Tensor:
        """Return the patches of images in [0, 1] as the network sees them, float32 of shape (B, L, P)."""
        return patchify(self.backbone.normalize(images).float(), self.patch_size)

    def errors(self, images: Tensor, predicted: Tensor) -> Tensor:
        """Return the error of the prediction for each patch of images in [0, 1], float32 of shape (B, L)."""
        return patch_errors(predicted.float(), self.patches(images), self.norm_pix_loss)

    def losses(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return ``loss``, which is minimised, and the others of ``LOSSES``, of images in [0, 1] and noise."""
        predicted, mask = self(images, noise)
        return {"loss": masked_mean(self.errors(images, predicted), mask)}

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> dict[str, Tensor]:
        """Return images (B, C, H, W) in [0, 1] by name: what the network sees, and what it paints.

        The same patches are hidden in each call. Where the network predicts normalised patches, each is given the mean
        and standard deviation of the true one.

        Args:
            images: In [0, 1].
        """
        predicted, mask = self(images, self.draw_noise(images))
        predicted, target = predicted.float(), self.patches(images)
        if self.norm_pix_loss:
            mean, deviation = patch_statistics(target)
            predicted = predicted * deviation + mean
        hidden = mask.unsqueeze(-1).bool()

        def picture(patches: Tensor) -> Tensor:
            pixels = unpatchify(patches, self.patch_size, self.grid(images))
            return (pixels * self.backbone.std + self.backbone.mean).clamp(0, 1)

        grey = self.patches(torch.full_like(images, GREY))
        return {
            "original": images,
            "visible": picture(torch.where(hidden, grey, target)),
            "predicted": picture(predicted),
            "predicted and visible": picture(torch.where(hidden, predicted, target)),
        }

    # Training and evaluation ----------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images = images_of(batch)
        losses = self.losses(images, self.draw_noise(images, self.current_epoch, self.global_rank, batch_idx))
        named = {f"train/{name}": value for name, value in losses.items()}
        self.log_dict(named, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(images))
        return losses["loss"]

    def on_validation_epoch_start(self) -> None:
        """Forget what an interrupted evaluation measured."""
        for mean in self.means.values():
            mean.reset()  # type: ignore[operator]  # a metric

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure the losses, with masks that depend on the number of the batch only."""
        images = images_of(batch)
        self.count(self.losses(images, self.draw_noise(images, batch_idx)), len(images))

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torchmetrics cannot be compiled
    def count(self, losses: dict[str, Tensor], number: int) -> None:
        """Add the losses of a number of images to the means."""
        for name, value in losses.items():
            self.means[name].update(value, number)  # type: ignore[operator]  # a metric

    def on_validation_epoch_end(self) -> None:
        """Log the mean losses of the split that was measured."""
        split = "test" if self.trainer.testing else getattr(self.datamodule, "evaluate", "val")
        values = {f"{split}/{name}": mean.compute() for name, mean in self.means.items()}  # type: ignore[operator]
        # Equal on all processes after the metrics' own reduction; sync_dist only tells Lightning so.
        self.log_dict(values, sync_dist=True)

    def on_test_epoch_start(self) -> None:
        """Forget what an interrupted evaluation measured."""
        self.on_validation_epoch_start()

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure the losses."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Log the mean losses."""
        self.on_validation_epoch_end()

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Return ``features`` (B, D) of whole images, and the reconstruction ``loss`` (B,) of each."""
        images = images_of(batch)
        predicted, mask = self(images, self.draw_noise(images, batch_idx))
        loss = (self.errors(images, predicted) * mask).sum(dim=1) / mask.sum(dim=1)
        return {"features": self.backbone(images), "loss": loss}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer, and the schedule, stepped after each of its steps.

        Raises:
            ValueError: If the Trainer does not say how long the fit is.
        """
        num_steps = self.trainer.estimated_stepping_batches
        if math.isinf(num_steps):
            raise ValueError("The schedule needs the length of the fit: give max_epochs or max_steps to the Trainer.")
        learned = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = self.optimizer(
            [
                {"params": [parameter for parameter in learned if parameter.ndim > 1]},
                {"params": [parameter for parameter in learned if parameter.ndim < 2], "weight_decay": 0.0},
            ]
        )
        schedule = self.schedule(optimizer, int(num_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def export_encoder(self, path: str) -> None:
        """Write the encoder to a file that ``timm.create_model(..., checkpoint_path=path)`` loads.

        Args:
            path: Name of the file, ending with ``.safetensors``. Its metadata say name, arguments, mean and std.
        """
        export_weights(self.backbone.model.state_dict(), path, facts_of(self.hparams))

    @property
    def datamodule(self) -> Any:
        """The datamodule that the Trainer was given, or None."""
        return self.trainer.datamodule  # type: ignore[attr-defined]  # set by fit, validate, test and predict

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits.

        Raises:
            ValueError: If it has another network, or belongs to another class.
        """
        check_state(self, checkpoint["state_dict"])


def images_of(batch: Any) -> Tensor:
    """Return the images of a batch, which stand alone or first."""
    images: Tensor = batch if isinstance(batch, Tensor) else batch[0]
    return images


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the pixels of each patch, (B, L, 1), of patches (B, L, P)."""
    mean = patches.mean(dim=-1, keepdim=True)
    return mean, (patches.var(dim=-1, keepdim=True) + EPSILON).sqrt()  # of P - 1 numbers, as published


def patch_errors(predicted: Tensor, target: Tensor, normalize: bool = False) -> Tensor:
    """Return the mean squared error of the pixels of each patch, (B, L).

    Args:
        predicted: Shape (B, L, P).
        target: The true patches, shape (B, L, P).
        normalize: Subtract from each true patch its mean and divide it by its standard deviation.
    """
    if normalize:
        mean, deviation = patch_statistics(target)
        target = (target - mean) / deviation
    return (predicted - target).square().mean(dim=-1)


def masked_mean(errors: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the errors where a mask is 1, both of shape (B, L)."""
    return (errors * mask).sum() / mask.sum()
