"""How good features are, without training anything on them: the weighted k-nearest-neighbour accuracy."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from torchmetrics.utilities.distributed import gather_all_tensors

ROWS = 4096  # query images that are compared with a batch of the bank at a time


class KNNEvaluation(Callback):
    """Logs ``<split>/knn``: the share of images whose nearest training images vote for the right class.

    Features are compared by cosine similarity s, and each of the k nearest training images, the bank, votes for its
    class with the weight exp(s / τ). Nothing is trained, so it follows a pretraining without labels in the loss::

        trainer = Trainer(callbacks=[KNNEvaluation(part="encoder")], ...)

    It works with any module that has a part which turns images (B, C, H, W) into features (B, D). The module is in
    evaluation mode meanwhile and as it was afterwards; no random number of the run is drawn. Batches are ``(images,
    labels)``. The data sets of the loaders are read in order, each image once, whatever sampler a loader has; under
    several processes each one takes a share, and the result is that of one process. The features of the evaluation
    images stay in memory, those of the bank do not.

    In fit it runs with the validation, or at the end of the epoch where nothing is validated; also in
    ``trainer.validate`` and ``trainer.test``. ``<split>`` is "test" in a test, else what the datamodule says as
    ``evaluate``, else "val".

    Args:
        part: Name of the submodule that is called with images; dots are allowed.
        k: Number of neighbours; with a smaller bank all images vote. Default: what the official code of DINO (Caron et
            al., ICCV 2021) recommends. The paper takes 200 on ImageNet.
        temperature: τ. Default: the paper's.
        every_n_epochs: How often in fit; the last epoch counts in any case.
        features: Called with module and images instead of the part.
        bank: Loader of the training images without augmentation. Default: what the datamodule returns as
            ``plain_train_dataloader()``.
        queries: Loader of the images to classify. Default: the Trainer's for the evaluation, several ones together; if
            there is none, the datamodule's ``val_dataloader()``.
        max_bank: Largest number of images of the bank; the same random ones each time. Default: all.

    Raises:
        ValueError: If a number is out of range, loaders are missing, or features do not have shape (B, D).
        AttributeError: If the module has no such part.

    Source:
        Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, weighted kNN.
    """

    def __init__(
        self,
        part: str = "backbone",
        k: int = 20,
        temperature: float = 0.07,
        every_n_epochs: int = 1,
        features: Callable[[Any, Tensor], Tensor] | None = None,
        bank: DataLoader[Any] | None = None,
        queries: DataLoader[Any] | None = None,
        max_bank: int | None = None,
    ) -> None:
        for name, value in {"k": k, "every_n_epochs": every_n_epochs, "max_bank": max_bank}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} must be positive, for instance 0.07.")
        self.part = part
        self.k = k
        self.temperature = temperature
        self.every_n_epochs = every_n_epochs
        self.features = features
        self.bank = bank
        self.queries = queries
        self.max_bank = max_bank

    # Lightning's hooks ----------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Look for the part before an epoch is spent."""
        if self.features is None:
            try:
                attrgetter(self.part)(pl_module)
            except AttributeError as error:
                parts = ", ".join(name for name, _ in pl_module.named_children())
                raise AttributeError(
                    f"{type(pl_module).__name__} has no part {self.part!r}; it has {parts or 'none'}. Give one of them "
                    "as KNNEvaluation(part=...), or a function of module and images as features."
                ) from error

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure with the validation."""
        if not trainer.sanity_checking and (trainer.state.fn != "fit" or self._is_due(trainer)):
            self._measure(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure with the test."""
        self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure where nothing is validated."""
        if not trainer.enable_validation and self._is_due(trainer):
            self._measure(trainer, pl_module)

    # Parts ----------------------------------------------------------------------------------------------------------

    def _is_due(self, trainer: Any) -> bool:
        epochs = int(trainer.current_epoch) + 1
        return epochs % self.every_n_epochs == 0 or epochs == int(trainer.max_epochs or -1)

    def _measure(self, trainer: Any, pl_module: Any) -> None:
        """Compute and log the accuracy."""
        split = "test" if trainer.testing else getattr(trainer.datamodule, "evaluate", "val")
        queries, bank = self._queries(trainer), self._bank(trainer)
        with evaluating(trainer, pl_module):
            batches = list(self._batches(trainer, pl_module, share(queries, trainer)))
            features, labels = (gather(torch.cat(parts)) for parts in zip(*batches, strict=True))
            nearest = Nearest(features, self.k)
            for bank_features, bank_labels in self._batches(trainer, pl_module, share(bank, trainer, self.max_bank)):
                nearest.update(bank_features, bank_labels)
            accuracy = (nearest.gathered().vote(self.temperature) == labels).float().mean()
        # Equal on all processes; sync_dist only tells Lightning so.
        pl_module.log(f"{split}/knn", accuracy, sync_dist=True)

    def _queries(self, trainer: Any) -> list[DataLoader[Any]]:
        """Return the loaders of the images to classify."""
        loaders = self.queries or (trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders)
        loaders = loaders or (trainer.datamodule.val_dataloader() if trainer.datamodule is not None else None)
        if not loaders:
            raise ValueError(
                "KNNEvaluation has no images to classify: give a loader of them, KNNEvaluation(queries=...)."
            )
        return list(CombinedLoader(loaders, "sequential").flattened)

    def _bank(self, trainer: Any) -> list[DataLoader[Any]]:
        """Return the loader of the training images."""
        if self.bank is not None:
            return [self.bank]
        plain = getattr(trainer.datamodule, "plain_train_dataloader", None)
        if plain is None:
            raise ValueError(
                f"{type(trainer.datamodule).__name__} has no plain_train_dataloader(): add one that returns the "
                "training images without augmentation, or give their loader, KNNEvaluation(bank=...)."
            )
        return [plain()]

    def _batches(self, trainer: Any, pl_module: Any, loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features of unit length, float32 of shape (B, D), and labels of this process's share of the images."""
        compute = self.features or (lambda module, images: attrgetter(self.part)(module)(images))
        for batch in islice(loader, int(trainer.fast_dev_run) or None):
            images, labels, *_ = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
            with trainer.precision_plugin.val_step_context():
                features = compute(pl_module, images)
            if features.ndim != 2:
                raise ValueError(
                    f"KNNEvaluation needs features of shape (B, D), got {tuple(features.shape)}. Give a function that "
                    "pools them: KNNEvaluation(features=lambda module, images: ...)."
                )
            yield F.normalize(features.float(), dim=1), labels


