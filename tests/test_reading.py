"""Files that may be anything: what they are is said, nothing hangs, and claims of size are not believed."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy

from adpm.errors import UserError
from adpm.process import read_betas
from adpm.reading import looks_like, plain_file, read_npy, read_npz


def test_a_plain_file_is_itself(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert [plain_file(tmp_path / name, "file") for name in ("a", "link")] == [tmp_path / "a", tmp_path / "link"]


def test_what_is_no_plain_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name, told in {
        "nowhere": "does not exist",
        "dangling": "does not exist",
        ".": "is a folder, not a plain file",
        "pipe": "is a named pipe, not a plain file",
        "link": "is a named pipe",
        "/dev/null": "is a device",
        "a" * 300: "cannot be read: File name too long",
        "a\0b": "cannot be read: embedded null byte",
    }.items():
        with pytest.raises(UserError, match=f"the thing '.*' {told}"):
            plain_file(tmp_path / name, "the thing")


@pytest.mark.parametrize(
    ("start", "told"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf\n <!DOCTYPE HTML PUBLIC>", "an HTML page, perhaps of a download that failed"),
        (b"<html lang=de>", "an HTML page, perhaps of a download that failed"),
        (b'<?xml version="1.0"?><Error/>', "XML or JSON text"),
        (b'{"error": "not found"}', "XML or JSON text"),
        (
            b"version https://git-lfs.github.com/spec/v1",
            "a Git LFS pointer, whose content was not fetched (git lfs pull)",
        ),
        (b"\x1f\x8b\x08\x00", "a gzip archive"),
        (b"0.1\n0.2\n", "text"),
        ("naïve".encode() * 200, "text"),
        (b"\x80\x02}q\x00.", ""),
        (b"PK\x03\x04\x00\x00", ""),
        (struct.pack("<Q", 10**6) + b"{not so long", ""),
    ],
)
def test_first_bytes_tell(tmp_path: Path, start: bytes, told: str) -> None:
    (tmp_path / "file").write_bytes(start)
    assert looks_like(tmp_path / "file") == told


ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.array("text"), "c": np.zeros((0, 2), dtype=np.int32)}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back(tmp_path: Path, save) -> None:
    save(tmp_path / "file.npz", **ARRAYS)
    found = read_npz(tmp_path / "file.npz")
    assert found.keys() == ARRAYS.keys()
    assert all(
        np.array_equal(found[name], value) and found[name].dtype == value.dtype for name, value in ARRAYS.items()
    )
    assert read_npz(tmp_path / "file.npz", ["b"]).keys() == {"b"}
    save(tmp_path / "zeros.npz", zeros=np.zeros(2_000_000))  # deflated a thousand times
    assert read_npz(tmp_path / "zeros.npz")["zeros"].shape == (2_000_000,)


def header(shape: tuple[int, ...], dtype: str = "<f8") -> bytes:
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def archive(content: bytes, claimed: int | None = None, compress: int = zipfile.ZIP_STORED) -> bytes:
    """An npz with one member `a`; its directory claims another size if `claimed`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compress) as out:
        out.writestr("a.npy", content)
    whole = bytearray(file.getvalue())
    if claimed is not None:
        directory = whole.index(b"PK\x01\x02")
        whole[directory + 24 : directory + 28] = struct.pack("<I", claimed)
    return bytes(whole)


def broken_stream() -> bytes:
    whole = bytearray(archive(header((1000,)) + np.random.default_rng(0).bytes(8000), compress=zipfile.ZIP_DEFLATED))
    whole[60:64] = b"\xff\xff\xff\xff"
    return bytes(whole)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is damaged: File is not a zip file"),
        (b"PK\x03\x04", "is damaged"),
        (archive(header((2**40,)) + b"12345678"), r"claims an array \(1099511627776,\) of float64, which is not what"),
        (archive(header((2**40,)), 2**32 - 2), "'a' claims 4294967294 bytes, more than there are"),
        (archive(header((2**28,)), 2**31 + 128, zipfile.ZIP_DEFLATED), "claims 2147483776 bytes, more than there are"),
        (archive(header((-1,)) + b"12345678"), r"claims an array \(-1,\)"),
        (archive(header((1,), "|O") + b"12345678"), "of object, which is not what it holds"),
        (archive(b"\x93NUMPY\x09\x00" + bytes(100)), "Cannot parse header"),
        (archive(b"not an array at all"), "the magic string is not correct"),
        (archive(header((1,)) + b"12345678", compress=zipfile.ZIP_LZMA), "more than there are"),
        (broken_stream(), "is damaged: .*(invalid|incorrect)"),
    ],
)
def test_damaged_archives_are_told(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "file.npz").write_bytes(content)
    with pytest.raises(ValueError, match=f"{told}"):
        read_npz(tmp_path / "file.npz")


def test_a_missing_array_and_a_pipe_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "file.npz", a=np.ones(2))
    with pytest.raises(ValueError, match="it holds no array 'b'"):
        read_npz(tmp_path / "file.npz", ["a", "b"])
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(UserError, match="is a named pipe"):
        read_npz(tmp_path / "pipe.npz")


def test_single_arrays(tmp_path: Path) -> None:
    path = tmp_path / "betas.npy"
    np.save(path, ARRAYS["a"])
    np.testing.assert_array_equal(read_npy(path), ARRAYS["a"])
    path.write_bytes(header((2**40,)) + b"12345678")
    with pytest.raises(ValueError, match=r"claims an array \(1099511627776,\)"):
        read_npy(path)
    with pytest.raises(UserError, match=r"`betas_file` '.*betas\.npy' cannot be read as numbers: it claims an array"):
        read_betas(str(path))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"`betas_file` '.*betas\.npy' is a named pipe, not a plain file"):
        read_betas(str(path))
