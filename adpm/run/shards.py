"""Work in batches that survives being killed: finished batches lie on disk and are not done again."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adpm.run.files import write_whole
from adpm.run.report import progress

Arrays = dict[str, NDArray[np.generic]]


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Write named arrays to an npz file, whole or not at all."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    write_whole(path, write)


def read_arrays(path: Path) -> Arrays | None:
    """The arrays of an npz file, None when it is missing or damaged."""
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile):
        return None


def sharded(folder: Path, total: int, size: int, work: Callable[[range], Arrays], what: str) -> Iterator[Arrays]:
    """The results of `work` on consecutive ranges of at most `size` items.

    Args:
        folder: where results lie; it must belong to one protocol.
        total: number of items.
        size: items per batch.
        work: item numbers -> named arrays.
        what: for the progress bar.
    """
    for start in progress(range(0, total, size), what=what):
        items = range(start, min(start + size, total))
        path = folder / f"{items.start:07d}-{items.stop:07d}.npz"
        arrays = read_arrays(path)
        if arrays is None:
            arrays = work(items)
            save_arrays(path, arrays)
        yield arrays
