"""Features of a set of images: taken once, kept range by range while that lasts, and as one file afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adpm.errors import UserError
from adpm.progress import Arrays, Keep
from adpm.reading import plain_file, read_npz
from adpm.run.distances import FeatureStatistics
from adpm.run.listing import spread
from adpm.run.metrics import Scatter
from adpm.run.store import digest, record
from adpm.run.stored import Images, in_batches

KEPT = 10_000
"""Images whose features are kept for what needs more than mean and covariance."""

_RANGE = 8192
"""Images whose sums are kept while the rest is worked on."""


@dataclass(frozen=True)
class ImageSet:
    """Images that distances are measured of.

    Attributes:
        stored: images that these are among.
        numbers: which, in order, [n].
        scale: stored images -> images in [-1, 1].
        key: everything that they depend on, as JSON.
        told: what they are, for people.
    """

    stored: Images
    numbers: Tensor
    scale: Callable[[Tensor], Tensor]
    key: Mapping[str, Any]
    told: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.stored.shape[1:])

    def batches(self, items: range, size: int) -> Iterator[Tensor]:
        """Images of a range, batch by batch."""
        parts = self.numbers[items.start : items.stop].split(size)
        return (self.scale(part) for part in in_batches(self.stored, parts))

    def some(self, count: int) -> Tensor:
        """At most `count` of them, evenly spread."""
        chosen = torch.from_numpy(spread(len(self), min(count, len(self))))
        return torch.cat([self.scale(part) for part in in_batches(self.stored, self.numbers[chosen].split(256))])


def statistics_of(
    images: ImageSet, network: nn.Module, of: Mapping[str, Any], batch_size: int, device: torch.device, cache: Path
) -> FeatureStatistics:
    """The statistics of these features of these images: those in the cache, or taken and kept there.

    The file has `mu` and `sigma`, so that it can be a reference itself, and says what it is of.

    Args:
        images: at least two.
        network: see `adpm.run.metrics.FEATURES`; moved to `device`.
        of: what tells the network from others.
        batch_size: images per call.
        device: where the network works.
        cache: the folder of files, named by everything that they depend on.

    Raises:
        UserError: for images or features that are no finite numbers.
    """
    if len(images) < 2:
        raise UserError(f"distances need at least two images on either side, not {len(images)}.")
    chosen, key = spread(len(images), min(KEPT, len(images))), {**images.key, **of}

    @torch.inference_mode()
    def work(items: range) -> Arrays:
        found = torch.cat([network(x.to(device)).cpu() for x in images.batches(items, batch_size)]).double().numpy()
        if not np.isfinite(found).all():
            raise UserError("distances need images of finite numbers; some, or their features, are NaN or infinite.")
        own = Scatter.of(found)
        kept = found[chosen[items.start : items.stop]].astype(np.float32)
        return {"mean": own.mean, "scatter": own.scatter, "features": kept}

    def make(keep: Keep) -> Arrays:
        network.to(device)
        merged = _merged(len(images), keep(len(images), _RANGE, work, "features"))
        return {**merged, "provenance": np.array(json.dumps(key, sort_keys=True))}

    def check(arrays: Arrays) -> None:
        count, size = arrays["features"].shape
        if count != chosen.sum() or arrays["mu"].shape != (size,) or arrays["sigma"].shape != (size, size):
            raise ValueError(f"{count} x {size} features")

    found = record(cache / f"features-{digest(key)}.npz", make, check)
    mean, covariance = (found[name].astype(np.float64) for name in ("mu", "sigma"))
    return FeatureStatistics(len(images), mean, covariance, found["features"].astype(np.float32))


def _merged(count: int, parts: Iterator[Arrays]) -> Arrays:
    """Mean and covariance of all, from the ranges' own."""
    scatters, features = [], []
    for start, part in zip(range(0, count, _RANGE), parts, strict=True):
        mean, scatter = (part[name].astype(np.float64) for name in ("mean", "scatter"))
        scatters.append(Scatter(min(_RANGE, count - start), mean, scatter))
        features.append(part["features"])
    whole = reduce(add, scatters)
    return {"mu": whole.mean, "sigma": whole.covariance, "features": np.concatenate(features)}


def published_statistics(path: Path, size: int) -> FeatureStatistics:
    """`mu` and `sigma` of a npz file, as pytorch-fid and others write them.

    Args:
        path: of the file.
        size: how many features there have to be.

    Raises:
        UserError: naming what is wrong with the file.
    """
    plain_file(path, "reference")
    try:
        found = read_npz(path, ("mu", "sigma"))
        mean, covariance = (found[name].astype(np.float64) for name in ("mu", "sigma"))
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(f"`mu` is {mean.shape} and `sigma` {covariance.shape}, not [F] and [F, F]")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError("some of its numbers are NaN or infinite")
        if not np.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6):
            raise ValueError("`sigma` is not symmetric")
    except (ValueError, TypeError) as error:
        raise UserError(f"reference '{path}' holds no statistics of features: {str(error).rstrip('.')}.") from error
    if len(mean) != size:
        raise UserError(f"reference '{path}' is of {len(mean)} features, and those that are measured here are {size}.")
    return FeatureStatistics(0, mean, (covariance + covariance.T) / 2.0, np.zeros((0, size), np.float32))