class Nearest:
    """The k nearest images of a bank that comes in batches, for each query.

    Args:
        queries: Features of unit length, shape (Q, D).
        k: Number of neighbours.
    """

    def __init__(self, queries: Tensor, k: int) -> None:
        self.queries = queries
        self.similarity = queries.new_full((len(queries), k), -torch.inf)  # as if of images that are infinitely far
        self.labels = torch.zeros_like(self.similarity, dtype=torch.int64)

    def update(self, bank: Tensor, labels: Tensor) -> None:
        """Take a batch of the bank in: features of unit length (B, D) and labels (B,)."""
        for rows in torch.split(torch.arange(len(self.queries), device=bank.device), ROWS):
            self._keep(rows, self.queries[rows] @ bank.T, labels.expand(len(rows), -1))

    def gathered(self) -> "Nearest":
        """Return what is nearest over all processes, which have the same queries and other parts of the bank."""
        if not is_distributed():
            return self
        nearest = Nearest(self.queries, self.similarity.shape[1])
        for similarity, labels in zip(
            gather_all_tensors(self.similarity), gather_all_tensors(self.labels), strict=True
        ):
            for rows in torch.split(torch.arange(len(self.queries), device=labels.device), ROWS):
                nearest._keep(rows, similarity[rows], labels[rows])
        return nearest

    def vote(self, temperature: float) -> Tensor:
        """Return the class of each query, shape (Q,): the one with the largest sum of exp(similarity / temperature)."""
        # Relative to the nearest one, which comes first: a small temperature would overflow.
        weights = ((self.similarity - self.similarity[:, :1]) / temperature).exp()
        num_classes = int(self.labels.max()) + 1
        chunks = zip(torch.split(self.labels, ROWS), torch.split(weights, ROWS), strict=True)
        return torch.cat([w.new_zeros(len(w), num_classes).scatter_add_(1, y, w).argmax(dim=1) for y, w in chunks])

    def _keep(self, rows: Tensor, similarity: Tensor, labels: Tensor) -> None:
        """Keep the nearest of those known and some others, shape (R, B), for some of the queries."""
        similarity = torch.cat([self.similarity[rows], similarity], dim=1)
        labels = torch.cat([self.labels[rows], labels], dim=1)
        self.similarity[rows], best = similarity.topk(self.similarity.shape[1], dim=1)
        self.labels[rows] = labels.gather(1, best)


def share(loaders: list[DataLoader[Any]], trainer: Any, largest: int | None = None) -> DataLoader[Any]:
    """Return a loader of this process's share of some data sets, in order, without repeats.

    Args:
        loaders: Say what to read, and how.
        trainer: Says which process this is.
        largest: Number of images to draw if there are more, the same ones each time.
    """
    first = loaders[0]
    images: Dataset[Any] = ConcatDataset([loader.dataset for loader in loaders])
    positions = torch.arange(len(images))  # type: ignore[arg-type]  # has a length
    if largest is not None and largest < len(positions):
        positions = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))[:largest]
    return DataLoader(
        Subset(images, positions[trainer.global_rank :: trainer.world_size].tolist()),
        batch_size=first.batch_size or 64,  # None: it has a batch_sampler
        num_workers=first.num_workers,
        collate_fn=first.collate_fn,
        pin_memory=first.pin_memory,
        worker_init_fn=first.worker_init_fn,
    )


def is_distributed() -> bool:
    """Say whether there are several processes."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gather(part: Tensor) -> Tensor:
    """Return the rows of all processes, which may have different numbers of them."""
    return torch.cat(gather_all_tensors(part)) if is_distributed() else part


@contextmanager
def evaluating(trainer: Any, pl_module: Any) -> Iterator[None]:
    """Evaluate without a trace: modes of all parts, random numbers and the Trainer's stage are as before."""
    modes = {module: module.training for module in pl_module.modules()}
    training = trainer.training
    pl_module.eval()
    if training:  # hooks that change training batches ask the Trainer for its stage
        trainer.validating = True
    try:
        with isolate_rng(), torch.no_grad():
            yield
    finally:
        if training:
            trainer.training = True
        for module, mode in modes.items():
            module.training = mode
