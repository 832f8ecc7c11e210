"""Sources of scenes in files: small files in the published formats are read, what is missing or damaged is named."""

import pickle
import struct
import zlib
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from PIL import Image
from scipy.io import savemat

from zoo.datamodules import DomainAdaptationDataModule, SemiSupervisedSegmentationDataModule
from zoo.datamodules.scenes import SceneView
from zoo.datamodules.sources import GTAV, SYNTHIA, Cityscapes, LabeledScenes, PascalVOC, SyntheticScenes
from zoo.functional import color_map

# As the specification of each data set has them: an id on disk, and its label.
CITYSCAPES_LABELS = {0: 255, 7: 0, 8: 1, 11: 2, 12: 3, 17: 5, 19: 6, 26: 13, 28: 15, 31: 16, 33: 18, 34: 255, 255: 255}
SYNTHIA_LABELS = {0: 255, 1: 10, 3: 0, 4: 1, 8: 13, 10: 11, 12: 17, 16: 9, 17: 12, 21: 3, 22: 255}


def write_photo(path: Path, height: int = 2, width: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 200, np.uint8)).save(path)


def write_mask(path: Path, ids, palette: bool = True) -> None:
    """Write a PNG with a palette, or one in grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(ids, np.uint8))
    if palette:
        image.putpalette([value for color in color_map(256) for value in color])
    image.save(path)


def write_png16(path: Path, pixels) -> None:
    """Write a PNG of three channels of 16 bits, which PIL cannot."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


# PASCAL VOC ---------------------------------------------------------------------------------------------------------

