"""One way to keep work: files are whole or absent, named by what they depend on; damaged ones are told and made again.

Long work is kept range by range while it lasts (`Parts`) and as one file when it is done (`record`); then the parts go.
A workdir belongs to one model (`claim`).
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from adpm.errors import UserError
from adpm.progress import Arrays, Keep, progress, say
from adpm.ranks import alone, ranks
from adpm.reading import plain_file, read_npz
from adpm.run.lock import hold
from adpm.whole import write_whole

Table = TypeVar("Table")

_LATE = 60
"""Seconds after which a file that another machine wrote has to be seen here."""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_whole(path, lambda p: p.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n"))


def digest(value: object) -> str:
    """Twelve hex digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The entries that both have and that differ, told in a few words; "" when there are none."""
    changed = sorted(name for name in there.keys() & here.keys() if there[name] != here[name])
    return "; ".join(f"{name}: {there[name]!r} there, {here[name]!r} now" for name in changed[:4])


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays to an npz file, whole or not at all."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    write_whole(path, write)


def read_arrays(path: Path, check: Callable[[Arrays], object] | None = None) -> Arrays | None:
    """The arrays of an npz file; None when there is none, or a damaged one, which is told.

    Args:
        path: of the file; what is no plain file counts as absent.
        check: raises anything on arrays that are not what they should be.
    """
    if not path.is_file():
        return None
    try:
        arrays = read_npz(path)
        if check is not None:
            check(arrays)
        return arrays
    except Exception as error:  # zipfile, zlib and numpy have a dozen names for damage
        say(f"'{path}' is damaged ({type(error).__name__}: {error}); doing it again.")
        return None


@dataclass(frozen=True)
class Parts:
    """Finished ranges in a folder, which belongs to one key; a `Keep`.

    Attributes:
        folder: where they lie.
        have: ranges that are known already, from an earlier whole.
    """

    folder: Path
    have: Callable[[range], Arrays | None] = lambda items: None

    def __call__(self, total: int, size: int, work: Callable[[range], Arrays], what: str) -> Iterator[Arrays]:
        ranges = [range(start, min(start + size, total)) for start in range(0, total, size)]
        if ranks().size > 1:
            self.share(ranges, work, what)
            yield from map(self.written, ranges)
            return
        for items in progress(ranges, what=what):
            arrays = self._read(items)
            if arrays is None:
                arrays = work(items)
                save_arrays(self.file(items), arrays)
            yield arrays

    def share(self, ranges: Sequence[range], work: Callable[[range], Arrays], what: str) -> None:
        """Work on the missing ranges together with the other ranks; all of them are there afterwards."""
        here = ranks()
        missing = here.of_first([items for items in ranges if self._read(items) is None] if here.first else None)
        mine = progress(here.shares(len(missing)), total=math.ceil(len(missing) / here.size), what=f"{what}, a share")
        with alone():
            for number in mine:
                save_arrays(self.file(missing[number]), work(missing[number]))
        here.wait()

    def file(self, items: range) -> Path:
        """Where a range is kept."""
        return self.folder / f"{items.start:07d}-{items.stop:07d}.npz"

    def _read(self, items: range) -> Arrays | None:
        arrays = self.have(items)
        return read_arrays(self.file(items)) if arrays is None else arrays

    def written(self, items: range) -> Arrays:
        """What a rank has left, which a shared folder may show late.

        Raises:
            UserError: if it does not.
        """
        for _ in range(_LATE):
            if (arrays := self._read(items)) is not None:
                return arrays
            time.sleep(1.0)
        raise UserError(f"'{self.file(items)}' was written by another process; all of a job have to see one folder.")


def record(
    path: Path,
    make: Callable[[Keep], Mapping[str, Any]],
    check: Callable[[Arrays], object] | None = None,
) -> Arrays:
    """The arrays at `path`: read, or made and kept.

    Args:
        path: named by everything that the arrays depend on.
        make: given a `Keep` for its ranges; these are removed when the whole is there.
        check: see `read_arrays`.
    """
    found = read_arrays(path, check)
    if found is None:
        found = {name: np.asarray(value) for name, value in make(Parts(parts_of(path))).items()}
        save_arrays(path, found)
    remove(parts_of(path))  # a kill may have come between
    return found


def kept(
    path: Path,
    what: str,
    load: Callable[[Path], Table],
    make: Callable[[], Table],
    save: Callable[[Table], Callable[[Path], None]],
) -> Table:
    """What `load` reads at `path`; where it is missing or damaged, which is told, what `make` gives, written by `save`.

    Ranges that `make` has kept in `parts_of(path)` are removed when the whole is there.
    """
    if path.is_file():
        try:
            found = load(path)
            remove(parts_of(path))  # a kill may have come between
            return found
        except UserError as error:
            say(f"{error} Measuring them again.")
    made = make()
    write_whole(path, save(made))
    remove(parts_of(path))
    say(f"{what}: {path}")
    return made


def remove(folder: Path) -> None:
    """Remove a folder that all ranks are done with."""
    if ranks().first:
        shutil.rmtree(folder, ignore_errors=True)


def parts_of(path: Path) -> Path:
    """The folder of a record's finished ranges."""
    return path.with_name(path.name + ".parts")


def check_writable(workdir: Path) -> None:
    """Create the workdir, try it, and keep other commands out of it.

    Raises:
        UserError: if it cannot be written, or another command is at work there.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(f"--workdir = '{workdir}' cannot be written ({error.strerror}); choose another.") from error
    hold(workdir)


def claim(workdir: Path, wanted: Mapping[str, Any]) -> None:
    """Check that the workdir belongs to these fields of a config, and remember that it does.

    Raises:
        UserError: if it holds another model (the differing fields are named).
    """
    path = workdir / "config.json"
    old: dict[str, Any] = {}
    if path.exists():
        text = plain_file(path, "file").read_text(errors="replace")
        try:
            # version 0.1 wrote null for what was left to a member
            old = {name: value for name, value in json.loads(text).items() if value is not None}
        except (ValueError, AttributeError) as error:
            raise UserError(f"'{path}' is not the JSON of a config; remove the workdir or choose another.") from error
    if told := differences(old, wanted):
        raise UserError(f"--workdir = '{workdir}' belongs to another config ({told}); choose another workdir.")
    if not wanted.keys() <= old.keys():
        write_json(path, {**old, **wanted})
