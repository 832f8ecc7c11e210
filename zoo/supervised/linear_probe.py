"""LinearProbe: multinomial logistic regression on frozen features.

Freeze a pretrained network, compute the features of all training images once, and fit a linear classifier to the end
instead of by a few epochs of SGD: the problem is convex, so the result depends on neither a learning rate nor the order
of the images. On the features of :class:`zoo.NMC` it says what a linear classifier reaches that sees all classes
together: the upper reference of a stream.

Kornblith, Shlens, Le, "Do Better ImageNet Models Transfer Better?", CVPR 2019, https://arxiv.org/abs/1805.08974, which
evaluates networks by logistic regression on frozen features.

What differs: one strength of the penalty, given as an argument, where a study would choose it anew for each data set on
held-out images; features of unit length, as NMC's.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors

from zoo.continual.frozen_backbone import FrozenBackboneLearner
from zoo.functional import Task


class LinearProbe(FrozenBackboneLearner):
    """Linear classifier on the features of a frozen network, fitted by logistic regression.

    It needs one pass over images that are not augmented, with all classes in it: a stream of one task, or a datamodule
    that is no stream. Features are kept in memory, 4 D bytes an image. Under several processes the shares of the data
    must be exact (``pad=False`` of the datamodule); the first process fits for all.

    Args:
        num_classes: Number of classes, at least 2.
        backbone: A timm model by name, or a module that maps images to features of shape (B, D) and says
            ``num_features``.
        regularization: Strength λ of the penalty, as in :func:`fit_logistic_regression`. The default is the best power
            of ten, on held-out training images, for unit features of EfficientNet-Lite0 on two data sets (digits and
            Fashion-MNIST). Larger features need a larger value.
        normalize: Whether features are scaled to unit length.
        max_iter: Largest number of steps of L-BFGS; scikit-learn warns where it did not suffice.
        pretrained: See :func:`zoo.nn.create_backbone`, as the next three.
        checkpoint_path: See there.
        mean: See there.
        std: See there.
        backbone_args: Further arguments of timm's model, such as ``img_size``.
        class_names: Name of each label, for predictions.
        save_backbone: Whether checkpoints hold the backbone. Default: only if it cannot be rebuilt, which is to say if
            it is a module of yours or has random weights.

    Good to know:
        Logged metrics are those of :class:`~zoo.continual.learner.StreamLearner`. A class without a training image has
        score -inf. 60,000 images of 1280 features and 10 classes were fitted in 45 seconds.

    Raises:
        ValueError: If an argument is out of range, timm does not know the backbone, or the stream has several tasks.

    Source:
        Kornblith et al., "Do Better ImageNet Models Transfer Better?", CVPR 2019. Frozen features under a linear
        classifier: Razavian et al., "CNN Features off-the-shelf: an Astounding Baseline for Recognition", CVPR 2014
        Workshops.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        num_classes: int,
        backbone: str | nn.Module = "vit_base_patch16_224.augreg_in21k",
        regularization: float = 1e-5,
        normalize: bool = True,
        max_iter: int = 1000,
        pretrained: bool | Literal["offline"] = True,
        checkpoint_path: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        backbone_args: dict[str, Any] | None = None,
        class_names: list[str] | None = None,
        save_backbone: bool | None = None,
    ) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes} must be at least 2.")
        if not regularization > 0:
            raise ValueError(f"regularization={regularization} must be positive, for instance 1e-5.")
        if max_iter < 1:
            raise ValueError(f"max_iter={max_iter} must be at least 1.")
        super().__init__(
            num_classes, backbone, normalize, pretrained, checkpoint_path, mean, std, backbone_args, class_names,
            save_backbone,
        )  # fmt: skip
        self.save_hyperparameters(ignore=["backbone"] if isinstance(backbone, nn.Module) else [])
        self.regularization = regularization
        self.max_iter = max_iter
        self.register_buffer("weight", torch.zeros(num_classes, self.num_features))
        self.register_buffer("bias", torch.full((num_classes,), -torch.inf))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (B, C), float32, of images in [0, 1].

        Raises:
            ValueError: If nothing was fitted yet.
        """
        if torch.isneginf(self.bias).all():
            raise ValueError("LinearProbe has seen no class yet: fit it, or load a checkpoint (--ckpt_path).")
        features = self.features(images)
        with torch.autocast(features.device.type, enabled=False):  # as in the fit
            return F.linear(features, self.weight.to(features), self.bias.to(features))

    def on_task_start(self, task: Task) -> None:
        """Check that there is one task, with all classes, and that it is passed once."""
        num_tasks = getattr(self.datamodule, "num_tasks", task.index + 1)
        if num_tasks != 1:
            raise ValueError(
                f"LinearProbe learns all classes at once, got a stream of {num_tasks} tasks; set num_tasks=1."
            )
        super().on_task_start(task)

    def collect(self, features: Tensor, labels: Tensor) -> None:
        """Keep a batch's features and labels, on the CPU."""
        self._collected.append((features.cpu(), labels.cpu()))

    def learn(self, collected: list[tuple[Tensor, Tensor]]) -> None:
        """Fit on the first process to what all have collected, and give the result to all."""
        features, labels = (torch.cat(parts) for parts in zip(*collected, strict=True))
        if self.trainer.world_size > 1:
            # Shares differ by an image, which torch's own gathering does not allow.
            features, labels = (
                torch.cat(gather_all_tensors(part.to(self.device))).cpu() for part in (features, labels)
            )
        layer = self.weight, self.bias
        if self.trainer.is_global_zero:
            layer = fit_logistic_regression(features, labels, self.num_classes, self.regularization, self.max_iter)
        # Takes the place of the old buffers, which a true-half precision plugin has cast: no digit is lost.
        self.weight, self.bias = (part.to(self.device) for part in self.trainer.strategy.broadcast(layer))


