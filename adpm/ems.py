"""Empirical model statistics of DPM-Solver-v3 (Zheng et al. 2023): three numbers per pixel along the log-SNR.

With lambda = log(alpha/sigma), half the log-SNR, rising while sampling, the probability flow is

    dx/dlambda = k x - sigma eps,    k = d log(alpha) / dlambda

and any functions l, s, b of lambda (per pixel, products elementwise) turn an exact step from a to t into

    x_t = alpha_t e^{-int l} { x_a/alpha_a - int e^{int (l + s)} [ g + int e^{-int s} b ] }        integrals from a
    f = (sigma eps - l x)/alpha,    g = e^{-int s} f - int e^{-int s} b

What is left to a solver is g. It changes least, in mean square over the states at each time, for

    linear  l = E[ diag(sigma deps/dx) ]     scale  s = Cov(f, f') / Var(f)     bias  b = E[f'] - s E[f]

with f' the total derivative of f along the flow. (1, 0, 0) is the prediction of x0, f = -x0_hat; (0, -1, 0) that of the
noise. Statistics are of the raw network: where x0 is clipped nothing changes with x, and l would be about the clipping.
adpm/ems_measure.py estimates them, adpm/ems_integrals.py integrates them, adpm/dpm_solver_v3.py walks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adpm.errors import UserError
from adpm.process import Array, Process
from adpm.provenance import require_own
from adpm.reading import measured_file

_SLACK = 1e-6
"""Of the grid's length, by which a time may lie beyond its ends: a log-SNR is a rounded number."""


def half_log_snr(process: Process, t: ArrayLike) -> Array:
    """lambda_t = log(alpha_t / sigma_t)."""
    return 0.5 * process.log_snr(t)


@dataclass(frozen=True)
class EMS:
    """Statistics on a uniform grid of lambda.

    Attributes:
        grid: [n] lambda, rising evenly: from the last time to the first.
        linear, scale, bias: [n, ...] l, s and b.
        draws: (image, noise, probe) triples per node; 0: not measured.
        derivative: how the network was differentiated.
        clamped: [n] how many pixels have an s that was cut to the limit.
        constant: [n] how many pixels have an f that does not vary, so that s = 0 and b = E[f'].
        provenance: what the numbers depend on: weights, process, data split, draws, seed.

    Raises:
        UserError: unless the grid has three nodes that rise evenly, and there are finite numbers at each.
    """

    grid: Array
    linear: Array
    scale: Array
    bias: Array
    draws: int = 0
    derivative: str = ""
    clamped: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    constant: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        gaps = np.diff(self.grid)
        if self.grid.ndim != 1 or len(self.grid) < 3 or not (gaps > 0.0).all() or np.ptp(gaps) > 1e-6 * gaps.mean():
            raise UserError("statistics need at least three nodes that rise evenly in log(alpha/sigma).")
        for values in (self.linear, self.scale, self.bias):
            if values.shape != (len(self.grid), *self.shape) or not np.isfinite(values).all():
                raise UserError("l, s and b must be finite numbers at every node, as many of each.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample; () where the numbers are the same for every pixel."""
        return self.linear.shape[1:]

    def covers(self, lam: Array) -> bool:
        """Whether the grid reaches from the least to the greatest of these."""
        slack = _SLACK * (self.grid[-1] - self.grid[0])
        return bool(lam.min() >= self.grid[0] - slack and lam.max() <= self.grid[-1] + slack)

    def nearest(self, lam: ArrayLike) -> NDArray[np.int64]:
        """The node next to each lambda, 0..n-1."""
        low, high = self.grid[[0, -1]]
        where = (len(self.grid) - 1) * (np.asarray(lam, dtype=np.float64) - low) / (high - low)
        return np.clip(np.rint(where), 0, len(self.grid) - 1).astype(np.int64)

    def at(self, lam: Array) -> tuple[Array, Array, Array]:
        """(l, s, b) at lambda [m], each [m, ...], linear between nodes."""
        where = np.clip((lam - self.grid[0]) / (self.grid[-1] - self.grid[0]), 0.0, 1.0) * (len(self.grid) - 1)
        left = np.minimum(where.astype(np.int64), len(self.grid) - 2)
        share = (where - left).reshape(-1, *[1] * len(self.shape))
        out = [v[left] + share * (v[left + 1] - v[left]) for v in (self.linear, self.scale, self.bias)]
        return out[0], out[1], out[2]

    def save(self, path: Path) -> None:
        """Write everything to one npz file."""
        told = {"provenance": dict(self.provenance), "derivative": self.derivative, "draws": self.draws}
        with path.open("wb") as file:
            np.savez(
                file,
                grid=self.grid,
                linear=self.linear,
                scale=self.scale,
                bias=self.bias,
                clamped=self.clamped,
                constant=self.constant,
                about=np.array(json.dumps(told, sort_keys=True)),
            )

    @staticmethod
    def load(path: Path) -> EMS:
        """Read a file written by `save`.

        Raises:
            UserError: if it is missing, not such a file, or holds what no measurement gives.
        """
        with measured_file(path, "statistics file") as arrays:
            made: dict[str, Any] = {**json.loads(str(arrays.pop("about"))), **arrays}
            return EMS(**made)

    def require(self, provenance: Mapping[str, Any], path: Path) -> None:
        """Check that the statistics agree with every entry of `provenance`.

        Raises:
            UserError: naming the differing entries.
        """
        require_own(self.provenance, provenance, path, "statistics", "ems_file")


def data_prediction(process: Process, nodes: int = 121) -> EMS:
    """l = 1, s = b = 0 from the last reference time to the first: DPM-Solver++, up to the integration of e^lambda."""
    ends = half_log_snr(process, process.times[[-1, 1]])
    grid = np.linspace(ends[0], ends[1], nodes)
    return EMS(grid, np.ones(nodes), np.zeros(nodes), np.zeros(nodes))
