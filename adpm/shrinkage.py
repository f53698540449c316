"""Less noise in a table of positive numbers, times x coordinates: by a centre, by neighbouring times, by error bars.

With a measured r_f(t) and its standard error, coordinates in the order of the data's variance along them,

    c_f(t)    mean of r over f and its neighbours in that order, `width` on either side: all of them give the scalar
    q_f(t)    mean of r_f/c_f over t and its neighbours in log-SNR, `times` on either side
    v_f(t)    what the error bars say of the variance of q_f(t)
    r*_f(t)   c_f (1 + w (q_f - 1)),    w = spread^2 / (spread^2 + v_f),    at least c_f sqrt(v_f)

w is the best weight where r_f/c_f differ among themselves by `spread` (James & Stein 1961, Efron & Morris 1973).
Which width, times and spread: those with the least held-out bound. Draws come in folds; what all but one of them say is
priced on the one left out, by the bound of a step at eta = 1 with the covariance of r and the residuals e^2,

    1/2 mean_f [ log1p(D r_f) + D (e_f^2 - r_f) / (1 + D r_f) ],    D = gamma_s - gamma_t,

for steps a tenth of the range of log-SNR long, times ten: about the bound of ten steps.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adpm.process import Array

Order = NDArray[np.int64]

_TIMES, _SPREADS = (0, 1, 3), (0.0, 0.1, 0.3, 1.0, np.inf)
_STEPS = 10
_LEAST = 1e-8
"""Of the mean over coordinates: less is rounding, as of a pixel that is the same in all images."""
_TINY = 1e-100


@dataclass(frozen=True)
class Shrinkage:
    """How much is averaged; the default is nothing.

    Attributes:
        width: neighbours on either side in the order of coordinates; as many as there are coordinates: the scalar.
        times: neighbouring times on either side.
        spread: relative, of coordinates around their centre; infinite: no weight for the centre.
    """

    width: int = 0
    times: int = 0
    spread: float = np.inf


def shrunk(values: Array, errors: Array, order: Order, how: Shrinkage) -> Array:
    """r* [T, d] from r, its standard errors [T, d] and the order of coordinates, a permutation [d]."""
    least = _LEAST * np.maximum(values.mean(1, keepdims=True), _TINY)
    centre = np.maximum(_averaged(values[:, order], how.width, 1), least)
    ratio = _averaged(values[:, order] / centre, how.times, 0)
    window = _averaged(np.ones((len(values), 1)), how.times, 0, total=True)
    noise = _averaged((errors[:, order] / centre) ** 2, how.times, 0) / window
    weight = 1.0 if np.isinf(how.spread) else how.spread**2 / (how.spread**2 + noise + _TINY)
    out = np.empty_like(values)
    out[:, order] = centre * np.maximum(1.0 + weight * (ratio - 1.0), np.sqrt(noise))
    return np.maximum(out, least)


def _averaged(values: Array, half: int, axis: int, total: bool = False) -> Array:
    """Means (or sums) over a window of `half` on either side along an axis, cut at the ends."""
    n = values.shape[axis]
    if half == 0:
        return values
    sums = np.concatenate([np.zeros_like(values.take([0], axis)), values.cumsum(axis)], axis)
    at = np.arange(n)
    high, low = np.minimum(at + half + 1, n), np.maximum(at - half, 0)
    inside = sums.take(high, axis) - sums.take(low, axis)
    if total:
        return inside
    return inside / np.expand_dims(high - low, axis=1 - axis)


def steps_ahead(log_snr: Array) -> Array:
    """gamma_s - gamma_t [T] of steps from these log-SNR, a tenth of their range long."""
    span = (log_snr.max() - log_snr.min()) / _STEPS
    return np.exp(log_snr) * np.expm1(span)


def held_out(values: Array, squared: Array, drop: Array) -> float:
    """The bound of r [T, d] on residuals e^2 [T, d], nats per dimension of ten steps; `drop` [T]."""
    scale = drop[:, None]
    terms = np.log1p(scale * values) + scale * (squared - values) / (1.0 + scale * values)
    return float(0.5 * _STEPS * terms.mean())


def scored(folds: Array, errors: Array, order: Order, drop: Array, how: Shrinkage) -> float:
    """The held-out bound of a shrinkage.

    Args:
        folds: [F, T, d], means of e^2 over the draws of each fold, which are of one size.
        errors: [T, d], standard errors of their mean over all draws.
        order, drop: see `shrunk`, `held_out`.
        how: the shrinkage.
    """
    count, all_folds = len(folds), folds.mean(0)
    fewer = errors * np.sqrt(count / (count - 1.0))
    rest = ((count * all_folds - fold) / (count - 1.0) for fold in folds)
    bounds = [held_out(shrunk(r, fewer, order, how), fold, drop) for r, fold in zip(rest, folds, strict=True)]
    return float(np.mean(bounds))


def chosen(folds: Array, errors: Array, order: Order, drop: Array) -> tuple[Shrinkage, float]:
    """The shrinkage of the least held-out bound, and that bound; arguments as those of `scored`."""
    dim = folds.shape[2]
    widths = [0, *(4**k for k in range(12) if 4**k < dim // 2), dim]
    tried = [Shrinkage(w, t, s) for w, t, s in itertools.product(widths, _TIMES, _SPREADS) if w or s == np.inf]
    bounds = [scored(folds, errors, order, drop, how) for how in tried]
    best = int(np.argmin(bounds))
    return tried[best], bounds[best]
