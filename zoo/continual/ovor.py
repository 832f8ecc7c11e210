"""OVOR: OnePrompt with virtual outlier regularisation.

Prompts and head are trained as in :class:`zoo.OnePrompt`. In the last epochs of each task the prompts rest, outliers
are made up around the outermost features of the task, and the head learns to be unsure of them. So the head of one task
claims fewer images of the others, without having seen one.

Huang, Chen, Hsu, "OVOR: OnePrompt with Virtual Outlier Regularization for Rehearsal-Free Class-Incremental Learning",
ICLR 2024, https://arxiv.org/abs/2402.04129. Official code: https://github.com/jpmorganchase/ovor at 4f59b75.

What differs: outliers lie around the boundary samples, as the paper says; in the official code they lie around the
origin, which ``centers="origin"`` reproduces (see :mod:`zoo.nn.virtual_outliers`). The features of an epoch are taken
in the batches of the loader, which has shuffled them. Else as :mod:`zoo.continual.oneprompt` says.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable

from zoo.continual.oneprompt import SharedPrompts
from zoo.continual.prompt_learner import PromptLearner, ScheduleCallable
from zoo.nn import Backbone, QuarterCosine, VirtualOutliers


class OVOR(PromptLearner):
    """One set of prompts and a linear head, with virtual outliers in the last epochs of each task.

    It needs a class-incremental stream with more than ``vor_epochs`` epochs a task, and no task identity at test time.
    The other prompt methods take the same regulariser: ``vor_epochs`` and ``vor`` of :class:`zoo.L2P`,
    :class:`zoo.DualPrompt` and :class:`zoo.CodaPrompt`.

    Args:
        num_classes: Number of classes of the stream.
        backbone: See :class:`zoo.OnePrompt`, as the next two.
        layers: See there.
        lengths: See there.
        vor_epochs: Epochs with outliers at the end of each task. Published: 4 of 20 on CIFAR-100, else 10 of 50.
        weight: See :class:`zoo.nn.VirtualOutliers`, as all up to ``normalize_candidates``.
        sample_energy: See there.
        outlier_energy: See there.
        penalty: See there.
        centers: See there.
        num_boundary: See there.
        num_draws: See there.
        kept_per_class: See there.
        sigma: See there.
        neighbor: See there.
        normalize_candidates: See there.
        optimizer: See :class:`zoo.OnePrompt`, as all that follow.
        schedule: See there.
        pretrained: See there.
        checkpoint_path: See there.
        mean: See there.
        std: See there.
        backbone_args: See there.
        class_names: See there.
        save_backbone: See there.

    Good to know:
        Under DDP the strategy must be ``ddp_find_unused_parameters_true``: the prompts rest. An epoch with outliers
        reads its images twice and passes them through the transformer once. Logged beside the metrics of
        :class:`~zoo.continual.learner.StreamLearner`: ``train/loss`` and, of the outliers, ``train/vor_sample_hinge``,
        ``train/vor_outlier_hinge``, both mean energies, the shares of active hinges, and from how many boundary samples
        the outliers stem.

    Raises:
        ValueError: If an argument is out of range, the backbone takes no prompts, or a task has too few epochs.

    Source:
        Huang et al., "OVOR: OnePrompt with Virtual Outlier Regularization for Rehearsal-Free Class-Incremental
        Learning", ICLR 2024.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str | Backbone = "vit_base_patch16_224.augreg_in21k_ft_in1k",
        layers: Sequence[int] = (0, 1, 2, 3, 4),
        lengths: Sequence[int] = (5, 5, 20, 20, 20),
        vor_epochs: int = 10,
        weight: float = 0.1,
        sample_energy: float = -15.0,
        outlier_energy: float = -3.0,
        penalty: Literal["huber", "squared"] = "huber",
        centers: Literal["boundary", "origin"] = "boundary",
        num_boundary: int = 50,
        num_draws: int = 600,
        kept_per_class: int = 40,
        sigma: float = 0.1,
        neighbor: int = 50,
        normalize_candidates: bool = False,
        optimizer: OptimizerCallable = torch.optim.Adam,
        schedule: ScheduleCallable = QuarterCosine,
        pretrained: bool = True,
        checkpoint_path: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        backbone_args: dict[str, Any] | None = None,
        class_names: list[str] | None = None,
        save_backbone: bool | None = None,
    ) -> None:
        vor = VirtualOutliers(
            weight, sample_energy, outlier_energy, penalty, centers, num_boundary, num_draws, kept_per_class, sigma,
            neighbor, normalize_candidates,
        )  # fmt: skip
        super().__init__(
            num_classes, backbone, layers, optimizer, schedule, 0.0, vor_epochs, vor, pretrained, checkpoint_path, mean,
            std, backbone_args, class_names, save_backbone,
        )  # fmt: skip
        self.save_hyperparameters(ignore=self.not_saved)
        self.prompts = SharedPrompts(layers, lengths, self.backbone.num_features)
