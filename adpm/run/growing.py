"""Images in one npy file that grows batch by batch: they never lie in memory, and take their own size on disk.

Until it is whole the file is called NAME.npy.partial. NAME.csv has a line for every batch that is in it, with the
images, their CRC-32 and the seconds that they took: what a kill or a full disk has torn is cut off by it, and damage is
found. A file that is whole grows on when more images are wanted.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from adpm.progress import Arrays, progress, say
from adpm.ranks import alone, ranks
from adpm.run.store import Parts, parts_of, read_arrays, remove, save_arrays
from adpm.run.stored import Mapped
from adpm.whole import named, write_whole


@dataclass(frozen=True)
class Batch:
    """A line of the list: how many images, their CRC-32, and the seconds that they took."""

    images: int
    crc: int
    seconds: float

    def line(self) -> str:
        return f"{self.images},{self.crc},{self.seconds:.6f}\n"


class Growing:
    """Images of one shape and type, in batches of one size.

    Args:
        path: of the whole file; ends in .npy.
        shape: of an image.
        dtype: of its numbers.
        size: of a batch; images that were drawn in others are forgotten, as these depend on it to the last bit.
    """

    def __init__(self, path: Path, shape: Sequence[int], dtype: Any, size: int) -> None:
        self.path, self.partial, self.list = path, path.with_name(path.name + ".partial"), path.with_suffix(".csv")
        self._shape, self._dtype, self._size = tuple(shape), np.dtype(dtype), size
        self._head = len(self._header(0))
        self._title = f"images in batches of {size},CRC-32,seconds\n"

    def whole(self, count: int) -> list[Batch] | None:
        """The batches of the file, if it is there, undamaged, and has at least so many images."""
        found = self._there(self.path)
        if found is None or sum(batch.images for batch in found) < count:
            return None
        remove(parts_of(self.path))  # a kill may have come between
        return found

    def fill(
        self, count: int, work: Callable[[range], Arrays], begun: Callable[[Arrays], None], afresh: bool = False
    ) -> list[Batch]:
        """Let the file grow to `count` images, which all ranks draw together; returns its batches.

        Args:
            count: images that are wanted.
            work: gives the "samples" of a range, their "seconds", and more of the first range.
            begun: keeps that of the first range.
            afresh: whether nothing that is there is good.
        """
        here = ranks()
        here.wait()  # some may still be looking
        found = here.of_first(self._opened(afresh) if here.first else None)
        done = sum(batch.images for batch in found)
        ranges = [range(start, min(start + self._size, count)) for start in range(done, count, self._size)]
        if here.size == 1:
            for items in progress(ranges, total=len(ranges) + len(found), initial=len(found), what="sampling"):
                found.append(self._append(items, work(items), begun))
        else:
            parts = Parts(parts_of(self.path) / f"batches-of-{self._size}")
            parts.share(ranges, work, "sampling")
            with alone():
                for items in ranges if here.first else ():
                    found.append(self._append(items, parts.written(items), begun))
                    parts.file(items).unlink()
        if here.first:
            self._close(sum(batch.images for batch in found))
        remove(parts_of(self.path))
        return here.of_first(found)

    # The files

    def _opened(self, afresh: bool) -> list[Batch]:
        """The whole batches that are there already, in a partial file from now on."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        found = self._there(self.partial) or []
        if not found and self.path.is_file():
            found = self._there(self.path, told=True) or []
            os.replace(self.path, self.partial)
        found = [] if afresh else [batch for batch in found if batch.images == self._size]
        with alone():
            write_whole(self.list, lambda p: p.write_text(self._title + "".join(batch.line() for batch in found)))
        with self.partial.open("r+b" if self.partial.exists() else "w+b") as file:
            file.write(self._header(0))
            file.truncate(self._head + self._bytes(sum(batch.images for batch in found)))
        return found

    def _append(self, items: range, arrays: Arrays, begun: Callable[[Arrays], None]) -> Batch:
        """Images first, their line when they are on the disk."""
        arrays = dict(arrays)
        images = np.ascontiguousarray(arrays.pop("samples"), self._dtype)
        batch = Batch(len(images), zlib.crc32(images.tobytes()), float(arrays.pop("seconds")))
        if items.start == 0:
            begun(arrays)
        with named(self.partial), self.partial.open("r+b") as file:
            file.seek(self._head + self._bytes(items.start))
            file.write(images.tobytes())
            _to_disk(file)
        with named(self.list), self.list.open("a") as lines:
            lines.write(batch.line())
            _to_disk(lines)
        return batch

    def _close(self, count: int) -> None:
        with self.partial.open("r+b") as file:
            file.write(self._header(count))
            _to_disk(file)
        os.replace(self.partial, self.path)

    def _there(self, path: Path, told: bool = False) -> list[Batch] | None:
        """The undamaged batches of a file, `told` of damage before; None: no file, or no list of batches like these."""
        if not path.is_file() or not self.list.is_file():
            return None
        title, *lines = self.list.read_text(errors="replace").splitlines(keepends=True) or [""]
        if title != self._title:
            return None
        found: list[Batch] = []
        with path.open("rb") as file:
            file.seek(self._head)
            for line in lines:
                batch = _batch(line)
                images = None if batch is None else file.read(self._bytes(batch.images))
                if batch is None or images is None or zlib.crc32(images) != batch.crc:
                    if not told and path == self.path:  # else a kill has torn it, which is no damage
                        good = sum(b.images for b in found)
                        say(f"'{path}' is damaged after {good} images; doing the others again.")
                    break
                found.append(batch)
        return found

    def _bytes(self, images: int) -> int:
        return images * int(np.prod(self._shape, dtype=np.int64)) * self._dtype.itemsize

    def _header(self, count: int) -> bytes:
        """Of an npy file; numpy leaves room for any count, so that its length is one."""
        out = io.BytesIO()
        about = {"descr": self._dtype.str, "fortran_order": False, "shape": (count, *self._shape)}
        np.lib.format.write_array_header_1_0(out, about)
        return out.getvalue()


@dataclass(frozen=True)
class Grown:
    """Images on disk.

    Attributes:
        images: [n, C, H, W].
        first: what else is known of the first batch.
        file: of the images.
        seconds: that they took, whenever that was.
    """

    images: Mapped
    first: Arrays
    file: Path
    seconds: float


def grown(
    file: Path,
    shape: Sequence[int],
    dtype: Any,
    size: int,
    count: int,
    work: Callable[[], Callable[[range], Arrays]],
    check: Callable[[Arrays], object],
) -> Grown:
    """`count` images in a file: those that are there read, the others made.

    Args:
        file: ends in .npy; what is known of the first batch lies beside it, in steps.npz.
        shape, dtype, size: see `Growing`.
        count: images that are wanted.
        work: asked for if some are missing; see `Growing.fill`.
        check: raises anything on what is not of the first batch.
    """
    steps, growing = file.with_name("steps.npz"), Growing(file, shape, dtype, size)
    first = read_arrays(steps, check)
    batches = None if first is None else growing.whole(count)
    if batches is None:
        # what the first batch was like is not known without making it again
        batches = growing.fill(count, work(), partial(save_arrays, steps), afresh=first is None)
        first = read_arrays(steps)
    assert first is not None
    return Grown(Mapped(file, count), first, file, sum(batch.seconds for batch in batches))


def _batch(line: str) -> Batch | None:
    """A line of the list; None where it is torn."""
    try:
        images, crc, seconds = line.removesuffix("\n").split(",")
        return Batch(int(images), int(crc), float(seconds)) if line.endswith("\n") else None
    except ValueError:
        return None


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
