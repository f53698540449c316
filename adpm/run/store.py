"""One way to keep work: files are whole or absent, named by what they depend on; damaged ones are told and made again.

Long work is kept range by range while it lasts (`Parts`) and as one file when it is done (`record`); then the parts go.
A workdir belongs to one model (`claim`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from adpm.errors import UserError
from adpm.progress import Arrays, Keep, progress, say
from adpm.reading import plain_file, read_npz
from adpm.whole import write_whole

Table = TypeVar("Table")


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
        starts = range(0, total, size)
        for start in progress(starts, total=len(starts), what=what):
            items = range(start, min(start + size, total))
            arrays = self.have(items)
            path = self.folder / f"{items.start:07d}-{items.stop:07d}.npz"
            arrays = read_arrays(path) if arrays is None else arrays
            if arrays is None:
                arrays = work(items)
                save_arrays(path, arrays)
            yield arrays


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
        parts = parts_of(path)
        found = {name: np.asarray(value) for name, value in make(Parts(parts)).items()}
        save_arrays(path, found)
        shutil.rmtree(parts, ignore_errors=True)
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
            return load(path)
        except UserError as error:
            say(f"{error} Measuring them again.")
    made = make()
    write_whole(path, save(made))
    shutil.rmtree(parts_of(path), ignore_errors=True)
    say(f"{what}: {path}")
    return made


def parts_of(path: Path) -> Path:
    """The folder of a record's finished ranges."""
    return path.with_name(path.name + ".parts")


def check_writable(workdir: Path) -> None:
    """Create the workdir and try it.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(f"--workdir = '{workdir}' cannot be written ({error.strerror}); choose another.") from error


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
