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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from adpm.draws import COLUMNS, FITTED, GAMMA, POWER, Draws, Estimate, intercept, require_sums
from adpm.errors import UserError
from adpm.families import Kind, built
from adpm.process import Array, Process
from adpm.provenance import require_own
from adpm.reading import measured_file

# log Var_t is interpolated; a variance of exactly zero (a network that is always right) has to stay finite there.
_SMALLEST = 1e-12
# An error of exactly zero (data that are all the same) has to stay a weight that can be divided by.
_LEAST_ERROR = 1e-12  # of the value
# How far above sigma^2/alpha^2 a residual is the fault of what was said of the network: a share, and standard errors.
_EXCESS, _ERRORS = 0.05, 5.0
_ROUNDING = 1e-10


def spread_times(process: Process, times: int) -> Array:
    """`times` reference times spread evenly in log-SNR; always with the first two and the last; 0 = all of them."""
    reference = process.times[1:]
    if times == 0 or times >= len(reference):
        return reference
    if times < 4:
        raise UserError(f"`times` = {times} is too few to interpolate; use at least 4, or 0 for all.")
    ends = process.log_snr(reference[[0, -1]])
    indices = np.unique(np.concatenate([[1, 2], process.nearest_index(np.linspace(ends[0], ends[1], times))]))
    return process.times[indices]


