"""A small archive in CIFAR-10's published format, for tests that read one."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np

from adpm.run.cifar10 import ARCHIVE, TEST, TRAIN


def archive(folder: Path, images: int = 4) -> None:
    """Five training batches and a test batch of `images` each, of noise."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    with tarfile.open(folder / ARCHIVE, "w:gz") as file:
        for i, name in enumerate((*TRAIN, *TEST)):
            batch = {
                b"data": rng.integers(0, 256, (images, 3072), dtype=np.uint8),
                b"labels": [i] * images,
                b"batch_label": name.encode(),
            }
            stored = pickle.dumps(batch, protocol=4)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(stored)
            file.addfile(member, io.BytesIO(stored))
