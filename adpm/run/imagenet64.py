"""ImageNet, downsampled to 64x64 as published: train_data_batch_1 to _10 and val_data, npz or pickles.

A batch is a dict of `data` [n, 12288] uint8, a channel after the other, and `labels` 1..1000; together they are 16 GB.
They are unpacked once, batch by batch, into npy files beside them, which are mapped into memory and not loaded.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adpm.errors import UserError
from adpm.progress import progress, say
from adpm.reading import plain_file, read_npz
from adpm.run.batches import unpickled
from adpm.run.stored import Joined, Mapped
from adpm.whole import write_whole

SHAPE = (3, 64, 64)
TRAIN = tuple(f"train_data_batch_{i}" for i in range(1, 11))
TEST = ("val_data",)
SPLITS = {"train": TRAIN, "test": TEST}
CLASSES = 1000
UNPACKED = "unpacked"
"""The folder of what was unpacked, in that of the batches."""

_PARTS = ("images", "labels")


def missing(folder: Path) -> str:
    """Which batches are not there, in words; "" where none is missing, packed or unpacked."""
    if not folder.is_dir():
        return f"ImageNet 64 needs a folder of its batches; '{folder}' is none (config.data.folder)."
    gone = [name for name in (*TRAIN, *TEST) if not _is_unpacked(folder, name) and _packed(folder, name) is None]
    return (
        f"'{folder}' (config.data.folder) lacks {', '.join(gone)} of ImageNet 64, npz or pickles; put the published "
        "batches there."
        if gone
        else ""
    )


def images_of(folder: Path, split: str, workers: int) -> Joined:
    """The images of a split, uint8 [n, 3, 64, 64], unpacked where that was not done before."""
    return Joined([_opened(Mapped, place) for place in _unpacked(folder, split, "images")], workers)


def labels_of(folder: Path, split: str) -> Tensor:
    """The labels of a split, 0..999."""
    return torch.cat([torch.from_numpy(_opened(np.load, place)) for place in _unpacked(folder, split, "labels")])


def _place(folder: Path, name: str, part: str) -> Path:
    return folder / UNPACKED / f"{name}-{part}.npy"


def _is_unpacked(folder: Path, name: str) -> bool:
    return all(_place(folder, name, part).is_file() for part in _PARTS)


def _packed(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.npz", folder / name) if path.is_file()), None)


def _opened(how: Callable[[Path], Any], place: Path) -> Any:
    try:
        return how(place)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"'{place}' is damaged ({error}); remove it, and it is unpacked again.") from error


def _unpacked(folder: Path, split: str, part: str) -> Sequence[Path]:
    """The files of a split."""
    names = SPLITS[split]
    todo = [name for name in names if not _is_unpacked(folder, name)]
    if todo:
        say(f"unpacking {len(todo)} batches of ImageNet 64, once: {folder / UNPACKED}")
    for name in progress(todo, what="batches unpacked"):
        _unpack(folder, name)
    return [_place(folder, name, part) for name in names]


def _unpack(folder: Path, name: str) -> None:
    path = _packed(folder, name)
    if path is None:
        raise UserError(missing(folder))
    try:
        found = _checked(_read(plain_file(path, "batch")))
    except (pickle.UnpicklingError, KeyError, EOFError, ValueError, TypeError, OverflowError) as error:
        told = f"it has no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise UserError(f"'{path}' is no batch of ImageNet 64 as published: {told}.") from error
    _write(_place(folder, name, "images"), found[0])
    _write(_place(folder, name, "labels"), found[1])


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
        file.seek(0)
        return dict(read_npz(path, ("data", "labels"))) if zipped else unpickled(file)


def _checked(found: dict[str, Any]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels of a batch."""
    data, labels = np.asarray(found["data"]), np.asarray(found["labels"])
    size = int(np.prod(SHAPE))
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != size or not len(data):
        raise ValueError(f"`data` is {data.dtype} {data.shape}, not uint8 [n, {size}]")
    if labels.shape != (len(data),) or labels.dtype.kind not in "iu":
        raise ValueError(f"`labels` are {labels.dtype} {labels.shape} for {len(data)} images")
    if labels.min() < 1 or labels.max() > CLASSES:
        raise ValueError(f"`labels` are {labels.min()} to {labels.max()}, not 1 to {CLASSES}")
    return data.reshape(-1, *SHAPE), labels.astype(np.int64) - 1


def _write(place: Path, array: NDArray[Any]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, array)

    write_whole(place, write)
