"""Segmentation with labelled and unlabelled scenes: of one source, or of two domains."""

from abc import ABC, abstractmethod
from typing import Any, Literal

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from zoo.datamodules.loaders import EpochLoader, shard_loader
from zoo.datamodules.rare_classes import RareClassSampling, RareClassScenes
from zoo.datamodules.scenes import EndlessScenes, SceneView, WindowSampler
from zoo.datamodules.sources.digit_scenes import DigitScenes
from zoo.datamodules.sources.segmentation import LabeledScenes, SegmentationSource
from zoo.datamodules.split_lists import find_scenes
from zoo.datamodules.splits import check_loading
from zoo.datamodules.views import Transform, compose
from zoo.functional import mix_seeds

LABELED, UNLABELED, HELD_OUT = range(3)  # what a number is drawn for; part of its seed


class PairedScenes(L.LightningDataModule, ABC):
    """What the two settings share: labelled and unlabelled batches in step, evaluation on scenes with masks.

    A subclass opens its sources in ``open_training`` and says what is measured in ``measured``.

    Args:
        measured: The source whose test scenes are measured.
        batch_size: Labelled scenes in a batch and process.
        unlabeled_batch_size: Unlabelled scenes. Default: as many.
        eval_batch_size: Scenes in an evaluation batch; 1 where scenes differ in size. Default: ``batch_size``.
        steps_per_epoch: Batches in an epoch. Default: one pass over the unlabelled scenes, without the last incomplete
            batch.
        future: Number of further pairs of batches in each step, each drawn for itself.
        num_workers: Loader processes of each loader.
        seed: Draws orders, random transforms, held-out scenes.
        val_fraction: Share of the labelled scenes that is held out if ``evaluate`` is "val".
        evaluate: "test" measures the source's test scenes, "val" held-out labelled ones.
        train_transform: Of labelled scenes.
        unlabeled_transform: Of unlabelled scenes. Default: ``train_transform``.
        test_transform: Of measured scenes.
        unlabeled_truth: Whether unlabelled batches come with their masks, to measure pseudo-labels.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        measured: SegmentationSource,
        batch_size: int,
        unlabeled_batch_size: int | None,
        eval_batch_size: int | None,
        steps_per_epoch: int | None,
        future: int,
        num_workers: int,
        seed: int,
        val_fraction: float,
        evaluate: Literal["test", "val"],
        train_transform: Transform | list[Transform] | None,
        unlabeled_transform: Transform | list[Transform] | None,
        test_transform: Transform | list[Transform] | None,
        unlabeled_truth: bool,
    ) -> None:
        super().__init__()
        check_loading(batch_size, num_workers, val_fraction, evaluate)
        unlabeled_batch_size = batch_size if unlabeled_batch_size is None else unlabeled_batch_size
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        if min(unlabeled_batch_size, eval_batch_size, 1 if steps_per_epoch is None else steps_per_epoch) < 1:
            raise ValueError(
                f"unlabeled_batch_size={unlabeled_batch_size}, eval_batch_size={eval_batch_size} and "
                f"steps_per_epoch={steps_per_epoch} must be at least 1."
            )
        if future < 0:
            raise ValueError(f"future={future} is a number of further batches, at least 0.")
        self.measured = measured
        self.batch_size = batch_size
        self.unlabeled_batch_size = unlabeled_batch_size
        self.eval_batch_size = eval_batch_size
        self.steps_per_epoch = steps_per_epoch
        self.future = future
        self.num_workers = num_workers
        self.seed = seed
        self.val_fraction = val_fraction
        self.evaluate = evaluate
        self.train_transform = compose(train_transform)
        self.unlabeled_transform = self.train_transform if unlabeled_transform is None else compose(unlabeled_transform)
        self.test_transform = compose(test_transform)
        self.unlabeled_truth = unlabeled_truth

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def class_names(self) -> list[str]:
        """Name of each label."""
        return list(self.measured.classes)

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        """Colour of each label."""
        return list(self.measured.palette)

    @abstractmethod
    def open_training(self) -> tuple[LabeledScenes, Tensor, LabeledScenes, Tensor]:
        """Return the labelled scenes, which of them, the unlabelled scenes, and which of them."""

    def prepare_data(self) -> None:
        """Check the source."""
        self.measured.prepare()

    def setup(self, stage: str) -> None:
        """Open the sources and split them. Decodes no image.

        Args:
            stage: "fit", "validate", "test" or "predict".
        """
        if stage in ("fit", "validate"):
            labeled, kept, unlabeled, rest = self.open_training()
            held_out = kept[:0]
            if self.evaluate == "val":
                kept, held_out = self.hold_out(kept)
            self.labeled_set = self.view(labeled, kept, self.train_transform)
            self.unlabeled_set = self.view(unlabeled, rest, self.unlabeled_transform)
            self.val_set = self.view(labeled, held_out, self.test_transform)
        if stage in ("test", "predict") or self.evaluate == "test":
            scenes = self.measured.test()
            self.test_set = self.view(scenes, torch.arange(len(scenes)), self.test_transform)

    def hold_out(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return which labelled scenes stay, and which are held out: at least one of each."""
        count = min(max(round(self.val_fraction * len(indices)), 1), len(indices) - 1)
        if count < 1:
            raise ValueError("evaluate='val' holds labelled scenes out, and there is one only: use evaluate='test'.")
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, HELD_OUT))
        order = torch.randperm(len(indices), generator=generator)
        return indices[order[count:].sort().values], indices[order[:count].sort().values]

    def view(self, scenes: LabeledScenes, indices: Tensor, transform: Transform | None) -> SceneView:
        """Return some scenes with a transform."""
        return SceneView(scenes, indices, transform, self.num_classes)

    # Loaders --------------------------------------------------------------------------------------------------------

    @property
    def num_steps(self) -> int:
        """Batches in an epoch."""
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch
        steps = len(self.unlabeled_set) // (self.unlabeled_batch_size * self.world_size)
        if steps == 0:
            raise ValueError(
                f"{len(self.unlabeled_set)} unlabelled scenes do not fill a batch of {self.unlabeled_batch_size} on "
                f"{self.world_size} processes: use a smaller batch, or say steps_per_epoch."
            )
        return steps

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.trainer.world_size if self.trainer is not None else 1

    def train_dataloader(self) -> CombinedLoader:
        """Return the loaders, which all have as many batches."""
        pairs = [self.pair(number) for number in range(self.future + 1)]
        loaders: dict[str, Any] = pairs[0]
        if self.future:
            loaders["future"] = pairs[1:]
        return CombinedLoader(loaders, mode="max_size_cycle")

    def pair(self, number: int) -> dict[str, Any]:
        """Return a labelled and an unlabelled loader that draw for themselves."""
        unlabeled = EndlessScenes(
            self.unlabeled_set, mix_seeds(self.seed, UNLABELED, number), with_masks=self.unlabeled_truth
        )
        return {
            "labeled": self.endless(self.labeled_stream(mix_seeds(self.seed, LABELED, number)), self.batch_size),
            "unlabeled": self.endless(unlabeled, self.unlabeled_batch_size),
        }

    def labeled_stream(self, seed: int) -> EndlessScenes:
        """Return the endless stream of labelled scenes that a seed draws."""
        return EndlessScenes(self.labeled_set, seed, with_masks=True)

    def endless(self, stream: EndlessScenes, batch_size: int) -> EpochLoader:
        """Return a loader of this process's share of an epoch of an endless stream."""
        rank = self.trainer.global_rank if self.trainer is not None else 0
        return EpochLoader(
            stream,
            seed=stream.seed,
            epoch=lambda: self.trainer.current_epoch if self.trainer is not None else 0,
            sampler=WindowSampler(stream, self.world_size, rank, self.num_steps * batch_size),
            batch_size=batch_size,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> EpochLoader:
        """Return the loader of the scenes that ``evaluate`` names."""
        return self.evaluation(self.val_set if self.evaluate == "val" else self.test_set)

    def test_dataloader(self) -> EpochLoader:
        """Return the loader of the test scenes."""
        return self.evaluation(self.test_set)

    def predict_dataloader(self) -> EpochLoader:
        """Return the loader of the test scenes, masks included."""
        return self.test_dataloader()

    def evaluation(self, scenes: SceneView) -> EpochLoader:
        """Return the loader of this process's share of some scenes, each of them once."""
        return shard_loader(
            scenes,
            self.trainer,
            epoch=lambda: 0,
            batch_size=self.eval_batch_size,
            num_workers=self.num_workers,
            seed=self.seed,
            shuffle=False,
            pad=False,
        )


class SemiSupervisedSegmentationDataModule(PairedScenes):
    """Some scenes of a source with labels, the others without.

    A batch is a dict: ``"labeled"`` holds ``(images, masks)``, float of shape (B, 3, H, W) in [0, 1] and int64 of shape
    (B, H, W) with 255 for ignored pixels; ``"unlabeled"`` holds images. With ``future`` there is also ``"future"``, a
    list of such dicts. Evaluation batches are ``(images, masks)``.

    Both loaders walk through endless passes, each shuffled. What is drawn where follows from the seed and the position
    alone, random transforms included: a resumed run goes on exactly, and all methods see the same images.

    Args:
        source: Where the scenes come from. Default: :class:`~zoo.datamodules.sources.DigitScenes`.
        labeled: Number of labelled scenes, the first of the training set, or the file of a published list.
        unlabeled: File of a published list. Default: all training scenes that are not labelled.
        batch_size: Labelled scenes in a batch and process.
        unlabeled_batch_size: Unlabelled scenes in a batch. Default: as many.
        eval_batch_size: Scenes in an evaluation batch; 1 where they differ in size. Default: ``batch_size``.
        steps_per_epoch: Batches in an epoch. Default: one pass over the unlabelled scenes, without the last incomplete
            batch.
        future: Number of further pairs of batches in each step, as the wide variant of :class:`zoo.FST` needs them.
        num_workers: Processes of each loader.
        seed: Draws orders, random transforms and held-out scenes.
        val_fraction: Share of the labelled scenes that is held out if ``evaluate`` is "val".
        evaluate: What ``fit`` and ``validate`` measure: "test", the source's test scenes, or "val", held-out labelled
            scenes.
        train_transform: One torchvision v2 transform, or several, for labelled images together with their masks.
        unlabeled_transform: The same for unlabelled scenes: weak augmentation. Default: ``train_transform``.
        test_transform: The same for measured scenes.
        unlabeled_truth: Give the masks of unlabelled scenes too, ``(images, masks)``, so that pseudo-labels can be
            measured. No method learns from them.

    Attributes:
        num_classes: Number of classes.
        class_names: Name of each label.
        palette: Colour of each label.

    Raises:
        ValueError: If an argument is out of range; in ``setup``, if a list does not fit the source, or the two overlap.
    """

    def __init__(
        self,
        source: SegmentationSource | None = None,
        labeled: int | str = 64,
        unlabeled: str | None = None,
        batch_size: int = 8,
        unlabeled_batch_size: int | None = None,
        eval_batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        future: int = 0,
        num_workers: int = 0,
        seed: int = 0,
        val_fraction: float = 0.1,
        evaluate: Literal["test", "val"] = "test",
        train_transform: Transform | list[Transform] | None = None,
        unlabeled_transform: Transform | list[Transform] | None = None,
        test_transform: Transform | list[Transform] | None = None,
        unlabeled_truth: bool = False,
    ) -> None:
        self.source = DigitScenes() if source is None else source
        super().__init__(
            self.source, batch_size, unlabeled_batch_size, eval_batch_size, steps_per_epoch, future, num_workers, seed,
            val_fraction, evaluate, train_transform, unlabeled_transform, test_transform, unlabeled_truth,
        )  # fmt: skip
        if isinstance(labeled, int) and labeled < 1:
            raise ValueError(f"labeled={labeled} is a number of scenes, at least 1, or the file of a list.")
        self.save_hyperparameters(ignore=["source", "train_transform", "unlabeled_transform", "test_transform"])
        self.labeled = labeled
        self.unlabeled = unlabeled

    def open_training(self) -> tuple[LabeledScenes, Tensor, LabeledScenes, Tensor]:
        """Return the scenes once for both, and the two parts."""
        scenes, where = self.source.train(), f"the training set of {type(self.source).__name__}"
        if isinstance(self.labeled, int):
            if self.labeled >= len(scenes) and self.unlabeled is None:
                raise ValueError(
                    f"labeled={self.labeled} leaves none of the {len(scenes)} scenes of {where} unlabelled."
                )
            labeled = torch.arange(min(self.labeled, len(scenes)))
        else:
            labeled = find_scenes(self.labeled, scenes.names, where)
        is_labeled = torch.zeros(len(scenes), dtype=torch.bool)
        is_labeled[labeled] = True
        if self.unlabeled is None:
            return scenes, labeled, scenes, (~is_labeled).nonzero().flatten()
        unlabeled = find_scenes(self.unlabeled, scenes.names, where)
        both = unlabeled[is_labeled[unlabeled]]
        if len(both):
            raise ValueError(
                f"{len(both)} scenes are labelled and stand in {self.unlabeled} too, {scenes.names[int(both[0])]} "
                "first: lists of different splits?"
            )
        return scenes, labeled, scenes, unlabeled


class DomainAdaptationDataModule(PairedScenes):
    """Scenes with labels of one domain, and scenes without labels of another, in which the method is measured.

    Batches, order and resuming as of :class:`SemiSupervisedSegmentationDataModule`; ``"labeled"`` is the source,
    ``"unlabeled"`` the target.

    Args:
        source: The domain with labels. Default: :class:`~zoo.datamodules.sources.DigitScenes` in its source domain.
        target: The other one, with the same classes. Default: DigitScenes in its target domain.
        batch_size: Source scenes in a batch and process.
        unlabeled_batch_size: Target scenes in a batch. Default: as many.
        eval_batch_size: Scenes in an evaluation batch; 1 where they differ in size. Default: ``batch_size``.
        steps_per_epoch: Batches in an epoch. Default: one pass over the target's training scenes.
        future: Number of further pairs of batches in each step, as the wide variant of :class:`zoo.FST` needs them.
        num_workers: Processes of each loader.
        seed: Draws orders, random transforms and held-out scenes.
        val_fraction: Share of the source's scenes that is held out if ``evaluate`` is "val".
        evaluate: What ``fit`` and ``validate`` measure: "test", the target's test scenes, or "val", held-out scenes of
            the source, because the target has no labels to choose by.
        train_transform: One torchvision v2 transform, or several, for source images together with their masks.
        unlabeled_transform: The same for target images. Default: ``train_transform``.
        test_transform: The same for measured scenes.
        unlabeled_truth: Give the masks of target scenes too, so that pseudo-labels can be measured. No method learns
            from them.
        rare_classes: Draw source scenes so that rare classes are seen more often. Default: all equally often.

    Attributes:
        num_classes: Number of classes.
        class_names: Name of each label.
        palette: Colour of each label.

    Raises:
        ValueError: If an argument is out of range, or the domains have other classes.
    """

    def __init__(
        self,
        source: SegmentationSource | None = None,
        target: SegmentationSource | None = None,
        batch_size: int = 8,
        unlabeled_batch_size: int | None = None,
        eval_batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        future: int = 0,
        num_workers: int = 0,
        seed: int = 0,
        val_fraction: float = 0.1,
        evaluate: Literal["test", "val"] = "test",
        train_transform: Transform | list[Transform] | None = None,
        unlabeled_transform: Transform | list[Transform] | None = None,
        test_transform: Transform | list[Transform] | None = None,
        unlabeled_truth: bool = False,
        rare_classes: RareClassSampling | None = None,
    ) -> None:
        self.source = DigitScenes("source") if source is None else source
        self.target = DigitScenes("target") if target is None else target
        super().__init__(
            self.target, batch_size, unlabeled_batch_size, eval_batch_size, steps_per_epoch, future, num_workers, seed,
            val_fraction, evaluate, train_transform, unlabeled_transform, test_transform, unlabeled_truth,
        )  # fmt: skip
        if list(self.source.classes) != list(self.target.classes):
            raise ValueError(
                f"Source and target have other classes: {list(self.source.classes)} and {list(self.target.classes)}."
            )
        self.save_hyperparameters(
            ignore=["source", "target", "train_transform", "unlabeled_transform", "test_transform", "rare_classes"]
        )
        self.rare_classes = rare_classes

    def prepare_data(self) -> None:
        """Check both domains, and count the pixels of rare classes if that is to be kept."""
        self.source.prepare()
        self.target.prepare()
        if self.rare_classes is not None:
            self.rare_classes.prepare(self.source.train(), self.num_classes)

    def setup(self, stage: str) -> None:
        """Open both domains; count the pixels of each class, where rare ones are drawn more often.

        Args:
            stage: "fit", "validate", "test" or "predict".
        """
        super().setup(stage)
        if stage == "fit" and self.rare_classes is not None:
            counts = self.rare_classes.counts(self.labeled_set.scenes, self.num_classes)
            self.counts = counts[self.labeled_set.indices]

    def open_training(self) -> tuple[LabeledScenes, Tensor, LabeledScenes, Tensor]:
        """Return all training scenes of both domains."""
        source, target = self.source.train(), self.target.train()
        return source, torch.arange(len(source)), target, torch.arange(len(target))

    def labeled_stream(self, seed: int) -> EndlessScenes:
        """Return the endless stream of source scenes, with rare classes where they are asked for."""
        if self.rare_classes is None:
            return super().labeled_stream(seed)
        return RareClassScenes(self.labeled_set, seed, self.rare_classes, self.counts)