FINE, COARSE = [[0, 15, 255], [0, 20, 255]], [[0, 7, 7], [0, 7, 7]]


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two training scenes, one of val; further photographs without fine masks."""
    root = tmp_path / "VOC2012"
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n2007_000039")  # some lists lack the last line's end
    (lists / "val.txt").write_text("2007_000033\n")
    for name in ("2007_000032", "2007_000039", "2007_000033", "2008_000002", "2008_000003"):
        write_photo(root / "JPEGImages" / f"{name}.jpg")
    for name in ("2007_000032", "2007_000039", "2007_000033"):
        write_mask(root / "SegmentationClass" / f"{name}.png", FINE)
    return root


def write_sbd(path: Path, mask) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"Segmentation": np.asarray(mask, np.uint8), "CategoriesPresent": np.array([[7]], np.uint8)}
    savemat(path, {"GTcls": record}, do_compression=True)


def test_voc_alone_reads_its_own_lists_and_fine_masks(voc: Path) -> None:
    source = PascalVOC(voc, augmented=False)
    source.prepare()
    scenes = source.train()
    assert isinstance(scenes, LabeledScenes)
    assert scenes.names == ["2007_000032", "2007_000039"]
    assert source.test().names == ["2007_000033"]
    image, mask = scenes[0]
    assert image.mode == "RGB"
    assert image.getpixel((0, 0))[0] == pytest.approx(200, abs=2)  # JPEG
    assert mask.dtype == torch.uint8
    assert mask.tolist() == FINE  # ids of the palette, not its colours
    assert (source.classes[15], source.classes[20], len(source.classes)) == ("person", "tvmonitor", 21)


def test_voc_takes_further_scenes_of_sbd_but_none_of_val(voc: Path, monkeypatch) -> None:
    write_mask(voc / "SegmentationClassAug" / "2007_000032.png", COARSE, palette=False)
    write_mask(voc / "SegmentationClassAug" / "2007_000033.png", COARSE, palette=False)
    write_mask(voc / "SegmentationClassAug" / "2008_000002.png", COARSE, palette=False)
    monkeypatch.setattr(PascalVOC, "AUGMENTED", 3)
    source = PascalVOC(voc)
    source.prepare()
    scenes = source.train()
    assert scenes.names == ["2007_000032", "2007_000039", "2008_000002"]
    assert scenes[0][1].tolist() == FINE
    assert scenes[2][1].tolist() == COARSE
    assert source.test()[0][1].tolist() == FINE


def test_voc_reads_masks_of_sbd_in_its_own_format(voc: Path, tmp_path: Path, monkeypatch) -> None:
    for name in ("2007_000032", "2007_000033", "2008_000002", "2008_000003"):
        write_sbd(tmp_path / "sbd" / "cls" / f"{name}.mat", COARSE)
    monkeypatch.setattr(PascalVOC, "AUGMENTED", 4)
    source = PascalVOC(voc, sbd_root=tmp_path / "sbd")
    source.prepare()
    scenes = source.train()
    assert scenes.names == ["2007_000032", "2007_000039", "2008_000002", "2008_000003"]
    assert scenes.mask(0).tolist() == FINE
    assert scenes[3][1].tolist() == COARSE
    assert scenes[3][1].dtype == torch.uint8


def test_voc_is_found_below_vocdevkit_too(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "VOCdevkit").mkdir(parents=True)
    voc.rename(tmp_path / "data" / "VOCdevkit" / "VOC2012")
    assert len(PascalVOC(tmp_path / "data", augmented=False).train()) == 2


def test_voc_takes_published_lists(voc: Path, tmp_path: Path) -> None:
    write_mask(voc / "SegmentationClassAug" / "2008_000002.png", COARSE, palette=False)
    labeled, unlabeled = tmp_path / "labeled.txt", tmp_path / "unlabeled.txt"
    labeled.write_text("JPEGImages/2007_000039.jpg SegmentationClass/2007_000039.png\n")
    unlabeled.write_text("2008_000002\n2007_000032")
    data = SemiSupervisedSegmentationDataModule(PascalVOC(voc), str(labeled), str(unlabeled), batch_size=1)
    data.setup("fit")
    assert data.labeled_set.names == ["2007_000039"]
    assert data.unlabeled_set.names == ["2008_000002", "2007_000032"]
    batch, _, _ = next(iter(data.train_dataloader()))
    assert batch["labeled"][1][0].tolist() == FINE
    assert data.num_classes == 21


def test_missing_files_of_voc_are_named_with_what_to_get(voc: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.txt.*VOCtrainval_11-May-2012\.tar"):
        PascalVOC(tmp_path / "none", augmented=False).train()
    with pytest.raises(ValueError, match=r"of 2 scenes.*10582.*benchmark\.tgz.*augmented=False"):
        PascalVOC(voc).prepare()
    with pytest.raises(FileNotFoundError, match=r"no masks in .*sbd.cls"):
        PascalVOC(voc, sbd_root=tmp_path / "sbd").train()
    (voc / "SegmentationClass" / "2007_000039.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images have no mask.*2007_000039\.jpg"):
        PascalVOC(voc, augmented=False).prepare()
    (voc / "JPEGImages" / "2007_000033.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images are missing.*2007_000033\.jpg"):
        PascalVOC(voc, augmented=False).test()


def test_damaged_files_of_voc_are_named(voc: Path, tmp_path: Path) -> None:
    write_sbd(tmp_path / "sbd" / "cls" / "2008_000002.mat", COARSE)
    source = PascalVOC(voc, sbd_root=tmp_path / "sbd")
    path = tmp_path / "sbd" / "cls" / "2008_000002.mat"
    whole = path.read_bytes()
    for content in (b"", b"no such format" * 50, whole[:-20]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"2008_000002\.mat is no mask of SBD"):
            source.train()[2]
    savemat(path, {"GTinst": np.ones(2)})
    with pytest.raises(ValueError, match=r"no mask of SBD.*KeyError"):
        source.train()[2]
    Image.new("RGB", (3, 2)).save(voc / "SegmentationClass" / "2007_000032.png")
    with pytest.raises(ValueError, match=r"mode RGB.*colours"):
        source.train()[0]
    write_mask(voc / "SegmentationClass" / "2007_000032.png", [[0]])
    with pytest.raises(ValueError, match=r"3 x 2 pixels and .* 1 x 1"):
        source.train()[0]


# Streets ------------------------------------------------------------------------------------------------------------


def write_cityscapes(root: Path, kind: str = "labelIds", ids=tuple(CITYSCAPES_LABELS)) -> Path:
    places = [
        ("train", "hamburg", "hamburg_000000_080169"),
        ("train", "aachen", "aachen_000001_000019"),
        ("val", "munster", "munster_000002_000019"),
    ]
    for split, city, name in places:
        write_photo(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", 1, len(ids))
        write_mask(root / "gtFine" / split / city / f"{name}_gtFine_{kind}.png", [ids], palette=False)
        write_photo(root / "gtFine" / split / city / f"{name}_gtFine_color.png", 1, len(ids))
    return root


def test_cityscapes_maps_its_ids_to_19_classes(tmp_path: Path) -> None:
    source = Cityscapes(write_cityscapes(tmp_path))
    source.prepare()
    scenes = source.train()
    assert isinstance(scenes, LabeledScenes)
    assert scenes.names == ["aachen_000001_000019", "hamburg_000000_080169"]
    assert source.test().names == ["munster_000002_000019"]
    assert scenes[1][1].tolist() == [list(CITYSCAPES_LABELS.values())]
    assert len(source.classes) == len(source.palette) == 19
    assert [source.classes[label] for label in (0, 5, 6, 9, 14, 16, 18)] == [
        "road", "pole", "traffic light", "terrain", "truck", "train", "bicycle",
    ]  # fmt: skip
    assert source.palette[0] == (128, 64, 128)
    assert source.palette[18] == (119, 11, 32)


def test_cityscapes_reads_converted_masks_as_they_are(tmp_path: Path) -> None:
    labels = (0, 7, 18, 255)
    assert Cityscapes(write_cityscapes(tmp_path, "labelTrainIds", labels)).train()[0][1].tolist() == [list(labels)]


def test_cityscapes_takes_published_lists(tmp_path: Path) -> None:
    source = Cityscapes(write_cityscapes(tmp_path / "cityscapes"))
    for line in (
        "leftImg8bit/train/hamburg/hamburg_000000_080169_leftImg8bit.png",
        "/images/train/hamburg_000000_080169.png\t/segmentation/train/hamburg_000000_080169_gtFine.png",
    ):
        (tmp_path / "labeled.txt").write_text(line)
        data = SemiSupervisedSegmentationDataModule(source, str(tmp_path / "labeled.txt"))
        data.setup("fit")
        assert data.labeled_set.names == ["hamburg_000000_080169"]
        assert data.unlabeled_set.names == ["aachen_000001_000019"]


def test_missing_files_of_cityscapes_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no images in .*leftImg8bit.train.*gtFine_trainvaltest\.zip"):
        Cityscapes(tmp_path).prepare()
    root = write_cityscapes(tmp_path)
    (root / "gtFine/train/aachen/aachen_000001_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images have no mask in .*aachen_000001_000019_left"):
        Cityscapes(root).prepare()


def write_gtav(root: Path, ids=tuple(CITYSCAPES_LABELS)) -> Path:
    for number in (1, 2):
        write_photo(root / "images" / f"{number:05d}.png", 1, len(ids))
        write_mask(root / "labels" / f"{number:05d}.png", [ids])
        write_mask(root / "labels" / f"{number:05d}_labelTrainIds.png", [[9] * len(ids)])  # others convert
    return root


def test_gtav_has_the_ids_of_cityscapes(tmp_path: Path) -> None:
    source = GTAV(write_gtav(tmp_path))
    source.prepare()
    scenes = source.train()
    assert scenes.names == ["00001", "00002"]
    assert scenes[0][1].tolist() == [list(CITYSCAPES_LABELS.values())]
    assert list(source.classes) == list(Cityscapes().classes)


def test_gtav_leaves_out_scenes_whose_files_differ_in_size(tmp_path: Path) -> None:
    root = write_gtav(tmp_path)
    write_photo(root / "images" / "00001.png", 4, 4)
    with pytest.warns(UserWarning, match="1 of 2 scenes .* left out.* 00001"):
        scenes = GTAV(root).train()
    assert scenes.names == ["00002"]


def test_missing_files_of_gtav_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no images in .*images.*from_games"):
        GTAV(tmp_path).prepare()
    root = write_gtav(tmp_path)
    (root / "labels" / "00002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images have no mask in .*labels, 00002\.png"):
        GTAV(root).prepare()


@pytest.fixture
def synthia(tmp_path: Path) -> Path:
    ids = np.array(list(SYNTHIA_LABELS))
    pixels = np.stack([ids, 7 + ids, 0 * ids], -1)[None]  # class, instance, nothing
    for number in range(2):
        write_photo(tmp_path / "RGB" / f"{number:07d}.png", 1, len(ids))
        write_png16(tmp_path / "GT" / "LABELS" / f"{number:07d}.png", pixels)
    return tmp_path


def test_synthia_has_its_class_in_the_first_of_three_channels_of_16_bits(synthia: Path) -> None:
    source = SYNTHIA(synthia)
    source.prepare()
    scenes = source.train()
    assert scenes.names == ["0000000", "0000001"]
    image, mask = scenes[1]
    assert image.size == (len(SYNTHIA_LABELS), 1)
    assert mask.dtype == torch.uint8
    assert mask.tolist() == [list(SYNTHIA_LABELS.values())]
    assert list(source.classes) == list(Cityscapes().classes)


def test_damaged_and_missing_files_of_synthia_are_named(synthia: Path) -> None:
    path = synthia / "GT" / "LABELS" / "0000001.png"
    path.write_bytes(path.read_bytes()[:60])
    view = SceneView(SYNTHIA(synthia).train(), torch.arange(2), None, 19)
    with pytest.raises(ValueError, match="Cannot read scene 0000001"):
        view[1]
    write_photo(path)
    with pytest.raises(ValueError, match=r"mode RGB in the layout RGB, and .* 16 bits"):
        SYNTHIA(synthia).train()[1]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no mask in .*LABELS, 0000001\.png.*synthia-dataset"):
        SYNTHIA(synthia).prepare()


def test_a_source_domain_has_no_test_scenes_and_says_so(tmp_path: Path) -> None:
    for source in (GTAV(tmp_path), SYNTHIA(tmp_path)):
        with pytest.raises(ValueError, match=f"{type(source).__name__} has no test scenes.*DomainAdaptation"):
            source.test()


def test_a_synthetic_domain_is_adapted_to_a_real_one(tmp_path: Path, synthia: Path) -> None:
    real = Cityscapes(write_cityscapes(tmp_path / "real"))
    for source in (GTAV(write_gtav(tmp_path / "gta")), SYNTHIA(synthia)):
        data = DomainAdaptationDataModule(source, real, batch_size=2, eval_batch_size=1, num_workers=0)
        data.prepare_data()
        data.setup("fit")
        batch, _, _ = next(iter(data.train_dataloader()))
        assert batch["labeled"][1].max() == 255
        assert set(batch["labeled"][1][0].flatten().tolist()) <= {*range(19), 255}
        assert len(data.test_set) == 1
    with pytest.raises(ValueError, match="other classes"):
        DomainAdaptationDataModule(SyntheticScenes(), real)


def recipe_data(name: str, **changes):
    """Return the datamodule of a shipped recipe, with other arguments."""
    recipe = yaml.safe_load((Path(__file__).parents[2] / "configs" / "segmentation" / f"{name}.yaml").read_text())
    content = recipe["data"]
    content["init_args"] |= {"num_workers": 0, **changes}
    parser = ArgumentParser()
    parser.add_argument("--data", type=L.LightningDataModule)
    return parser.instantiate_classes(parser.parse_object({"data": content})).data


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_recipes_of_voc_read_its_files(voc: Path, tmp_path: Path, monkeypatch) -> None:
    write_mask(voc / "SegmentationClassAug" / "2008_000002.png", COARSE, palette=False)
    monkeypatch.setattr(PascalVOC, "AUGMENTED", 3)
    (tmp_path / "labeled.txt").write_text("2007_000032")
    source = {"class_path": "PascalVOC", "init_args": {"root": str(voc)}}
    data = recipe_data("fst_voc_662", source=source, labeled=str(tmp_path / "labeled.txt"), steps_per_epoch=1)
    data.prepare_data()
    data.setup("fit")
    batch, _, _ = next(iter(data.train_dataloader()))
    images, masks = batch["labeled"]
    assert images.shape == batch["unlabeled"].shape == (4, 3, 513, 513)
    assert masks.shape == (4, 513, 513)
    assert set(masks.flatten().tolist()) <= {0, 15, 20, 255}
    image, mask = next(iter(data.val_dataloader()))
    assert image.shape == (1, 3, 2, 3)
    assert mask[0].tolist() == FINE


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_recipes_of_streets_read_their_files(tmp_path: Path, synthia: Path) -> None:
    real = {"class_path": "Cityscapes", "init_args": {"root": str(write_cityscapes(tmp_path / "real"))}}
    roots = {"gtav": ("GTAV", write_gtav(tmp_path / "gta")), "synthia": ("SYNTHIA", synthia)}
    for name, (source, root) in roots.items():
        data = recipe_data(
            f"fst_{name}_cityscapes",
            source={"class_path": source, "init_args": {"root": str(root)}},
            target=real,
            rare_classes={"min_pixels": 0, "statistics": str(root / "sample_class_stats.json")},
        )
        data.prepare_data()
        assert (root / "sample_class_stats.json").is_file()
        data.setup("fit")
        batch, _, _ = next(iter(data.train_dataloader()))
        images, masks = batch["labeled"]
        assert images.shape == batch["unlabeled"].shape == (2, 3, 512, 512)
        assert set(masks.flatten().tolist()) <= {*range(19), 255}
        image, mask = next(iter(data.val_dataloader()))
        assert image.shape == (1, 3, 512, 1024)
        assert mask.shape == (1, 1, len(CITYSCAPES_LABELS))  # measured at its own resolution


def test_scenes_in_files_can_be_sent_to_loader_processes(tmp_path: Path, synthia: Path) -> None:
    for source in (GTAV(write_gtav(tmp_path / "gta")), SYNTHIA(synthia)):
        scenes = source.train()
        assert torch.equal(pickle.loads(pickle.dumps(scenes))[0][1], scenes[0][1])
