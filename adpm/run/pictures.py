"""One image file as levels: PNG, JPEG or WebP of any kind -> uint8 [C, H, W]; and what is refused, in words.

Grey stays grey or gets three equal channels, colour stays colour or becomes its luma (ITU-R 601); palettes are looked
up, of 16 bits the high byte is kept (as Pillow does for colour), CMYK becomes RGB, and EXIF says which side is up.
Transparent pixels need a background, animations are refused.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from adpm.errors import UserError, lookup
from adpm.families import Kind
from adpm.reading import looks_like, plain_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")
_GREY = {"1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N"}
_COLOUR = {"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
_HIGH_BYTE = {"I;16", "I;16B", "I;16L", "I;16N"}
_MODES = {1: "L", 3: "RGB"}
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_FACE = (178, 218)
"""Width and height of CelebA's aligned images."""

Crop = Callable[[Image.Image, int, Image.Resampling], Image.Image]


def _centre(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """The shorter side becomes `size`, then the middle of the longer is kept: Resize and CenterCrop of torchvision."""
    w, h = image.size
    short = min(w, h)
    if short != size:
        image = image.resize((size * w // short, size * h // short), resample)
    return _middle(image, size)


def _middle(image: Image.Image, side: int) -> Image.Image:
    w, h = image.size
    left, top = round((w - side) / 2), round((h - side) / 2)
    return image if (w, h) == (side, side) else image.crop((left, top, left + side, top + side))


def _face(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """128 x 128 pixels around column 89 and row 121."""
    if image.size != _FACE:
        raise ValueError(f"it is {_told(image.size)}, and this crop is of CelebA's aligned images, {_told(_FACE)}")
    return image.crop((25, 57, 153, 185)).resize((size, size), resample)


def _centre_140(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    if min(image.size) < 140:
        raise ValueError(f"it is {_told(image.size)}, and this crop takes 140 x 140 pixels")
    return _middle(image, 140).resize((size, size), resample)


CROPS: dict[str, Kind] = {
    "centre": Kind(lambda: _centre, "the shorter side resized, the middle of the longer kept (LSUN as published)"),
    "face": Kind(lambda: _face, "CelebA's aligned images, 128 x 128 around the face: DDIM's and Analytic-DPM's"),
    "centre_140": Kind(lambda: _centre_140, "the middle 140 x 140: CelebA as NCSN and score_sde have it"),
}
"""Builders give functions (image, size, resample) -> image of `size` x `size`; a ValueError says why not."""

RESAMPLES: dict[str, Kind] = {
    "bilinear": Kind(lambda: Image.Resampling.BILINEAR, "a triangle as wide as the reduction, torchvision's default"),
    "bicubic": Kind(lambda: Image.Resampling.BICUBIC, "a cubic as wide as the reduction"),
    "lanczos": Kind(lambda: Image.Resampling.LANCZOS, "a windowed sinc as wide as the reduction"),
    "box": Kind(lambda: Image.Resampling.BOX, "means over the pixels that one comes from"),
}
"""Builders give Pillow's filter."""


@dataclass(frozen=True)
class Reading:
    """How image files are read.

    Attributes:
        channels: 1 or 3.
        mixed: whether images of the other kind are converted; else they are refused.
        shape: (H, W) that images must have where they are not resized.
        size: side in pixels that they are cropped and resized to; 0: as they are.
        crop, resample: members of CROPS and RESAMPLES.
        background: level behind transparent pixels; None: these are refused.
    """

    channels: int
    mixed: bool
    shape: tuple[int, int]
    size: int = 0
    crop: str = "centre"
    resample: str = "bilinear"
    background: int | None = None

    def read(self, path: Path) -> NDArray[np.uint8]:
        """The image in a file, uint8 [C, H, W].

        Raises:
            UserError: naming the file and what is wrong with it.
        """
        array = np.asarray(_opened(path, self._fitted))
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)

    def _fitted(self, image: Image.Image) -> Image.Image:
        if not self.mixed and is_colour(image) != (self.channels > 1):
            kinds = ("grey", "in colour")[:: 1 if self.channels > 1 else -1]
            raise ValueError(f"it is {kinds[0]}, and the first image is {kinds[1]}: config.data.channels converts them")
        image = _of_mode(image, self.channels, self.background)
        if self.size:
            crop = lookup(CROPS, self.crop, "`crop`").build()
            return crop(image, self.size, lookup(RESAMPLES, self.resample, "`resample`").build())
        if image.size != self.shape[::-1]:
            raise ValueError(
                f"it is {_told(image.size)}, and the first image is {_told(self.shape[::-1])}: config.data.size "
                "makes them equal"
            )
        return image


def facts_of(path: Path) -> tuple[bool, tuple[int, int]]:
    """Whether the image in a file is in colour, and its (H, W) as it is to be seen.

    Raises:
        UserError: see `Reading.read`.
    """
    found: dict[str, Any] = {}

    def look(image: Image.Image) -> Image.Image:
        found["facts"] = is_colour(image), image.size[::-1]
        return image

    _opened(path, look)
    return found["facts"]


def is_colour(image: Image.Image) -> bool:
    if image.mode not in _GREY | _COLOUR:
        raise ValueError(f"Pillow's mode '{image.mode}' is none of levels")
    return image.mode in _COLOUR


def _opened(path: Path, use: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """What `use` makes of the image in a file, the right way up."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if getattr(image, "is_animated", False) and image.format in ("PNG", "WEBP"):
                raise ValueError(f"it has {getattr(image, 'n_frames', 'many')} frames")
            image.load()
            return use(ImageOps.exif_transpose(image))
    except Image.UnidentifiedImageError as error:
        plain_file(path, "image")
        found = looks_like(path)
        told = f" (it looks like {found})" if found else ""
        raise UserError(f"image '{path}' is no PNG, JPEG or WebP file{told}.") from error
    except UserError:
        raise
    except _DAMAGE as error:
        plain_file(path, "image")
        raise UserError(f"image '{path}' cannot be used: {str(error).rstrip('.')}.") from error


def _of_mode(image: Image.Image, channels: int, background: int | None) -> Image.Image:
    """The image as L or RGB."""
    if image.mode in _HIGH_BYTE:
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            if background is None:
                raise ValueError("it has transparent pixels: config.data.background says what is behind them")
            behind = Image.new("RGBA", image.size, (background, background, background, 255))
            image = Image.alpha_composite(behind, image)
        image = image.convert("RGB")
    mode = _MODES[channels]
    return image if image.mode == mode else image.convert("RGB").convert(mode)


def _told(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
