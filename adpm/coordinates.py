"""Moments per coordinate: residuals of x_0 along an orthonormal basis, with standard errors, from the draws of moments.

With Q the basis, e = Q (x_0 - x0_hat(x_t)) and coordinates f, one pass over (image, noise) draws measures at each time

    r_f(t) = E[e_f^2],    the best variances of x_0 among the covariances that Q makes diagonal, whatever the mean

and the same of the x0 that the network has before any limits. Each is regressed, like the scalar residual of
adpm/moments.py, on controls whose means are exactly zero: eps_f^2 - 1, eps_f y_f and y_f^2 - Var[y_f], where
y = Q (x_0 - E x_0). Draws are dealt into folds, by which adpm/shrinkage.py decides how much r_f is smoothed, and which
of several bases has the lowest held-out bound. Between measured times log r_f is interpolated in log-SNR.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from adpm.bases import basis_arrays, basis_from, check_basis
from adpm.basis import Basis
from adpm.denoiser import Prediction
from adpm.draws import AT_ONCE, FITTED, Source
from adpm.errors import UserError
from adpm.moments import unlike
from adpm.process import Array, Process
from adpm.reading import plain_file, read_npz
from adpm.shrinkage import Shrinkage, chosen, shrunk, steps_ahead

Arrays = dict[str, NDArray[Any]]

COORDINATES = ("moments.basis", "moments.coordinates_file")
"""The fields that whoever uses a spectrum reads."""

FOLDS = 4
LEAST_DRAWS = 3 * FOLDS
_FIELDS = ("residual", "error", "raw", "raw_error", "folds")


@dataclass(frozen=True)
class Spectrum:
    """r_f(t) in one basis.

    Attributes:
        times: [T], increasing, positive.
        basis: the coordinates, laid out as an image; d of them.
        name: of the basis.
        residual, error: [T, d], E e_f^2 of the x0 that the kernel uses, with its standard error.
        raw, raw_error: the same of x0 before any limits.
        folds: [FOLDS, T, d], `residual` by folds of the draws.
        variance: [d], of the data along the coordinates.
        draws: per time.
        how: the shrinkage that their use is smoothed by.
        bounds: held-out bound of each basis that was tried, nats per dimension of about ten steps.
        shape: of the data.
        provenance: what the numbers depend on.
    """

    times: Array
    basis: Basis
    name: str
    residual: Array
    error: Array
    raw: Array
    raw_error: Array
    folds: Array
    variance: Array
    draws: int
    how: Shrinkage
    bounds: Mapping[str, float]
    shape: tuple[int, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def order(self) -> NDArray[np.int64]:
        """The coordinates, those of most variance first."""
        return by_variance(self.variance)

    def smoothed(self, raw: bool = False) -> Array:
        """r_f at the measured times, shrunk, [T, d]; of x0 before any limits if `raw`."""
        values, errors = (self.raw, self.raw_error) if raw else (self.residual, self.error)
        return shrunk(values, errors, self.order, self.how)

    def curve(self, process: Process, raw: bool = False) -> Callable[[Array], Array]:
        """times [...] -> r_f [..., d], shrunk; its logarithm is interpolated by PCHIP in log-SNR.

        Raises:
            UserError: for a time outside the measured range.
        """
        logs, low, high = np.log(self.smoothed(raw)), self.times[0], self.times[-1]
        single = len(self.times) == 1
        found = (
            (lambda at: np.broadcast_to(logs[0], (*np.shape(at), logs.shape[1])))
            if single
            else PchipInterpolator(-process.log_snr(self.times), logs)
        )

        def at(t: Array) -> Array:
            if np.any(t < low) or np.any(t > high):
                raise UserError(f"coordinates were measured for times {low:g} to {high:g}, not for all of {t}.")
            return np.exp(found(-process.log_snr(t)))

        return at

    def arrays(self) -> dict[str, Any]:
        """Everything, by name; none of them is a moment table's but the times, which are the same."""
        about = {
            "name": self.name,
            "draws": self.draws,
            "how": [self.how.width, self.how.times, self.how.spread],
            "bounds": dict(self.bounds),
            "shape": list(self.shape),
            "provenance": dict(self.provenance),
        }
        arrays: dict[str, Any] = {name: getattr(self, name) for name in ("times", "variance", *_FIELDS)}
        return {**arrays, **basis_arrays(self.basis), "about": np.array(json.dumps(about, sort_keys=True))}

    def save(self, path: Path) -> None:
        """Write everything to one npz file."""
        with path.open("wb") as file:
            np.savez(file, **self.arrays())

    @staticmethod
    def is_in(path: Path) -> bool:
        """Whether a file of moments holds those per coordinate, too."""
        return "about" in read_npz(path)

    @staticmethod
    def load(path: Path) -> Spectrum:
        """Read a file written by `save`.

        Raises:
            UserError: if it is missing, not such a file, or holds what no measurement gives.
        """
        plain_file(path, "coordinates file")
        try:
            arrays = read_npz(path)
            if "about" not in arrays:
                raise UserError("it holds no moments per coordinate")
            about = json.loads(str(arrays["about"]))
            own: dict[str, Any] = {name: arrays[name].astype(np.float64) for name in ("times", "variance", *_FIELDS)}
            basis = basis_from(arrays)
            width, times, spread = about.pop("how")
            about["shape"] = tuple(about["shape"])
            spectrum = Spectrum(basis=basis, how=Shrinkage(width, times, spread), **own, **about)
            _require(spectrum)
            return spectrum
        except Exception as error:  # json and numpy raise a dozen kinds on what others have written
            raise UserError(f"'{path}' is not a coordinates file of this project: {str(error).rstrip('.')}.") from error

    def require(self, provenance: Mapping[str, Any], path: Path) -> None:
        """Check that the file is about what is asked for: it agrees with every entry of `provenance`.

        Raises:
            UserError: naming the differing entries.
        """
        if told := unlike(self.provenance, provenance):
            raise UserError(
                f"coordinates file '{path}' belongs to something else ({told}); "
                "remove it to measure again, or name another in `moments.coordinates_file`."
            )


