"""Pictures of what a network is shown and what it makes of it, side by side."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback
from torch import Tensor

from zoo.callbacks.knn_evaluation import evaluating
from zoo.callbacks.run_files import run_folder, save_figure
from zoo.callbacks.stream_figures import GREY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 1.1  # inches of a picture


class ReconstructionImages(Callback):
    """Shows how well a network reconstructs images: a row for each image, a column for each kind of picture.

    With each validation of a fit that is due, after ``trainer.validate`` and after ``trainer.test``, the run's folder
    holds ``reconstructions_<split>.png``, which replaces an earlier one. The picture also goes to every logger whose
    ``experiment`` has ``add_figure``, such as TensorBoard, which keeps all of them. ``<split>`` is "test" in a test,
    else what the datamodule says as ``evaluate``, else "val". Where nothing is validated, the first training images of
    an epoch are shown at its end, as "train". With ``fast_dev_run`` nothing is written.

    It works with any module that has a method ``reconstruct``: given images (B, C, H, W), it returns pictures by name,
    in the order in which they are to stand, each of shape (B, C, H, W) in [0, 1]. :class:`zoo.MAE` has one. The module
    is in evaluation mode meanwhile and as it was afterwards, without gradients; no random number of the run is drawn.

    Args:
        num_images: Largest number of rows; taken from the first batch of the evaluation.
        every_n_epochs: How often in fit; the last epoch counts in any case.
        reconstruct: Called with module and images instead of the method.
        images: Show these instead, in the form that the module takes.
        key: Name or position of the images in a batch that is no tensor.
        directory: Where to write. Default: the Trainer's ``log_dir``.

    Raises:
        ValueError: If a number is out of range, or what is returned is no mapping of pictures.
        AttributeError: If the module has no method ``reconstruct``, and none is given.
    """

    def __init__(
        self,
        num_images: int = 8,
        every_n_epochs: int = 1,
        reconstruct: Callable[[Any, Tensor], Mapping[str, Tensor]] | None = None,
        images: Tensor | None = None,
        key: str | int = 0,
        directory: str | None = None,
    ) -> None:
        for name, value in {"num_images": num_images, "every_n_epochs": every_n_epochs}.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        self.num_images = num_images
        self.every_n_epochs = every_n_epochs
        self.reconstruct = reconstruct
        self.images = images
        self.key = key
        self.directory = directory
        self._shown: Tensor | None = None

    # Lightning's hooks ----------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Look for the method before an epoch is spent."""
        if self.reconstruct is None and not callable(getattr(pl_module, "reconstruct", None)):
            raise AttributeError(
                f"{type(pl_module).__name__} has no method reconstruct, which returns pictures by name. Add one, or "
                "give a function of module and images as ReconstructionImages(reconstruct=...)."
            )

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the first images."""
        if batch_idx == 0 and dataloader_idx == 0:
            self._keep(batch)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the first images."""
        self.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the first images where nothing is validated."""
        if batch_idx == 0 and not trainer.enable_validation:
            self._keep(batch)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Show them with the validation."""
        if not trainer.sanity_checking and (trainer.state.fn != "fit" or self._is_due(trainer)):
            self._show(trainer, pl_module, getattr(trainer.datamodule, "evaluate", "val"))

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Show them with the test."""
        self._show(trainer, pl_module, "test")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Show them where nothing is validated."""
        if not trainer.enable_validation and self._is_due(trainer):
            self._show(trainer, pl_module, "train")

    # Parts ----------------------------------------------------------------------------------------------------------

    def _is_due(self, trainer: Any) -> bool:
        epochs = int(trainer.current_epoch) + 1
        return epochs % self.every_n_epochs == 0 or epochs == int(trainer.max_epochs or -1)

    def _keep(self, batch: Any) -> None:
        images = batch if isinstance(batch, Tensor) else batch[self.key]
        self._shown = images[: self.num_images]

    def _show(self, trainer: Any, pl_module: Any, split: str) -> None:
        """Draw and write; all processes compute, since a network may be shared among them."""
        folder = run_folder(trainer, self.directory)
        images = self._shown if self.images is None else self.images[: self.num_images].to(pl_module.device)
        self._shown = None
        if images is None or trainer.fast_dev_run:
            return
        compute = self.reconstruct or (lambda module, images: module.reconstruct(images))
        with evaluating(trainer, pl_module), trainer.precision_plugin.val_step_context():
            pictures = compute(pl_module, images)
        check_pictures(pictures)
        if trainer.is_global_zero:
            save_figure(trainer, folder, f"reconstructions_{split}", draw_pictures(pictures))


def check_pictures(pictures: Any) -> None:
    """Raise ValueError unless pictures are what is promised."""
    shapes = {name: tuple(part.shape) for name, part in pictures.items()} if isinstance(pictures, Mapping) else None
    if not shapes or any(len(shape) != 4 for shape in shapes.values()) or len({s[0] for s in shapes.values()}) > 1:
        raise ValueError(
            "reconstruct has to return pictures by name, each of shape (B, C, H, W) with the same B, got "
            f"{shapes if shapes is not None else type(pictures).__name__}."
        )


def draw_pictures(pictures: Mapping[str, Tensor]) -> "Figure":
    """Draw pictures in rows and columns, pixel by pixel.

    Args:
        pictures: By name, each of shape (B, C, H, W) in [0, 1]. One channel is grey; of several the first three are
            red, green and blue.
    """
    from matplotlib.figure import Figure

    columns = {name: as_rgb(part) for name, part in pictures.items()}
    rows = len(next(iter(columns.values())))
    figure = Figure(figsize=(SIDE * len(columns), SIDE * rows + 0.3), layout="constrained")
    figure.set_facecolor("white")
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for column, (name, images) in enumerate(columns.items()):
        for row in range(rows):
            grid[row, column].imshow(images[row].numpy(), interpolation="nearest", vmin=0, vmax=1)
            grid[row, column].set_axis_off()
        grid[0, column].set_title(name.replace(" and ", "\nand "), size=8, color=GREY)
    return figure


def as_rgb(images: Tensor) -> Tensor:
    """Return images (B, C, H, W) as float32 of shape (B, H, W, 3) on the CPU, in [0, 1]."""
    channels = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    return channels.detach().float().cpu().clamp(0, 1).permute(0, 2, 3, 1)
