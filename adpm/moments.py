"""Monte-Carlo moments of a denoiser with standard errors, and the Var[x_0 | x_t] that they imply.

One pass over (image, noise) draws at each measured time records, per dimension (m = E x_0, d dimensions),

    residual   ||x_0 - x0_hat(x_t)||^2 / d       Var_t itself; minimises the bound over isotropic variances
    gamma      ||eps_network(x_t)||^2 / d        Var_t = (sigma_t/alpha_t)^2 (1 - gamma), Analytic-DPM, Theorem 1
    power      ||x0_hat(x_t) - m||^2 / d         Var_t = Var[x_0] - power, the data-variance estimate (Su 2022)
    controls   ||eps||^2/d - 1, eps.(x_0 - m)/d and ||x_0 - m||^2/d - Var[x_0], whose means are exactly zero
               whatever the network

For an exact denoiser the three estimators agree in expectation. The residual is regressed on the controls: its
estimate is the intercept, with the standard error of least squares and n - 4 degrees of freedom. The first two controls
carry the noise of high SNR, the third that of low SNR, where x0_hat is nearly m and the residual nearly
||x_0 - m||^2. Sums are kept as (n, mean, scatter), so they can be merged. Between measured times Var_t is interpolated
in log-SNR.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from scipy.stats import t as student_t
from torch import Tensor

from adpm.denoiser import Denoise
from adpm.errors import UserError, lookup
from adpm.noise import KeyedNoise
from adpm.process import Array, Process

COLUMNS = ("residual", "gamma", "power", "noise_control", "signal_control", "spread_control")
RESIDUAL, GAMMA, POWER = 0, 1, 2
CONTROLS = slice(3, 6)
# log Var_t is interpolated; a variance of exactly zero (a network that is always right) has to stay finite there.
_SMALLEST = 1e-12
_FITTED = 4  # what the regression fits: the intercept and a slope for each control


@dataclass(frozen=True)
class Draws:
    """Sums over draws at one time: count n, mean [6] and scatter [6, 6] = sum (z - mean)(z - mean)^T of COLUMNS."""

    n: int
    mean: Array
    scatter: Array

    @staticmethod
    def of(z: Array) -> Draws:
        """The sums of the rows of z [n, 6]."""
        mean = z.mean(0)
        return Draws(len(z), mean, (z - mean).T @ (z - mean))

    def merge(self, other: Draws) -> Draws:
        """The sums of both sets of draws (Chan et al. 1983)."""
        n = self.n + other.n
        delta = other.mean - self.mean
        mean = self.mean + delta * other.n / n
        return Draws(n, mean, self.scatter + other.scatter + np.outer(delta, delta) * self.n * other.n / n)


@dataclass(frozen=True)
class Estimate:
    """Values with standard errors; `interval` is the half-width of the Student-t confidence interval."""

    values: Array
    errors: Array
    freedom: Array

    def interval(self, level: float = 0.95) -> Array:
        return student_t.ppf(0.5 + level / 2, self.freedom) * self.errors


def draw_moments(x0: Tensor, eps: Tensor, x0_hat: Tensor, eps_network: Tensor, mean: Tensor, variance: float) -> Array:
    """The statistics of each draw, [B, 6] float64; `mean` is E x_0 [C, H, W], `variance` is tr Cov[x_0] / d."""

    def per_dim(z: Tensor) -> Tensor:
        return z.double().flatten(1).mean(1)

    columns = [
        per_dim((x0 - x0_hat).square()),
        per_dim(eps_network.square()),
        per_dim((x0_hat - mean).square()),
        per_dim(eps.square()) - 1.0,
        per_dim(eps * (x0 - mean)),
        per_dim((x0 - mean).square()) - variance,
    ]
    return torch.stack(columns, dim=1).cpu().numpy()


@dataclass(frozen=True)
class Source:
    """The images that moments are measured on.

    Attributes:
        size: number of images.
        images: indices [B] -> images [B, C, H, W] in the network's range, on its device.
        mean: E x_0 over all of them, [C, H, W].
        variance: tr Cov[x_0] / d over all of them.
    """

    size: int
    images: Callable[[Tensor], Tensor]
    mean: Tensor
    variance: float


def measure(
    denoise: Denoise, process: Process, source: Source, times: Sequence[float], draws: int, seed: int, batch_size: int
) -> Iterator[tuple[float, Draws]]:
    """Measure the moments time by time.

    Draw i takes the i-th image of one permutation (again from the start when draws exceed images) and noise keyed by
    (seed, i, t), so the result does not depend on the batch size or on which other times are measured.

    Yields:
        (t, sums over `draws` draws at t).
    """
    order = torch.randperm(source.size, generator=torch.Generator().manual_seed(seed))
    keyed = KeyedNoise(seed, "moments")
    mean = source.mean
    for t in times:
        step = int(np.searchsorted(process.times, t))
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        total: Draws | None = None
        for start in range(0, draws, batch_size):
            number = torch.arange(start, min(start + batch_size, draws))
            x0 = source.images(order[number % source.size])
            eps = keyed(number.to(x0.device), step, x0.shape[1:]).to(x0.dtype)
            prediction = denoise(alpha * x0 + sigma * eps, t)
            z = draw_moments(x0, eps, prediction.x0, prediction.eps_network, mean, source.variance)
            if not np.isfinite(z).all():
                raise UserError(f"the network returned numbers that are not finite at t = {t:g}; check its weights.")
            part = Draws.of(z)
            total = part if total is None else total.merge(part)
        assert total is not None
        yield float(t), total


def spread_times(process: Process, count: int) -> Array:
    """`count` reference times spread evenly in log-SNR; always with the first two and the last; 0 = all of them."""
    reference = process.times[1:]
    if count == 0 or count >= len(reference):
        return reference
    if count < 4:
        raise UserError(f"config.moments.times = {count} is too few to interpolate; use at least 4, or 0 for all.")
    ends = process.log_snr(reference[[0, -1]])
    indices = np.unique(np.concatenate([[1, 2], process.nearest_index(np.linspace(ends[0], ends[1], count))]))
    return process.times[indices]


@dataclass(frozen=True)
class MomentTable:
    """Moments at measured times.

    Attributes:
        times: [T], increasing, positive.
        draws: [T] sums; NaN columns were not measured (a published ms_eps file has gamma only).
        data_variance: tr Cov[x_0] / d.
        provenance: what the numbers depend on: weights, clipping, data split, draws, seed, process.
    """

    times: Array
    draws: tuple[Draws, ...]
    data_variance: float
    provenance: Mapping[str, Any]

    def column(self, index: int) -> Estimate:
        """Plain mean of a column with its standard error."""
        n = np.array([d.n for d in self.draws], dtype=np.float64)
        mean = np.array([d.mean[index] for d in self.draws])
        variance = np.array([d.scatter[index, index] for d in self.draws]) / np.maximum(n - 1, 1)
        return Estimate(mean, np.sqrt(variance / n), n - 1)

    def controlled_residual(self) -> Estimate:
        """The residual regressed on the controls: intercept, its standard error, n - 4 degrees of freedom."""
        rows = [_intercept(d) for d in self.draws]
        values, errors = np.array(rows).T
        return Estimate(values, errors, np.array([d.n for d in self.draws], dtype=np.float64) - _FITTED)

    def posterior_variance(self, estimator: str, process: Process) -> Estimate:
        """Var[x_0 | x_t] per dimension at the measured times, by the named estimator."""
        estimate = lookup(ESTIMATORS, estimator, "config.rule.estimator")(self, process)
        if np.isnan(estimate.values).any():
            raise UserError(
                f"these moments hold no '{estimator}' statistics (a published ms_eps file has gamma only); "
                "set config.rule.estimator = 'gamma' or estimate moments with --mode=estimate."
            )
        return estimate

    def variance(self, estimator: str, process: Process) -> Callable[[Array], Array]:
        """Var[x_0 | x_t] as a function of time, interpolated in log-SNR.

        The logarithm is interpolated. The two estimates by differences may be negative; then the ratio to the unit
        Gaussian's posterior variance, (1 + gamma_t) Var_t, is. Both by PCHIP, which keeps monotone data monotone.

        Raises:
            UserError: for a time outside the measured range.
        """
        node = -process.log_snr(self.times)
        values = self.posterior_variance(estimator, process).values
        curve = _curve(node, values, estimator in POSITIVE)
        low, high = self.times[0], self.times[-1]

        def at(t: Array) -> Array:
            if np.any(t < low) or np.any(t > high):
                raise UserError(f"moments were measured for times {low:g} to {high:g}, not for all of {t}.")
            return curve(-process.log_snr(t))

        return at

    def standard_error(self, estimator: str, process: Process) -> Callable[[Array], Array]:
        """Standard error of Var_t as a function of time, log-linear in log-SNR between measured times."""
        node = -process.log_snr(self.times)
        log_error = np.log(np.maximum(self.posterior_variance(estimator, process).errors, 1e-300))
        return lambda t: np.exp(np.interp(-process.log_snr(t), node, log_error))

    def interpolation_error(self, estimator: str, process: Process) -> Array:
        """Relative error at each interior time when it is left out and interpolated from the others, [T - 2].

        It holds Monte-Carlo noise and a gap twice the table's own, so it overstates the table's error.
        """
        node = -process.log_snr(self.times)
        values = self.posterior_variance(estimator, process).values
        out = []
        for i in range(1, len(node) - 1):
            keep = np.arange(len(node)) != i
            out.append(_curve(node[keep], values[keep], estimator in POSITIVE)(node[i]) / values[i] - 1.0)
        return np.array(out)

    def save(self, path: Path) -> None:
        """Write everything to one npz file."""
        with path.open("wb") as file:
            np.savez(
                file,
                times=self.times,
                n=np.array([d.n for d in self.draws]),
                mean=np.stack([d.mean for d in self.draws]),
                scatter=np.stack([d.scatter for d in self.draws]),
                data_variance=np.float64(self.data_variance),
                provenance=np.array(json.dumps(dict(self.provenance), sort_keys=True)),
            )

    @staticmethod
    def load(path: Path) -> MomentTable:
        """Read a file written by `save`.

        Raises:
            UserError: if it is missing or not such a file.
        """
        if not path.is_file():
            raise UserError(f"moments file '{path}' does not exist; make it with --mode=estimate.")
        try:
            with np.load(path) as file:
                times, n, mean, scatter = (file[key] for key in ("times", "n", "mean", "scatter"))
                if not mean.shape == scatter.shape[:2] == (*times.shape, len(COLUMNS)):
                    raise ValueError(f"{mean.shape} means for {times.shape} times")
                draws = tuple(Draws(int(count), m, s) for count, m, s in zip(n, mean, scatter, strict=True))
                provenance = dict(json.loads(str(file["provenance"])))
                return MomentTable(times, draws, float(file["data_variance"]), provenance)
        except Exception as error:  # numpy and zipfile raise a dozen kinds on damaged files
            raise UserError(f"'{path}' is not a moments file of this project ({error}).") from error

    def require(self, provenance: Mapping[str, Any], path: Path) -> None:
        """Check that the table is about what is asked for: it agrees with every entry of `provenance`.

        Raises:
            UserError: naming the differing entries.
        """
        there, now = (leaves(json.loads(json.dumps(dict(p)))) for p in (self.provenance, provenance))
        changed = [k for k in sorted(now) if now[k] != there.get(k)]
        if changed:
            told = "; ".join(f"{k}: {there.get(k)!r} there, {now[k]!r} now" for k in changed[:4])
            raise UserError(
                f"moments file '{path}' belongs to something else ({told}); "
                "remove it to measure again, or name another in config.moments.file."
            )


def leaves(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    out: dict[str, Any] = {}
    for key, item in value.items():
        out |= leaves(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {prefix + key: item}
    return out


def _intercept(d: Draws) -> tuple[float, float]:
    """Least squares of the residual on the controls: intercept and its standard error."""
    if np.isnan(d.mean[RESIDUAL]):
        return np.nan, np.nan
    if d.n <= _FITTED + 1:
        raise UserError(f"config.moments.draws = {d.n} is too few for error bars; use at least {_FITTED + 2}.")
    control_scatter = d.scatter[CONTROLS, CONTROLS]
    cross = d.scatter[CONTROLS, RESIDUAL]
    slope, *_ = np.linalg.lstsq(control_scatter, cross, rcond=None)
    leverage = d.mean[CONTROLS] @ np.linalg.pinv(control_scatter) @ d.mean[CONTROLS]
    left = max(d.scatter[RESIDUAL, RESIDUAL] - slope @ cross, 0.0)
    return d.mean[RESIDUAL] - slope @ d.mean[CONTROLS], float(np.sqrt(left / (d.n - _FITTED) * (1.0 / d.n + leverage)))


def _curve(node: Array, values: Array, positive: bool) -> Callable[[Array], Array]:
    """Interpolate Var_t over -log-SNR; a single node stands for itself."""
    if len(node) == 1:
        return lambda at: np.full_like(at, values[0])
    if positive or np.all(values > 0):
        log_curve = PchipInterpolator(node, np.log(np.maximum(values, _SMALLEST)))
        return lambda at: np.exp(log_curve(at))
    ratio = PchipInterpolator(node, values * (1.0 + np.exp(-node)))
    return lambda at: ratio(at) / (1.0 + np.exp(-at))


def _from_residual(table: MomentTable, process: Process) -> Estimate:
    return table.controlled_residual()


def _from_gamma(table: MomentTable, process: Process) -> Estimate:
    gamma, noise_to_signal = table.column(GAMMA), np.exp(-process.log_snr(table.times))
    return Estimate(noise_to_signal * (1.0 - gamma.values), noise_to_signal * gamma.errors, gamma.freedom)


def _from_power(table: MomentTable, process: Process) -> Estimate:
    power = table.column(POWER)
    return Estimate(table.data_variance - power.values, power.errors, power.freedom)


ESTIMATORS: dict[str, Callable[[MomentTable, Process], Estimate]] = {
    "residual": _from_residual,
    "gamma": _from_gamma,
    "data": _from_power,
}
POSITIVE = frozenset({"residual"})
