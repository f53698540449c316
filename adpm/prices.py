"""The cost of a step t -> s as a function of index arrays, for costs of any number of reference times.

    kl       1/2 log1p((gamma_s - gamma_t) Var_t)                 one variance per time, eta = 1
    axes     1/2 mean_f log1p(gain^2 r_f / lambda2)               one per time and axis, any eta in (0, 1]

Both are Monge (adpm/shortest_path.py) at eta = 1 where the excess precision 1/Var_t - gamma_t, for `axes` that of every
axis, does not fall as the SNR rises. That is seen from N numbers, without looking at the N^2 costs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from adpm.errors import UserError
from adpm.kernel import reverse_kernel
from adpm.process import Array, Process
from adpm.shortest_path import IntArray

Price = Callable[[IntArray, IntArray], Array]
"""(s, t), indices 1 <= s < t that broadcast -> costs in nats per dimension."""

ROWS_AT_ONCE = 1024  # times whose axes are sorted together
LARGEST = 1e300  # what a product may grow to before its logarithm is taken


def kl_price(process: Process, variance: Array) -> Price:
    """1/2 log1p((gamma_s - gamma_t) Var_t) from Var [N+1], entry 0 unused."""
    log_snr = np.concatenate([[np.inf], process.log_snr(process.times[1:])])
    snr = np.exp(log_snr)

    def price(s: IntArray, t: IntArray) -> Array:
        drop: Array = -snr[s] * np.expm1(log_snr[t] - log_snr[s])
        return 0.5 * np.log1p(drop * variance[t])

    return price


def axes_price(process: Process, means: Array, share: Array, eta: float) -> Price:
    """1/2 sum_g share_g log1p(gain^2 r_g / lambda2) from r [N+1, G], entry 0 unused, and the shares [G] of the axes.

    Of axes with the same share, (1 + a)(1 + b)... - 1 is taken by sums of positive numbers, and one logarithm of many.
    """
    sets = [(value, means.T[share == value].copy()) for value in np.unique(share)]

    def price(s: IntArray, t: IntArray) -> Array:
        kernel = reverse_kernel(process, process.times[t], process.times[s], eta)
        ratio = kernel.gain**2 / kernel.lambda2
        factor = 1.0 + float(ratio.max(initial=0.0)) * float(means[1:].max())
        at_once = max(1, int(np.log(LARGEST) / np.log(factor))) if factor > 1.0 else len(means)
        total = np.zeros_like(ratio)
        for value, rows in sets:
            for begin in range(0, len(rows), at_once):
                total += value * np.log1p(_product(ratio, t, rows[begin : begin + at_once]))
        return 0.5 * total

    return price


def _product(ratio: Array, t: IntArray, rows: Array) -> Array:
    """prod_g (1 + ratio r_g(t)) - 1 with a small relative error: p -> p + y (1 + p)."""
    product = np.zeros_like(ratio)
    for row in rows:
        product += ratio * row[t] * (1.0 + product)
    return product


def grouped(residual: Array, groups: int) -> tuple[Array, Array]:
    """Axes of nearly equal r_f at a time by their mean: r [N+1, d] -> [N+1, G], with the share of each group [G]."""
    axes = residual.shape[1]
    width = np.array([len(part) for part in np.array_split(np.arange(axes), min(groups, axes))])
    first = np.cumsum(width) - width
    means = np.empty((len(residual), len(width)))
    for begin in range(0, len(residual), ROWS_AT_ONCE):
        part = slice(begin, begin + ROWS_AT_ONCE)
        means[part] = np.add.reduceat(np.sort(residual[part], axis=1), first, axis=1) / width
    return means, width / axes


def project_variance(process: Process, variance: ArrayLike, variance_se: ArrayLike | None = None) -> Array:
    """Var [N+1] whose kappa_t = 1/Var_t - gamma_t never falls as the SNR rises and never lies below 0.

    Isotonic regression of kappa over t = 1..N with weights 1/se(kappa)^2, se(kappa) = se(Var)/Var^2; without standard
    errors every Var_t counts as known to the same relative error. Entry 0 is 0.

    Raises:
        UserError: if a variance or a standard error is not a positive number.
    """
    values = positive(process, variance, "variance")
    errors = values if variance_se is None else positive(process, variance_se, "variance_se")
    return projected(process, values, errors)


def positive(process: Process, values: ArrayLike, name: str) -> Array:
    """`values` as float64 [N+1], refused unless the entries 1..N are positive numbers."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (process.steps + 1,):
        raise UserError(f"`{name}` must hold N + 1 = {process.steps + 1} numbers (entry 0 unused), got {array.shape}.")
    bad = np.flatnonzero(~((array[1:] > 0) & np.isfinite(array[1:])))
    if bad.size:
        t = int(bad[0]) + 1
        raise UserError(f"`{name}`[{t}] = {array[t]:.6g} must be a positive number; estimate it from more draws.")
    return array


def projected(process: Process, values: Array, errors: Array) -> Array:
    """`project_variance` of numbers that are known to be positive."""
    snr = np.exp(process.log_snr(process.times[1:]))
    kappa = 1.0 / values[1:] - snr
    weights = (values[1:] ** 2 / errors[1:]) ** 2
    monotone = isotonic_regression(kappa, weights=weights / weights.max(), increasing=False).x
    return np.concatenate([[0.0], 1.0 / (np.maximum(monotone, 0.0) + snr)])


def monge_bound(process: Process, variance: Array) -> float:
    """The most by which any four 1 <= a < b < c < d = c + 1 break the Monge condition in `kl`, or a little more; O(N).

    With k = kappa they do by 1/2 log1p[(k_d - k_c) (gamma_a - gamma_b) / ((k_d + gamma_a) (k_c + gamma_b))], which is
    above 0 where k_d > k_c, and then at most 1/2 log1p((k_d - k_c) / (k_c + gamma_c)) = 1/2 log1p((k_d - k_c) Var_c).
    -inf where there are no four. For Var [N+1, G], the largest over c of the mean over G, shares being even.
    """
    snr, known = np.exp(process.log_snr(process.times[3:])), variance[3:]
    if len(known) < 2:
        return -np.inf
    fall = (snr[:-1] - snr[1:]).reshape(-1, *[1] * (known.ndim - 1))
    rise = np.log1p(np.expm1(np.log(known[:-1]) - np.log(known[1:])) + fall * known[:-1])
    return 0.5 * float(rise.reshape(len(rise), -1).max() if known.ndim == 1 else np.maximum(rise, 0.0).mean(1).max())
