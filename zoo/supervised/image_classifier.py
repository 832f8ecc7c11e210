"""ImageClassifier: supervised training of any timm network, fine-tuning, and the linear probe trained by SGD.

A network, a linear head, cross-entropy, and the regularisation that image classifiers of today are trained with:
drop path, label smoothing, random erasing, mixup, CutMix, layer-wise learning rates. It is the baseline that other
methods are measured against, what a curriculum such as EfficientTrain is put on, and what judges a pretraining.

Wightman, Touvron, Jégou, "ResNet strikes back: An improved training procedure in timm", NeurIPS 2021 Workshop,
https://arxiv.org/abs/2110.00476. Fine-tuning and probe as in He et al., "Masked Autoencoders Are Scalable Vision
Learners", CVPR 2022, official code https://github.com/facebookresearch/mae.

What differs: defaults train plainly, every regulariser is off; the recipes in ``configs/supervised`` turn them on.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.layers import DropPath  # type: ignore[attr-defined]  # timm marks few of its names as exported
from timm.optim import param_groups_layer_decay, param_groups_weight_decay  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassStatScores
from torchvision.transforms import v2

from zoo.nn import Backbone, CosineWithWarmup, check_state, create_backbone, drop_part, freeze, restore_part
from zoo.nn.weights import load_weights
from zoo.precision import check_optimizer, restore_quantization, save_quantization, shard

Mode = Literal["train", "finetune", "linear_probe"]

# Standard deviation of the head's first weights. train: as timm; the others: as MAE's fine-tuning and probe.
HEAD_STD = {"train": 0.02, "finetune": 2e-5, "linear_probe": 0.01}


class ImageClassifier(L.LightningModule):
    """A timm network with a linear head, trained on images of all classes at once.

    It needs batches of images in [0, 1] and labels, ``(images, labels)`` or longer, of any datamodule. Random erasing
    acts on the images as they arrive, mixup and CutMix in ``training_step``: a callback may resize the batch in
    between.

    Args:
        num_classes: Number of classes, at least 2.
        backbone: A timm model by name; with its tag, such as ``"vit_base_patch16_224.mae"``, where weights matter.
        mode: ``"train"`` trains everything from whatever weights there are. ``"finetune"`` does too, insists on
            pretrained weights, and starts with a head of almost zero. ``"linear_probe"`` freezes the backbone, in
            evaluation mode, and trains a linear layer behind a batch normalisation without weights, as MAE's.
        pretrained: See :func:`zoo.nn.create_backbone`, as the next three.
        checkpoint_path: See there.
        mean: See there.
        std: See there.
        backbone_args: More arguments of ``timm.create_model``, such as ``{"dynamic_img_size": True}`` or
            ``{"global_pool": "avg"}``.
        drop_path: Rate of stochastic depth of the last block, 0 to 1 (exclusive); timm raises it from 0 block by block.
        label_smoothing: Share of the target that is spread over all classes, 0 to 1 (exclusive).
        mixup: α of mixup's Beta distribution; 0 is off.
        cutmix: α of CutMix's Beta distribution; 0 is off. With both, each batch takes one of them by a fair coin.
        mix_probability: Share of the batches that are mixed.
        random_erasing: Probability that a rectangle of an image is replaced by noise.
        layer_decay: Factor, 0 to 1, by which the learning rate of each layer is smaller than that of the next one, as
            timm counts layers. Default: one rate for all.
        optimizer: Makes an optimizer of parameter groups. Its weight decay spares biases, all other parameters of one
            dimension, and those that timm names for the network.
        schedule: Makes a schedule of an optimizer and the number of its steps in the whole fit; stepped after each.
        class_names: Name of each label, for predictions and the accuracies of each class.

    Good to know:
        Logged (accuracies as fractions, higher is better): ``train/loss``; ``<split>/loss`` (without smoothing),
        ``<split>/acc``, ``<split>/acc5`` where there are more than five classes, ``<split>/acc_class_mean`` (mean of
        the classes' accuracies), and in ``test`` also ``test/class/<name>/acc``. Several evaluation loaders are pooled.
        Every regulariser is off by default.

    Raises:
        ValueError: If an argument is out of range or does not go with another, or timm does not know the backbone.

    Source:
        Wightman et al., "ResNet strikes back: An improved training procedure in timm", NeurIPS 2021 Workshop.
        Fine-tuning and linear probe: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        mode: Mode = "train",
        pretrained: bool | Literal["offline"] = False,
        checkpoint_path: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        backbone_args: dict[str, Any] | None = None,
        drop_path: float = 0.0,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_probability: float = 1.0,
        random_erasing: float = 0.0,
        layer_decay: float | None = None,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05),
        schedule: Callable[[Optimizer, int], LRScheduler] = CosineWithWarmup,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__()
        has_weights = bool(pretrained) or checkpoint_path is not None
        check_range(drop_path=drop_path, label_smoothing=label_smoothing, below_one=True)
        check_range(mix_probability=mix_probability, random_erasing=random_erasing)
        check_combination(num_classes, mode, has_weights, mixup, cutmix, drop_path, layer_decay, class_names)
        self.save_hyperparameters(ignore=["optimizer", "schedule"])
        self.num_classes = num_classes
        self.mode = mode
        self.label_smoothing = label_smoothing
        self.layer_decay = layer_decay
        self.optimizer = optimizer
        self.schedule = schedule
        self.class_names = class_names
        self.can_be_rebuilt = mode == "linear_probe" and has_weights

        self.backbone = build_backbone(
            backbone, pretrained, checkpoint_path, mean, std, drop_path, dict(backbone_args or {})
        )
        if mode == "linear_probe":
            freeze(self.backbone)
        self.head = build_head(mode, self.backbone.num_features, num_classes)
        self.mixing = build_mixing(num_classes, mixup, cutmix, mix_probability)
        # Area and aspect ratio as in timm, whose recipes are the published ones.
        self.erasing = v2.RandomErasing(random_erasing, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), value="random")

        self.counts = MulticlassStatScores(num_classes, average=None)
        self.top5 = MulticlassAccuracy(num_classes, top_k=5, average="micro") if num_classes > 5 else None
        self.mean_loss = MeanMetric()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (B, C), float32, of images in [0, 1]."""
        scores: Tensor = self.head(self.backbone(images))
        return scores.float()

    def train(self, mode: bool = True) -> "ImageClassifier":
        """Keep a frozen backbone in evaluation mode."""
        super().train(mode)
        if self.mode == "linear_probe":
            self.backbone.eval()
        return self

    # Training -------------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Shard backbone and head if the strategy is FSDP2."""
        shard(self, self.backbone, self.head)

    def on_train_start(self) -> None:
        """Check that loader and datamodule let batches be mixed, normalised and erased.

        Raises:
            ValueError: If batches are too small, or the datamodule takes the hook that erases.
        """
        loader: Any = self.trainer.train_dataloader
        size = getattr(loader, "batch_size", None)
        if self.mixing is not None and size == 1:
            raise ValueError("mixup and cutmix mix the images of a batch, got batch_size=1: use a larger one.")
        if self.mode == "linear_probe" and size and not loader.drop_last and len(loader.sampler) % size == 1:
            raise ValueError(
                f"With batch_size={size} the last of {len(loader.sampler)} images is alone in a batch, and the batch "
                "normalisation of mode='linear_probe' needs two: use another batch_size."
            )
        hook = "on_after_batch_transfer"
        given = type(self.datamodule) if self.datamodule is not None else L.LightningDataModule
        if self.erasing.p and getattr(given, hook) is not getattr(L.LightningDataModule, hook):
            raise ValueError(
                f"random_erasing acts in {hook}, and Lightning calls that of {given.__name__} instead: set "
                "random_erasing=0 and erase there, or remove its hook."
            )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Erase a rectangle of some training images."""
        if not (self.trainer.training and self.erasing.p):
            return batch
        images, *others = batch
        return [self.erase(images), *others]

    def erase(self, images: Tensor) -> Tensor:
        """Return images of shape (B, C, H, W) with rectangles of noise that is normal where the network sees it."""
        erased = torch.stack([self.erasing(image) for image in self.backbone.normalize(images)])
        return erased * self.backbone.std + self.backbone.mean

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Check the labels in the first epoch; later ones hold the same, and on a GPU looking at them costs time."""
        if self.current_epoch == 0:
            self.check_labels(batch[1])

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a graph for each draw would follow
    def mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixed images and the distribution of their labels (B, C); a batch left as it is keeps its labels."""
        mixed: tuple[Tensor, Tensor] = self.mixing(images, labels)  # type: ignore[misc]  # called if there is one
        return mixed

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch, mixed and smoothed."""
        images, labels = batch[:2]
        if self.mixing is not None:
            images, labels = self.mix(images, labels)
        loss = F.cross_entropy(self(images), labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(images))
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer, its rates scaled by layer, and the schedule, stepped after each of its steps.

        Raises:
            ValueError: If the Trainer does not say how long the fit is.
        """
        num_steps = self.trainer.estimated_stepping_batches
        if math.isinf(num_steps):
            raise ValueError("The schedule needs the length of the fit: give max_epochs or max_steps to the Trainer.")
        optimizer = self.optimizer(parameter_groups(self.backbone, self.head, self.layer_decay))
        check_optimizer(optimizer)
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("lr_scale")
        schedule = self.schedule(optimizer, int(num_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Evaluation -----------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forget what an interrupted evaluation counted."""
        for metric in (self.counts, self.top5, self.mean_loss):
            if metric is not None:
                metric.reset()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Count the right answers, and return scores and labels for callbacks that want them."""
        images, labels = batch[:2]
        scores = self(images)
        self.count(scores, labels)
        return {"scores": scores, "targets": labels}

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torchmetrics cannot be compiled
    def count(self, scores: Tensor, labels: Tensor) -> None:
        """Count the right answers among scores of shape (B, C)."""
        self.check_labels(labels)
        self.mean_loss.update(F.cross_entropy(scores, labels), len(labels))
        self.counts.update(scores, labels)
        if self.top5 is not None:
            self.top5.update(scores, labels)

    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracies of the split that was measured."""
        split = "test" if self.trainer.testing else getattr(self.datamodule, "evaluate", "val")
        right, total = self.counts.compute()[:, [0, 4]].T
        values = {
            "loss": self.mean_loss.compute(),
            "acc": right.sum() / total.sum(),
            "acc_class_mean": (right / total)[total > 0].mean(),
        }
        if self.top5 is not None:
            values["acc5"] = self.top5.compute()
        if self.trainer.testing:
            seen = total.nonzero().flatten().tolist()
            values |= {f"class/{self.unique_name(label)}/acc": right[label] / total[label] for label in seen}
        # Equal on all processes after the metrics' own reduction; sync_dist only tells Lightning so.
        self.log_dict({f"{split}/{name}": value.float() for name, value in values.items()}, sync_dist=True)

    def on_test_epoch_start(self) -> None:
        """Forget what an interrupted evaluation counted."""
        self.on_validation_epoch_start()

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Count the right answers, and return scores and labels for callbacks that want them."""
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Log loss and accuracies, also of each class."""
        self.on_validation_epoch_end()

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return ``scores`` (B, C), the best ``label`` (B,), its ``probability`` and ``class_name``, of images."""
        scores = self(batch if isinstance(batch, Tensor) else batch[0])
        probability, label = scores.softmax(dim=1).max(dim=1)
        names = [self.name_of(index) for index in label.tolist()]
        return {"scores": scores, "label": label, "probability": probability, "class_name": names}

    @property
    def datamodule(self) -> Any:
        """The datamodule that the Trainer was given, or None."""
        return self.trainer.datamodule  # type: ignore[attr-defined]  # set by fit, validate, test and predict

    def name_of(self, label: int) -> str:
        """Return the name of a label."""
        return self.class_names[label] if self.class_names is not None else str(label)

    def unique_name(self, label: int) -> str:
        """Return the name of a label, with its number where another label has that name too (ImageNet: crane)."""
        name = self.name_of(label)
        return name if (self.class_names or []).count(name) < 2 else f"{name} {label}"

    def check_labels(self, labels: Tensor) -> None:
        """Raise ValueError if labels are none, or are no classes."""
        if labels.dtype != torch.int64 or labels.ndim != 1:
            raise ValueError(f"Labels must be int64 of shape (B,), got {labels.dtype} of shape {tuple(labels.shape)}.")
        low, high = labels.aminmax()
        if low < 0 or high >= self.num_classes:
            raise ValueError(f"Labels {int(low)} to {int(high)} do not fit num_classes={self.num_classes}.")

    # Checkpoints ----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out a frozen backbone that can be rebuilt, and note whether it is quantised."""
        save_quantization(self, checkpoint)
        for name in STATES:
            if self.can_be_rebuilt and name in checkpoint:
                drop_part(checkpoint[name], "backbone.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits.

        Raises:
            ValueError: If it has another number of classes, another backbone, or belongs to another class.
        """
        restore_quantization(self, checkpoint)
        for name in STATES:
            if self.can_be_rebuilt and name in checkpoint:
                restore_part(self, checkpoint[name], "backbone.")
        check_state(self, checkpoint["state_dict"])


# Where a checkpoint holds weights of the module; the second is written by Lightning's WeightAveraging.
STATES = ("state_dict", "current_model_state")


def build_backbone(
    name: str,
    pretrained: bool | Literal["offline"],
    checkpoint_path: str | None,
    mean: list[float] | None,
    std: list[float] | None,
    drop_path: float,
    backbone_args: dict[str, Any],
) -> Backbone:
    """Return the network, with drop path if it is to have some."""
    reserved = {"num_classes", "pretrained", "checkpoint_path", "drop_path_rate"} & backbone_args.keys()
    if reserved:
        raise ValueError(f"backbone_args holds {sorted(reserved)}: use the arguments of ImageClassifier for that.")
    if drop_path:  # not every network of timm knows the argument
        backbone_args["drop_path_rate"] = drop_path
    no_drop_path = f"drop_path={drop_path} has no effect on {name!r}, which has no stochastic depth: set it to 0."
    pretrained = pretrained if checkpoint_path is None else False
    if pretrained is True and "global_pool" in backbone_args:
        # Mean pooling has a last normalisation of its own. Weights without a classifier, as MAE's, are refused for that
        # unless timm believes that they had one.
        overlay = backbone_args.get("pretrained_cfg_overlay", {})
        backbone_args["pretrained_cfg_overlay"] = {**overlay, "num_classes": 1000}
    try:
        backbone = create_backbone(name, pretrained, None, mean, std, **backbone_args)
    except (TypeError, RuntimeError) as error:  # the second where weights were to be loaded
        if "'drop_path_rate'" in str(error):
            raise ValueError(no_drop_path) from error
        raise
    if drop_path and not any(isinstance(part, DropPath) for part in backbone.modules()):
        raise ValueError(no_drop_path)
    if checkpoint_path is not None:
        load_weights(backbone.model, checkpoint_path)
    return backbone


def build_head(mode: Mode, num_features: int, num_classes: int) -> nn.Module:
    """Return the classifier: a linear layer, for a probe behind a batch normalisation without weights."""
    layer = nn.Linear(num_features, num_classes)
    nn.init.trunc_normal_(layer.weight, std=HEAD_STD[mode])
    nn.init.zeros_(layer.bias)
    if mode != "linear_probe":
        return layer
    return nn.Sequential(nn.BatchNorm1d(num_features, affine=False, eps=1e-6), layer)


def build_mixing(num_classes: int, mixup: float, cutmix: float, probability: float) -> v2.Transform | None:
    """Return what mixes a batch of images and labels, or None."""
    parts = [v2.MixUp(alpha=float(mixup), num_classes=num_classes)] if mixup else []
    parts += [v2.CutMix(alpha=float(cutmix), num_classes=num_classes)] if cutmix else []
    return v2.RandomApply([v2.RandomChoice(parts)], p=probability) if parts else None


def parameter_groups(backbone: Backbone, head: nn.Module, layer_decay: float | None = None) -> list[dict[str, Any]]:
    """Return groups of the parameters that train, one for each learning rate and weight decay.

    timm does the grouping; it is shown the head where its own classifier would be.

    Args:
        backbone: The network without its classifier.
        head: The classifier.
        layer_decay: Ratio of the learning rates of neighbouring layers; None for one rate.

    Returns:
        Groups with ``lr_scale``, a share of the optimizer's ``lr``, and with ``weight_decay`` 0 where there is to be
        none, else without it.
    """
    model: Any = backbone.model
    of_head = [(f"classifier.{name}", parameter) for name, parameter in head.named_parameters()]
    parameters = [*model.named_parameters(), *of_head]
    network: Any = SimpleNamespace(named_parameters=lambda: parameters, pretrained_cfg={"classifier": "classifier"})
    if hasattr(model, "group_matcher"):
        network.group_matcher = model.group_matcher
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    own = 1.0  # stands for the optimizer's own weight decay
    if layer_decay is None:
        groups = param_groups_weight_decay(network, own, no_weight_decay_list=spared)
    else:
        groups = param_groups_layer_decay(network, own, no_weight_decay_list=spared, layer_decay=layer_decay)
    return [
        {"params": group["params"], "lr_scale": group.get("lr_scale", 1.0)}
        | ({} if group["weight_decay"] == own else {"weight_decay": 0.0})
        for group in groups
    ]


def check_range(below_one: bool = False, **shares: float) -> None:
    """Raise ValueError if a share or probability is not from 0 to 1."""
    for name, value in shares.items():
        if not 0 <= value <= 1 or (below_one and value == 1):
            raise ValueError(f"{name}={value} must be from 0 to 1{', and less than 1' if below_one else ''}.")


def check_combination(
    num_classes: int,
    mode: Mode,
    has_weights: bool,
    mixup: float,
    cutmix: float,
    drop_path: float,
    layer_decay: float | None,
    class_names: list[str] | None,
) -> None:
    """Raise ValueError if arguments are out of range or do not go together."""
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes} must be at least 2.")
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(f"class_names holds {len(class_names)} names for num_classes={num_classes}.")
    if mode not in HEAD_STD:
        raise ValueError(f"mode={mode!r} must be 'train', 'finetune' or 'linear_probe'.")
    if mode == "finetune" and not has_weights:
        raise ValueError(
            "mode='finetune' needs weights: give pretrained=True, pretrained='offline' or checkpoint_path=FILE, or "
            "train from random weights with mode='train'."
        )
    for name, value in (("mixup", mixup), ("cutmix", cutmix)):
        if value < 0:
            raise ValueError(f"{name}={value} is the parameter of a Beta distribution: positive, or 0 for none.")
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay} must be more than 0 and at most 1, for instance 0.75.")
    if mode == "linear_probe" and (layer_decay is not None or drop_path):
        raise ValueError("mode='linear_probe' trains no layer of the backbone: leave out layer_decay and drop_path.")
