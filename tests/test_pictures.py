"""One image file: the levels in it whatever its kind, crops pixel for pixel, and what is said of what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from adpm.errors import UserError
from adpm.run.pictures import CROPS, RESAMPLES, Reading, facts_of
from tests.pictures import save, smooth

ARRAY = smooth(3, 6, 9)
GREY = ARRAY[..., 0]
COLOUR = Reading(3, True, (6, 9))


def read(path, **changes) -> np.ndarray:
    return replace(COLOUR, **changes).read(path)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_levels_are_those_of_the_file(tmp_path, suffix):
    path = save(tmp_path / f"x.{suffix}", ARRAY)
    assert np.array_equal(read(path), ARRAY.transpose(2, 0, 1)) and facts_of(path) == (True, (6, 9))


def test_jpeg_is_read_as_pillow_decodes_it(tmp_path):
    path = save(tmp_path / "x.JPEG", ARRAY, quality=95)
    with Image.open(path) as image:
        assert np.array_equal(read(path), np.asarray(image).transpose(2, 0, 1))
    assert np.abs(read(path).astype(int) - ARRAY.transpose(2, 0, 1)).mean() < 6


def test_every_kind_of_grey_is_the_same_grey(tmp_path):
    kinds = {
        "l": Image.fromarray(GREY),
        "la": Image.merge("LA", (Image.fromarray(GREY), Image.new("L", (9, 6), 255))),
        "sixteen": Image.fromarray(GREY.astype(np.uint16) * 256 + 77),
        "palette": Image.fromarray(GREY).convert("P"),
    }
    for name, image in kinds.items():
        image.save(tmp_path / f"{name}.png")
        assert np.array_equal(read(tmp_path / f"{name}.png", channels=1), GREY[None]), name
        assert np.array_equal(read(tmp_path / f"{name}.png"), np.stack(3 * [GREY])), name
    assert [facts_of(tmp_path / f"{name}.png")[0] for name in kinds] == [False, False, False, True]
    black = Image.fromarray(GREY > 127)
    black.save(tmp_path / "bits.png")
    assert np.array_equal(read(tmp_path / "bits.png", channels=1)[0], np.where(GREY > 127, 255, 0))


def test_colour_becomes_its_luma(tmp_path):
    found = read(save(tmp_path / "x.png", ARRAY), channels=1)[0]
    assert np.abs(found - ARRAY @ [0.299, 0.587, 0.114]).max() <= 0.51


def test_palettes_are_looked_up(tmp_path):
    few = (ARRAY // 64) * 64
    Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(tmp_path / "p.png")
    assert np.array_equal(read(tmp_path / "p.png"), few.transpose(2, 0, 1))


def test_what_is_behind_transparent_pixels_must_be_said(tmp_path):
    alpha = np.full((6, 9, 1), 255, np.uint8)
    path = save(tmp_path / "opaque.png", np.concatenate([ARRAY, alpha], -1))
    assert np.array_equal(read(path), ARRAY.transpose(2, 0, 1)), "an opaque image needs no background"
    alpha[2, 3] = 0
    path = save(tmp_path / "hole.png", np.concatenate([ARRAY, alpha], -1))
    with pytest.raises(UserError, match=r"hole.png' cannot be used: it has transparent pixels: config.data.background"):
        read(path)
    expected = ARRAY.transpose(2, 0, 1).copy()
    expected[:, 2, 3] = 200
    assert np.array_equal(read(path, background=200), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_says_which_side_is_up(tmp_path, orientation):
    """The eight orientations, by what a camera would have stored of ARRAY."""
    stored = {
        1: ARRAY,
        2: ARRAY[:, ::-1],
        3: ARRAY[::-1, ::-1],
        4: ARRAY[::-1],
        5: ARRAY.transpose(1, 0, 2),
        6: np.rot90(ARRAY, 1),
        7: ARRAY[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(ARRAY, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "x.png", np.ascontiguousarray(stored), exif=exif)
    assert facts_of(path)[1] == (6, 9)
    assert np.array_equal(read(path), ARRAY.transpose(2, 0, 1))


def test_the_centre_is_the_shorter_side_resized_and_the_middle_of_the_longer(tmp_path):
    wide = smooth(0, 20, 31)
    found = read(save(tmp_path / "x.png", wide), size=20)
    assert np.array_equal(found, wide[:, 6:26].transpose(2, 0, 1)), "round((31 - 20) / 2) = 6, to even"
    half = Image.fromarray(wide).resize((15, 10), Image.Resampling.BILINEAR)
    assert np.array_equal(read(tmp_path / "x.png", size=10), np.asarray(half)[:, 2:12].transpose(2, 0, 1))


def test_a_box_takes_means(tmp_path):
    found = read(save(tmp_path / "x.png", smooth(0, 20, 20)), size=10, resample="box")
    means = smooth(0, 20, 20).reshape(10, 2, 10, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(found - means).max() <= 1.0, "Pillow rounds rows, then columns"
    assert np.abs(read(tmp_path / "x.png", size=10) - means).max() > 3.0, "a triangle takes more pixels"
    sums = {name: kind.build() for name, kind in RESAMPLES.items()}
    assert len(set(sums.values())) == len(RESAMPLES)


def test_faces_are_cropped_as_published(tmp_path):
    """Rows 57 to 185 and columns 25 to 153 of 218 x 178, halved."""
    image = smooth(1, 218, 178)
    path = save(tmp_path / "x.png", image)
    expected = Image.fromarray(image[57:185, 25:153]).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(read(path, size=64, crop="face"), np.asarray(expected).transpose(2, 0, 1))
    middle = Image.fromarray(image[39:179, 19:159]).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(read(path, size=64, crop="centre_140"), np.asarray(middle).transpose(2, 0, 1))
    with pytest.raises(UserError, match="it is 9 x 6, and this crop is of CelebA's aligned images, 178 x 218"):
        read(save(tmp_path / "small.png", ARRAY), size=4, crop="face")
    with pytest.raises(UserError, match="it is 9 x 6, and this crop takes 140 x 140"):
        read(tmp_path / "small.png", size=4, crop="centre_140")


@pytest.mark.parametrize("crop", CROPS)
def test_every_crop_gives_a_square_of_the_size(tmp_path, crop):
    path = save(tmp_path / "x.png", smooth(1, 218, 178))
    assert read(path, size=32, crop=crop).shape == (3, 32, 32)


def test_sizes_and_kinds_that_differ_are_refused(tmp_path):
    strict = Reading(3, False, (6, 9))
    with pytest.raises(UserError, match="it is 8 x 8, and the first image is 9 x 6: config.data.size"):
        strict.read(save(tmp_path / "a.png", smooth(0, 8, 8)))
    with pytest.raises(UserError, match="it is grey, and the first image is in colour: config.data.channels"):
        strict.read(save(tmp_path / "b.png", GREY))
    with pytest.raises(UserError, match="it is in colour, and the first image is grey: config.data.channels"):
        Reading(1, False, (6, 9)).read(save(tmp_path / "c.png", ARRAY))


def test_broken_files_are_told_by_name(tmp_path):
    whole = save(tmp_path / "whole.png", smooth(0, 64, 64)).read_bytes()
    jpeg = save(tmp_path / "whole.jpg", smooth(0, 64, 64)).read_bytes()
    wrong = {
        "short.png": (whole[: len(whole) // 2], "cannot be used"),
        "short.jpg": (jpeg[: len(jpeg) // 2], "cannot be used"),
        "page.png": (b"<!DOCTYPE html><html>", "an HTML page"),
        "empty.webp": (b"", "it looks like empty"),
        "text.jpg": (b"hello", "it looks like text"),
        "flipped.png": (whole[:60] + bytes([whole[60] ^ 255]) + whole[61:], "cannot be used"),
    }
    for name, (content, told) in wrong.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=told) as caught:
            Reading(3, True, (64, 64)).read(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="image '.*gone.png' does not exist"):
        COLOUR.read(tmp_path / "gone.png")
    frames = [Image.fromarray(smooth(i, 6, 9)) for i in range(3)]
    frames[0].save(tmp_path / "moves.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="it has 3 frames"):
        COLOUR.read(tmp_path / "moves.webp")
