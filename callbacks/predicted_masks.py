"""Predicted masks as pictures that any program reads."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import CombinedLoader
from PIL import Image
from torch import Tensor

from zoo.functional import color_map, write_atomically


class PredictedMasks(BasePredictionWriter):
    """Write the masks of ``trainer.predict`` as PNG files with a palette, one an image.

    It expects ``predict_step`` to return a dict with ``mask``: classes below 256, of shape (B, H, W), or a list of
    (H, W); without such an entry nothing is written. A pixel of the file *is* the class, and a viewer shows its colour:
    the format of PASCAL VOC. A file is called as the data set's ``names`` say, else by the position in the data. Under
    several processes each writes its own.

    Args:
        folder: Where to write.
        palette: Colour of each class. Default: the ``palette`` of the datamodule, else PASCAL VOC's.
    """

    def __init__(self, folder: str | Path, palette: Sequence[tuple[int, int, int]] | None = None) -> None:
        super().__init__(write_interval="batch")
        self.folder = Path(folder)
        self.palette = palette

    def write_on_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the masks of a batch."""
        if not isinstance(prediction, Mapping) or "mask" not in prediction:
            return
        loader: Any = CombinedLoader(trainer.predict_dataloaders, "sequential").flattened[dataloader_idx]
        names = getattr(loader.dataset, "names", None)
        palette = self.palette or getattr(trainer.datamodule, "palette", None) or color_map(256)
        for position, mask in zip(batch_indices or [], prediction["mask"], strict=True):
            name = names[position] if names is not None else f"{position:06d}"
            write_atomically(self.folder / f"{name}.png", palette_png(mask, palette))


def palette_png(mask: Tensor, palette: Sequence[tuple[int, int, int]]) -> bytes:
    """Return a mask of shape (H, W) as the content of a PNG file whose pixels are classes."""
    image = Image.fromarray(mask.cpu().byte().numpy())  # grey; a palette makes its values places in it
    image.putpalette([value for color in palette for value in color])
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
