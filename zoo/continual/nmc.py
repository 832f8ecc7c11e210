"""NMC: the nearest class mean of frozen features, and no training.

Freeze a pretrained network, keep one sum and one count of feature vectors for each class, predict the class whose mean
is nearest. Data may come in any order, in any number of tasks and from any number of processes: the means are the same,
so nothing is forgotten; accuracy on old classes falls only as new ones compete.

Janson, Zhang, Aljundi, Elhoseiny, "A Simple Baseline that Questions the Use of Pretrained-Models in Continual
Learning", NeurIPS 2022 Workshop on Distribution Shifts, https://arxiv.org/abs/2210.04428. Official code:
https://github.com/Pauljanson002/pretrained-cl at 19f2d86.

What differs: sums are float64 (float32 there); means are sums over the whole stream for every kind of stream; the
official scripts feed pixels in [0, 1] without the mean and std that the weights expect, which ``mean=[0, 0, 0],
std=[1, 1, 1]`` reproduces.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.continual.frozen_backbone import FrozenBackboneLearner
from zoo.nn import ClassMeans, linear_from_means
from zoo.nn.class_means import Rule


class NMC(FrozenBackboneLearner):
    """Nearest mean classifier over a frozen network.

    It needs one pass over images that are not augmented; no task identity, no stored image, no gradient. Under several
    processes the shares of the data must be exact (``pad=False`` of the datamodule).

    The three rules: ``"euclidean"`` is the paper's, the nearest mean of unit features; ``"euclidean_raw"`` leaves the
    features as they are; ``"cosine"`` is SimpleCIL's, the largest cosine to the mean of raw features.

    Args:
        num_classes: Number of classes of the stream.
        backbone: A timm model by name (paper: ``vit_base_patch16_224.augreg_in21k``), or a module that maps images to
            features of shape (B, D) and says ``num_features``.
        rule: How the nearest mean is found.
        pretrained: See :func:`zoo.nn.create_backbone`, as the next three.
        checkpoint_path: See there.
        mean: See there.
        std: See there.
        backbone_args: Further arguments of timm's model, such as ``img_size``.
        class_names: Name of each label, for predictions.
        save_backbone: Whether checkpoints hold the backbone. Default: only if it cannot be rebuilt, which is to say if
            it is a module of yours or has random weights.

    Good to know:
        Logged metrics are those of :class:`~zoo.continual.learner.StreamLearner`. ``forward`` returns the linear score,
        which for the euclidean rules orders the classes as the negative squared distance does. Scores of unseen classes
        are -inf. The means belong to the backbone's weights and precision: rebuild both as they were.

    Raises:
        ValueError: If an argument is out of range or timm does not know the backbone.

    Source:
        Janson et al., "A Simple Baseline that Questions the Use of Pretrained-Models in Continual Learning", NeurIPS
        2022 Workshop. ``"cosine"``: Zhou et al., "Revisiting Class-Incremental Learning with Pre-Trained Models", IJCV
        2024.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str | nn.Module = "vit_base_patch16_224.augreg_in21k",
        rule: Rule = "euclidean",
        pretrained: bool | Literal["offline"] = True,
        checkpoint_path: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        backbone_args: dict[str, Any] | None = None,
        class_names: list[str] | None = None,
        save_backbone: bool | None = None,
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be at least 1.")
        if rule not in ("euclidean", "euclidean_raw", "cosine"):
            raise ValueError(f"rule={rule!r} must be 'euclidean', 'euclidean_raw' or 'cosine'.")
        normalize = rule == "euclidean"  # the paper's: what is summed are features of unit length
        super().__init__(
            num_classes, backbone, normalize, pretrained, checkpoint_path, mean, std, backbone_args, class_names,
            save_backbone,
        )  # fmt: skip
        self.save_hyperparameters(ignore=["backbone"] if isinstance(backbone, nn.Module) else [])
        self.rule: Rule = rule
        self.means = ClassMeans(num_classes, self.num_features)

    # The classifier -------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Return scores of shape (B, C), float32, of images in [0, 1].

        Raises:
            ValueError: If no class was seen yet.
        """
        return self.score(self.features(images))

    def score(self, features: Tensor) -> Tensor:
        """Return scores of shape (B, C) of the output of :meth:`features`."""
        seen, means = self.means.seen, self.means.means()
        if not seen.any():
            raise ValueError("NMC has seen no class yet: fit it, or load a checkpoint (--ckpt_path).")
        if self.rule == "cosine":
            features = F.normalize(features, dim=1)
        elif self.rule == "euclidean_raw":
            # Distances do not change with the origin; float32 squares of large features would lose the difference.
            centre = means[seen.to(means.device)].mean(dim=0)
            features, means = features - centre.to(features), means - centre
        weight, bias = (part.to(features) for part in linear_from_means(means, self.rule))
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 would not tell neighbours apart
            return F.linear(features, weight, bias).masked_fill(~seen, -torch.inf)

    def to_linear(self) -> nn.Linear:
        """Return the classifier as a linear layer, for export. Unseen classes have a bias of -inf.

        It acts on features of unit length for ``"euclidean"`` and ``"cosine"``, on raw ones for ``"euclidean_raw"``.
        """
        weight, bias = linear_from_means(self.means.means(), self.rule)
        layer = nn.Linear(weight.shape[1], weight.shape[0], device=self.means.count.device)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias.to(layer.bias).masked_fill(~self.means.seen, -torch.inf))
        return layer.requires_grad_(False)

    @torch.no_grad()
    def update(self, images: Tensor, labels: Tensor) -> None:
        """Learn from a batch at once, without a Trainer: a new class, or more images of a known one."""
        self.check_labels(labels)
        self.means.merge(*class_sums(self.features(images), labels, self.num_classes))

    @torch.no_grad()
    def add_class(self, name: str | None = None) -> int:
        """Make room for one more class and return its label; :meth:`update` or a fit fills it."""
        label, num_features = self.means.sum.shape
        grown = ClassMeans(label + 1, num_features).to(self.means.count.device)
        grown.sum[:-1], grown.count[:-1] = self.means.sum, self.means.count
        self.means = grown
        self.num_classes = self.hparams["num_classes"] = label + 1
        if self.class_names is not None:
            self.class_names.append(name or str(label))
            self.hparams["class_names"] = self.class_names
        return int(label)

    def forget_class(self, label: int) -> None:
        """Remove a class: it counts as never seen.

        Raises:
            ValueError: If there is no such label.
        """
        self.check_labels(torch.tensor([label]))
        self.means.forget(label)

    @torch.no_grad()
    def forget_samples(self, images: Tensor, labels: Tensor) -> None:
        """Unlearn images exactly: their features are subtracted from the sums (of the same backbone and precision).

        Raises:
            ValueError: If a class has fewer images than are to be forgotten, or a label is out of range.
        """
        self.check_labels(labels)
        self.means.subtract(self.features(images), labels)

    # One pass -------------------------------------------------------------------------------------------------------

    def collect(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch's features to the sums of their classes."""
        sums, counts = class_sums(features, labels, self.num_classes)
        if self._collected:
            sums, counts = sums + self._collected[0], counts + self._collected[1]
        self._collected = [sums, counts]

    def learn(self, collected: list[Tensor]) -> None:
        """Add the sums and counts of all processes to the means."""
        sums, counts = (self.trainer.strategy.reduce(part, reduce_op="sum") for part in collected)
        self.means.merge(sums, counts)


def class_sums(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the sum of the features of each class, float64 (C, D), and their number, int64 (C,).

    On MPS, which has no float64, the sums are made on the CPU.
    """
    if features.device.type == "mps":
        features, labels = features.cpu(), labels.cpu()
    # A product, because index_add_ is many small steps on a CPU and not deterministic on a GPU.
    sums = F.one_hot(labels, num_classes).double().T @ features.double()
    return sums, torch.bincount(labels, minlength=num_classes)
