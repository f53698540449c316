"""CIFAR-10 as published, `cifar-10-python.tar.gz` or what is in it: a local copy, or fetched with its hash checked.

The archive holds pickles of 10,000 images each.
"""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from adpm.errors import UserError
from adpm.run.batches import unpickled

ARCHIVE = "cifar-10-python.tar.gz"
UNPACKED = "cifar-10-batches-py"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
SHAPE = (3, 32, 32)
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = ("test_batch",)
SPLITS = {"train": TRAIN, "test": TEST}


def unpacked_in(folder: Path) -> Path | None:
    """Where the archive's batches lie as files: in the folder of the archive's own name, or right in `folder`."""
    return next((place for place in (folder / UNPACKED, folder) if (place / TRAIN[0]).is_file()), None)


def missing(folder: Path, download: bool, verify: bool = False) -> str:
    """What is not there, and how it is got, or what is not the published archive; "" where nothing is wrong."""
    path = folder / ARCHIVE
    if path.is_file():
        return _not_published(path) if verify else ""
    there = unpacked_in(folder)
    if there is not None and verify:
        return f"config.data.verify = True needs the archive '{path}': '{there}' holds what was in one."
    if there is not None:
        gone = [name for name in (*TRAIN, *TEST) if not (there / name).is_file()]
        return f"'{there}' lacks {', '.join(gone)} of CIFAR-10." if gone else ""
    if download:
        return ""
    return (
        f"CIFAR-10 needs '{ARCHIVE}', looked for at '{path}'; put the published archive there (config.data.folder "
        "names the folder), or fetch it with --config.data.download=True."
    )


def _not_published(path: Path) -> str:
    told = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            told.update(part)
    found = told.hexdigest()
    return "" if found == SHA256 else f"'{path}' is not the published archive: its SHA-256 is {found}, not {SHA256}."


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
    """Images [n, 3, 32, 32] uint8 and labels [n] of "train" and "test", from the archive or else from its content.

    Raises:
        UserError: if they are missing or are not in the published format.
    """
    unpacked = None if (folder / ARCHIVE).is_file() else unpacked_in(folder)
    path = archive_in(folder, download) if unpacked is None else unpacked
    images: dict[str, Tensor] = {}
    labels: dict[str, Tensor] = {}
    try:
        with _batches_of(path) as opened:
            for split, names in SPLITS.items():
                batches = [_batch(opened(name)) for name in names]
                images[split] = torch.cat([batch[0] for batch in batches])
                labels[split] = torch.cat([batch[1] for batch in batches])
    except (tarfile.TarError, pickle.UnpicklingError, KeyError, EOFError, OSError, ValueError) as error:
        told = "the published CIFAR-10 archive" if unpacked is None else "CIFAR-10 as published, unpacked"
        raise UserError(f"'{path}' is not {told} ({error}); fetch it again.") from error
    return images, labels


@contextmanager
def _batches_of(path: Path) -> Iterator[Callable[[str], IO[bytes] | None]]:
    """Name of a batch -> its file, in an archive or a folder."""
    if path.is_dir():
        yield lambda name: (path / name).open("rb")
    else:
        with tarfile.open(path) as archive:
            yield lambda name: archive.extractfile(f"{UNPACKED}/{name}")


def _batch(file: IO[bytes] | None) -> tuple[Tensor, Tensor]:
    if file is None:
        raise ValueError("a member is not a file")
    with file:
        stored = unpickled(file)
    images = np.asarray(stored["data"], dtype=np.uint8).reshape(-1, *SHAPE)
    return torch.tensor(images), torch.tensor(stored["labels"])
