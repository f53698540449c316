"""Measuring moments per coordinate, in several bases at once, as the draws of adpm/draws.py go by.

At each time and along each coordinate f, with e = Q (x_0 - x0_hat) and y = Q (x_0 - E x_0), e_f^2 is regressed, like
the scalar residual of adpm/moments.py, on controls whose means are exactly zero: eps_f^2 - 1, eps_f y_f and
y_f^2 - Var[y_f]; and so is its twin of the x_0 that the network has before any limits. Draws are dealt into folds,
those of one image into one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adpm.basis import Basis
from adpm.coordinates import FIELDS, FOLDS, Spectrum, by_variance
from adpm.denoiser import Prediction, unclipped_x0
from adpm.draws import AT_ONCE, FITTED, Source
from adpm.errors import UserError
from adpm.process import Array, Process
from adpm.shrinkage import Shrinkage, chosen, steps_ahead

Arrays = dict[str, NDArray[Any]]

LEAST_DRAWS = 3 * FOLDS


class Sums:
    """Sums over draws of the columns e_f^2, its raw twin and the controls, by fold; float64.

    Args:
        dim: d.
        period: number of images, which draws go through again and again: those of one image are in one fold.
    """

    columns = 5

    def __init__(self, dim: int, period: int) -> None:
        self.period = period
        self.count = np.zeros(FOLDS)
        self._first = torch.zeros(FOLDS, self.columns, dim, dtype=torch.float64)
        self._second = torch.zeros(self.columns, self.columns, dim, dtype=torch.float64)

    def add(self, start: int, columns: Tensor) -> None:
        """Columns [B, 5, d] of the draws start, start + 1, ..."""
        fold = (start + torch.arange(len(columns))) % self.period % FOLDS
        self.count += np.bincount(fold.numpy(), minlength=FOLDS)
        self._first.index_add_(0, fold, columns.cpu())
        self._second += torch.einsum("bid,bjd->ijd", columns, columns).cpu()

    def arrays(self) -> Arrays:
        """`FIELDS` of one time: [d], folds [FOLDS, d]."""
        n = float(self.count.sum())
        mean = self._first.sum(0) / n
        scatter = (self._second - n * mean[:, None] * mean[None]).permute(2, 0, 1)  # [d, 5, 5]
        inverse = torch.linalg.pinv(scatter[:, 2:, 2:], hermitian=True)  # [d, 3, 3]
        slope = inverse @ scatter[:, 2:, :2]  # [d, 3, 2]
        left = (scatter[:, :2, :2] - scatter[:, :2, 2:] @ slope).diagonal(dim1=1, dim2=2).clamp_min(0.0)
        controls = mean[2:].T[:, :, None]  # [d, 3, 1]
        leverage = (controls.mT @ inverse @ controls)[:, :, 0]
        error = (left / (n - FITTED) * (1.0 / n + leverage)).sqrt().T.numpy()
        fold_mean = self._first / torch.as_tensor(self.count)[:, None, None]
        fold_value = (fold_mean[:, :2] - torch.einsum("fcd,dck->fkd", fold_mean[:, 2:], slope)).numpy()
        value = (mean[:2] - torch.einsum("cd,dck->kd", mean[2:], slope)).numpy()
        return dict(zip(FIELDS, (value[0], error[0], value[1], error[1], fold_value[:, 0]), strict=True))


def coordinate_variance(source: Source, basis: Basis) -> Array:
    """Variance of the data along each coordinate, over all images, [d]."""
    total, mean = torch.zeros(source.mean.numel(), dtype=torch.float64), source.mean.double()
    first = torch.zeros_like(total)
    for part in torch.arange(source.size).split(AT_ONCE):
        y = basis.forward(source.images(part).double() - mean).flatten(1).cpu()
        total += y.square().sum(0)
        first += y.sum(0)
    return (total / source.size - (first / source.size) ** 2).clamp_min(0.0).numpy()


@dataclass(frozen=True)
class Bases:
    """The bases that are measured, each with the variance of the data along its coordinates.

    Attributes:
        bases: by name.
        variances: [d] by name.
    """

    bases: Mapping[str, Basis]
    variances: Mapping[str, Array]

    @classmethod
    def of(cls, bases: Mapping[str, Basis], source: Source) -> Bases:
        return cls(bases, {name: coordinate_variance(source, basis) for name, basis in bases.items()})


class Watch:
    """The sums of all bases at one time, as `adpm.draws.measure` goes through the draws.

    Raises:
        UserError: for draws too few for error bars.
    """

    def __init__(self, bases: Bases, process: Process, source: Source, t: float, draws: int) -> None:
        if draws < LEAST_DRAWS:
            raise UserError(f"`draws` = {draws} is too few for error bars of coordinates; use at least {LEAST_DRAWS}.")
        self._bases, self._mean, self._done = bases, source.mean, 0
        self._alpha, self._sigma = float(process.alpha(t)), float(process.sigma(t))
        period = source.size if source.size >= FOLDS else draws
        self._sums = {name: Sums(source.mean.numel(), period) for name in bases.bases}

    def add(self, x0: Tensor, eps: Tensor, x: Tensor, prediction: Prediction) -> None:
        """The next draws."""
        raw = unclipped_x0(prediction, x.double(), self._alpha, self._sigma)
        seen = torch.stack([x0 - prediction.x0, x0 - raw, eps, x0 - self._mean]).double()
        for name, basis in self._bases.bases.items():
            e, e_raw, noise, y = basis.forward(seen.flatten(0, 1)).unflatten(0, seen.shape[:2]).flatten(2)
            variance = torch.as_tensor(self._bases.variances[name], device=y.device)
            columns = [e.square(), e_raw.square(), noise.square() - 1.0, noise * y, y.square() - variance]
            self._sums[name].add(self._done, torch.stack(columns, 1))
        self._done += len(x0)

    def arrays(self) -> Arrays:
        """`FIELDS` for every basis, "name.field" -> array."""
        return {f"{name}.{key}": array for name, total in self._sums.items() for key, array in total.arrays().items()}


def spectrum_of(
    parts: Sequence[Arrays],
    times: Array,
    process: Process,
    bases: Bases,
    draws: int,
    shape: tuple[int, ...],
    provenance: Mapping[str, Any],
) -> Spectrum:
    """The spectrum in the basis of the lowest held-out bound, from the arrays of a `Watch` at each of the times."""
    drop, bounds = steps_ahead(process.log_snr(times)), dict[str, float]()
    found: dict[str, tuple[Arrays, Shrinkage]] = {}
    for name, variance in bases.variances.items():
        own = {key: np.stack([part[f"{name}.{key}"] for part in parts], -2).astype(np.float64) for key in FIELDS}
        how, bounds[name] = chosen(own["folds"], own["error"], by_variance(variance), drop)
        found[name] = own, how
    best = min(bounds, key=lambda name: bounds[name])
    own, how = found[best]
    about: dict[str, Any] = {**own, "variance": bases.variances[best], "provenance": dict(provenance)}
    return Spectrum(times, bases.bases[best], best, draws=draws, how=how, bounds=bounds, shape=shape, **about)
