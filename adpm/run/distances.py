"""Distances of one set of images to another: Frechet's and the kernel's of features, and energy of the images.

A member of MEASURES gives figures by name from two sets of statistics and two of images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adpm.families import Kind
from adpm.run.metrics import Array, energy_distance, frechet

SUBSETS, SUBSET = 100, 1000
"""Of the kernel distance: as many pairs of subsets of at most so many features (Binkowski et al. 2018)."""


@dataclass(frozen=True)
class FeatureStatistics:
    """Features of a set of images.

    Attributes:
        count: images; 0 where nobody says how many.
        mean: [F].
        covariance: [F, F], divisor count - 1.
        features: [m, F] of images that are evenly spread over the set; none where only moments are known.
    """

    count: int
    mean: Array
    covariance: Array
    features: NDArray[np.float32]


@dataclass(frozen=True)
class Sides:
    """What a measure may ask for.

    Attributes:
        ours: of the images that are judged.
        real: of the reference.
        images: images [n, ...] of both, evenly spread over the sets, in [-1, 1]; read when asked.
        seed: of subsets.
    """

    ours: FeatureStatistics
    real: FeatureStatistics
    images: Callable[[], tuple[Tensor, Tensor]]
    seed: int


def kernel_distance(x: Array, y: Array) -> float:
    """MMD^2 of features [n, F] and [m, F] under (x . y / F + 1)^3, unbiased: 0 on average for one distribution."""
    kernel = [(a @ b.T / x.shape[1] + 1.0) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in kernel[:2]]
    return float(within[0] + within[1] - 2.0 * kernel[2].mean())


def _frechet(sides: Sides) -> dict[str, float]:
    a, b = sides.ours, sides.real
    return {"frechet": frechet(a.mean, a.covariance, b.mean, b.covariance)}


def _kernel(sides: Sides) -> dict[str, float]:
    a, b = (side.features.astype(np.float64) for side in (sides.ours, sides.real))
    size, draw = min(SUBSET, len(a), len(b)), np.random.default_rng(sides.seed)
    pairs = ((draw.permutation(len(a))[:size], draw.permutation(len(b))[:size]) for _ in range(SUBSETS))
    found = [kernel_distance(a[i], b[j]) for i, j in pairs]
    return {"kernel": float(np.mean(found)), "kernel_deviation": float(np.std(found))}


def _energy(sides: Sides) -> dict[str, float]:
    return {"energy": energy_distance(*sides.images())}


@dataclass(frozen=True)
class MeasureFacts:
    """What is asked of a measure before work.

    Attributes:
        of_moments: whether means and covariances of the reference are enough for it.
        biased: whether perfect samples, too, score above 0, so that a floor is told.
        title: what people call it.
        protocol: how it is taken.
    """

    of_moments: bool
    biased: bool
    title: str
    protocol: str


MEASURES: dict[str, Kind] = {
    "frechet": Kind(
        _frechet,
        "Frechet distance of features (Heusel et al. 2017); with inception: FID",
        MeasureFacts(True, True, "Frechet distance", "means and covariances of all features, in float64"),
    ),
    "kernel": Kind(
        _kernel,
        "kernel distance of features (Binkowski et al. 2018), unbiased; with inception: KID",
        MeasureFacts(
            False, False, "kernel distance", f"{SUBSETS} pairs of subsets of {SUBSET} features at most, cubic kernel"
        ),
    ),
    "energy": Kind(
        _energy,
        "energy distance of the images themselves (Szekely and Rizzo 2013), unbiased",
        MeasureFacts(False, False, "energy distance", "of the images in [-1, 1] as vectors"),
    ),
}
"""Builders take `Sides` and give figures by name."""
