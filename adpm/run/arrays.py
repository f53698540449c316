"""Images in one file: an npz with `images` (and `labels`), an npy, or MNIST's IDX format, gzipped or not.

Images are uint8, [n, H, W] or [n, H, W, C] with 1 or 3 channels; labels of `*images-idx3-ubyte*` are looked for in
`*labels-idx1-ubyte*` beside it.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adpm.errors import UserError
from adpm.reading import DEFLATE, looks_like, plain_file, read_npy, read_npz

_UINT8 = 0x08
"""IDX's code for unsigned bytes, the type of all that MNIST and its kin have."""


def missing(file: str) -> str:
    """What is not there, in words; "" where nothing is missing."""
    if not file:
        return "data set 'arrays' needs config.data.file, an npz, npy or IDX file of images."
    return "" if Path(file).exists() else f"images '{file}' do not exist (config.data.file)."


def read_images(path: Path) -> tuple[Tensor, Tensor | None]:
    """Images [n, C, H, W] uint8, and their labels [n] where there are any.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    plain_file(path, "image file")
    try:
        images, labels = _arrays(path)
        return torch.from_numpy(_channels_first(images)), _checked(labels, len(images))
    except (ValueError, KeyError, OSError, EOFError, struct.error, zlib.error) as error:
        found = looks_like(path)
        told = f" (it looks like {found})" if found else ""
        raise UserError(f"'{path}' holds no images that can be read{told}: {str(error).rstrip('.')}.") from error


Found = tuple[NDArray[Any], NDArray[Any] | None]
"""Images, and their labels where there are any."""


def _arrays(path: Path) -> Found:
    """By what the file begins with, whatever it is called."""
    with path.open("rb") as file:
        start = file.read(max(map(len, _READERS)))
    return next((read for begin, read in _READERS.items() if start.startswith(begin)), _idx)(path)


def _npz(path: Path) -> Found:
    found = read_npz(path)
    if "images" not in found:
        raise ValueError(f"it has the arrays {', '.join(sorted(found)) or 'none'}, not `images`")
    return found["images"], found.get("labels")


def _npy(path: Path) -> Found:
    return read_npy(path), None


def _idx(path: Path) -> Found:
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    return read_idx(path), read_idx(beside) if beside != path and beside.is_file() else None


_READERS: dict[bytes, Callable[[Path], Found]] = {b"PK": _npz, b"\x93NUMPY": _npy}


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An array of unsigned bytes in IDX: two zero bytes, type, number of dimensions, their sizes (big-endian), data."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if zipped else path.open("rb") as file:
        zeros, code, dims = struct.unpack(">HBB", file.read(4))
        if zeros or code != _UINT8 or not 1 <= dims <= 4:
            raise ValueError("it does not begin as an IDX file of unsigned bytes does")
        shape = struct.unpack(f">{dims}I", file.read(4 * dims))
        claimed = math.prod(shape)
        if claimed > path.stat().st_size * (DEFLATE if zipped else 1):
            raise ValueError(f"it claims {shape} bytes, more than there are")
        data = file.read(claimed + 1)  # a byte more, so that neither a short file nor a long one passes
    if len(data) != claimed:
        raise ValueError(f"it claims {shape} bytes and has {'more' if len(data) > claimed else len(data)}")
    return np.frombuffer(data, np.uint8).reshape(shape).copy()


def _channels_first(images: NDArray[Any]) -> NDArray[np.uint8]:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        raise ValueError(f"images are uint8 [n, H, W] or [n, H, W, C], not {images.dtype} {images.shape}")
    if images.ndim == 3:
        return images[:, None]
    if images.shape[3] not in (1, 3):
        raise ValueError(f"images [n, H, W, C] have 1 or 3 channels, not {images.shape}")
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _checked(labels: NDArray[Any] | None, count: int) -> Tensor | None:
    if labels is None:
        return None
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ValueError(f"its labels are {labels.dtype} {labels.shape} for {count} images")
    return torch.from_numpy(labels.astype(np.int64))
