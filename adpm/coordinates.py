"""Moments per coordinate: residuals of x_0 along an orthonormal basis, with standard errors, from the draws of moments.

With Q the basis, e = Q (x_0 - x0_hat(x_t)) and coordinates f, adpm/coordinate_draws.py measures at each time

    r_f(t) = E[e_f^2],    the best variances of x_0 among the covariances that Q makes diagonal, whatever the mean.

By folds of the draws adpm/shrinkage.py decides how much r_f is smoothed, and which of several bases has the lowest
held-out bound. Between measured times adpm/scale.py interpolates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpm.bases import basis_arrays, basis_from, check_basis
from adpm.basis import Basis
from adpm.errors import UserError
from adpm.process import Array, Process
from adpm.provenance import require_own
from adpm.reading import measured_file, read_npz
from adpm.scale import Scale
from adpm.shrinkage import Shrinkage, shrunk

FOLDS = 4
FIELDS = ("residual", "error", "raw", "raw_error", "folds")


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

    def smoothed(self) -> Array:
        """r_f at the measured times, shrunk, [T, d]."""
        return shrunk(self.residual, self.error, self.order, self.how)

    def scale(self, process: Process) -> Scale:
        """r_f, shrunk, by log-SNR."""
        return Scale(process.log_snr(self.times), self.smoothed(), self.basis, self.name, self.shape)

    def curve(self, process: Process) -> Callable[[Array], Array]:
        """times [...] -> r_f [..., d], shrunk.

        Raises:
            UserError: for a time outside the measured range.
        """
        scale, low, high = self.scale(process), self.times[0], self.times[-1]

        def at(t: Array) -> Array:
            if np.any(t < low) or np.any(t > high):
                raise UserError(f"coordinates were measured for times {low:g} to {high:g}, not for all of {t}.")
            return scale(process.log_snr(t))

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
        arrays: dict[str, Any] = {name: getattr(self, name) for name in ("times", "variance", *FIELDS)}
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
        with measured_file(path, "coordinates file") as arrays:
            return Spectrum.of(arrays)

    @staticmethod
    def of(arrays: Mapping[str, NDArray[Any]]) -> Spectrum:
        """The spectrum whose `arrays` these are; other arrays are not looked at.

        Raises:
            Exception: UserError, KeyError and their like where they hold what no measurement gives.
        """
        if "about" not in arrays:
            raise UserError("it holds no moments per coordinate")
        about = json.loads(str(arrays["about"]))
        own: dict[str, Any] = {name: arrays[name].astype(np.float64) for name in ("times", "variance", *FIELDS)}
        basis = basis_from(arrays)
        width, times, spread = about.pop("how")
        about["shape"] = tuple(about["shape"])
        spectrum = Spectrum(basis=basis, how=Shrinkage(width, times, spread), **own, **about)
        _require(spectrum)
        return spectrum

    def require(self, provenance: Mapping[str, Any], path: Path) -> None:
        """Check that the file is about what is asked for: it agrees with every entry of `provenance`.

        Raises:
            UserError: naming the differing entries.
        """
        require_own(self.provenance, provenance, path, "coordinates", "coordinates_file")


def by_variance(variance: Array) -> NDArray[np.int64]:
    """The coordinates, those of most variance first."""
    return np.argsort(-variance, kind="stable")


def _require(spectrum: Spectrum) -> None:
    """Refuse numbers that no measurement gives."""
    count, dim = len(spectrum.times), len(spectrum.variance)
    shapes = [getattr(spectrum, name).shape for name in FIELDS]
    if not count or dim != int(np.prod(spectrum.shape)) or shapes != [(count, dim)] * 4 + [(FOLDS, count, dim)]:
        raise UserError(f"arrays {shapes} for {count} times and {dim} coordinates of {spectrum.shape}")
    if not all(np.isfinite(getattr(spectrum, name)).all() for name in ("variance", *FIELDS)):
        raise UserError("some of its numbers are not finite")
    if not (np.isfinite(spectrum.times).all() and (np.diff(spectrum.times, prepend=0.0) > 0.0).all()):
        raise UserError("its times do not rise from above 0")
    check_basis(spectrum.basis, spectrum.shape)


class Axes:
    """A spectrum as a function of time, measured when it is first asked.

    Args:
        given: gives the spectrum.
        process: whose times they are.
    """

    def __init__(self, given: Callable[[], Spectrum], process: Process) -> None:
        self._given, self._process = given, process

    @cached_property
    def spectrum(self) -> Spectrum:
        return self._given()

    @cached_property
    def residual(self) -> Callable[[Array], Array]:
        """times [...] -> r_f [..., d]."""
        return self.spectrum.curve(self._process)

    def laid_out(self, values: Array) -> Array:
        """Values [..., d] as images [n, ...]."""
        return values.reshape(-1, *self.spectrum.shape)
