"""L2P: a pool of prompts with keys, of which each image takes the nearest.

Every prompt has a key. An image is first passed through the frozen transformer without prompts; its class token is the
query, and the prompts with the nearest keys are put together to its prefix. Chosen keys are drawn towards their
queries.

Wang, Zhang, Lee, Zhang, Sun, Ren, Su, Perot, Dy, Pfister, "Learning to Prompt for Continual Learning", CVPR 2022,
https://arxiv.org/abs/2112.08654. Official code: https://github.com/google-research/l2p at dd8836e.

What differs: this is the form that later papers compare with ("L2P++"), in https://github.com/GT-RIPL/CODA-Prompt at
6417d4f and https://github.com/jpmorganchase/ovor at 4f59b75: prompts are prefixes, not tokens; the class token is
classified; each image chooses for itself. Both draw each query towards the keys that any image of the batch chose,
which ``cross_batch_key_loss`` reproduces. The key loss is a mean over images, keys and blocks.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from zoo.continual.prompt_learner import PromptLearner, Prompts, ScheduleCallable
from zoo.nn import Backbone, QuarterCosine, VirtualOutliers


class PromptPool(Prompts):
    """A pool of prompts with keys in each of some blocks.

    Args:
        layers: Blocks that have a pool.
        pool_size: Prompts in a pool.
        length: Keys, and as many values, of a prompt.
        top_k: Prompts that an image takes; its prefix has ``top_k * length`` keys.
        num_features: Width D of the transformer.
        cross_batch_key_loss: Whether a query is drawn towards the keys that all images of the batch chose.

    Raises:
        ValueError: If there are fewer prompts than an image takes.
    """

    def __init__(
        self,
        layers: Sequence[int],
        pool_size: int,
        length: int,
        top_k: int,
        num_features: int,
        cross_batch_key_loss: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= pool_size or length < 1:
            raise ValueError(
                f"top_k={top_k} must be between 1 and pool_size={pool_size}, and length={length} at least 1."
            )
        self.layers = tuple(layers)
        self.top_k = top_k
        self.cross_batch_key_loss = cross_batch_key_loss
        self.prefixes = nn.ParameterList(torch.rand(pool_size, 2, length, num_features) for _ in layers)
        self.keys = nn.ParameterList(torch.rand(pool_size, num_features) for _ in layers)

    def forward(self, query: Tensor | None, task: int | None) -> tuple[dict[int, Tensor], Tensor]:
        """Return the prefixes of the nearest keys, and how far those are from the queries."""
        assert query is not None
        chosen: dict[int, Tensor] = {}
        losses = []
        for layer, prefixes, keys in zip(self.layers, self.prefixes, self.keys, strict=True):
            similarity = cosine(query, keys)
            nearest = similarity.topk(self.top_k, dim=1).indices  # (B, k)
            chosen[layer] = prefixes[nearest].transpose(1, 2).flatten(2, 3)  # (B, 2, k L, D)
            drawn = similarity[:, nearest] if self.cross_batch_key_loss else similarity.gather(1, nearest)
            losses.append((1 - drawn).mean())
        return chosen, torch.stack(losses).mean()


def cosine(query: Tensor, keys: Tensor) -> Tensor:
    """Return the cosine of each query (B, D) and each key (M, D), shape (B, M)."""
    return F.normalize(query, dim=1) @ F.normalize(keys, dim=1).T


class L2P(PromptLearner):
    """A pool of prompts with keys in a frozen vision transformer, and a linear head, trained task after task.

    It needs a class-incremental stream and no task identity at test time. Images may be augmented.

    Args:
        num_classes: Number of classes of the stream.
        backbone: See :class:`zoo.OnePrompt`.
        layers: Blocks that have a pool. ``(0, 1, 2, 3, 4)`` is the deep variant of the later papers.
        pool_size: Prompts in a pool.
        length: Keys, and as many values, of a prompt.
        top_k: Prompts that an image takes; its prefix has ``top_k * length`` keys.
        key_loss_weight: Weight of the distance of chosen keys. The scripts of OVOR, on four GPUs, amount to 4.
        cross_batch_key_loss: Whether a query is drawn towards the keys that all images of the batch chose, as in the
            code of the later papers.
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
        Two passes of the transformer an image, in training and evaluation. Logged beside the metrics of
        :class:`~zoo.continual.learner.StreamLearner`: ``train/loss`` and ``train/prompt_loss``, the mean distance
        1 - cosine of chosen keys (lower is better).

    Raises:
        ValueError: If an argument is out of range, or the backbone takes no prompts.

    Source:
        Wang et al., "Learning to Prompt for Continual Learning", CVPR 2022, in the prefix form of Smith et al.,
        "CODA-Prompt", CVPR 2023.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str | Backbone = "vit_base_patch16_224.augreg_in21k_ft_in1k",
        layers: Sequence[int] = (0,),
        pool_size: int = 30,
        length: int = 10,
        top_k: int = 5,
        key_loss_weight: float = 1.0,
        cross_batch_key_loss: bool = False,
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
            num_classes, backbone, layers, optimizer, schedule, key_loss_weight, vor_epochs, vor, pretrained,
            checkpoint_path, mean, std, backbone_args, class_names, save_backbone,
        )  # fmt: skip
        self.save_hyperparameters(ignore=self.not_saved)
        self.prompts = PromptPool(layers, pool_size, length, top_k, self.backbone.num_features, cross_batch_key_loss)
