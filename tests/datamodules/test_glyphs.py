"""Characters in typefaces: which, how they look, how they are split, and what is refused."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import get_data_path

from zoo.datamodules import ClassIncrementalDataModule
from zoo.datamodules.sources import Glyphs
from zoo.datamodules.sources.glyphs import CHARACTERS, PACKAGES, REFERENCE, TEST_FAMILIES, render_face

OWN_FONTS = Path(get_data_path()) / "fonts" / "ttf"
DEBIAN_FONTS = Path("/usr/share/fonts")
MISSING = [package for package, folder in PACKAGES.items() if not (DEBIAN_FONTS / folder).is_dir()]
needs_fonts = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("glyphs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Glyphs(root).prepare()
    return root


def distinct(images) -> list[int]:
    """Return the number of really different images of each class."""
    return [len({image.numpy().tobytes() for image in images.images[images.targets == label]}) for label in range(100)]


def test_classes_are_a_hundred_characters_that_mix_the_scripts() -> None:
    classes = Glyphs().classes
    assert len(set(CHARACTERS)) == len(CHARACTERS) == 109
    assert len(set(classes)) == 100
    assert classes[:4] == [CHARACTERS[0], CHARACTERS[37], CHARACTERS[74], CHARACTERS[2]] == ["A", "n", "χ", "C"]


def test_a_typeface_is_drawn_on_one_baseline_in_its_own_size() -> None:
    images, family, style, file = render_face(OWN_FONTS / "DejaVuSans.ttf")
    assert (family, style, file) == ("DejaVu Sans", "Book", "DejaVuSans.ttf")
    assert images.shape == (109, 32, 32)
    assert images.dtype == np.uint8
    rows = {character: np.flatnonzero(images[CHARACTERS.index(character)].max(axis=1) > 127) for character in "Aax"[:2]}
    assert rows["A"][-1] == rows["a"][-1] == 22  # 92.16 / 4 = 23.04: both stand on the line above row 23
    assert rows["A"][0] < rows["a"][0]
    assert images.max() == 255


@pytest.mark.parametrize("file", ["LastResortHE-Regular.ttf", "DejaVuSansDisplay.ttf", "cmr10.ttf"])
def test_a_typeface_without_all_characters_is_left_out(file) -> None:
    assert render_face(OWN_FONTS / file) is None


@needs_fonts
def test_every_class_has_many_really_different_images(root) -> None:
    small, full = Glyphs(root), Glyphs(root, size="full")
    assert len(small.train()) == 2500
    assert min(distinct(small.train())) >= 24
    assert min(distinct(full.train())) >= 84
    assert min(distinct(full.test())) >= 29
    torch.testing.assert_close(small.test().images, full.test().images)
    assert full.train().images.shape[1:] == (1, 32, 32)


@needs_fonts
def test_no_family_is_in_both_parts(root) -> None:
    faces = Glyphs(root)._read()
    family = dict(zip(faces["files"].tolist(), faces["families"].tolist(), strict=True))
    sets = Glyphs(root, "full").train(), Glyphs(root).test()
    parts = [{family[path.partition("/")[2]] for path, _ in images.samples} for images in sets]
    assert parts[0].isdisjoint(parts[1])
    assert parts[1] == TEST_FAMILIES
    assert [len(part) for part in parts] == [25, 10]
    assert {family[path.partition("/")[2]] for path, _ in Glyphs(root).train().samples} == parts[0]


@needs_fonts
def test_images_and_names_belong_together(root) -> None:
    images = Glyphs(root).train()
    index = images.samples.index(("U+0411/DejaVuSans.ttf", Glyphs().classes.index("Б")))
    expected = render_face(OWN_FONTS / "DejaVuSans.ttf")[0][CHARACTERS.index("Б")]
    image, label = images[index]
    assert Glyphs().classes[label] == "Б"
    assert np.array_equal(image[0].numpy(), expected)


@needs_fonts
def test_rendering_again_gives_the_same_checksum(root, tmp_path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = Glyphs(tmp_path)
        again.prepare()
    assert again.checksum == Glyphs(root).checksum
    assert len(again.checksum) == 64


@needs_fonts
def test_other_fonts_than_those_of_our_results_are_told(root, monkeypatch) -> None:
    monkeypatch.setitem(REFERENCE, "checksum", "0" * 64)
    with pytest.warns(UserWarning, match=r"results of this library are measured with 127, checksum 000000000000"):
        Glyphs(root).prepare()


@needs_fonts
def test_a_stream_takes_them(root) -> None:
    data = ClassIncrementalDataModule(Glyphs(root), num_tasks=10, class_order=list(range(100)))
    data.setup("fit")
    image, _ = data.train_set(3)[0]
    assert image.shape == (3, 32, 32)
    assert data.class_names[30:33] == Glyphs().classes[30:33]


@needs_fonts
def test_a_damaged_file_is_named(root, tmp_path) -> None:
    content = bytearray((root / "glyphs.npz").read_bytes())
    (tmp_path / "glyphs.npz").write_bytes(content[:1000])
    with pytest.raises(ValueError, match=r"glyphs\.npz is damaged.* Remove it"):
        Glyphs(tmp_path).prepare()
    with np.load(root / "glyphs.npz") as arrays:
        faces = dict(arrays)
    faces["images"][0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "glyphs.npz", **faces)
    with pytest.raises(ValueError, match="its checksum is another one"):
        Glyphs(tmp_path).prepare()


def test_missing_fonts_are_named(tmp_path) -> None:
    (tmp_path / "truetype" / "cmu").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=r"apt-get install fonts-urw-base35 fonts-freefont-ttf fonts-liberation fonts-linux"
    ):
        Glyphs(tmp_path, fonts=tmp_path).prepare()


def test_images_are_not_there_before_prepare(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"call prepare\(\)"):
        Glyphs(tmp_path).train()


def test_unknown_size_is_refused() -> None:
    with pytest.raises(ValueError, match="size='large' must be 'small' or 'full'"):
        Glyphs(size="large")
