"""A hundred characters of four scripts in many typefaces, rendered from installed fonts."""

import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from zoo.datamodules.sources.images import TensorImages
from zoo.datamodules.sources.source import Source
from zoo.functional import write_atomically

# Pairs that look alike in some typeface (c and C, o and O and 0, Cyrillic А and Latin A) are left out.
CHARACTERS = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ" "abdefghijkmnqrt" "23456789" "ΓΔΘΛΞΠΣΦΨΩ" "αβγδεζηθλμξπστφχψω"
    "БДЖИЛЦЧШЩЪЫЬЭЮЯЙбя" "&@#$%?!*+=§{<~"
)  # fmt: skip
NUM_CLASSES = 100
STRIDE = 37  # has no divisor in common with the 109 characters: mixes the scripts over the classes

# Debian's packages of fonts, and the folder of each below the root of all fonts.
PACKAGES = {
    "fonts-urw-base35": "opentype/urw-base35",
    "fonts-freefont-ttf": "truetype/freefont",
    "fonts-liberation": "truetype/liberation",
    "fonts-cmu": "truetype/cmu",
    "fonts-linuxlibertine": "opentype/linux-libertine",
    "fonts-sil-gentiumplus": "truetype/gentiumplus",
    "fonts-oldstandard": "truetype/fonts-oldstandard",
}
TEST_FAMILIES = frozenset({
    "C059", "Gentium Book Plus", "Gentium Plus", "Linux Biolinum O", "Linux Libertine Display O", "Linux Libertine O",
    "Old Standard TT", "URW Bookman", "URW Gothic", "Z003",
})  # fmt: skip

CANVAS, FONT_SIZE, BASELINE, SHRINK = 128, 96, 92.16, 4  # pixels; the image has 32
BLANK = 64  # a glyph without a pixel this bright is not drawn in its typeface
# Of the fonts of Debian 12 and FreeType 2.14.3, as Pillow 13 has it.
REFERENCE: dict[str, Any] = {
    "faces": 127,
    "checksum": "cd6e7542bcf63b2e4ca823d4403c6a160f47082ee6cff294abf63cbee8308ada",
}

Size = Literal["small", "full"]


class Glyphs(Source):
    """100 classes of 32 x 32 grey images without a data set: characters of four scripts in 127 typefaces.

    The typefaces are those of matplotlib and of seven packages of Debian; an image of a class is its character in one
    of them. Training and test images are split by family: a bold letter of a family seen in training would be no test.

    ``prepare`` renders them once (seconds) and keeps them in ``root``; the same fonts and the same FreeType give the
    same images, which their checksum shows.

    Args:
        root: Folder of the rendered images.
        size: "full" has 94 training images of a class; "small" has 25, one upright typeface of each family. The 33 test
            images of a class are the same.
        fonts: Folder with the fonts of Debian's packages, as Debian lays them out.

    Attributes:
        checksum: SHA-256 of all rendered images, after ``prepare``.

    Raises:
        ValueError: If ``size`` is another one.

    Source:
        This library. Fonts: DejaVu, STIX, URW base 35, GNU FreeFont, Liberation, Computer Modern Unicode, Linux
        Libertine, Gentium Plus and Old Standard.
    """

    def __init__(
        self, root: str | Path = "data/glyphs", size: Size = "small", fonts: str | Path = "/usr/share/fonts"
    ) -> None:
        if size not in ("small", "full"):
            raise ValueError(f"size={size!r} must be 'small' or 'full'.")
        self.root = Path(root)
        self.size = size
        self.fonts = Path(fonts)

    @property
    def classes(self) -> Sequence[str]:
        """The characters, in an order that mixes the scripts."""
        return [CHARACTERS[STRIDE * label % len(CHARACTERS)] for label in range(NUM_CLASSES)]

    @property
    def path(self) -> Path:
        """The file of the rendered images."""
        return self.root / "glyphs.npz"

    @property
    def checksum(self) -> str:
        """SHA-256 of all rendered images."""
        return str(self._read()["checksum"])

    def prepare(self) -> None:
        """Render the images if they are not there, and check them.

        Raises:
            FileNotFoundError: If fonts are missing; names the packages.
            ValueError: If the file of rendered images is damaged.
        """
        if not self.path.is_file():
            faces = self._render()
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **faces, checksum=np.array(checksum_of(faces)))
            self.root.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, buffer.getvalue())
        faces = self._read()
        if checksum_of(faces) != str(faces["checksum"]):
            raise ValueError(f"{self.path} is damaged: its checksum is another one. Remove it; it is rendered anew.")
        found: dict[str, Any] = {"faces": len(faces["files"]), "checksum": str(faces["checksum"])}
        if found != REFERENCE:
            warnings.warn(
                f"Glyphs rendered {found['faces']} typefaces, checksum {found['checksum'][:12]}; results of this "
                f"library are measured with {REFERENCE['faces']}, checksum {REFERENCE['checksum'][:12]}. Other "
                "versions of fonts or FreeType give slightly different images.",
                stacklevel=2,
            )

    def train(self) -> "GlyphImages":
        """Return the training images."""
        return self._images(test=False)

    def test(self) -> "GlyphImages":
        """Return the test images, of other families of typefaces."""
        return self._images(test=True)

    def _images(self, test: bool) -> "GlyphImages":
        faces = self._read()
        is_test = np.isin(faces["families"], sorted(TEST_FAMILIES))
        chosen = is_test if test else ~is_test
        if not test and self.size == "small":
            chosen &= one_of_each_family(faces)
        name = f"the {'test' if test else 'training'} set of Glyphs"
        return GlyphImages(name, faces["images"][chosen], faces["files"][chosen].tolist(), self.classes)

    def _read(self) -> dict[str, Any]:
        try:
            with np.load(self.path) as arrays:
                return dict(arrays)
        except FileNotFoundError:
            raise FileNotFoundError(f"There is no {self.path}: call prepare() of Glyphs first.") from None
        except Exception as error:  # zip, zlib, value and key errors: whatever the file is, it is not ours
            raise ValueError(f"{self.path} is damaged ({error}). Remove it; it is rendered anew.") from error

    def _render(self) -> dict[str, Any]:
        """Render all usable typefaces: images (F, 100, 32, 32) and, of each, file, family and style."""
        from matplotlib import get_data_path

        missing = [package for package, folder in PACKAGES.items() if not (self.fonts / folder).is_dir()]
        if missing:
            raise FileNotFoundError(
                f"Glyphs needs fonts that are not in {self.fonts}. On Debian: apt-get install {' '.join(missing)}. "
                "Elsewhere unpack these packages and give the folder of the fonts."
            )
        folders = [Path(get_data_path()) / "fonts" / "ttf", *(self.fonts / folder for folder in PACKAGES.values())]
        paths = [path for folder in folders for path in sorted([*folder.glob("*.ttf"), *folder.glob("*.otf")])]
        faces: dict[bytes, tuple[Any, ...]] = {}  # by content: a copy of a typeface under another name counts once
        for path in paths:
            face = render_face(path)
            if face is not None:
                faces.setdefault(face[0].tobytes(), face)
        images, families, styles, files = zip(*faces.values(), strict=True)
        order = [CHARACTERS.index(character) for character in self.classes]
        return {
            "images": np.stack(images)[:, order],
            "families": np.array(families),
            "styles": np.array(styles),
            "files": np.array(files),
        }


