"""Forward processes: q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I).

Everything else in the project sees a process through three functions of time and a grid of reference times;
discrete schedules and SDEs differ in nothing else. With SNR gamma_t = alpha_t^2 / sigma_t^2,

    alpha(t), sigma(t), log_snr(t) = log gamma_t         float64, elementwise in t
    times = [0, t_1 < ... < t_N]                         reference times; 0 is the data: alpha = 1, sigma = 0

A discrete schedule with betas beta_1..beta_N has times 0..N and

    alpha_n^2 = prod_{i<=n} (1 - beta_i),   sigma_n^2 = 1 - alpha_n^2

("alpha-bar" and "beta-bar" of Ho et al. 2020 and Bao et al. 2022).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

from adpm.errors import UserError
from adpm.families import Field, Kind
from adpm.reading import read_betas

Array = NDArray[np.float64]

LOG_SNR_RANGE = (-708.0, 48.0 * np.log(2.0))
"""Below, 1/SNR is no float64; above, noise is less than the last bit of a float32 image, 2^-24 of it."""
MANY = 100
"""Reference times from which on the first has to be nearly data and the last nearly noise; toys may be coarser."""


class Process(ABC):
    """A forward process, as the rest of the project sees it.

    Attributes:
        times: [N+1] float64, increasing, `times[0] = 0` is the data.
        prior_std: standard deviation of the Gaussian that sampling starts from at the last time.
        preserves_variance: whether alpha_t^2 + sigma_t^2 = 1, so that data of unit variance keep it at every time.
        continuous: whether the reference times are a choice (an SDE), not part of the process.
        pure_noise: whether nothing is left of the data at the last time: alpha stands for 0 there, and what divides by
            it has no value.
    """

    times: Array
    prior_std: float
    preserves_variance: bool = False
    continuous: bool = False
    pure_noise: bool = False

    @abstractmethod
    def alpha(self, t: ArrayLike) -> Array:
        """Signal scale alpha_t."""

    @abstractmethod
    def sigma(self, t: ArrayLike) -> Array:
        """Noise standard deviation sigma_t."""

    @abstractmethod
    def log_snr(self, t: ArrayLike) -> Array:
        """log(alpha_t^2 / sigma_t^2), strictly decreasing; +inf at t = 0."""

    def time_of(self, log_snr: ArrayLike) -> Array:
        """The inverse of `log_snr`, a real number; smooth between reference times, and an SDE's own formula."""
        between = PchipInterpolator(-self.log_snr(self.times[1:]), np.log(self.times[1:]))
        return np.exp(between(-np.asarray(log_snr, dtype=np.float64)))

    @property
    def steps(self) -> int:
        """N, the number of reference times after the data."""
        return len(self.times) - 1

    def start_std(self, t: float) -> float:
        """Standard deviation of the Gaussian that sampling starts from at `t`.

        `prior_std` at the last time, and at every time of a process that preserves variance (the published quadratic
        and stride paths start earlier, from N(0, I)). Elsewhere it is sigma_t: alpha_t^2 Var[x_0], which belongs to the
        data, is left out of Var[x_t], as the prior itself leaves it out.
        """
        if self.preserves_variance or t == self.times[-1]:
            return self.prior_std
        return float(self.sigma(t))

    def uniform_times(self, u: ArrayLike) -> Array:
        """Training times for u in [0, 1): uniform over the reference times (over all times, for an SDE)."""
        return self.times[1 + np.floor(np.asarray(u, dtype=np.float64) * self.steps).astype(np.int64)]

    def log_snr_times(self, u: ArrayLike) -> Array:
        """Training times for u in [0, 1): uniform in log-SNR, snapped to reference times (unless an SDE)."""
        ends = self.log_snr(self.times[[1, -1]])
        return self.times[self.nearest_index(ends[0] + (ends[1] - ends[0]) * np.asarray(u, dtype=np.float64))]

    def nearest_index(self, log_snr: ArrayLike) -> NDArray[np.int64]:
        """Index into `times[1:]` (so 1..N) whose log-SNR is closest to the one asked for."""
        grid = -self.log_snr(self.times[1:])
        wanted = -np.asarray(log_snr, dtype=np.float64)
        right = np.clip(np.searchsorted(grid, wanted), 1, len(grid) - 1)
        left_is_closer = wanted - grid[right - 1] <= grid[right] - wanted
        return np.clip(right - left_is_closer + 1, 1, len(grid)).astype(np.int64)