def by_variance(variance: Array) -> NDArray[np.int64]:
    """The coordinates, those of most variance first."""
    return np.argsort(-variance, kind="stable")


def _require(spectrum: Spectrum) -> None:
    """Refuse numbers that no measurement gives."""
    count, dim = len(spectrum.times), len(spectrum.variance)
    shapes = [getattr(spectrum, name).shape for name in _FIELDS]
    if not count or dim != int(np.prod(spectrum.shape)) or shapes != [(count, dim)] * 4 + [(FOLDS, count, dim)]:
        raise UserError(f"arrays {shapes} for {count} times and {dim} coordinates of {spectrum.shape}")
    if not all(np.isfinite(getattr(spectrum, name)).all() for name in ("variance", *_FIELDS)):
        raise UserError("some of its numbers are not finite")
    if not (np.isfinite(spectrum.times).all() and (np.diff(spectrum.times, prepend=0.0) > 0.0).all()):
        raise UserError("its times do not rise from above 0")
    check_basis(spectrum.basis, spectrum.shape)


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
        """`_FIELDS` of one time: [d], folds [FOLDS, d]."""
        n = float(self.count.sum())
        mean = self._first.sum(0) / n
        scatter = (self._second - n * mean[:, None] * mean[None]).permute(2, 0, 1)  # [d, 5, 5]
        slope = torch.linalg.pinv(scatter[:, 2:, 2:], hermitian=True) @ scatter[:, 2:, :2]  # [d, 3, 2]
        left = (scatter[:, :2, :2] - scatter[:, :2, 2:] @ slope).diagonal(dim1=1, dim2=2).clamp_min(0.0)
        controls = mean[2:].T[:, :, None]  # [d, 3, 1]
        leverage = (controls.mT @ torch.linalg.pinv(scatter[:, 2:, 2:], hermitian=True) @ controls)[:, :, 0]
        error = (left / (n - FITTED) * (1.0 / n + leverage)).sqrt().T.numpy()
        fold_mean = self._first / torch.as_tensor(self.count)[:, None, None]
        fold_value = (fold_mean[:, :2] - torch.einsum("fcd,dck->fkd", fold_mean[:, 2:], slope)).numpy()
        value = (mean[:2] - torch.einsum("cd,dck->kd", mean[2:], slope)).numpy()
        return dict(zip(_FIELDS, (value[0], error[0], value[1], error[1], fold_value[:, 0]), strict=True))


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
        raw = (x.double() - self._sigma * prediction.eps_network.double()) / self._alpha
        seen = torch.stack([x0 - prediction.x0, x0 - raw, eps, x0 - self._mean]).double()
        for name, basis in self._bases.bases.items():
            e, e_raw, noise, y = basis.forward(seen.flatten(0, 1)).unflatten(0, seen.shape[:2]).flatten(2)
            variance = torch.as_tensor(self._bases.variances[name], device=y.device)
            columns = [e.square(), e_raw.square(), noise.square() - 1.0, noise * y, y.square() - variance]
            self._sums[name].add(self._done, torch.stack(columns, 1))
        self._done += len(x0)

    def arrays(self) -> Arrays:
        """`_FIELDS` for every basis, "name.field" -> array."""
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
        own = {key: np.stack([part[f"{name}.{key}"] for part in parts], -2).astype(np.float64) for key in _FIELDS}
        how, bounds[name] = chosen(own["folds"], own["error"], by_variance(variance), drop)
        found[name] = own, how
    best = min(bounds, key=lambda name: bounds[name])
    own, how = found[best]
    about: dict[str, Any] = {**own, "variance": bases.variances[best], "provenance": dict(provenance)}
    return Spectrum(times, bases.bases[best], best, draws=draws, how=how, bounds=bounds, shape=shape, **about)
