"""Variances along the axes of a basis as a function of log-SNR: what moments per coordinate come down to in use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from adpm.bases import basis_arrays, basis_from, check_basis
from adpm.basis import Basis
from adpm.errors import UserError
from adpm.process import Array

_ROUNDING = 1e-6
"""Of a log-SNR at the ends, by which machines differ."""


@dataclass(frozen=True)
class Scale:
    """r_f at some log-SNR; between them its logarithm is interpolated in log-SNR by PCHIP.

    Attributes:
        log_snr: [T], falling.
        variance: [T, d], positive.
        basis: the axes f, laid out as an image; d of them.
        name: of the basis.
        shape: of the data.
    """

    log_snr: Array
    variance: Array
    basis: Basis
    name: str
    shape: tuple[int, ...]

    def __call__(self, log_snr: Array) -> Array:
        """r_f [..., d] at log-SNR [...].

        Raises:
            UserError: outside the range that there is.
        """
        high, low = self.log_snr[0], self.log_snr[-1]
        if np.any(log_snr > high + _ROUNDING) or np.any(log_snr < low - _ROUNDING):
            raise UserError(f"variances per coordinate are known for log-SNR {low:g} to {high:g}, not for {log_snr}.")
        return np.exp(self._found(-np.clip(log_snr, low, high)))

    @cached_property
    def _found(self) -> Callable[[Array], Array]:
        logs = np.log(self.variance)
        if len(logs) == 1:
            return lambda at: np.broadcast_to(logs[0], (*np.shape(at), logs.shape[1]))
        found: Callable[[Array], Array] = PchipInterpolator(-self.log_snr, logs)
        return found

    def laid_out(self, values: Array) -> Array:
        """Values [..., d] as images [n, ...]."""
        return values.reshape(-1, *self.shape)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything, by name; r_f in single precision."""
        own: dict[str, NDArray[Any]] = {"log_snr": self.log_snr, "variance": self.variance.astype(np.float32)}
        return {**own, **basis_arrays(self.basis), "name": np.array(self.name), "shape": np.array(self.shape)}

    @staticmethod
    def of(arrays: Mapping[str, NDArray[Any]]) -> Scale:
        """The scale whose `arrays` these are; other arrays are not looked at.

        Raises:
            Exception: UserError, KeyError and their like where they are those of no scale.
        """
        log_snr, variance = (arrays[name].astype(np.float64) for name in ("log_snr", "variance"))
        shape = tuple(int(side) for side in arrays["shape"])
        if not len(log_snr) or variance.shape != (len(log_snr), int(np.prod(shape))):
            raise UserError(f"variances {variance.shape} at {log_snr.shape} log-SNR do not go with data of {shape}")
        if not (np.isfinite(variance).all() and (variance > 0.0).all() and (np.diff(log_snr) < 0.0).all()):
            raise UserError("its variances are not positive numbers at falling log-SNR")
        basis = basis_from(arrays)
        check_basis(basis, shape)
        return Scale(log_snr, variance, basis, str(arrays["name"]), shape)
