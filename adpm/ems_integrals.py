"""What a local step of DPM-Solver-v3 needs of the statistics (l, s, b): their integrals along a path.

From lambda_a, the anchor, to lambda_t, with every inner integral from a as well:

    decay   e^{-int l}                                 growth  E = e^{int (l + s)}
    drift   int E int e^{-int s} b                     power_k int E (lambda - lambda_a)^k / k!
    g of a point p relative to a:   g_p = e^{-int_a^p s} f_p - int_a^p e^{-int s} b

All are trapezoid sums over the statistics' nodes (published), or over nodes between which `refine` more are laid, and
over the path's own times, which so need not be nodes. The error falls with the square of the spacing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import numpy as np
from scipy.integrate import cumulative_trapezoid

from adpm.ems import EMS
from adpm.process import Array


@dataclass(frozen=True)
class Step:
    """Integrals from an anchor to a later time, each of the statistics' shape."""

    decay: Array
    drift: Array
    powers: list[Array]


class Integrals:
    """Integrals of statistics between the times of a path.

    Args:
        ems: the statistics.
        path: [m] lambda, rising, within the statistics' grid.
        refine: intervals of the sums within one of the grid's.
    """

    def __init__(self, ems: EMS, path: Array, refine: int = 1) -> None:
        fine = np.linspace(ems.grid[0], ems.grid[-1], (len(ems.grid) - 1) * refine + 1)
        fine[::refine] = ems.grid
        self._ems, self._path, self._fine = ems, path, fine

    def step(self, a: int, t: int, powers: int) -> Step:
        """From path[a] to path[t] > path[a], with powers 0..powers - 1."""
        r, linear, scale, bias = self._between(self._path[a], self._path[t])
        of_l, of_s = _running(linear, r), _running(scale, r)
        growth = np.exp(of_l + of_s)
        drift = _whole(growth * _running(np.exp(-of_s) * bias, r), r)
        length = (r - r[0]).reshape(-1, *[1] * (linear.ndim - 1))
        moments = [_whole(growth * length**k / factorial(k), r) for k in range(powers)]
        return Step(np.exp(-of_l[-1]), drift, moments)

    def carried(self, a: int, p: int) -> tuple[Array, Array]:
        """(scale, shift) with g_p = scale f_p - shift relative to path[a]; p before or after a."""
        low, high = sorted((a, p))
        r, _, scale, bias = self._between(self._path[low], self._path[high])
        of_s = _running(scale, r)
        here, there = (0, -1) if p > a else (-1, 0)
        of_s = of_s - of_s[here]
        shift = _whole(np.exp(-of_s) * bias, r)
        return np.exp(-of_s[there]), shift if p > a else -shift

    def linear(self, p: int) -> Array:
        """l at path[p]."""
        return self._ems.at(self._path[[p]])[0][0]

    def _between(self, low: float, high: float) -> tuple[Array, Array, Array, Array]:
        """Nodes of the sums from `low` to `high`, and l, s, b there."""
        inside = self._fine[np.searchsorted(self._fine, low, "right") : np.searchsorted(self._fine, high, "left")]
        r = np.concatenate([[low], inside, [high]])
        return (r, *self._ems.at(r))


def _running(values: Array, r: Array) -> Array:
    return cumulative_trapezoid(values, r, axis=0, initial=0.0)


def _whole(values: Array, r: Array) -> Array:
    return np.asarray(np.trapezoid(values, r, axis=0))
