"""EfficientTrain: a training curriculum from easy to hard images, in which easy images are small ones.

Early epochs see the low frequencies of each image only, and weak augmentation. The image shrinks to what is left of its
spectrum, so that an epoch costs less in proportion to the pixels; the last stage trains on whole images. The network,
the loss and the optimizer are not touched.

Wang et al., "EfficientTrain", ICCV 2023, https://arxiv.org/abs/2211.09703, and "EfficientTrain++", TPAMI 2024,
https://arxiv.org/abs/2405.08768. Official code: https://github.com/LeapLabTHU/EfficientTrain, commits bdefd27 and
2b9011c.

What differs from the scripts: one process trains all stages, so the learning rate follows the module's own schedule
(:class:`zoo.nn.CosineOverCompute` is the published one); evaluation sees whole images, where the scripts crop them too;
the crop acts on the batch on its device, after the module's and the datamodule's own hooks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from zoo.callbacks.position_tables import PositionTables
from zoo.callbacks.trial import refusal, run_once, tensors_of, without_trace
from zoo.functional import downsample
from zoo.functional.choices import check_choice
from zoo.functional.curriculum import PRESETS, Scale, Stage, curriculum, equivalent_epochs, stage_at, with_epochs
from zoo.functional.low_frequency import Downsampling

PUBLISHED_BUDGET = 200  # equivalent epochs of EfficientTrain++

EvenWindow: TypeAlias = Literal["official", "symmetric"]
Positions: TypeAlias = Literal["dynamic", "resample"]
Evaluation: TypeAlias = Literal["full", "stage"]
Check: TypeAlias = Literal["forward", "backward", False]


class EfficientTrain(Callback):
    """Train on small, weakly augmented images first, by the published curricula or one of your own.

    One line in any Trainer. Whatever a batch is (tuple, list, dict, dataclass, nested), its images are cropped to the
    size of the epoch's stage; labels and other tensors pass. What stage it is follows from ``trainer.current_epoch``
    alone, so there is no state, and a resumed run goes on in mid-curriculum.

    Before the first step the module runs once on the first batch at every size, the largest first: a size that the
    network cannot take shows in the first minute and not in the last fifth of the training. Gradients, buffers, and the
    random state stay as they are. A module whose ``forward`` does not take images alone is trained without this trial.

    RandAugment grows with the stages if the training transform has a part with ``set_magnitude``
    (:class:`zoo.datamodules.ScheduledRandAugment`): it is found in ``trainer.datamodule.train_transform``, or handed
    over as ``augment``.

    Args:
        curriculum: "et" (EfficientTrain, for as many epochs as the plain training), "etpp" (EfficientTrain++, for a
            budget of computation; ResNet and Swin), "etpp-deit", "etpp-convnext", or a list of
            :class:`~zoo.functional.Stage`.
        total: Epochs ("et"; default: the Trainer's ``max_epochs``) or equivalent epochs ("etpp..."; default: 200, as
            published). For a list it is left out.
        base_size: Side of the full-size images in pixels; of the shorter side where they are no squares.
        mode: How images are made smaller: "fourier", the low-frequency crop; "lanczos", as in EfficientTrain++;
            "bicubic"; "bilinear"; or None for whole images in every epoch, which leaves the schedule of RandAugment.
        nyquist: "official" or "symmetric", see :func:`zoo.functional.low_frequency_crop`. (Sizes are even, so the odd
            window fits none.)
        scale: See :func:`zoo.functional.curriculum`.
        divisor: See there. Sizes must be multiples of a vision transformer's patch.
        augment: The transform whose ``set_magnitude`` is called. Default: found as said above; False for none.
        key: Name or position, in the batch, of what is to be cropped. Default: every float tensor of shape
            (B, C, H, W) with the side ``base_size``.
        positions: What becomes of position tables: "dynamic" leaves them alone, so the network must take several sizes
            (timm's ``dynamic_img_size=True``, of Swin ``strict_img_size=False``); "resample" interpolates those of
            timm's ViT, DeiT and Swin, and the optimizer's moments of them, at the start of a stage, as the official
            code does. It needs one process, ``evaluation="stage"``, and no averaging of weights.
        evaluation: "full" validates on whole images; "stage" on images of the stage's size, as the official code does.
        check: What runs before the first step: "forward" (without gradient, so that it takes less memory than
            training), "backward" (with the gradient of the outputs, which shows whether a training step fits into
            memory), or False.

    Attributes:
        stages: The plan, known once fit has started.

    Logged:
        ``curriculum/size`` (pixels), ``curriculum/magnitude`` (where there is one), ``curriculum/equivalent_epochs``
        (computation used so far, in epochs of full-size images; attention saves a little more than this counts).

    Raises:
        ValueError: At the start of fit, if the plan is impossible or has another number of epochs than the Trainer; at
            the first batch, if it holds no image of ``base_size``, a mask of the same size that would no longer fit, or
            the network cannot take a size.

    Source:
        Wang et al., "EfficientTrain: Exploring Generalized Curriculum Learning for Training Visual Backbones", ICCV
        2023; Wang et al., "EfficientTrain++: Generalized Curriculum Learning for Efficient Visual Backbone Training",
        TPAMI 2024.
    """

    def __init__(
        self,
        curriculum: str | list[Stage] = "et",
        total: float | None = None,
        base_size: int = 224,
        mode: Downsampling | None = "fourier",
        nyquist: EvenWindow = "official",
        scale: Scale = "all",
        divisor: int | None = None,
        augment: Any | None = None,
        key: str | int | None = None,
        positions: Positions = "dynamic",
        evaluation: Evaluation = "full",
        check: Check = "forward",
    ) -> None:
        if mode is not None:
            check_choice("mode", mode, Downsampling)
        check_choice("nyquist", nyquist, EvenWindow)
        check_choice("scale", scale, Scale)
        check_choice("positions", positions, Positions)
        check_choice("evaluation", evaluation, Evaluation)
        check_choice("check", check, Check)
        if isinstance(curriculum, str) and curriculum not in PRESETS:
            raise ValueError(f"curriculum={curriculum!r} is unknown; known are {', '.join(PRESETS)}, or give stages.")
        if not isinstance(curriculum, str) and total is not None:
            raise ValueError(f"total={total} belongs to a named curriculum; the stages of a list say their own length.")
        if augment not in (None, False) and not hasattr(augment, "set_magnitude"):
            raise ValueError(f"augment={augment!r} has no set_magnitude; use zoo.datamodules.ScheduledRandAugment.")
        if positions == "resample" and evaluation == "full":
            raise ValueError("positions='resample' fits the network to one size at a time: use evaluation='stage'.")
        self.curriculum = curriculum
        self.total = total
        self.base_size = base_size
        self.mode = mode
        self.nyquist: EvenWindow = nyquist
        self.scale: Scale = scale
        self.divisor = divisor
        self.augment = augment
        self.key = key
        self.positions = positions
        self.evaluation = evaluation
        self.check = check
        self.stages: list[Stage] = []
        self._resumed_epoch = 0
        self._checked = False
        self._augment: Any | None = None
        self._tables: PositionTables | None = None
        self._undo: list[Callable[[], None]] = []

    # The plan --------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the plan, and stand behind the transfer of batches to the device."""
        if stage != "fit":
            return
        self.stages = self.plan(trainer)
        self._checked = False
        self._stand_in(trainer.strategy, "batch_to_device", lambda own: self._cropping(own, trainer, pl_module))
        if self.positions == "resample":
            if trainer.world_size > 1:
                raise ValueError("positions='resample' replaces parameters, which other processes would not notice.")
            if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
                raise ValueError("positions='resample' replaces parameters, which averaged weights do not follow.")
            tables = self._tables = PositionTables(pl_module)
            sizes = [stage.size for stage in self.stages]

            def fitting(own: Callable[[Any], None]) -> Callable[[Any], None]:
                def on_load_checkpoint(checkpoint: Any) -> None:
                    tables.fit(pl_module, checkpoint["state_dict"], sizes)
                    own(checkpoint)

                return on_load_checkpoint

            self._stand_in(pl_module, "on_load_checkpoint", fitting)

    def _stand_in(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Put what ``make`` returns in the place of a method, until the end of the fit."""
        before = vars(owner).get(name)

        def undo() -> None:
            vars(owner).pop(name, None)
            if before is not None:  # somebody else stands there too
                setattr(owner, name, before)

        setattr(owner, name, make(getattr(owner, name)))
        self._undo.append(undo)

    def _cropping(self, transfer: Callable[..., Any], trainer: Trainer, pl_module: LightningModule) -> Any:
        """Return a transfer of batches to the device that crops too."""

        def transfer_and_crop(batch: Any, *args: Any, **kwargs: Any) -> Any:
            return self.change(trainer, pl_module, transfer(batch, *args, **kwargs))

        return transfer_and_crop

    def plan(self, trainer: Any) -> list[Stage]:
        """Return the stages, or say why they do not fit the Trainer."""
        epochs = trainer.max_epochs
        named = isinstance(self.curriculum, str)
        by_compute = named and PRESETS[str(self.curriculum)].by_compute
        if not named:
            stages = with_epochs([s if isinstance(s, Stage) else Stage(**s) for s in self.curriculum], self.base_size)  # type: ignore[arg-type]
        else:
            if self.total is None and not by_compute and (epochs is None or epochs < 1):
                raise ValueError(f"max_epochs={epochs} of the Trainer says no length: give max_epochs, or total.")
            total = self.total if self.total is not None else PUBLISHED_BUDGET if by_compute else epochs
            stages = curriculum(str(self.curriculum), total, self.base_size, self.scale, self.divisor)
        planned = sum(stage.epochs or 0 for stage in stages)
        if planned != epochs and not trainer.fast_dev_run:
            message = f"The curriculum has {planned} epochs, but the Trainer has max_epochs={epochs}: "
            if named and not by_compute:
                rank_zero_warn(message + f"leave total={self.total} out, or the last stage is cut or stretched.")
            else:
                raise ValueError(message + f"use max_epochs={planned}.")
        return stages

    def describe(self) -> str:
        """Return the plan as a table."""
        lines = [f"{'epochs':>11} {'size':>5} {'RandAugment':>12} {'equivalent epochs':>18}"]
        first = 0
        for stage in self.stages:
            last = first + (stage.epochs or 0) - 1
            strength = "-" if stage.magnitude is None else f"{stage.magnitude:g}"
            cost = equivalent_epochs([stage], self.base_size) if self.mode is not None else stage.epochs
            lines.append(f"{f'{first} to {last}':>11} {self.size(stage):>5} {strength:>12} {cost:>18.2f}")
            first = last + 1
        cost = equivalent_epochs(self.stages, self.base_size) if self.mode is not None else first
        lines.append(f"{first} epochs cost {cost:.2f} epochs of full-size images.")
        return "\n".join(lines)

    def size(self, stage: Stage) -> int:
        """Return the side of the images of a stage."""
        return stage.size if self.mode is not None else self.base_size

    # The strength of the augmentation --------------------------------------------------------------------------------

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read the epoch that training goes on with: ``trainer.current_epoch`` says it only after workers started."""
        progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {}).get("current", {})
        self._resumed_epoch = int(progress.get("processed", checkpoint.get("epoch", 0)))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the augmentation and set its strength before loader workers fetch the first batches."""
        self._augment = self.augment or None
        if self.augment is None and any(stage.magnitude is not None for stage in self.stages):
            self._augment = find_scheduled(getattr(trainer.datamodule, "train_transform", None))  # type: ignore[attr-defined]
            if self._augment is None:
                rank_zero_warn(
                    "EfficientTrain leaves the strength of the augmentation alone: the datamodule has no "
                    "train_transform with a set_magnitude. Use zoo.datamodules.ScheduledRandAugment there, or hand it "
                    "over as augment, or say augment=False."
                )
        if (own := getattr(self._augment, "magnitude", None)) is not None:
            self._undo.append(partial(self._augment.set_magnitude, own))  # type: ignore[union-attr]
        self._set_magnitude(self._resumed_epoch)
        rank_zero_info("EfficientTrain\n%s", self.describe())

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the strength of the augmentation, and log the stage."""
        stage = stage_at(self.stages, trainer.current_epoch)
        self._set_magnitude(trainer.current_epoch)
        if self._tables is not None:
            self._tables.resize(self.size(stage), trainer.optimizers)
        values = {"curriculum/size": float(self.size(stage))}
        if stage.magnitude is not None and self._augment is not None:
            values["curriculum/magnitude"] = float(stage.magnitude)
        done = trainer.current_epoch + 1
        cost = equivalent_epochs(self.stages, self.base_size, done) if self.mode is not None else float(done)
        pl_module.log_dict({**values, "curriculum/equivalent_epochs": cost}, on_step=False, on_epoch=True)

    def _set_magnitude(self, epoch: int) -> None:
        magnitude = stage_at(self.stages, epoch).magnitude
        if self._augment is not None and magnitude is not None:
            self._augment.set_magnitude(magnitude)

    # The images ------------------------------------------------------------------------------------------------------

    def change(self, trainer: Any, pl_module: LightningModule, batch: Any) -> Any:
        """Return a batch with its images cropped, where it is one to train on."""
        cropped = trainer.training or (self.evaluation == "stage" and trainer.validating)
        if self.mode is None or not cropped:
            return batch
        if trainer.training and not self._checked:
            self._checked = True
            self.dry_run(trainer, pl_module, batch)
        stage = stage_at(self.stages, trainer.current_epoch)
        return self.crop(batch, stage.size)

    def crop(self, batch: Any, size: int) -> Any:
        """Return a batch with its images cropped.

        Args:
            batch: Anything that a training step takes.
            size: Side in pixels, of the shorter side.

        Raises:
            ValueError: If there is no image in it, or a map of whole numbers as large as the image.
        """
        images = list(self.images(batch))
        if not images:
            raise ValueError(
                f"EfficientTrain found no images with a side of base_size={self.base_size} in the batch, which holds "
                f"{describe_tensors(tensors_of(batch))}. Give base_size, or key, and float images."
            )
        sides = {tuple(image.shape[-2:]) for image in images}
        maps = [t for t in tensors_of(batch) if not t.is_floating_point() and t.ndim > 2 and t.shape[-2:] in sides]
        if maps and self.key is None and size != self.base_size:
            raise ValueError(
                f"The batch holds a map of whole numbers as large as the images, {describe_tensors(maps[:1])}, such as "
                "a mask, which would no longer fit the cropped images. Name the images by key if that is right."
            )
        if size == self.base_size:
            return batch
        chosen = {id(image) for image in images}  # a label may be equal, but is not the same tensor
        return apply_to_collection(
            batch, Tensor, lambda tensor: self.shrink(tensor, size) if id(tensor) in chosen else tensor
        )

    @torch.no_grad()
    def shrink(self, images: Tensor, size: int) -> Tensor:
        """Return images whose shorter side has a size, and the other one the same share of its own."""
        assert self.mode is not None
        step = self.divisor or 2
        sides = [
            size if side == self.base_size else round(side * size / self.base_size / step) * step
            for side in images.shape[-2:]
        ]
        return downsample(images, sides, self.mode, self.nyquist)

    def images(self, batch: Any) -> Iterator[Tensor]:
        """Find the images of a batch."""
        if self.key is not None:
            try:
                named = isinstance(self.key, str) and hasattr(batch, self.key) and not isinstance(batch, Mapping)
                batch = getattr(batch, str(self.key)) if named else batch[self.key]
            except (KeyError, IndexError, TypeError) as error:
                raise ValueError(f"key={self.key!r} is not in the batch, a {type(batch).__name__}.") from error
        for tensor in tensors_of(batch):
            if tensor.is_floating_point() and tensor.ndim == 4 and min(tensor.shape[-2:]) == self.base_size:
                yield tensor

    # The check before the first step ---------------------------------------------------------------------------------

    def dry_run(self, trainer: Any, pl_module: LightningModule, batch: Any) -> None:
        """Run the module on a batch at every size; nothing of it stays.

        Raises:
            ValueError: If the module cannot take a size.
        """
        self.crop(batch, min(stage.size for stage in self.stages))  # a batch that does not fit shows in any case
        if self.check is False:
            return
        images = next(self.images(batch))
        with without_trace(pl_module):
            for size in sorted({self.base_size, *(stage.size for stage in self.stages)}, reverse=True):
                smaller = images if size == self.base_size else self.shrink(images, size)
                try:
                    with self.tables_at(size), trainer.precision_plugin.forward_context():
                        run_once(pl_module, smaller, with_gradient=self.check == "backward")
                except Exception as error:  # networks refuse a size by errors of every kind
                    if size == self.base_size and not isinstance(error, torch.OutOfMemoryError):
                        rank_zero_warn(  # forward takes something else, or more, or there is none
                            "EfficientTrain cannot try the sizes: the module does not take images as they are "
                            f"({type(error).__name__}: {error}). check=False leaves this trial out."
                        )
                        return
                    raise ValueError(refusal(pl_module, smaller, error)) from error

    def tables_at(self, size: int) -> AbstractContextManager[None]:
        """Return a context in which the network takes a size."""
        return nullcontext() if self._tables is None else self._tables.at(size)

    # The end ---------------------------------------------------------------------------------------------------------

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the network to full-size images, if the last stage had others."""
        if self._tables is not None:
            self._tables.resize(self.base_size, trainer.optimizers)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the Trainer and the module their own methods back, and the augmentation its strength."""
        for undo in reversed(self._undo):
            undo()
        self._undo, self._tables, self._augment, self._resumed_epoch = [], None, None, 0

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Undo as after a fit: Lightning does not call ``teardown`` after an exception."""
        self.on_fit_end(trainer, pl_module)
        self.teardown(trainer, pl_module, "fit")


def find_scheduled(transform: Any) -> Any | None:
    """Return the part of a transform that has ``set_magnitude``, or None."""
    if hasattr(transform, "set_magnitude"):
        return transform
    parts = getattr(transform, "transforms", None)
    parts = parts if isinstance(parts, (list, tuple, nn.ModuleList)) else []
    return next((found for part in parts if (found := find_scheduled(part)) is not None), None)


def describe_tensors(tensors: Sequence[Tensor]) -> str:
    """Return types and shapes as an error text shows them."""
    return ", ".join(f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in tensors) or "no tensor"
