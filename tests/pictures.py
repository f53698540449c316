"""Small folders of images in the published layouts, for tests that read them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from adpm.run import imagenet64

KINDS = (".png", ".webp")
"""Formats in which these images are exact."""


def smooth(number: int, height: int, width: int) -> np.ndarray:
    """An RGB image [H, W, 3] that JPEG can keep: a wave of its own."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(0.1 * (number + 1 + c) + 0.2 * x + 0.1 * (c + 1) * y) for c in range(3)]
    return (127.5 + 100.0 * np.stack(waves, -1)).astype(np.uint8)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".webp":
        options = {"lossless": True, **options}
    Image.fromarray(array).save(path, **options)  # type: ignore[arg-type]
    return path


def folder(root: Path, count: int = 20, height: int = 8, width: int = 8, classes: int = 1) -> np.ndarray:
    """Images number 0.. in `root`, or in its folders a, b, ...; returns them in the order of a listing [n, H, W, 3]."""
    arrays = [smooth(i, height, width) for i in range(count)]
    order = sorted(range(count), key=lambda i: (i % classes, i))
    for i, array in enumerate(arrays):
        inside = root / chr(ord("a") + i % classes) if classes > 1 else root
        save(inside / f"{i:04d}{KINDS[i % 2]}", array)
    return np.stack([arrays[i] for i in order])


def imagenet(root: Path, images: int = 3, packed: str = "npz") -> dict[str, np.ndarray]:
    """All eleven batches of `images` each, of noise; returns data and labels by batch."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    out = {}
    for k, name in enumerate((*imagenet64.TRAIN, *imagenet64.TEST)):
        data = rng.integers(0, 256, (images, 12288), dtype=np.uint8)
        labels = [1 + (7 * k + i) % 1000 for i in range(images)]
        out[name] = data
        if packed == "npz":
            np.savez(root / f"{name}.npz", data=data, labels=np.array(labels), mean=data.mean(0))
        else:
            stored = {"data": data, "labels": labels, "mean": data.mean(0)}
            (root / name).write_bytes(pickle.dumps(stored, protocol=4))
    return out
