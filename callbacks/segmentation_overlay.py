"""What a network of segmentation sees, says and should say, side by side."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor

from zoo.callbacks.run_files import run_folder, save_figure
from zoo.callbacks.stream_figures import GREY
from zoo.functional import color_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IGNORE = 255
OPACITY = 0.65


class Row(NamedTuple):
    """One image of the picture, everything on the CPU and of one size.

    Attributes:
        image: Shape (3, H, W), in [0, 1].
        pseudo_label: Shape (H, W), or None.
        confidence: Of the pseudo-label, shape (H, W), or None.
        prediction: Shape (H, W).
        truth: Shape (H, W), 255 for ignored pixels.
    """

    image: Tensor
    pseudo_label: Tensor | None
    confidence: Tensor | None
    prediction: Tensor
    truth: Tensor


class SegmentationOverlay(Callback):
    """Draws images, a teacher's pseudo-labels, predictions and truth, with a legend, after each validation and test.

    ``segmentation_overlay.png`` in the run's folder shows the first images of the evaluation; it is drawn anew each
    time. It also goes to every logger whose ``experiment`` has ``add_figure``, such as TensorBoard, where all of them
    can be seen. With ``fast_dev_run``, and in the sanity check, nothing is drawn.

    It works with any module that is evaluated on batches of images in [0, 1] and masks: ``module(images)`` are logits
    of shape (B, C, H, W), or a dict with them as ``"out"``. Pseudo-labels are shown if the module has a method
    ``pseudo_labels``, as :class:`zoo.MeanTeacher`, or if the argument says how: the fainter, the less confident. It
    costs one more forward pass on the few images.

    Args:
        num_images: Number of images.
        class_names: Name of each label. Default: the ``class_names`` of the datamodule, else the labels.
        palette: Colour of each label. Default: the ``palette`` of the datamodule, else PASCAL VOC's.
        pseudo_labels: Called with module and images; returns labels and their probabilities, both of shape (B, H, W).
        directory: Where to write. Default: the Trainer's ``log_dir``.

    Raises:
        ValueError: If there is to be no image.
    """

    def __init__(
        self,
        num_images: int = 4,
        class_names: Sequence[str] | None = None,
        palette: Sequence[tuple[int, int, int]] | None = None,
        pseudo_labels: Callable[[Any, Tensor], tuple[Tensor, Tensor]] | None = None,
        directory: str | None = None,
    ) -> None:
        if num_images < 1:
            raise ValueError(f"num_images={num_images} must be at least 1.")
        self.num_images = num_images
        self.class_names = class_names
        self.palette = palette
        self.pseudo_labels = pseudo_labels
        self.directory = directory
        self._rows: list[Row] = []

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Forget what an interrupted evaluation collected."""
        self._rows = []

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Ask the module about the first images."""
        missing = self.num_images - len(self._rows)
        if missing > 0 and trainer.is_global_zero and not trainer.sanity_checking and not trainer.fast_dev_run:
            images, masks = batch[0][:missing], batch[1][:missing]
            with torch.no_grad(), trainer.precision_plugin.val_step_context():
                self._rows += self._ask(pl_module, images, masks)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Draw."""
        folder = run_folder(trainer, self.directory)
        if self._rows:
            figure = draw_overlay(self._rows, self._names(trainer), self._palette(trainer))
            save_figure(trainer, folder, "segmentation_overlay", figure)
            self._rows = []

    def on_test_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Forget what an interrupted evaluation collected."""
        self.on_validation_epoch_start(trainer, pl_module)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Ask the module about the first images."""
        self.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Draw."""
        self.on_validation_end(trainer, pl_module)

    def _ask(self, pl_module: Any, images: Tensor, masks: Tensor) -> list[Row]:
        """Return a row for each image, at the size of the masks."""
        size = masks.shape[-2:]
        output = pl_module(images)
        logits = output["out"] if isinstance(output, Mapping) else output
        predictions = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False).argmax(dim=1).cpu()
        labels: Any = [None] * len(images)
        confidences: Any = labels
        ask = self.pseudo_labels or getattr(type(pl_module), "pseudo_labels", None)
        if ask is not None:
            said, probability = ask(pl_module, images)
            labels = F.interpolate(said[:, None].float(), size, mode="nearest")[:, 0].long().cpu()
            confidences = F.interpolate(probability[:, None].float(), size, mode="nearest")[:, 0].cpu()
        shown = F.interpolate(images.float(), size, mode="bilinear", align_corners=False).clamp(0, 1).cpu()
        return [Row(*row) for row in zip(shown, labels, confidences, predictions, masks.cpu(), strict=True)]

    def _names(self, trainer: Any) -> Sequence[str] | None:
        return self.class_names if self.class_names is not None else getattr(trainer.datamodule, "class_names", None)

    def _palette(self, trainer: Any) -> Sequence[tuple[int, int, int]]:
        return self.palette or getattr(trainer.datamodule, "palette", None) or color_map(256)


def paint(image: Tensor, labels: Tensor, palette: Sequence[tuple[int, int, int]], confidence: Tensor | None) -> Tensor:
    """Return an image under the colours of its labels; ignored pixels are white.

    Args:
        image: Shape (3, H, W), in [0, 1].
        labels: Shape (H, W), 255 for ignored pixels.
        palette: Colour of each label.
        confidence: Makes the colours fainter, shape (H, W), in [0, 1].

    Returns:
        Shape (3, H, W), in [0, 1].
    """
    colors = torch.ones(256, 3)
    colors[: len(palette)] = torch.tensor(palette, dtype=torch.float32) / 255
    colors[IGNORE] = 1.0
    opacity = OPACITY if confidence is None else OPACITY * confidence
    return (1 - opacity) * image + opacity * colors[labels.long()].permute(2, 0, 1)


def draw_overlay(rows: Sequence[Row], names: Sequence[str] | None, palette: Sequence[tuple[int, int, int]]) -> "Figure":
    """Draw a row for each image, and a legend of the classes that occur.

    Args:
        rows: The images, all with a pseudo-label or none.
        names: Of the classes.
        palette: Colour of each class.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    titles = ["image", *(["pseudo-label"] if rows[0].pseudo_label is not None else []), "prediction", "truth"]
    height, width = rows[0].truth.shape
    across = 2.2
    figure = Figure(figsize=(across * len(titles), across * height / width * len(rows) + 1.2), layout="constrained")
    figure.set_facecolor("white")
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    seen: set[int] = set()
    for number, (row, line) in enumerate(zip(rows, grid, strict=True)):
        layers = [layer for layer in (row.pseudo_label, row.prediction, row.truth) if layer is not None]
        seen.update(label for layer in layers for label in layer.flatten().tolist())
        painted = [
            paint(row.image, layer, palette, row.confidence if layer is row.pseudo_label else None) for layer in layers
        ]
        for axes, picture, title in zip(line, [row.image, *painted], titles, strict=True):
            axes.imshow(np.asarray(picture.permute(1, 2, 0)), interpolation="nearest")
            axes.set_axis_off()
            if number == 0:
                axes.set_title(title, size=10, color=GREY)
    patches = [
        Patch(facecolor=f"#{bytes(palette[label]).hex()}", label=names[label] if names else str(label))
        for label in sorted(seen - {IGNORE})
    ]
    if IGNORE in seen:
        patches.append(Patch(facecolor="white", edgecolor=GREY, label="ignored"))
    figure.legend(handles=patches, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return figure
