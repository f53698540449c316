"""The image files of a folder: listed in one order, kept in one block of bytes, none of them opened.

A million Python strings take a hundred megabytes and are slow to give to other processes; their bytes in one block are
a quarter of that.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adpm.errors import UserError
from adpm.progress import progress
from adpm.run.pictures import SUFFIXES

_KINDS = ", ".join(SUFFIXES)


@dataclass(frozen=True)
class Listing:
    """Image files in a folder and the folders in it, in the order of their names, a folder's files before its folders'.

    Attributes:
        root: the folder.
        folders: those that images lie in, relative to `root`; "" is `root` itself.
        which: [n] the number in `folders` of an image's own.
        names: the names of all images, one after the other, as bytes.
        ends: [n] where in `names` an image's ends.
        sizes: [n] of the files, in bytes.
    """

    root: Path
    folders: tuple[str, ...]
    which: NDArray[np.int32]
    names: bytes
    ends: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, number: int) -> str:
        """Of an image, without its folders."""
        start = self.ends[number - 1] if number else 0
        return os.fsdecode(self.names[start : self.ends[number]])

    def path(self, number: int) -> Path:
        return self.root / self.folders[self.which[number]] / self.name(number)

    @cached_property
    def tops(self) -> NDArray[np.int32]:
        """[n] the number in `top_names` of the folder right below `root` that an image lies in; -1: in none."""
        of_folder = [_top(folder) for folder in self.folders]
        numbers = {name: number for number, name in enumerate(self.top_names)}
        return np.array([numbers.get(name, -1) for name in of_folder], np.int32)[self.which]

    @cached_property
    def top_names(self) -> tuple[str, ...]:
        """The folders right below `root` that images lie in, in order."""
        return tuple(sorted({_top(folder) for folder in self.folders} - {""}))

    def digest(self) -> str:
        """Of folders, names and sizes: twelve hex digits that stand for the images, which are not read for it."""
        told = hashlib.sha256("\0".join(self.folders).encode(errors="surrogateescape"))
        for part in (self.which, self.ends, self.sizes):
            told.update(part.tobytes())
        told.update(self.names)
        return told.hexdigest()[:12]


def _top(folder: str) -> str:
    return folder.split(os.sep, 1)[0]


def listing(root: Path) -> Listing:
    """The image files in a folder and below; what begins with a dot is left out.

    Raises:
        UserError: if it is no folder, cannot be read, or holds no image.
    """
    if told := missing(root):
        raise UserError(told)
    folders: list[str] = []
    which, sizes, lengths = [], [], []  # one array per folder
    names = bytearray()
    others: list[str] = []
    for folder, files in progress(_walk(root, others), what="folders listed"):
        if not files:
            continue
        folders.append(folder)
        which.append(np.full(len(files), len(folders) - 1, np.int32))
        sizes.append(np.array([size for _, size in files], np.int64))
        lengths.append(np.array([len(name) for name, _ in files], np.int64))
        names += b"".join(name for name, _ in files)
    if not folders:
        told = f"; it has {len(others):,} other files, such as '{others[0]}'" if others else "; it is empty"
        raise UserError(f"folder '{root}' holds no images ({_KINDS}){told}.")
    ends = np.cumsum(np.concatenate(lengths))
    return Listing(root, tuple(folders), np.concatenate(which), bytes(names), ends, np.concatenate(sizes))


def missing(root: Path) -> str:
    """What is wrong with a folder that is to be listed, in words; "" where nothing is."""
    if not root.exists():
        return f"folder '{root}' does not exist."
    return "" if root.is_dir() else f"'{root}' is no folder."


def _walk(root: Path, others: list[str]) -> Iterator[tuple[str, list[tuple[bytes, int]]]]:
    """(folder, its images' names and sizes), every folder once though links lead there twice."""
    todo, seen = [""], set()
    while todo:
        folder = todo.pop()
        files, inside = [], []
        try:
            here = os.stat(root / folder)
            if (here.st_dev, here.st_ino) in seen:
                continue
            seen.add((here.st_dev, here.st_ino))
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        inside.append(os.path.join(folder, entry.name))
                    elif entry.name.lower().endswith(SUFFIXES):
                        files.append((os.fsencode(entry.name), entry.stat().st_size))
                    else:
                        others.append(entry.name)
        except OSError as error:
            raise UserError(f"'{error.filename or root / folder}' cannot be read ({error.strerror}).") from error
        todo += sorted(inside, reverse=True)
        yield folder, sorted(files)


def spread(total: int, count: int) -> NDArray[np.bool_]:
    """Which of `total` are the `count` that are as evenly spread over them as can be."""
    chosen = np.zeros(total, bool)
    chosen[((np.arange(count) + 0.5) * total / count).astype(np.int64)] = True
    return chosen


def labels_of(tops: NDArray[np.int32], names: Sequence[str], classes: Iterable[str]) -> NDArray[np.int64] | None:
    """Class numbers of images by the folder that they lie in; None where one lies in no folder of a class."""
    numbers = {name: number for number, name in enumerate(classes)}
    known = np.array([*(numbers.get(name, -1) for name in names), -1], np.int64)  # the last is of images in none
    found = known[tops]
    return None if len(numbers) < 2 or (found < 0).any() else found