def require_falling(process: Process, advice: Callable[[int], str]) -> None:
    """Check the reference times 1..N of a process that is being made; `advice` says what to change, given an index.

    Raises:
        UserError: unless they rise, and the log-SNR lies within LOG_SNR_RANGE and falls at each.
    """
    times, (low, high) = process.times, LOG_SNR_RANGE
    with np.errstate(all="ignore"):
        log_snr = np.concatenate([[np.inf], process.log_snr(times[1:])])

    def first(wrong: NDArray[np.bool_]) -> int:
        """The time at which something is wrong, 1..N; 0 for none."""
        return int(wrong.argmax()) + 1 if wrong.any() else 0

    if n := first(~(np.diff(times) > 0.0)):
        raise UserError(f"reference times must rise, but {times[n]} comes after {times[n - 1]}; {advice(n)}.")
    if n := first(~((log_snr[1:] >= low) & (log_snr[1:] <= high))):
        raise UserError(
            f"the log-SNR is {log_snr[n]:.6g} at t = {times[n]:.6g}, beyond what numbers can hold ({low:.0f} to "
            f"{high:.0f}); {advice(n)}."
        )
    if n := first(~(np.diff(log_snr) < 0.0)):
        raise UserError(
            f"the log-SNR must fall strictly, but is {log_snr[n - 1]:.6g} at t = {times[n - 1]:.6g} and "
            f"{log_snr[n]:.6g} at t = {times[n]:.6g}; {advice(n)}."
        )


def require_ends(process: Process, advice: tuple[Callable[[], str], Callable[[], str]]) -> None:
    """Check that a process of MANY times goes from nearly data to nearly noise; `advice` is for the first and the last.

    Below MANY times, only the last time of an SDE is looked at, which does not depend on their number.

    Raises:
        UserError: if there is more noise than signal at the first time, or less at the last.
    """
    many, log_snr = process.steps >= MANY, process.log_snr(process.times[[1, -1]])
    wrong = (many and log_snr[0] < 0.0, (many or process.continuous) and log_snr[1] > 0.0)
    if any(wrong):
        alpha, sigma = process.alpha(process.times[[1, -1]]), process.sigma(process.times[[1, -1]])
        raise UserError(
            "a process goes from nearly data (alpha = 1, sigma small) to nearly noise (alpha small beside sigma), but "
            f"this one has alpha_1 = {alpha[0]:.4g}, sigma_1 = {sigma[0]:.4g} at its first time and "
            f"alpha_N = {alpha[1]:.4g}, sigma_N = {sigma[1]:.4g} at its last; {advice[wrong.index(True)]()}."
        )


class DiscreteProcess(Process):
    """A variance-preserving schedule given by its betas (Ho et al. 2020, eq. 2).

    Args:
        betas: [N], each in (0, 1); beta_n is the variance added by step n = 1..N.

    Raises:
        UserError: if a beta lies outside (0, 1), or if there is none; if the log-SNR does not fall at each step; if it
            does not fall from nearly data to nearly noise.
    """

    prior_std = 1.0
    preserves_variance = True

    def __init__(self, betas: ArrayLike) -> None:
        values = np.asarray(betas, dtype=np.float64)
        if values.ndim != 1 or values.size == 0:
            raise UserError(f"the betas of a process must be a list of N >= 1 numbers, got shape {values.shape}.")
        bad = np.flatnonzero(~((values > 0) & (values < 1)))
        if bad.size:
            n = int(bad[0])
            raise UserError(
                f"the betas of a process must lie in (0, 1), but beta_{n + 1} of {values.size} is {values[n]:.6g}."
            )
        self.betas = values
        self.times = np.arange(values.size + 1, dtype=np.float64)
        # log1p sums keep the small sigma^2 of the first steps to full precision; 1 - prod would not.
        log_alpha2 = np.concatenate([[0.0], np.cumsum(np.log1p(-values))])
        sigma2 = -np.expm1(log_alpha2)
        self._alpha = np.exp(0.5 * log_alpha2)
        self._sigma = np.sqrt(sigma2)
        with np.errstate(divide="ignore"):
            self._log_snr = log_alpha2 - np.log(sigma2)
        require_ends(self, (lambda: _meant(values), lambda: f"the betas sum to {values.sum():.4g}, where 10 is usual"))
        require_falling(self, lambda n: f"beta_{n} = {values[n - 1]:.6g} is too small or too large")

    def _index(self, t: ArrayLike) -> NDArray[np.int64]:
        time = np.asarray(t, dtype=np.float64)
        index = np.rint(time).astype(np.int64)
        if np.any(index != time) or np.any(index < 0) or np.any(index > self.steps):
            raise UserError(f"time {time} is not one of the integers 0..{self.steps} of this discrete process.")
        return index

    def alpha(self, t: ArrayLike) -> Array:
        return self._alpha[self._index(t)]

    def sigma(self, t: ArrayLike) -> Array:
        return self._sigma[self._index(t)]

    def log_snr(self, t: ArrayLike) -> Array:
        return self._log_snr[self._index(t)]


