"""Folders of images as data sets: any folder, CelebA's aligned faces, LSUN's scenes. Listed, and read when used.

A file's name and size stand for its contents: keys depend on the list, and no image is read for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adpm.errors import UserError
from adpm.families import Field, Kind
from adpm.reading import plain_file
from adpm.run.dataset import DRAWN, DataFacts, DataSet, flips_field, held_out_of, range_fields
from adpm.run.listing import Listing, labels_of, listing, missing, spread
from adpm.run.pictures import Reading, facts_of
from adpm.run.stored import Stored

SPLITS = (("train", ("train",)), ("test", ("test", "val", "valid", "validation")))
"""Folders right below a data set's that are its splits, where both are there."""

PARTITION = "list_eval_partition.txt"
"""CelebA's own: a file name and 0 (train), 1 (validation) or 2 (test) per line."""

_PARTS = {"0": "train", "1": "valid", "2": "test"}


class Files(Stored):
    """Image files, read when asked.

    Args:
        found: the files.
        numbers: those of them that these images are, in order.
        reading: how.
        workers: see `Stored`.
    """

    def __init__(self, found: Listing, numbers: NDArray[np.int64], reading: Reading, workers: int = 0) -> None:
        self.found, self.numbers, self.reading, self.workers = found, numbers, reading, workers
        side = (reading.size, reading.size) if reading.size else reading.shape
        self.shape = (len(numbers), reading.channels, *side)

    def read(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        out = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        for i, number in enumerate(self.numbers[numbers]):
            out[i] = self.reading.read(self.found.path(int(number)))
        return out


def files(
    root: Path,
    *,
    size: int = 0,
    channels: int = 0,
    crop: str | None = None,
    resample: str | None = None,
    background: int | None = None,
    workers: int = 0,
) -> Files:
    """All images in a folder; of the first image's kind and size where these are not said.

    Args:
        root: the folder.
        size, background: see `Reading`.
        channels: 1, 3, or 0 for the first image's.
        crop, resample: see `Reading`; they go with a size.
        workers: see `Stored`.

    Raises:
        UserError: if there is none, or the first cannot be used.
    """
    if channels not in (0, 1, 3):
        raise UserError(f"`channels` = {channels} must be 1 or 3, or 0 for those of the first image.")
    for name, value in {"crop": crop, "resample": resample}.items():
        if value is not None and not size:
            raise UserError(f"`{name}` = '{value}' goes with a `size`, which is 0: images are as they are.")
    found = listing(root)
    colour, shape = facts_of(found.path(0))
    kind = (channels or (3 if colour else 1), bool(channels))
    how = Reading(*kind, shape, size, crop or "centre", resample or "bilinear", background)
    how.read(found.path(0))  # what is wrong with the first image is said before any work
    return Files(found, np.arange(len(found)), how, workers)


@dataclass(frozen=True)
class Divided:
    """Which images of a folder are for what.

    Attributes:
        numbers: split -> numbers of its images.
        classes: split -> their classes; None where they have none.
    """

    numbers: Mapping[str, NDArray[np.int64]]
    classes: Mapping[str, NDArray[np.int64] | None]


def _divided(found: Listing, held_out: int) -> Divided:
    """By split folders where both are there; else evenly spread images are for test."""
    tops = set(found.top_names)
    chosen = {split: next((name for name in names if name in tops), None) for split, names in SPLITS}
    if all(chosen.values()):
        _says_who(held_out, f"the folders '{chosen['train']}' and '{chosen['test']}'")
        return _by_folders(found, {split: str(name) for split, name in chosen.items()})
    total = len(found)
    test = spread(total, held_out_of(total, held_out))
    labels = labels_of(found.tops, found.top_names, found.top_names)
    numbers = {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
    classes = {split: None if labels is None else labels[own] for split, own in numbers.items()}
    return Divided(numbers, classes)


def _says_who(held_out: int, who: str) -> None:
    if held_out:
        raise UserError(f"`held_out` = {held_out} is for a folder without splits; here {who} say what is for test.")


def _by_folders(found: Listing, chosen: Mapping[str, str]) -> Divided:
    """Images in `train/` and `test/` (or the like), whose own folders are classes; classes are those of train."""
    inside = [Path(folder).parts for folder in found.folders]
    of_split = {split: [parts[:1] == (name,) for parts in inside] for split, name in chosen.items()}
    below = [parts[1] if len(parts) > 1 else "" for parts in inside]
    names = tuple(sorted({name for name, own in zip(below, of_split["train"], strict=True) if own} - {""}))
    numbers, classes = {}, {}
    for split, own in of_split.items():
        numbers[split] = np.flatnonzero(np.array(own)[found.which])
        classes[split] = labels_of(found.which[numbers[split]], below, names)
    return Divided(numbers, classes)


def folder_images(
    *, folder: str, held_out: int = 0, low: float = -1.0, high: float = 1.0, flips: bool = False, **options: Any
) -> DataSet:
    """The images in a folder, 256 levels; folders below it are classes, or `train` and `test`."""
    whole = files(Path(folder), **options)
    divided = _divided(whole.found, held_out)
    return _data_set("folder", whole, divided, low, high, flips)


def _data_set(name: str, whole: Files, divided: Divided, low: float, high: float, flips: bool) -> DataSet:
    found = whole.found
    splits = {s: Files(found, numbers, whole.reading, whole.workers) for s, numbers in divided.numbers.items()}
    labels: dict[str, Tensor] = {s: torch.from_numpy(c) for s, c in divided.classes.items() if c is not None}
    digest = f"{len(found)} files, {found.digest()}"
    return DataSet(name, splits, 256, low, high, labels, digest=digest, flips=flips)


def lsun(**options: Any) -> DataSet:
    """LSUN's scenes, extracted to a folder: the shorter side resized, the middle kept."""
    return replace(folder_images(**options), name="lsun")


def celeba(
    *, folder: str, held_out: int = 0, low: float = -1.0, high: float = 1.0, flips: bool = False, **options: Any
) -> DataSet:
    """CelebA's aligned faces, 64 x 64, in their published partition where it lies beside them."""
    root = Path(folder)
    images = root / "img_align_celeba"
    crop = options.pop("crop", None) or ("face" if options.get("size") else None)
    whole = files(images if images.is_dir() else root, crop=crop, **options)
    lists = [place / PARTITION for place in (root, root.parent) if (place / PARTITION).is_file()]
    if lists:
        _says_who(held_out, f"'{lists[0]}'")
    divided = _partition(lists[0], whole.found) if lists else _divided(whole.found, held_out)
    return _data_set("celeba64", whole, divided, low, high, flips)


def _partition(path: Path, found: Listing) -> Divided:
    """As CelebA's list says; every image must be in it."""
    lines = plain_file(path, "list").read_text(errors="replace").split()
    parts = dict(zip(lines[::2], lines[1::2], strict=False))
    own = [_PARTS.get(parts.get(found.name(number), "")) for number in range(len(found))]
    if None in own:
        raise UserError(f"'{path}' does not say what '{found.name(own.index(None))}' is for (0, 1 or 2).")
    of = np.array(own)
    numbers = {split: np.flatnonzero(of == split) for split in _PARTS.values() if (of == split).any()}
    if not {"train", "test"} <= numbers.keys():
        raise UserError(f"'{path}' leaves no image of '{found.root}' for train or for test.")
    return Divided(numbers, dict.fromkeys(numbers))


def _missing(what: str, **options: Any) -> str:
    folder = options.get("folder", "")
    if not folder:
        return f"{what} needs config.data.folder, a folder of images."
    told = missing(Path(folder)).rstrip(".")
    return f"{told} (config.data.folder)" if told else ""


def _fields(place: str, size: int, crop: str = "centre") -> dict[str, Field]:
    return {
        "folder": Field("", place, of=()),
        "size": Field(size, "image side in pixels; 0 = images as they are, all of one size", low=0, of=DRAWN),
        "channels": Field(
            0, "1 or 3, to which images are converted; 0 = the first image's, and all are", low=0, high=3, of=DRAWN
        ),
        "crop": Field(None, f"what is kept of a resized image; unset = {crop}", type=str, choices="crop", of=DRAWN),
        "resample": Field(
            None, "the filter that it is resized with; unset = bilinear", type=str, choices="resample", of=DRAWN
        ),
        "background": Field(
            None, "level behind transparent pixels; unset = these are refused", type=int, low=0, high=255, of=DRAWN
        ),
        "held_out": Field(
            0, "images for test where no folder or list says which are, evenly spread; 0 = a fifth", low=0, of=DRAWN
        ),
        "workers": Field(2, "processes that read images ahead in training and long passes", low=0, of=()),
        **flips_field(),
        **range_fields(),
    }


FOLDERS: dict[str, Kind] = {
    "folder": Kind(
        folder_images,
        "a folder of PNG, JPEG or WebP images, 256 levels; folders in it are classes, or train and test",
        DataFacts(lambda **options: _missing("data set 'folder'", **options)),
        _fields("of images; folders in it are classes, or `train` and `test` (or `val`) with or without classes", 0),
    ),
    "celeba64": Kind(
        celeba,
        "CelebA's aligned faces, 64x64, from a folder with `img_align_celeba`",
        DataFacts(lambda **options: _missing("data set 'celeba64'", **options)),
        _fields(f"with `img_align_celeba` and, for the published splits, `{PARTITION}`", 64, "face"),
    ),
    "lsun": Kind(
        lsun,
        "LSUN's scenes, 256x256, extracted to a folder",
        DataFacts(lambda **options: _missing("data set 'lsun'", **options)),
        _fields("of the scenes as images, with `train` and `val` in it or without", 256),
    ),
}