def fit_logistic_regression(
    features: Tensor, labels: Tensor, num_classes: int, regularization: float, max_iter: int = 1000
) -> tuple[Tensor, Tensor]:
    """Return the linear layer that minimises the mean cross-entropy + λ/2 ‖weight‖²; the bias is not penalised.

    Solved by scikit-learn's L-BFGS in float64, until no entry of the gradient exceeds 1e-5: in float32 and with
    scikit-learn's 1e-4 the accuracy on digits still moved by a point with the order of the images. Its ``C``, which
    counts images, is 1 / (λ N) here, so that λ means the same for any number N of images.

    Args:
        features: Shape (N, D), on the CPU.
        labels: int64 of shape (N,), 0 to C - 1, of at least two classes.
        num_classes: Number of classes C, with or without a sample.
        regularization: Strength λ of the penalty, positive.
        max_iter: Largest number of steps.

    Returns:
        Weight of shape (C, D) and bias of shape (C,). Classes without a sample have weight 0 and bias -inf.

    Raises:
        ValueError: If all samples are of one class.

    Source:
        Pedregosa et al., "Scikit-learn: Machine Learning in Python", JMLR 2011, ``LogisticRegression``.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # scikit-learn needs it too

    seen = torch.bincount(labels, minlength=num_classes).nonzero().flatten()
    if len(seen) < 2:
        raise ValueError(f"Logistic regression needs images of at least two classes, got class {seen.tolist()} only.")
    # With two classes scikit-learn fits one vector w. As the pair -w/2, w/2 it has half the penalty.
    strength = (2 if len(seen) == 2 else 1) / (regularization * len(labels))
    # The products are too narrow for several threads: on two busy cores two took sixteen times as long as one.
    with threadpool_limits(limits=1):
        model = LogisticRegression(C=strength, max_iter=max_iter, tol=1e-5)
        model.fit(features.double().numpy(), labels.numpy())
    rows, intercepts = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    if len(seen) == 2:
        rows, intercepts = torch.cat([-rows, rows]) / 2, torch.cat([-intercepts, intercepts]) / 2
    weight = features.new_zeros(num_classes, features.shape[1])
    bias = features.new_full((num_classes,), -torch.inf)
    weight[seen], bias[seen] = rows.to(weight), intercepts.to(bias)
    return weight, bias
