"""OnePrompt: one set of prompts for all tasks.

A pretrained vision transformer stays frozen. A few learnable keys and values precede those of the tokens in its first
blocks, and a linear head reads the class token. Both are trained task after task, with no old image, no pool of prompts
and no second pass to choose among them.

Huang, Chen, Hsu, "OVOR: OnePrompt with Virtual Outlier Regularization for Rehearsal-Free Class-Incremental Learning",
ICLR 2024, https://arxiv.org/abs/2402.04129. Official code: https://github.com/jpmorganchase/ovor at 4f59b75.

What differs: a length counts the vectors that precede the keys, of which as many precede the values; the official
``(40, 10)`` count both together. No epochs at the start of a task in which the head alone learns; there they are off by
default. Pixels are normalised as the weights expect; ``mean=[0, 0, 0], std=[1, 1, 1]`` leaves them in [0, 1], as there.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from zoo.continual.prompt_learner import PromptLearner, Prompts, ScheduleCallable
from zoo.nn import Backbone, QuarterCosine


class SharedPrompts(Prompts):
    """The same prefixes for all images and tasks.

    Args:
        layers: Blocks that have one.
        lengths: Number of keys, and of values, in each of them.
        num_features: Width D of the transformer.

    Raises:
        ValueError: If there is not one length for each block.
    """

    needs_query = False

    def __init__(self, layers: Sequence[int], lengths: Sequence[int], num_features: int) -> None:
        super().__init__()
        if len(layers) != len(lengths) or not layers or min(lengths) < 1:
            raise ValueError(f"lengths={lengths} must be one positive number for each of layers={layers}.")
        self.layers = tuple(layers)
        self.prefixes = nn.ParameterList(torch.rand(2, length, num_features) for length in lengths)

    def forward(self, query: Tensor | None, task: int | None) -> tuple[dict[int, Tensor], Tensor]:
        """Return the prefixes, and no loss of their own."""
        return dict(zip(self.layers, self.prefixes, strict=True)), self.prefixes[0].new_zeros(())


class OnePrompt(PromptLearner):
    """One set of prompts in a frozen vision transformer, and a linear head, trained task after task.

    It needs a class-incremental stream and no task identity at test time. Images may be augmented.

    Args:
        num_classes: Number of classes of the stream.
        backbone: A timm ``VisionTransformer`` with a class token by name, or one that
            :func:`zoo.nn.create_backbone` made.
        layers: Blocks that have prompts, from 0.
        lengths: Keys, and as many values, in each of these blocks.
        optimizer: Makes the optimizer of a task from prompts and head. Published: Adam, rate 0.001.
        schedule: Makes its schedule from the optimizer and the number of epochs of the task; stepped after each epoch.
        pretrained: See :func:`zoo.nn.create_backbone`, as the next three.
        checkpoint_path: See there.
        mean: See there.
        std: See there.
        backbone_args: Further arguments of timm's model, such as ``img_size``.
        class_names: Name of each label, for predictions.
        save_backbone: Whether checkpoints hold the backbone. Default: only if it cannot be rebuilt.

    Good to know:
        One pass of the transformer an image, in training and evaluation. Logged beside the metrics of
        :class:`~zoo.continual.learner.StreamLearner`: ``train/loss``, the cross-entropy (lower is better).

    Raises:
        ValueError: If an argument is out of range, or the backbone takes no prompts.

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
        super().__init__(
            num_classes, backbone, layers, optimizer, schedule, 0.0, 0, None, pretrained, checkpoint_path, mean, std,
            backbone_args, class_names, save_backbone,
        )  # fmt: skip
        self.save_hyperparameters(ignore=self.not_saved)
        self.prompts = SharedPrompts(layers, lengths, self.backbone.num_features)
