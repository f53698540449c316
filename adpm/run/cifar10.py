"""CIFAR-10 from its published archive, `cifar-10-python.tar.gz`: a local copy, or fetched with its hash checked.

The archive holds pickles of 10,000 images each; they are read by an unpickler that can build numpy arrays and nothing
else.
"""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from adpm.errors import UserError

ARCHIVE = "cifar-10-python.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = ("test_batch",)


class _Arrays(pickle.Unpickler):
    """Unpickles dicts of numpy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        core = np._core.multiarray  # type: ignore[attr-defined]
        known = {
            ("numpy.core.multiarray", "_reconstruct"): core._reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): core._reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
        return known[module, name]


def missing(folder: Path, download: bool) -> str:
    """What is not there, and how it is got; "" where nothing is missing."""
    path = folder / ARCHIVE
    if download or path.is_file():
        return ""
    return (
        f"CIFAR-10 needs '{ARCHIVE}', looked for at '{path}'; put the published archive there (config.data.folder "
        "names the folder), or fetch it with --config.data.download=True."
    )


def archive_in(folder: Path, download: bool) -> Path:
    """The archive's path, fetched first if asked.

    Raises:
        UserError: if it is not there, naming the place and the ways to get it.
    """
    path = folder / ARCHIVE
    if path.is_file():
        return path
    if told := missing(folder, download):
        raise UserError(told)
    import pooch

    try:
        pooch.retrieve(URL, f"sha256:{SHA256}", fname=ARCHIVE, path=str(folder), progressbar=True)
    except Exception as error:
        raise UserError(f"'{ARCHIVE}' could not be fetched into '{folder}' ({error}).") from error
    return path


def read(folder: Path, download: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Images [n, 3, 32, 32] uint8 and labels [n] of "train" and "test".

    Raises:
        UserError: if the archive is missing or is not the published one's format.
    """
    path = archive_in(folder, download)
    images: dict[str, Tensor] = {}
    labels: dict[str, Tensor] = {}
    try:
        with tarfile.open(path) as archive:
            for split, names in (("train", TRAIN), ("test", TEST)):
                batches = [_batch(archive.extractfile(f"cifar-10-batches-py/{name}")) for name in names]
                images[split] = torch.cat([batch[0] for batch in batches])
                labels[split] = torch.cat([batch[1] for batch in batches])
    except (tarfile.TarError, pickle.UnpicklingError, KeyError, EOFError, OSError, ValueError) as error:
        raise UserError(f"'{path}' is not the published CIFAR-10 archive ({error}); fetch it again.") from error
    return images, labels


def _batch(file: IO[bytes] | None) -> tuple[Tensor, Tensor]:
    if file is None:
        raise ValueError("a member is not a file")
    stored = _Arrays(file, encoding="bytes").load()
    images = np.asarray(stored[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
    return torch.tensor(images), torch.tensor(stored[b"labels"])
