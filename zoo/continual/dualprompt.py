"""DualPrompt: prompts that all tasks share, and one prompt for each task that is found by its key.

The first blocks have general prompts, trained in every task. Further blocks have one expert prompt a task, with a key.
In training the expert of the task is taken and its key drawn towards the queries; at test time the image takes the
expert with the nearest key. The query is the class token of the frozen transformer without prompts.

Wang, Zhang, Ebrahimi, Sun, Zhang, Lee, Ren, Su, Perot, Dy, Pfister, "DualPrompt: Complementary Prompting for
Rehearsal-free Continual Learning", ECCV 2022, https://arxiv.org/abs/2204.04799. Official code:
https://github.com/google-research/l2p at dd8836e.

What differs: as in the form that later papers compare with (https://github.com/jpmorganchase/ovor at 4f59b75) every
block has keys of its own, and each image chooses for itself. The key loss is a mean over images and blocks.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from zoo.continual.l2p import cosine
from zoo.continual.prompt_learner import PromptLearner, Prompts, ScheduleCallable
from zoo.nn import Backbone, QuarterCosine, VirtualOutliers


class DualPrompts(Prompts):
    """General prompts, and experts with keys.

    Args:
        general_layers: Blocks with a general prompt.
        general_length: Keys, and as many values, of a general prompt.
        expert_layers: Blocks with experts.
        expert_length: Keys, and as many values, of an expert.
        max_tasks: Experts in each block.
        num_features: Width D of the transformer.

    Raises:
        ValueError: If a block has both, or a number is less than 1.
    """

    def __init__(
        self,
        general_layers: Sequence[int],
        general_length: int,
        expert_layers: Sequence[int],
        expert_length: int,
        max_tasks: int,
        num_features: int,
    ) -> None:
        super().__init__()
        if set(general_layers) & set(expert_layers) or min(general_length, expert_length, max_tasks) < 1:
            raise ValueError(
                f"general_layers={general_layers} and expert_layers={expert_layers} must have no block in common, and "
                f"general_length={general_length}, expert_length={expert_length} and max_tasks={max_tasks} be positive."
            )
        self.general_layers, self.expert_layers = tuple(general_layers), tuple(expert_layers)
        self.general = nn.ParameterList(torch.rand(2, general_length, num_features) for _ in general_layers)
        self.experts = nn.ParameterList(torch.rand(max_tasks, 2, expert_length, num_features) for _ in expert_layers)
        self.keys = nn.ParameterList(torch.rand(max_tasks, num_features) for _ in expert_layers)

    def forward(self, query: Tensor | None, task: int | None) -> tuple[dict[int, Tensor], Tensor]:
        """Return the prefixes, of the task's expert or of the nearest ones, and how far the keys are."""
        assert query is not None
        prefixes: dict[int, Tensor] = dict(zip(self.general_layers, self.general, strict=True))
        losses = []
        for layer, experts, keys in zip(self.expert_layers, self.experts, self.keys, strict=True):
            similarity = cosine(query, keys)
            chosen = similarity.argmax(dim=1) if task is None else torch.full_like(similarity[:, 0], task).long()
            prefixes[layer] = experts[chosen]
            losses.append(1 - similarity.gather(1, chosen.unsqueeze(1)).mean())
        return prefixes, torch.stack(losses).mean()


class DualPrompt(PromptLearner):
    """General and expert prompts in a frozen vision transformer, and a linear head, trained task after task.

    It needs a class-incremental stream whose number of tasks is known, and no task identity at test time.

    Args:
        num_classes: Number of classes of the stream.
        backbone: See :class:`zoo.OnePrompt`.
        max_tasks: Experts in each block, one for each task of the stream.
        general_layers: Blocks with a general prompt.
        general_length: Keys, and as many values, of a general prompt. Later papers: 5 (OVOR), 3 (CODA-Prompt).
        expert_layers: Blocks with experts.
        expert_length: Keys, and as many values, of an expert. Later papers: 20 (OVOR), 10 (CODA-Prompt).
        key_loss_weight: Weight of the distance of the keys. The scripts of OVOR, on four GPUs, amount to 4, those of
            CODA-Prompt to 384.
        vor_epochs: Epochs with virtual outliers at the end of each task; 0 is the paper's method.
        vor: Their settings. Default: as published.
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
        Two passes of the transformer an image, in training and evaluation. With virtual outliers the features are those
        of the nearest expert, which is not always the task's. Logged beside the metrics of
        :class:`~zoo.continual.learner.StreamLearner`: ``train/loss`` and ``train/prompt_loss``, the mean distance
        1 - cosine of the keys (lower is better).

    Raises:
        ValueError: If an argument is out of range, the backbone takes no prompts, or the stream has more tasks.

    Source:
        Wang et al., "DualPrompt: Complementary Prompting for Rehearsal-free Continual Learning", ECCV 2022.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str | Backbone = "vit_base_patch16_224.augreg_in21k_ft_in1k",
        max_tasks: int = 10,
        general_layers: Sequence[int] = (0, 1),
        general_length: int = 5,
        expert_layers: Sequence[int] = (2, 3, 4),
        expert_length: int = 20,
        key_loss_weight: float = 1.0,
        vor_epochs: int = 0,
        vor: VirtualOutliers | None = None,
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
            num_classes, backbone, [*general_layers, *expert_layers], optimizer, schedule, key_loss_weight, vor_epochs,
            vor, pretrained, checkpoint_path, mean, std, backbone_args, class_names, save_backbone,
        )  # fmt: skip
        self.save_hyperparameters(ignore=self.not_saved)
        self.prompts = DualPrompts(
            general_layers, general_length, expert_layers, expert_length, max_tasks, self.backbone.num_features
        )
        self.max_tasks = max_tasks
