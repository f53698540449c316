"""Reading files that may be anything: a missing one, a pipe, a web page that was saved as weights, half an archive.

Nothing is run, nothing waits, and no more memory is taken than a file's own size allows.
"""

from __future__ import annotations

import json
import math
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from adpm.errors import UserError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_SIGNATURES = (
    (b"version https://git-lfs", "a Git LFS pointer, whose content was not fetched (git lfs pull)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x89PNG", "a PNG picture"),
    (b"%PDF", "a PDF"),
)
DEFLATE = 1100
"""No deflate stream expands so many times: 1032 at most."""


def plain_file(path: Path, what: str) -> Path:
    """The path, if it is a plain file that can be opened without waiting.

    Raises:
        UserError: naming `what` and what is there instead.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise UserError(f"{what} '{path}' does not exist.") from error
    except (OSError, ValueError) as error:  # no permission, a name too long, a zero byte
        raise UserError(f"{what} '{path}' cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"{what} '{path}' is {_KINDS.get(stat.S_IFMT(mode), 'something')}, not a plain file.")
    return path


def read_json(path: Path, what: str = "file") -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: if there is no such file, or anything else in it.
    """
    plain_file(path, what)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
    except (OSError, ValueError) as error:
        raise UserError(f"{what} '{path}' is no JSON object ({error}).") from error
    return found


@contextmanager
def measured_file(path: Path, what: str) -> Iterator[dict[str, NDArray[Any]]]:
    """The arrays of a file of ours, such as a "moments file", for as long as they are made sense of.

    Raises:
        UserError: if it is missing, not such a file, or whatever is raised inside.
    """
    plain_file(path, what)
    try:
        yield read_npz(path)
    except Exception as error:  # json and numpy raise a dozen kinds on what others have written
        raise UserError(f"'{path}' is not a {what} of this project: {str(error).rstrip('.')}.") from error


def looks_like(path: Path) -> str:
    """What a file is that is no archive of arrays, by its first bytes: "an HTML page", ...; "" if they do not say."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "empty"
    for signature, name in _SIGNATURES:
        if start.startswith(signature):
            return name
    if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < path.stat().st_size:
        return "a safetensors file under another name"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, perhaps of a download that failed"
    if text.startswith((b"<?xml", b"{", b"[")) and _is_text(start):
        return "XML or JSON text"
    return "text" if _is_text(start) else ""


def _is_text(start: bytes) -> bool:
    try:
        return all(c.isprintable() or c in "\t\r\n" for c in start.decode("utf-8", errors="strict"))
    except UnicodeDecodeError as error:
        return error.start > len(start) - 4 and _is_text(start[: error.start])  # cut inside a character


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Arrays of an npz file, all of them unless `names` are given; none is bigger than the file can hold.

    Raises:
        UserError: if it is no plain file.
        ValueError: saying what is wrong with it: no npz, damaged, an array missing, or of objects.
    """
    plain_file(path, "file")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = list(members) if names is None else names
            if missing := [name for name in wanted if name not in members]:
                raise ValueError(f"it holds no array '{missing[0]}'")
            return {name: _member(archive, members[name], name, path.stat().st_size) for name in wanted}
    except (OSError, EOFError, RuntimeError, NotImplementedError, struct.error, OverflowError, MemoryError) as error:
        raise ValueError(f"it cannot be read: {error}") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"it is damaged: {error}") from error


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, whole: int) -> NDArray[Any]:
    ratio = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: DEFLATE}.get(info.compress_type, 0)
    if info.compress_size > whole or info.file_size > ratio * info.compress_size:
        raise ValueError(f"'{name}' claims {info.file_size} bytes, more than there are")
    with archive.open(info) as file:
        _check_header(file, info.file_size)
    with archive.open(info) as file:
        return npy.read_array(file, allow_pickle=False)


def read_npy(path: Path) -> NDArray[Any]:
    """The array in an npy file; raises as `read_npz` does."""
    plain_file(path, "file")
    try:
        with path.open("rb") as file:
            _check_header(file, path.stat().st_size)
            file.seek(0)
            return npy.read_array(file, allow_pickle=False)
    except (OSError, EOFError) as error:
        raise ValueError(f"it cannot be read: {error}") from error


def _check_header(file: IO[bytes], size: int) -> None:
    """Refuse an array of objects, or one that claims another size than the file has."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"it claims an array {shape} of {dtype}, which is not what it holds")


def read_betas(path: str) -> NDArray[np.float64]:
    """Betas from a file: `.npy`, or text with one number per line.

    Raises:
        UserError: if it is missing, not a plain file, or holds anything but numbers.
    """
    file = plain_file(Path(path), "`betas_file`")
    try:
        if not file.stat().st_size:
            raise ValueError("it is empty")
        return np.asarray(read_npy(file) if file.suffix == ".npy" else np.loadtxt(file), dtype=np.float64)
    except Exception as error:  # numpy raises a dozen kinds on damaged files
        raise UserError(f"`betas_file` '{path}' cannot be read as numbers: {str(error).rstrip('.')}.") from error