@dataclass(frozen=True)
class MomentTable:
    """Moments at measured times.

    Attributes:
        times: [T], increasing, positive.
        draws: [T] sums; NaN columns were not measured (a published ms_eps file has gamma only).
        data_variance: tr Cov[x_0] / d.
        provenance: what the numbers depend on: weights, clipping, data split, draws, seed, process.
        shape: of the data; () where it is not known.

    Raises:
        UserError: if times do not rise from above 0, if there are not as many sums, or if one of them is none.
    """

    times: Array
    draws: tuple[Draws, ...]
    data_variance: float
    provenance: Mapping[str, Any]
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        times = self.times
        if times.ndim != 1 or not len(times) == len(self.draws) > 0:
            raise UserError(
                f"moments need sums for each of at least one time, got {len(self.draws)} for {times.shape}."
            )
        if not (np.isfinite(times).all() and (np.diff(times, prepend=0.0) > 0.0).all()):
            raise UserError("times of moments must be positive numbers that rise.")
        if not (np.isnan(self.data_variance) or -1e-6 < self.data_variance < np.inf):  # rounding may leave -1e-9
            raise UserError(f"the variance of the data is {self.data_variance}, which is none.")
        require_sums(self.draws)

    def column(self, index: int) -> Estimate:
        """Plain mean of a column with its standard error."""
        n = np.array([d.n for d in self.draws], dtype=np.float64)
        mean = np.array([d.mean[index] for d in self.draws])
        variance = np.array([d.scatter[index, index] for d in self.draws]) / np.maximum(n - 1, 1)
        return Estimate(mean, np.sqrt(variance / n), n - 1)

    def controlled_residual(self) -> Estimate:
        """The residual regressed on the controls: intercept, its standard error, n - 4 degrees of freedom."""
        rows = [intercept(d) for d in self.draws]
        values, errors = np.array(rows).T
        return Estimate(values, errors, np.array([d.n for d in self.draws], dtype=np.float64) - FITTED)

    def posterior_variance(self, estimator: str, process: Process) -> Estimate:
        """Var[x_0 | x_t] per dimension at the measured times, by the named estimator."""
        estimate: Estimate = built(ESTIMATORS, estimator, "`estimator`")(self, process)
        if np.isnan(estimate.values).any():
            raise UserError(
                f"these moments hold no '{estimator}' statistics (a published ms_eps file has gamma only); "
                "set `estimator` = 'gamma', or measure the moments."
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
        curve = _curve(node, values, ESTIMATORS[estimator].facts.positive)
        low, high = self.times[0], self.times[-1]

        def at(t: Array) -> Array:
            if np.any(t < low) or np.any(t > high):
                raise UserError(f"moments were measured for times {low:g} to {high:g}, not for all of {t}.")
            return curve(-process.log_snr(t))

        return at

    def standard_error(self, estimator: str, process: Process) -> Callable[[Array], Array]:
        """Standard error of Var_t as a function of time, log-linear in log-SNR between measured times."""
        node = -process.log_snr(self.times)
        estimate = self.posterior_variance(estimator, process)
        log_error = np.log(np.maximum(estimate.errors, _LEAST_ERROR * np.maximum(np.abs(estimate.values), _SMALLEST)))
        return lambda t: np.exp(np.interp(-process.log_snr(t), node, log_error))

    def interpolation_error(self, estimator: str, process: Process) -> Array:
        """Relative error at each interior time when it is left out and interpolated from the others, [T - 2].

        It holds Monte-Carlo noise and a gap twice the table's own, so it overstates the table's error. What differs
        by no more than 2e-12 does not differ.
        """
        node = -process.log_snr(self.times)
        values = self.posterior_variance(estimator, process).values
        out = []
        for i in range(1, len(node) - 1):
            keep = np.arange(len(node)) != i
            out.append(float(_curve(node[keep], values[keep], ESTIMATORS[estimator].facts.positive)(node[i])))
        off = np.array(out) - values[1:-1]
        with np.errstate(divide="ignore"):
            return np.divide(off, values[1:-1], out=np.zeros_like(off), where=np.abs(off) > 2.0 * _SMALLEST)

    def arrays(self) -> dict[str, Any]:
        """Everything, by name."""
        return {
            "times": self.times,
            **stacked(self.draws),
            "shape": np.array(self.shape, dtype=np.int64),
            "data_variance": np.float64(self.data_variance),
            "provenance": np.array(json.dumps(dict(self.provenance), sort_keys=True)),
        }

    def save(self, path: Path) -> None:
        """Write everything to one npz file."""
        with path.open("wb") as file:
            np.savez(file, **self.arrays())

    @staticmethod
    def load(path: Path) -> MomentTable:
        """Read a file written by `save`.

        Raises:
            UserError: if it is missing, not such a file, or holds what no measurement gives.
        """
        with measured_file(path, "moments file") as arrays:
            return MomentTable.of(arrays)

    @staticmethod
    def of(arrays: Mapping[str, NDArray[Any]]) -> MomentTable:
        """The table whose `arrays` these are.

        Raises:
            Exception: KeyError, ValueError and their like where they hold what no measurement gives.
        """
        times, n, mean, scatter = (arrays[key] for key in ("times", "n", "mean", "scatter"))
        if not mean.shape == scatter.shape[:2] == (*times.shape, len(COLUMNS)) or n.dtype.kind not in "iu":
            raise ValueError(f"{mean.shape} means and {n.dtype} counts for {times.shape} times")
        sums = tuple(Draws(int(count), m, s) for count, m, s in zip(n, mean, scatter, strict=True))
        provenance = dict(json.loads(str(arrays["provenance"])))
        shape = tuple(arrays["shape"].tolist()) if "shape" in arrays else ()
        return MomentTable(times, sums, float(arrays["data_variance"]), provenance, shape)

    def require(self, provenance: Mapping[str, Any], path: Path) -> None:
        """Check that the table is about what is asked for: it agrees with every entry of `provenance`.

        Raises:
            UserError: naming the differing entries.
        """
        require_own(self.provenance, provenance, path, "moments", "file")


def stacked(draws: Sequence[Draws]) -> dict[str, NDArray[Any]]:
    """Sums of several times as arrays: n [T], mean [T, 6], scatter [T, 6, 6]."""
    return {
        "n": np.array([d.n for d in draws]),
        "mean": np.stack([d.mean for d in draws]),
        "scatter": np.stack([d.scatter for d in draws]),
    }


def unstacked(arrays: Mapping[str, NDArray[Any]]) -> list[Draws]:
    """The inverse of `stacked`."""
    rows = zip(arrays["n"], arrays["mean"], arrays["scatter"], strict=True)
    return [Draws(int(n), mean, scatter) for n, mean, scatter in rows]


def implausible(table: MomentTable, process: Process) -> str:
    """What is wrong with moments that no network has which is what it is said to be; "" if nothing is.

    x_t / alpha_t, which predicts no noise at all, has the residual sigma_t^2 / alpha_t^2. A network that is worse by
    more than 5 % and 5 standard errors is read the wrong way (eps for x_0 or the reverse, another label, process or
    range of the data), or not trained. Times are left out where that residual is of the size of float32's rounding.
    """
    estimate, bound = (
        built(ESTIMATORS, "residual", "`estimator`")(table, process),
        np.exp(-process.log_snr(table.times)),
    )
    ratio = (estimate.values - _ERRORS * estimate.errors) / bound
    ratio = np.where(np.isnan(ratio) | (bound < _ROUNDING), 0.0, ratio)  # NaN: a published file has no residual
    if ratio.max() <= 1.0 + _EXCESS:
        return ""
    i = int(ratio.argmax())
    return (
        f"at t = {table.times[i]:g} the network's mean squared error of x_0 is {estimate.values[i]:.3g} +- "
        f"{estimate.errors[i]:.1g}, above sigma^2/alpha^2 = {bound[i]:.3g}, which predicting no noise at all has: what "
        "it predicts, its time label, its process or the range of its data is not as said, or it is not trained"
    )


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


@dataclass(frozen=True)
class EstimatorFacts:
    """What may be asked of an estimator.

    Attributes:
        positive: whether the estimate cannot be negative, so that its logarithm is interpolated.
        divides_by_alpha: whether it has no value where alpha is 0.
    """

    positive: bool = False
    divides_by_alpha: bool = False


ESTIMATORS: dict[str, Kind] = {
    "residual": Kind(
        lambda: _from_residual,
        "E||x0 - x0_hat||^2 / d, with control variates: right for any mean",
        EstimatorFacts(True),
    ),
    "gamma": Kind(
        lambda: _from_gamma,
        "sigma^2/alpha^2 (1 - E||eps_hat||^2 / d), Analytic-DPM's (Bao et al. 2022)",
        EstimatorFacts(divides_by_alpha=True),
    ),
    "data": Kind(lambda: _from_power, "Var[x0] - E||x0_hat - E x0||^2 / d (Su 2022)", EstimatorFacts()),
}
