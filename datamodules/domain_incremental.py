"""A stream in which every task shows the same classes in a new domain."""

from typing import Literal

import torch
from torch import Tensor

from zoo.datamodules.sources import Source
from zoo.datamodules.sources.source import LabeledImages
from zoo.datamodules.streams import Split, TaskStream
from zoo.datamodules.views import Transform


class DomainIncrementalDataModule(TaskStream):
    """A stream in which every task shows the same classes in a new domain.

    Labels are the source's own. If the source's test images have domains too, each task is measured on those of its
    domain; if not (CORe50), one fixed test set is measured after every task.

    Args:
        source: A source whose training images have ``domains``, such as :class:`~zoo.datamodules.sources.CORe50`.
        domain_order: The source's domains in learning order. Default: as the source lists them.
        epochs_per_task: See :class:`TaskStream`, as all that follow.
        batch_size: See there.
        num_workers: See there.
        seed: See there.
        evaluate: See there.
        val_fraction: See there.
        pad: See there.
        train_transform: See there.
        test_transform: See there.

    Raises:
        TypeError: If the source has no domains.
        ValueError: If a domain is missing or stands twice.

    Source:
        van de Ven, Tuytelaars & Tolias, "Three types of incremental learning", Nature Machine Intelligence 2022.
    """

    def __init__(
        self,
        source: Source,
        domain_order: list[int] | None = None,
        epochs_per_task: int | list[int] = 1,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        evaluate: Literal["test", "val"] = "test",
        val_fraction: float = 0.0,
        pad: bool = True,
        train_transform: Transform | list[Transform] | None = None,
        test_transform: Transform | list[Transform] | None = None,
    ) -> None:
        if not source.domain_names:
            raise TypeError(
                f"{type(source).__name__} has no domains; use a source with domains (CORe50), or a "
                "class-incremental stream."
            )
        order = domain_order if domain_order is not None else list(range(len(source.domain_names)))
        if sorted(order) != list(range(len(source.domain_names))):
            raise ValueError(f"domain_order={order} must hold each of 0 to {len(source.domain_names) - 1} once.")
        super().__init__(
            source, len(order), epochs_per_task, batch_size, num_workers, seed, evaluate, val_fraction, pad,
            train_transform, test_transform,
        )  # fmt: skip
        self.domain_order = order
        self.save_hyperparameters(ignore=["source", "train_transform", "test_transform"])
        self.hparams["domain_order"] = order

    def task_classes(self, index: int) -> range:
        """Return all classes: every domain shows them."""
        return range(self.num_classes)

    def select(self, split: Split, index: int) -> Tensor:
        """Return the mask of the images of a task's domain."""
        domains = getattr(self._images[split], "domains", None)
        if domains is None:
            return torch.ones(len(self._indices[split]), dtype=torch.bool)
        return torch.as_tensor(domains)[self._indices[split]] == self.domain_order[index]

    def strata(self, images: LabeledImages) -> Tensor:
        """Return one number for each pair of class and domain."""
        domains = torch.as_tensor(images.domains)  # type: ignore[attr-defined]  # the contract of a source with domains
        return super().strata(images) * self.num_tasks + domains

    def num_evaluation_sets(self, split: Split, index: int) -> int:
        """Return one where the test images have no domains, else one for each task so far."""
        return index + 1 if hasattr(self._images[split], "domains") else 1
