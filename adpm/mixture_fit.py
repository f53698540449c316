"""Mixtures of low-rank Gaussians, fitted to a set of images by scikit-learn.

Each component has its cluster's share, mean and covariance (1/n) + ridge I, of which the r directions of most variance
are kept; what is left over is spread evenly over the others. K-means is the fit of Wang & Vastola (2024); expectation
maximisation gives soft clusters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from adpm.draws import AT_ONCE, Source
from adpm.errors import UserError
from adpm.families import Kind, built
from adpm.gaussian_score import check_rank, leading, one_component
from adpm.ideal import Mixture
from adpm.process import Array

Floats = NDArray[np.floating]
Clusters = tuple[Array, Array, Array]
"""Weights [K], means [K, d] and covariances [K, d, d]."""

Clustering = Callable[[Floats, int, float], Clusters]
"""(points [n, d], K, ridge) -> clusters; a function of these alone."""

_MANY = 20_000
"""Images from which on K-means looks at mini-batches."""


def fit_mixture(
    source: Source, components: int = 10, rank: int = 0, ridge: float = 1e-5, clusters: str = "kmeans"
) -> Mixture:
    """A mixture fitted to all images, float64, on their device. Holds the images and K d x d covariances in memory.

    Args:
        source: the images.
        components: K.
        rank: r, directions kept of each component; 0: all.
        ridge: variance added in every direction.
        clusters: how they are found, a key of CLUSTERS.

    Raises:
        UserError: if there are fewer images than components, or not so many dimensions; if a covariance is singular.
    """
    shape = tuple(source.mean.shape)
    check_rank(rank, shape)
    if not 1 <= components <= source.size:
        raise UserError(f"`components` = {components} must lie in 1..{source.size}, the number of images.")
    if not ridge > 0.0:
        raise UserError(f"`ridge` = {ridge} must be positive: a cluster of few images has a singular covariance.")
    parts = [source.images(part).flatten(1).cpu() for part in torch.arange(source.size).split(AT_ONCE)]
    found = built(CLUSTERS, clusters, "`clusters`")(torch.cat(parts).numpy(), components, ridge)
    weights, means, covariances = (torch.as_tensor(part, dtype=torch.float64) for part in found)
    each = [
        one_component(mean, *leading(covariance), rank, shape, float(covariance.trace()))
        for mean, covariance in zip(means, covariances, strict=True)
    ]
    rest = [one.rest for one in each if one.rest is not None]
    whole = Mixture(
        weights / weights.sum(),
        means,
        torch.cat([one.spectrum for one in each]),
        torch.cat([one.basis for one in each if one.basis is not None]),
        shape,
        torch.cat(rest) if rest else None,
    )
    return whole.to(source.mean.device)


def _kmeans(points: Floats, components: int, ridge: float) -> Clusters:
    from sklearn.cluster import KMeans, MiniBatchKMeans

    kind = KMeans if len(points) <= _MANY else MiniBatchKMeans
    labels = kind(components, n_init=3, random_state=0).fit_predict(points)
    groups = [points[labels == k].astype(np.float64) for k in np.unique(labels)]  # equal images leave clusters empty
    means = [group.mean(0) for group in groups]
    covariances = [
        (group - mean).T @ (group - mean) / len(group) + ridge * np.eye(len(mean))
        for group, mean in zip(groups, means, strict=True)
    ]
    return np.array([len(group) / len(points) for group in groups]), np.stack(means), np.stack(covariances)


def _expectation_maximisation(points: Floats, components: int, ridge: float) -> Clusters:
    from sklearn.mixture import GaussianMixture

    try:
        found = GaussianMixture(components, reg_covar=ridge, random_state=0).fit(points.astype(np.float64))
    except ValueError as error:
        raise UserError(
            f"a covariance of the mixture is singular at `ridge` = {ridge:g}; raise it ({error})."
        ) from error
    return found.weights_, found.means_, found.covariances_


CLUSTERS: dict[str, Kind] = {
    "kmeans": Kind(lambda: _kmeans, "K-means, by mini-batches where there are many images"),
    "em": Kind(lambda: _expectation_maximisation, "expectation maximisation from K-means, full covariances"),
}