def _meant(betas: Array) -> str:
    """What betas that drown the data in the first step probably are."""
    if betas.min() > 0.5:
        return "these betas look like alphas: give 1 - alpha_n"
    if (np.diff(betas) < 0.0).all():
        return "these betas look like cumulative products a_n of 1 - beta: give 1 - a_n / a_(n-1), with a_0 = 1"
    return "a beta is the variance that a step adds, usually 0.1/N in the first and 20/N in the last"


def _require_steps(steps: int) -> None:
    if steps < 1:
        raise UserError(f"`steps` = {steps} must be at least 1.")


def linear_betas(steps: int) -> Array:
    """beta_n from 0.1/N to 20/N in equal increments (1e-4 to 2e-2 at N = 1000; Ho et al. 2020)."""
    _require_steps(steps)
    return np.linspace(0.1 / steps, 20.0 / steps, steps)


def cosine_betas(steps: int) -> Array:
    """beta_n = min(1 - f(n/N) / f((n-1)/N), 0.999), f(u) = cos^2((u + 0.008)/1.008 pi/2) (Nichol & Dhariwal 2021)."""
    _require_steps(steps)
    grid = np.arange(steps + 1, dtype=np.float64) / steps
    f = np.cos((grid + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - f[1:] / f[:-1], 0.999)


def require_rates(beta_min: float, beta_max: float) -> None:
    """Refuse rates of noise that are not 0 < beta_min <= beta_max < inf."""
    if not 0.0 < beta_min <= beta_max < math.inf:
        raise UserError(
            f"`beta_min` = {beta_min} and `beta_max` = {beta_max} must satisfy 0 < min <= max, and be finite."
        )


def vp_integral_betas(steps: int, beta_min: float = 0.1, beta_max: float = 20.0) -> Array:
    """beta_n = 1 - exp(-integral of beta(u) over ((n-1)/N, n/N)), beta(u) = beta_min + u (beta_max - beta_min).

    The VP-SDE observed at N equidistant times, exactly (Bao et al. 2022b use it for score-SDE checkpoints).

    Raises:
        UserError: unless 0 < beta_min <= beta_max and N >= 1.
    """
    _require_steps(steps)
    require_rates(beta_min, beta_max)
    grid = np.arange(steps + 1, dtype=np.float64) / steps
    integral = beta_min * grid + 0.5 * (beta_max - beta_min) * grid**2
    return -np.expm1(-np.diff(integral))


def linear(steps: int = 1000) -> DiscreteProcess:
    """DDPM's schedule (Ho et al. 2020)."""
    return DiscreteProcess(linear_betas(steps))


def cosine(steps: int = 1000) -> DiscreteProcess:
    """Improved DDPM's schedule (Nichol & Dhariwal 2021)."""
    return DiscreteProcess(cosine_betas(steps))


def vp_integral(steps: int = 1000, beta_min: float = 0.1, beta_max: float = 20.0) -> DiscreteProcess:
    """The VP-SDE at N equidistant times (Bao et al. 2022b)."""
    return DiscreteProcess(vp_integral_betas(steps, beta_min, beta_max))


def custom(steps: int, betas_file: str = "") -> DiscreteProcess:
    """A schedule whose betas lie in a file.

    Raises:
        UserError: if there is no such file, or not `steps` betas in it (0: as many as there are).
    """
    if not betas_file:
        raise UserError("a custom process needs `betas_file`, a .npy or text file with N betas.")
    betas = np.atleast_1d(read_betas(betas_file))
    if betas.ndim != 1 or betas.size == 0:
        raise UserError(f"`betas_file` = '{betas_file}' holds shape {betas.shape}; a list of N is wanted.")
    if steps and len(betas) != steps:
        raise UserError(f"`steps` = {steps}, but '{betas_file}' holds {len(betas)} betas; set it to 0 or {len(betas)}.")
    return DiscreteProcess(betas)


def _steps(low: int = 1) -> Field:
    return Field(1000, "N, reference steps", low=low)


RATES = {"beta_min": Field(0.1, "beta(0)", above=0), "beta_max": Field(20.0, "beta(1)", above=0)}
"""Fields of a process that takes beta(t) from one to the other."""

PROCESSES: dict[str, Kind] = {
    "linear": Kind(
        linear, "betas from 0.1/N to 20/N in equal increments, DDPM's (Ho et al. 2020)", fields={"steps": _steps()}
    ),
    "cosine": Kind(cosine, "the cosine schedule of Improved DDPM (Nichol & Dhariwal 2021)", fields={"steps": _steps()}),
    "vp_integral": Kind(
        vp_integral,
        "the VP-SDE observed at N equidistant times (Bao et al. 2022b)",
        fields={"steps": _steps(), **RATES},
    ),
    "custom": Kind(
        custom,
        "any betas, from a file",
        fields={"steps": _steps(low=0), "betas_file": Field(None, "a .npy or text file with the N betas", type=str)},
    ),
}
