"""CODA-Prompt: prompts as weighted sums of components, a share of which each task adds.

Every component has a key and an attention vector. Its weight for an image is the cosine of the key and the query that
the attention vector has scaled, feature by feature; the prompt of a block is the sum of all components so weighted. A
task trains its own components and holds the earlier ones still. Unlike a choice by nearest keys, this has a gradient
all the way. The query is the class token of the frozen transformer without prompts.

Smith, Karlinsky, Gutta, Cascante-Bonilla, Kim, Arbelle, Panda, Feris, Kira, "CODA-Prompt: COntinual Decomposed
Attention-based Prompting for Rehearsal-Free Continual Learning", CVPR 2023, https://arxiv.org/abs/2211.13218. Official
code: https://github.com/GT-RIPL/CODA-Prompt at 6417d4f.

What differs: a component that is nearly zero stops the run, where the official code would draw for ever. The penalty is
a mean over blocks.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from zoo.continual.prompt_learner import PromptLearner, Prompts, ScheduleCallable
from zoo.functional import Task, mix_seeds
from zoo.nn import Backbone, QuarterCosine, VirtualOutliers


class PromptComponents(Prompts):
    """Components with keys and attention vectors in each of some blocks, all zero until their task starts.

    Args:
        layers: Blocks that have components.
        num_components: Components M of a block.
        length: Keys, and as many values, of a component.
        max_tasks: Tasks T; each adds ``M // T`` components.
        num_features: Width D of the transformer.

    Raises:
        ValueError: If a task would have no component.
    """

    def __init__(
        self, layers: Sequence[int], num_components: int, length: int, max_tasks: int, num_features: int
    ) -> None:
        super().__init__()
        if not 1 <= max_tasks <= num_components or length < 1:
            raise ValueError(
                f"max_tasks={max_tasks} must be between 1 and num_components={num_components}, so that each task has a "
                f"component, and length={length} at least 1."
            )
        self.layers = tuple(layers)
        self.per_task = num_components // max_tasks
        self.prefixes = nn.ParameterList(torch.zeros(num_components, 2, length, num_features) for _ in layers)
        self.keys = nn.ParameterList(torch.zeros(num_components, num_features) for _ in layers)
        self.attentions = nn.ParameterList(torch.zeros(num_components, num_features) for _ in layers)

    def forward(self, query: Tensor | None, task: int | None) -> tuple[dict[int, Tensor], Tensor]:
        """Return the weighted sums, and how far the components are from orthogonal."""
        assert query is not None
        sums: dict[int, Tensor] = {}
        penalties: list[Tensor] = []
        for layer, *parts in zip(self.layers, self.prefixes, self.keys, self.attentions, strict=True):
            prefixes, keys, attentions = (self.of_task(part, task) for part in parts)
            weights = component_weights(query, keys, attentions)
            sums[layer] = torch.einsum("bm,mkld->bkld", weights, prefixes)
            penalties += [orthogonality(part.flatten(1)) for part in (prefixes, keys, attentions)]
        return sums, torch.stack(penalties).sum() / len(self.layers)

    def of_task(self, part: Tensor, task: int | None) -> Tensor:
        """Return the components up to a task, with a gradient for its own; all of them in evaluation."""
        if task is None:
            return part  # those of later tasks are zero
        start, stop = task * self.per_task, (task + 1) * self.per_task
        return torch.cat([part[:start].detach(), part[start:stop]])

    @torch.no_grad()
    def start_task(self, task: int, generator: torch.Generator) -> None:
        """Draw the components of a task, in each block by itself.

        Args:
            task: Number of the task.
            generator: A generator on the CPU.
        """
        start, stop = task * self.per_task, (task + 1) * self.per_task
        for part in (*self.prefixes, *self.keys, *self.attentions):
            flat = part.flatten(1)
            draws = torch.randn(stop - start, flat.shape[1], generator=generator, dtype=torch.float32)
            rows = gram_schmidt(flat[:start].to("cpu", torch.float64), draws.double())
            flat[start:stop] = rows.to(flat)


def component_weights(query: Tensor, keys: Tensor, attentions: Tensor) -> Tensor:
    """Return the weight of each component for each query, shape (B, M).

    Args:
        query: Shape (B, D).
        keys: Shape (M, D).
        attentions: Shape (M, D).
    """
    # The cosine of q * a and k without a tensor of shape (B, M, D).
    lengths = (query.square() @ attentions.square().T).clamp_min(1e-24).sqrt()
    return query @ (attentions * F.normalize(keys, dim=1)).T / lengths


def orthogonality(rows: Tensor) -> Tensor:
    """Return the mean squared entry of R Rᵀ - 1 for rows R (m, D)."""
    return (rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).square().mean()


def gram_schmidt(old: Tensor, draws: Tensor) -> Tensor:
    """Return draws (n, D), less their projections on each old row (m, D) and on each other, at unit length.

    Every projection is that of the draw itself, as in the official code. The old rows have been trained since and are
    no longer orthogonal, so neither is the result to them, if there are two or more.

    Raises:
        ValueError: If a row is nearly zero.
    """
    rows = list(old)
    for draw in draws:
        lengths = [row @ row for row in rows]
        if any(length < 1e-8 for length in lengths):
            raise ValueError("A component is nearly zero: none can be made orthogonal to it. Lower the learning rate.")
        rows.append(draw - sum((draw @ row) / length * row for row, length in zip(rows, lengths, strict=True)))
    return F.normalize(torch.stack(rows[len(old) :]), dim=1)


class CodaPrompt(PromptLearner):
    """Prompts as weighted sums of components in a frozen vision transformer, and a linear head.

    It needs a class-incremental stream whose number of tasks is known, and no task identity at test time.

    Args:
        num_classes: Number of classes of the stream.
        backbone: See :class:`zoo.OnePrompt`.
        max_tasks: Number of tasks of the stream; each trains its share of the components.
        layers: Blocks that have components.
        num_components: Components of a block, over all tasks.
        length: Keys, and as many values, of a component.
        orthogonality_weight: Weight of the penalty on components that are not orthogonal. Official code: 0, since they
            start orthogonal.
        vor_epochs: Epochs with virtual outliers at the end of each task; 0 is the paper's method.
        vor: Their settings. Default: as published.
        optimizer: See :class:`zoo.OnePrompt`, as all that follow. It must not decay weights: components at rest have a
            gradient of zero.
        schedule: See there.
        pretrained: See there.
        checkpoint_path: See there.
        mean: See there.
        std: See there.
        backbone_args: See there.
        class_names: See there.
        save_backbone: See there.

    Good to know:
        Two passes of the transformer an image, in training and evaluation. Logged beside the metrics of
        :class:`~zoo.continual.learner.StreamLearner`: ``train/loss`` and, where it has a weight,
        ``train/prompt_loss``, the penalty (lower is better).

    Raises:
        ValueError: If an argument is out of range, the backbone takes no prompts, or the stream has more tasks.

    Source:
        Smith et al., "CODA-Prompt: COntinual Decomposed Attention-based Prompting for Rehearsal-Free Continual
        Learning", CVPR 2023.
    """

    prompts: PromptComponents

    def __init__(
        self,
        num_classes: int,
        backbone: str | Backbone = "vit_base_patch16_224.augreg_in21k_ft_in1k",
        max_tasks: int = 10,
        layers: Sequence[int] = (0, 1, 2, 3, 4),
        num_components: int = 100,
        length: int = 4,
        orthogonality_weight: float = 0.0,
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
            num_classes, backbone, layers, optimizer, schedule, orthogonality_weight, vor_epochs, vor, pretrained,
            checkpoint_path, mean, std, backbone_args, class_names, save_backbone,
        )  # fmt: skip
        self.save_hyperparameters(ignore=self.not_saved)
        self.prompts = PromptComponents(layers, num_components, length, max_tasks, self.backbone.num_features)
        self.max_tasks = max_tasks

    def on_task_start(self, task: Task) -> None:
        """Draw the components of the task, the same on all processes."""
        super().on_task_start(task)
        self.prompts.start_task(task.index, torch.Generator().manual_seed(mix_seeds(self.datamodule.seed, task.index)))
