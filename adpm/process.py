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

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adpm.errors import UserError

Array = NDArray[np.float64]


class Process(ABC):
    """A forward process, as the rest of the project sees it.

    Attributes:
        times: [N+1] float64, increasing, `times[0] = 0` is the data.
        prior_std: standard deviation of the Gaussian that sampling starts from.
        continuous: whether the reference times are a choice (an SDE), not part of the process.
    """

    times: Array
    prior_std: float
    continuous: bool = False

    @abstractmethod
    def alpha(self, t: ArrayLike) -> Array:
        """Signal scale alpha_t."""

    @abstractmethod
    def sigma(self, t: ArrayLike) -> Array:
        """Noise standard deviation sigma_t."""

    @abstractmethod
    def log_snr(self, t: ArrayLike) -> Array:
        """log(alpha_t^2 / sigma_t^2), strictly decreasing; +inf at t = 0."""

    @property
    def steps(self) -> int:
        """N, the number of reference times after the data."""
        return len(self.times) - 1

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


class DiscreteProcess(Process):
    """A variance-preserving schedule given by its betas (Ho et al. 2020, eq. 2).

    Args:
        betas: [N], each in (0, 1); beta_n is the variance added by step n = 1..N.

    Raises:
        UserError: if a beta lies outside (0, 1), or if there is none.
    """

    prior_std = 1.0

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


def linear_betas(steps: int) -> Array:
    """beta_n from 0.1/N to 20/N in equal increments (1e-4 to 2e-2 at N = 1000; Ho et al. 2020)."""
    return np.linspace(0.1 / steps, 20.0 / steps, steps)


def cosine_betas(steps: int) -> Array:
    """beta_n = min(1 - f(n/N) / f((n-1)/N), 0.999), f(u) = cos^2((u + 0.008)/1.008 pi/2) (Nichol & Dhariwal 2021)."""
    grid = np.arange(steps + 1, dtype=np.float64) / steps
    f = np.cos((grid + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - f[1:] / f[:-1], 0.999)


def vp_integral_betas(steps: int, beta_min: float = 0.1, beta_max: float = 20.0) -> Array:
    """beta_n = 1 - exp(-integral of beta(u) over ((n-1)/N, n/N)), beta(u) = beta_min + u (beta_max - beta_min).

    The VP-SDE observed at N equidistant times, exactly (Bao et al. 2022b use it for score-SDE checkpoints).
    """
    grid = np.arange(steps + 1, dtype=np.float64) / steps
    integral = beta_min * grid + 0.5 * (beta_max - beta_min) * grid**2
    return -np.expm1(-np.diff(integral))


def read_betas(path: str) -> Array:
    """Betas from a file: `.npy`, or text with one number per line."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"config.process.betas_file = '{path}' does not exist; give a .npy or text file with N betas.")
    try:
        if not file.stat().st_size:
            raise ValueError("it is empty")
        return np.asarray(np.load(file) if file.suffix == ".npy" else np.loadtxt(file), dtype=np.float64)
    except (ValueError, EOFError) as error:
        raise UserError(f"config.process.betas_file = '{path}' cannot be read as numbers: {error}.") from error


def _with_steps(betas: Callable[[int], Array]) -> Callable[..., Process]:
    def build(steps: int) -> Process:
        if steps < 1:
            raise UserError(f"config.process.steps = {steps} must be at least 1.")
        return DiscreteProcess(betas(steps))

    return build


def _custom(steps: int, betas_file: str = "") -> Process:
    if not betas_file:
        raise UserError(
            "config.process.name = 'custom' needs config.process.betas_file, a .npy or text file with N betas."
        )
    betas = np.atleast_1d(read_betas(betas_file))
    if betas.ndim != 1 or betas.size == 0:
        raise UserError(f"config.process.betas_file = '{betas_file}' holds shape {betas.shape}; a list of N is wanted.")
    if steps and len(betas) != steps:
        raise UserError(
            f"config.process.steps = {steps}, but '{betas_file}' holds {len(betas)} betas; set it to 0 or {len(betas)}."
        )
    return DiscreteProcess(betas)


PROCESSES: dict[str, Callable[..., Process]] = {
    "linear": _with_steps(linear_betas),
    "cosine": _with_steps(cosine_betas),
    "vp_integral": _with_steps(vp_integral_betas),
    "custom": _custom,
}
