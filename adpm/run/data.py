"""The data sets that a config can name. What is large lies in files and is read when it is asked for."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adpm import ideal
from adpm.errors import UserError
from adpm.families import Field, Kind
from adpm.run import arrays, cifar10, imagenet64, vectors
from adpm.run.dataset import DRAWN, DataFacts, DataSet, flips_field, held_out_of, range_fields
from adpm.run.folders import FOLDERS
from adpm.run.stored import Later


def digits(*, low: float = -1.0, high: float = 1.0) -> DataSet:
    """scikit-learn's 1797 handwritten digits: 8x8, one channel, levels 0..16; every fifth image is for test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.as_tensor(bunch.images.astype(np.uint8))[:, None]
    labels = torch.as_tensor(bunch.target)
    test = torch.arange(len(images)) % 5 == 4
    return DataSet(
        "digits",
        {"train": images[~test], "test": images[test]},
        17,
        low,
        high,
        {"train": labels[~test], "test": labels[test]},
    )


def patches(*, size: int = 32, stride: int = 4, low: float = -1.0, high: float = 1.0) -> DataSet:
    """RGB crops (`size` x `size`, every `stride` pixels) of scikit-learn's two photographs, 256 levels.

    The right quarter of each photograph is for test; no training crop touches it. Test crops are shuffled: the first of
    them would all be sky.
    """
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    largest = min(min(p.shape[0], p.shape[1] // 4) for p in photographs)
    if not 1 <= size <= largest:
        raise UserError(f"`size` = {size} does not fit the photographs; 1 to {largest} pixels do.")
    parts: dict[str, list[Tensor]] = {"train": [], "test": []}
    for photograph in photographs:
        image = torch.tensor(photograph).permute(2, 0, 1)
        border = image.shape[2] * 3 // 4
        for name, region in (("train", image[:, :, :border]), ("test", image[:, :, border:])):
            crops = region.unfold(1, size, stride).unfold(2, size, stride)
            parts[name].append(crops.permute(1, 2, 0, 3, 4).reshape(-1, 3, size, size))
    train, test = (torch.cat(part) for part in parts.values())
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    splits = {"train": train, "test": test[order]}
    return DataSet("patches", splits, 256, low, high, {}, digest="test shuffled")  # keys are not those of crops in rows


def toy(*, size: int = 4, seed: int = 0) -> DataSet:
    """A mixture with known truth: five Gaussians on `size` x `size` images, continuous values.

    Means are smooth random fields in [-0.8, 0.8], standard deviations 0.05 to 0.3; 8192 draws to train, 1024 to test.
    """
    rng = np.random.default_rng(seed)
    grid = (np.arange(size) + 0.5) / size
    waves = rng.uniform(0.5, 1.5, (5, 2)), rng.uniform(0, 2 * np.pi, (5, 2))
    fields = [
        np.outer(np.sin(2 * np.pi * f[0] * grid + p[0]), np.cos(2 * np.pi * f[1] * grid + p[1]))
        for f, p in zip(*waves, strict=True)
    ]
    means = 0.8 * np.stack(fields).reshape(5, -1)
    deviations = np.geomspace(0.05, 0.3, 5)
    truth = ideal.diagonal_mixture(rng.dirichlet(5 * np.ones(5)), means, deviations**2, (1, size, size))
    draws = truth.sample(8192 + 1024, seed).float()
    return DataSet("toy", {"train": draws[:8192], "test": draws[8192:]}, 0, -2.0, 2.0, {}, truth)


def cifar10_images(
    *,
    folder: str = "data",
    download: bool = False,
    verify: bool = False,
    low: float = -1.0,
    high: float = 1.0,
    flips: bool = False,
) -> DataSet:
    """CIFAR-10: 50,000 and 10,000 RGB images of 32x32, 256 levels, from its published archive in `folder`, or unpacked.

    Read when an image or a label is asked for; `verify` is for `cifar10.missing`, which looks before any work.
    """
    read = cache(lambda: cifar10.read(Path(folder), download))
    splits, labels = Later(cifar10.SPLITS, lambda: read()[0]), Later(cifar10.SPLITS, lambda: read()[1])
    return DataSet("cifar10", splits, 256, low, high, labels, flips=flips, known_shape=cifar10.SHAPE)


def imagenet64_images(
    *, folder: str, low: float = -1.0, high: float = 1.0, flips: bool = False, workers: int = 2
) -> DataSet:
    """ImageNet 64: 1,281,167 and 50,000 RGB images of 64x64, 256 levels, from its published batches in `folder`."""
    place = Path(folder)
    splits = Later(imagenet64.SPLITS, lambda: {s: imagenet64.images_of(place, s, workers) for s in imagenet64.SPLITS})
    labels = Later(imagenet64.SPLITS, lambda: {s: imagenet64.labels_of(place, s) for s in imagenet64.SPLITS})
    return DataSet("imagenet64", splits, 256, low, high, labels, flips=flips, known_shape=imagenet64.SHAPE)


def array_images(*, file: str, test_file: str = "", held_out: int = 0, low: float = -1.0, high: float = 1.0) -> DataSet:
    """Your own images in one file, 256 levels: see `adpm.run.arrays`. The last `held_out` are for test (0: a fifth)."""
    images, labels = arrays.read_images(Path(file))
    sets, labelled = {"train": images}, {} if labels is None else {"train": labels}
    if test_file:
        sets["test"], of_test = arrays.read_images(Path(test_file))
        labelled = {} if of_test is None or labels is None else {**labelled, "test": of_test}
        if sets["test"].shape[1:] != images.shape[1:]:
            shapes = tuple(images.shape[1:]), tuple(sets["test"].shape[1:])
            raise UserError(f"`test_file` = '{test_file}' has images of shape {shapes[1]}, `file` of {shapes[0]}.")
    else:
        kept = len(images) - held_out_of(len(images), held_out)
        sets = {"train": images[:kept], "test": images[kept:]}
        labelled = {} if labels is None else {"train": labels[:kept], "test": labels[kept:]}
    content = hashlib.sha256(b"".join(part.numpy().tobytes() for part in sets.values())).hexdigest()[:12]
    return DataSet("arrays", sets, 256, low, high, labelled, digest=content)


def vectors_of(*, file: str, held_out: int = 0, low: float = -1.0, high: float = 1.0) -> DataSet:
    """Your own vectors in one file: see `adpm.run.vectors`. The last `held_out` are for test (0: a fifth)."""
    found = vectors.read_vectors(Path(file))
    vectors.require_range(found, low, high)
    kept = len(found) - held_out_of(len(found), held_out, "vectors")
    content = hashlib.sha256(found.numpy().tobytes()).hexdigest()[:12]
    return DataSet("vectors", {"train": found[:kept], "test": found[kept:]}, 0, low, high, {}, digest=content)


_PLACE = {
    "folder": Field("data", "where the archive lies, or its content", of=()),
    "download": Field(False, "fetch the archive when it is not there", of=()),
    "verify": Field(False, "first check that the archive is the published one, by its SHA-256", of=()),
}

_HELD_OUT = Field(0, "examples at the end that are for test; 0 = a fifth", low=0, of=DRAWN)

DATA_SETS: dict[str, Kind] = {
    "digits": Kind(digits, "scikit-learn's 1,797 handwritten digits, 8x8, 17 levels", DataFacts(), range_fields()),
    "patches": Kind(
        patches,
        "RGB crops of scikit-learn's two photographs, 256 levels",
        DataFacts(),
        {
            "size": Field(32, "image side in pixels", low=1, of=DRAWN),
            "stride": Field(4, "pixels between crops", low=1, of=DRAWN),
            **range_fields(),
        },
    ),
    "toy": Kind(
        toy,
        "a mixture of five Gaussians with known truth, continuous values",
        DataFacts(),
        {
            "size": Field(4, "image side in pixels", low=1, of=DRAWN),
            "seed": Field(0, "which mixture", low=0, of=DRAWN),
        },
    ),
    "cifar10": Kind(
        cifar10_images,
        "CIFAR-10, 60,000 RGB images of 32x32",
        DataFacts(lambda **options: cifar10.missing(Path(options["folder"]), options["download"], options["verify"])),
        {**_PLACE, **flips_field(), **range_fields()},
    ),
    "imagenet64": Kind(
        imagenet64_images,
        "ImageNet in 64x64, 1,331,167 RGB images, from its published batches",
        DataFacts(lambda **options: imagenet64.missing(Path(options["folder"]))),
        {
            "folder": Field("data", "where the batches lie, npz or pickles; they are unpacked there, once", of=()),
            "workers": Field(2, "processes that read images ahead in training and long passes", low=0, of=()),
            **flips_field(),
            **range_fields(),
        },
    ),
    **FOLDERS,
    "arrays": Kind(
        array_images,
        "your own images in an npz, npy or IDX file, 256 levels",
        DataFacts(lambda **options: arrays.missing(options.get("file", ""))),
        {
            "file": Field("", "npz (`images`, `labels`), npy or IDX (MNIST's), uint8 [n, H, W] or [n, H, W, C]", of=()),
            "test_file": Field("", "the same for test; empty = the last images of `data.file`", of=()),
            "held_out": _HELD_OUT,
            **range_fields(),
        },
    ),
    "vectors": Kind(
        vectors_of,
        "your own vectors in an npz or npy file, such as embeddings, continuous values",
        DataFacts(lambda **options: vectors.missing(options.get("file", ""))),
        {
            "file": Field("", "npz (`vectors`) or npy, floating-point numbers [n, d]", of=()),
            "held_out": _HELD_OUT,
            **range_fields(),
        },
    ),
}
