"""Pictures of segmentation: overlays and predicted masks, with modules of ours and of others."""

from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from zoo import MeanTeacher
from zoo.callbacks import PredictedMasks, SegmentationOverlay
from zoo.callbacks.segmentation_overlay import draw_overlay, paint
from zoo.datamodules import SemiSupervisedSegmentationDataModule
from zoo.datamodules.sources import SyntheticScenes
from zoo.functional import color_map


class Stranger(L.LightningModule):
    """A module that knows nothing of zoo: the class of a pixel is its brightest channel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> Any:
        return {"out": images * self.scale}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self(batch[0])["out"].mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return {"mask": self(batch[0])["out"].argmax(1)}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader() -> DataLoader[Any]:
    torch.manual_seed(0)
    masks = torch.randint(3, (5, 8, 8))
    masks[:, 0, 0] = 255
    return DataLoader(TensorDataset(torch.rand(5, 3, 8, 8), masks), batch_size=2)


def data() -> SemiSupervisedSegmentationDataModule:
    return SemiSupervisedSegmentationDataModule(SyntheticScenes(3, 16, 8, 5), labeled=4, batch_size=2)


def make_trainer(tmp_path: Any, *callbacks: L.Callback, **kwargs: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=1,
        enable_checkpointing=False, default_root_dir=tmp_path, callbacks=list(callbacks), **kwargs,
    )  # fmt: skip


def collect(monkeypatch: Any) -> list[Any]:
    """Keep what is drawn."""
    drawn: list[Any] = []
    target = "zoo.callbacks.segmentation_overlay.draw_overlay"
    monkeypatch.setattr(target, lambda *args: (drawn.append(args), draw_overlay(*args))[1])
    return drawn


def test_overlay_works_with_a_stranger(tmp_path: Any, monkeypatch: Any) -> None:
    drawn = collect(monkeypatch)
    make_trainer(tmp_path, SegmentationOverlay(num_images=3)).fit(Stranger(), loader(), loader())
    ((rows, names, palette),) = drawn  # once, and not in the sanity check
    images, masks = (torch.stack(part) for part in zip(*loader().dataset, strict=True))
    assert names is None
    assert palette == color_map(256)
    assert len(rows) == 3
    for index, row in enumerate(rows):
        torch.testing.assert_close(row.image, images[index])
        assert torch.equal(row.prediction, images[index].argmax(0))
        assert torch.equal(row.truth, masks[index])
        assert row.pseudo_label is None
    assert Image.open(tmp_path / "segmentation_overlay.png").size[0] > 300


def test_overlay_shows_pseudo_labels_with_the_datas_names_and_colours(tmp_path: Any, monkeypatch: Any) -> None:
    drawn = collect(monkeypatch)
    module = MeanTeacher(3, network_args={"width": 2})
    make_trainer(tmp_path, SegmentationOverlay(num_images=9)).test(module, data(), verbose=False)
    ((rows, names, palette),) = drawn
    assert len(rows) == 5  # all there are
    assert names == ["class0", "class1", "class2"]
    assert palette == color_map(3)
    with torch.no_grad():
        labels, confidence = module.eval().pseudo_labels(rows[0].image[None])
    assert torch.equal(rows[0].pseudo_label, labels[0])
    torch.testing.assert_close(rows[0].confidence, confidence[0])


def test_a_way_to_label_can_be_given(tmp_path: Any, monkeypatch: Any) -> None:
    drawn = collect(monkeypatch)
    overlay = SegmentationOverlay(
        1, pseudo_labels=lambda module, x: (torch.ones(len(x), 4, 4), torch.zeros(len(x), 4, 4))
    )
    make_trainer(tmp_path, overlay).validate(Stranger(), loader(), verbose=False)
    assert drawn[0][0][0].pseudo_label.eq(1).all()
    assert drawn[0][0][0].pseudo_label.shape == (8, 8)


def test_colours_cover_the_image_by_confidence_and_ignored_pixels_are_white() -> None:
    image, labels = torch.zeros(3, 1, 3), torch.tensor([[1, 1, 255]])
    painted = paint(image, labels, [(0, 0, 0), (255, 0, 0)], torch.tensor([[1.0, 0.5, 1.0]]))
    assert painted[:, 0, 0].tolist() == pytest.approx([0.65, 0, 0])
    assert painted[:, 0, 1].tolist() == pytest.approx([0.325, 0, 0])
    assert painted[:, 0, 2].tolist() == pytest.approx([0.65, 0.65, 0.65])


def test_legend_names_the_classes_that_occur(tmp_path: Any, monkeypatch: Any) -> None:
    drawn = collect(monkeypatch)
    make_trainer(tmp_path, SegmentationOverlay(1)).validate(Stranger(), loader(), verbose=False)
    (rows, _, palette), names = drawn[0], ["a", "b", "c", "d"]
    figure = draw_overlay(rows, names, palette)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c", "ignored"]
    assert [axes.get_title() for axes in figure.axes] == ["image", "prediction", "truth"]


def test_nothing_is_drawn_in_a_trial(tmp_path: Any) -> None:
    make_trainer(tmp_path, SegmentationOverlay(), fast_dev_run=True).fit(Stranger(), loader(), loader())
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="num_images=0"):
        SegmentationOverlay(0)


def test_masks_are_classes_with_a_palette_and_called_as_the_scenes(tmp_path: Any) -> None:
    module = MeanTeacher(3, network_args={"width": 2})
    trainer = make_trainer(tmp_path, PredictedMasks(tmp_path / "masks"))
    predicted = torch.cat([batch["mask"] for batch in trainer.predict(module, data())])
    files = sorted((tmp_path / "masks").iterdir())
    assert [file.name for file in files] == [f"test{index}.png" for index in range(5)]
    for file, mask in zip(files, predicted, strict=True):
        image = Image.open(file)
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), mask.numpy())
        assert image.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]


def test_masks_of_a_stranger_are_called_by_position(tmp_path: Any) -> None:
    colors = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    trainer = make_trainer(tmp_path, PredictedMasks(tmp_path / "masks", palette=colors))
    trainer.predict(Stranger(), loader())
    images = loader().dataset.tensors[0]
    assert len(list((tmp_path / "masks").iterdir())) == 5
    image = Image.open(tmp_path / "masks" / "000003.png")
    assert np.array_equal(np.asarray(image), images[3].argmax(0).numpy())
    assert image.getpalette()[:9] == list(range(1, 10))


def test_predictions_without_masks_write_nothing(tmp_path: Any) -> None:
    class Other(Stranger):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return {"label": torch.zeros(len(batch[0]))}

    make_trainer(tmp_path, PredictedMasks(tmp_path / "masks")).predict(Other(), loader())
    assert not (tmp_path / "masks").exists()
