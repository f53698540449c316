"""Vectors in one file, such as embeddings: an npz with `vectors`, or an npy, float [n, d].

A vector is an image of one row, [1, 1, d], so that everything about images holds for it; it has no levels and is taken
as it is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adpm.errors import UserError
from adpm.reading import looks_like, plain_file, read_npy, read_npz


def missing(file: str) -> str:
    """What is not there, in words; "" where nothing is missing."""
    if not file:
        return "data set 'vectors' needs config.data.file, an npz or npy file of vectors."
    return "" if Path(file).exists() else f"vectors '{file}' do not exist (config.data.file)."


def read_vectors(path: Path) -> Tensor:
    """[n, 1, 1, d], float32.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    plain_file(path, "vectors file")
    try:
        with path.open("rb") as file:
            zipped = file.read(2).startswith(b"PK")
        found = read_npz(path, ["vectors"])["vectors"] if zipped else read_npy(path)
        if found.ndim != 2 or not np.issubdtype(found.dtype, np.floating) or not found.size:
            raise ValueError(f"vectors are floating-point numbers [n, d], not {found.dtype} {found.shape}")
        if not np.isfinite(found).all():
            raise ValueError("some of its numbers are not finite")
    except ValueError as error:
        what = looks_like(path)
        told = f" (it looks like {what})" if what else ""
        raise UserError(f"'{path}' holds no vectors that can be read{told}: {str(error).rstrip('.')}.") from error
    return torch.from_numpy(found.astype(np.float32))[:, None, None]


def require_range(vectors: Tensor, low: float, high: float) -> None:
    """Refuse a range that the vectors leave: bounds and limits of x0 follow from it.

    Raises:
        UserError: naming the range that they have.
    """
    least, most = float(vectors.min()), float(vectors.max())
    if not low <= least <= most <= high:
        raise UserError(
            f"`low` = {low:g} and `high` = {high:g} must hold all vectors, whose entries are {least:.6g} to {most:.6g}."
        )