class GlyphImages(TensorImages):
    """The images of some typefaces, class after class.

    Args:
        name: What error texts call the set.
        images: uint8 of shape (F, C, 32, 32).
        files: Name of the font file of each typeface.
        classes: The characters.

    Attributes:
        samples: ``U+<code>/<font file>`` and label of each image, by which lists of images name it.
    """

    def __init__(self, name: str, images: Any, files: Sequence[str], classes: Sequence[str]) -> None:
        by_class = torch.from_numpy(images).transpose(0, 1).flatten(0, 1).unsqueeze(1).contiguous()
        super().__init__(name, by_class, torch.arange(len(classes)).repeat_interleave(len(files)))
        self.samples = [
            (f"U+{ord(character):04X}/{file}", label) for label, character in enumerate(classes) for file in files
        ]


def render_face(path: Path) -> tuple[Any, str, str, str] | None:
    """Render all characters in one typeface.

    Args:
        path: A TrueType or OpenType file.

    Returns:
        Images, uint8 of shape (109, 32, 32), white on black on one baseline, so that case and size of a letter show;
        family, style and file name. None if the typeface lacks a character, or draws nothing for it.
    """
    from matplotlib.ft2font import FT2Font

    about = FT2Font(str(path))
    known = about.get_charmap()
    if "Last Resort" in about.family_name or any(ord(character) not in known for character in CHARACTERS):
        return None  # Last Resort has one box for all characters
    # The basic layout is built into Pillow; the other one depends on what is installed.
    font = ImageFont.truetype(str(path), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    images = np.stack([render(character, font) for character in CHARACTERS])
    if (images.max(axis=(1, 2)) < BLANK).any():
        return None
    return images, about.family_name, about.style_name, path.name


def render(character: str, font: ImageFont.FreeTypeFont) -> Any:
    """Return a character, uint8 of shape (32, 32): drawn large, then averaged."""
    image = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(image).text((CANVAS / 2, BASELINE), character, fill=255, font=font, anchor="ms")
    return np.asarray(image.reduce(SHRINK))


def one_of_each_family(faces: dict[str, Any]) -> Any:
    """Return a mask of one typeface of each family: upright if there is one, of ordinary weight if there is one."""

    def rank(index: int) -> tuple[bool, bool, str]:
        style = str(faces["styles"][index])
        slanted = any(word in style for word in ("Italic", "Oblique", "Slanted"))
        return slanted, style not in ("Regular", "Roman", "Book", "Medium"), str(faces["files"][index])

    chosen = np.zeros(len(faces["files"]), dtype=bool)
    for family in np.unique(faces["families"]):
        chosen[min(np.flatnonzero(faces["families"] == family).tolist(), key=rank)] = True
    return chosen


def checksum_of(faces: dict[str, Any]) -> str:
    """Return the SHA-256 of rendered images and of the names of their font files."""
    digest = hashlib.sha256(faces["images"].tobytes())
    digest.update("\n".join(faces["files"].tolist()).encode())
    return digest.hexdigest()
