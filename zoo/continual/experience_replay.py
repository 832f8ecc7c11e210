"""ExperienceReplay: keep a few old images, and train on some of them in every step.

The memory is a reservoir: at every moment each image that was shown so far is in it with the same probability, whatever
the tasks are. It is the method that users compare with first, and hard to beat where images may be kept.

Chaudhry, Rohrbach, Elhoseiny, Ajanthan, Dokania, Torr, Ranzato, "On Tiny Episodic Memories in Continual Learning",
2019, https://arxiv.org/abs/1902.10486. The reservoir is that of Vitter, "Random Sampling with a Reservoir", ACM
Transactions on Mathematical Software 1985.

What differs: the paper passes each task once. Here a task may have several epochs, and its images are offered to the
memory in the first of them.
"""

from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors

from zoo.continual.prompt_learner import ScheduleCallable
from zoo.continual.sequential import SequentialFineTuning
from zoo.functional import mix_seeds
from zoo.nn import QuarterCosine


class Reservoir:
    """A sample of a stream of images of unknown length, each in it with equal probability.

    It stays on the CPU, at 8 bits.

    Args:
        size: Largest number of images.

    Raises:
        ValueError: If ``size`` is less than 1.

    Source:
        Vitter, "Random Sampling with a Reservoir", ACM Transactions on Mathematical Software 1985, algorithm R.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"memory_size={size} must be at least 1.")
        self.size = size
        self.num_offered = 0
        self.images = torch.empty(0, dtype=torch.uint8)
        self.labels = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def offer(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        """Keep each image with probability ``size`` over the number of images offered so far.

        Args:
            images: In [0, 1], shape (B, C, H, W).
            labels: int64 of shape (B,).
            generator: A generator on the CPU.
        """
        images, labels = (images * 255).round().to("cpu", torch.uint8), labels.cpu()
        free = self.size - len(self)
        self.images = torch.cat([self.images, images[:free]]) if len(self) else images[:free]
        self.labels = torch.cat([self.labels, labels[:free]])
        rest = range(min(free, len(images)), len(images))
        draws = torch.rand(len(images), generator=generator, dtype=torch.float64)
        for index in rest:
            place = int(draws[index] * (self.num_offered + index + 1))
            if place < self.size:
                self.images[place], self.labels[place] = images[index], labels[index]
        self.num_offered += len(images)

    def draw(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return different images, float in [0, 1], and their labels; fewer than asked for if there are fewer."""
        chosen = torch.randperm(len(self), generator=generator)[:number]
        return self.images[chosen].float() / 255, self.labels[chosen]

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept."""
        return {"images": self.images, "labels": self.labels, "num_offered": self.num_offered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what was kept."""
        self.images, self.labels, self.num_offered = state["images"], state["labels"], state["num_offered"]


class ExperienceReplay(SequentialFineTuning):
    """A network and a linear head, trained on one task after another, beside images of a small memory.

    Args:
        num_classes: Number of classes of the stream.
        backbone: See :class:`zoo.SequentialFineTuning`.
        memory_size: Images in the memory, over all tasks.
        replay_batch_size: Images of the memory in a step and process, beside the batch of the task.
        train_backbone: See :class:`zoo.SequentialFineTuning`, as all that follow.
        optimizer: See there.
        schedule: See there.
        pretrained: See there.
        checkpoint_path: See there.
        mean: See there.
        std: See there.
        backbone_args: See there.
        class_names: See there.

    Good to know:
        Images are kept as the training transform left them, at 8 bits a channel, in the memory of every process, and in
        checkpoints: 150,528 bytes for one of 224 x 224 pixels. Several processes keep the same images as one does.
        Logged beside the metrics of :class:`~zoo.continual.learner.StreamLearner`: ``train/loss``.

    Raises:
        ValueError: If an argument is out of range, or timm does not know the backbone.

    Source:
        Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str | nn.Module = "vit_base_patch16_224.augreg_in21k_ft_in1k",
        memory_size: int = 2000,
        replay_batch_size: int = 64,
        train_backbone: bool = True,
        optimizer: OptimizerCallable = torch.optim.Adam,
        schedule: ScheduleCallable = QuarterCosine,
        pretrained: bool | Literal["offline"] = True,
        checkpoint_path: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        backbone_args: dict[str, Any] | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__(
            num_classes, backbone, "seen", train_backbone, optimizer, schedule, pretrained, checkpoint_path, mean, std,
            backbone_args, class_names,
        )  # fmt: skip
        if replay_batch_size < 1:
            raise ValueError(f"replay_batch_size={replay_batch_size} must be at least 1.")
        self.save_hyperparameters(ignore=self.not_saved)
        self.replay_batch_size = replay_batch_size
        # No buffer: DDP would send it to all processes in every step.
        self.memory = Reservoir(memory_size)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch and as many images of the memory."""
        images, labels = batch
        generator = torch.Generator().manual_seed(
            mix_seeds(self.datamodule.seed, self.trainer.current_epoch, batch_idx)
        )
        world_size, rank = self.trainer.world_size, self.trainer.global_rank
        old_images, old_labels = self.memory.draw(self.replay_batch_size * world_size, generator)
        if self.datamodule.starts_task():
            self.memory.offer(self.gather(images), self.gather(labels), generator)
        if len(old_labels) >= world_size:
            images = torch.cat([images, old_images[rank::world_size].to(images)])
            labels = torch.cat([labels, old_labels[rank::world_size].to(labels)])
        return super().training_step((images, labels), batch_idx)

    def gather(self, part: Tensor) -> Tensor:
        """Return a part of the batch of all processes, in the order in which one process would have it."""
        if self.trainer.world_size == 1:
            return part
        parts = gather_all_tensors(part)
        order = torch.cat([torch.arange(len(own)) * len(parts) + rank for rank, own in enumerate(parts)])
        return torch.cat(parts)[order.argsort()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the memory."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["memory"] = self.memory.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits, and take over its memory.

        Raises:
            ValueError: If it does not fit, or has none.
        """
        super().on_load_checkpoint(checkpoint)
        if "memory" not in checkpoint:
            raise ValueError("The checkpoint has no memory of images. Is it one of SequentialFineTuning?")
        self.memory.load_state_dict(checkpoint["memory"])
