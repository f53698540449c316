"""Continuous-time processes in closed form: the VP, VE and sub-VP SDEs of Song et al. 2021, and rectified flow's.

    dx = f(t) x dt + g(t) dW,   t in [0, 1],   q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)
    f = d log alpha / dt,       g^2 = d sigma^2/dt - 2 f sigma^2

with B(t) = beta_min t + (beta_max - beta_min) t^2 / 2, the integral of beta(t):

             alpha            sigma^2                                    f         g^2
    VP       exp(-B/2)        1 - exp(-B)                                -beta/2   beta
    sub-VP   exp(-B/2)        (1 - exp(-B))^2                            -beta/2   beta (1 - exp(-2B))
    VE       1                sigma_min^2 (sigma_max/sigma_min)^(2t)     0         2 sigma^2 log(sigma_max/sigma_min)
    flow     1 - t            t^2                                        -1/alpha  2t/alpha

All are linear, so kernel, rules, moments and trajectories of adpm/ hold on them unchanged: they see alpha, sigma and
the log-SNR. t = 0 is the data (alpha = 1, sigma = 0); VE's own sigma(0+) = sigma_min is reached from above.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from adpm.errors import UserError
from adpm.families import Field, Kind, built
from adpm.process import RATES, Array, Process, require_ends, require_falling, require_rates
from sde.grids import END, GRIDS


class SDE(Process):
    """A linear SDE on [0, 1] with reference times from `t_min` to 1; networks do not depend on these.

    Args:
        steps: N, number of reference times.
        t_min: the first of them, in (0, 1).
        grid: how they are spread, a key of GRIDS.

    Attributes:
        NOISE: the parameters that say how much noise there is, the last of them at T; none where that is no choice.

    Raises:
        UserError: if a parameter is out of its range, if the log-SNR does not fall at each reference time, or not from
            nearly data to nearly noise.
    """

    NOISE: ClassVar[tuple[str, ...]] = ()
    continuous = True

    def __init__(self, steps: int, t_min: float, grid: str) -> None:
        if steps < 1:
            raise UserError(f"`steps` = {steps} must be at least 1.")
        if not 0.0 < t_min < END:
            raise UserError(f"`t_min` = {t_min} must lie in (0, 1); 1e-5 suits likelihood, 1e-3 sampling.")
        with np.errstate(all="ignore"):  # what overflows is refused below
            self.times = np.concatenate([[0.0], built(GRIDS, grid, "`grid`")(self, steps, t_min)])
        noise = [f"`{name}` = {getattr(self, name):g}" for name in self.NOISE]
        told = f"one of {', '.join([f'`t_min` = {t_min}', f'`steps` = {steps}', *noise])} is too small or too large"
        require_falling(self, lambda n: told)
        require_ends(self, (lambda: f"lower `t_min` = {t_min}", lambda: f"raise {noise[-1]}"))

    @abstractmethod
    def drift(self, t: ArrayLike) -> Array:
        """f(t): the drift is f(t) x."""

    @abstractmethod
    def diffusion(self, t: ArrayLike) -> Array:
        """g(t) >= 0."""

    def rates(self, t: ArrayLike) -> tuple[Array, Array]:
        """d alpha/dt and d sigma/dt, t > 0: the probability flow moves x by alpha' x0_hat + sigma' eps_hat."""
        f, sigma = self.drift(t), self.sigma(t)
        return f * self.alpha(t), f * sigma + 0.5 * self.diffusion(t) ** 2 / sigma

    def uniform_times(self, u: ArrayLike) -> Array:
        return self.times[1] + (END - self.times[1]) * np.asarray(u, dtype=np.float64)

    def log_snr_times(self, u: ArrayLike) -> Array:
        ends = self.log_snr(self.times[[1, -1]])
        times = self.time_of(ends[0] + (ends[1] - ends[0]) * np.asarray(u, dtype=np.float64))
        return np.clip(times, self.times[1], END)

    @abstractmethod
    def time_of(self, log_snr: ArrayLike) -> Array:
        """The inverse of `log_snr`, in closed form."""


def checked(t: ArrayLike) -> Array:
    """t as float64.

    Raises:
        UserError: if a time lies outside [0, 1].
    """
    time = np.asarray(t, dtype=np.float64)
    if not np.all((time >= 0.0) & (time <= END)):
        bad = time[~((time >= 0.0) & (time <= END))].flat[0]
        raise UserError(f"time {bad:g} lies outside [0, 1], the range of an SDE.")
    return time


class VP(SDE):
    """The variance-preserving SDE; the linear schedule in continuous time.

    Args:
        beta_min, beta_max: beta(0) and beta(1), 0 < beta_min <= beta_max.
        steps, t_min, grid: reference times, see SDE.
    """

    NOISE = ("beta_min", "beta_max")
    prior_std = 1.0
    preserves_variance = True

    def __init__(
        self,
        steps: int = 1000,
        t_min: float = 1e-3,
        grid: str = "uniform",
        beta_min: float = 0.1,
        beta_max: float = 20.0,
    ) -> None:
        require_rates(beta_min, beta_max)
        self.beta_min, self.beta_max = beta_min, beta_max
        super().__init__(steps, t_min, grid)

    def beta(self, t: ArrayLike) -> Array:
        return self.beta_min + (self.beta_max - self.beta_min) * checked(t)

    def integral(self, t: ArrayLike) -> Array:
        """B(t)."""
        time = checked(t)
        return self.beta_min * time + 0.5 * (self.beta_max - self.beta_min) * time**2

    def alpha(self, t: ArrayLike) -> Array:
        return np.exp(-0.5 * self.integral(t))

    def sigma(self, t: ArrayLike) -> Array:
        return np.sqrt(-np.expm1(-self.integral(t)))

    def log_snr(self, t: ArrayLike) -> Array:
        with np.errstate(divide="ignore"):
            return -np.log(np.expm1(self.integral(t)))

    def drift(self, t: ArrayLike) -> Array:
        return -0.5 * self.beta(t)

    def diffusion(self, t: ArrayLike) -> Array:
        return np.sqrt(self.beta(t))

    def _time_of_integral(self, integral: Array) -> Array:
        """The t with B(t) = integral, by the stable root of the quadratic."""
        slope = self.beta_max - self.beta_min
        return 2.0 * integral / (self.beta_min + np.sqrt(self.beta_min**2 + 2.0 * slope * integral))

    def time_of(self, log_snr: ArrayLike) -> Array:
        return self._time_of_integral(np.logaddexp(0.0, -np.asarray(log_snr, dtype=np.float64)))


class SubVP(VP):
    """The sub-VP SDE: VP's alpha, sigma = 1 - exp(-B)."""

    preserves_variance = False

    def sigma(self, t: ArrayLike) -> Array:
        return -np.expm1(-self.integral(t))

    def log_snr(self, t: ArrayLike) -> Array:
        with np.errstate(divide="ignore"):
            return -2.0 * np.log(2.0 * np.sinh(0.5 * self.integral(t)))

    def diffusion(self, t: ArrayLike) -> Array:
        return np.sqrt(-self.beta(t) * np.expm1(-2.0 * self.integral(t)))

    def time_of(self, log_snr: ArrayLike) -> Array:
        # sigma/alpha = exp(B/2) - exp(-B/2) = 2 sinh(B/2)
        return self._time_of_integral(2.0 * np.arcsinh(0.5 * np.exp(-0.5 * np.asarray(log_snr, dtype=np.float64))))


class VE(SDE):
    """The variance-exploding SDE: sigma grows geometrically from sigma_min to sigma_max.

    Args:
        sigma_min, sigma_max: 0 < sigma_min < sigma_max.
        steps, t_min, grid: reference times, see SDE.
    """

    NOISE = ("sigma_min", "sigma_max")

    def __init__(
        self,
        steps: int = 1000,
        t_min: float = 1e-5,
        grid: str = "uniform",
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
    ) -> None:
        if not 0.0 < sigma_min < sigma_max < math.inf:
            raise UserError(
                f"`sigma_min` = {sigma_min} and `sigma_max` = {sigma_max} must satisfy 0 < min < max, and be finite."
            )
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.prior_std = sigma_max
        super().__init__(steps, t_min, grid)

    @property
    def _log_ratio(self) -> float:
        return float(np.log(self.sigma_max / self.sigma_min))

    def alpha(self, t: ArrayLike) -> Array:
        return np.ones_like(checked(t))

    def sigma(self, t: ArrayLike) -> Array:
        time = checked(t)
        return np.where(time > 0.0, self.sigma_min * np.exp(time * self._log_ratio), 0.0)

    def log_snr(self, t: ArrayLike) -> Array:
        with np.errstate(divide="ignore"):
            return -2.0 * np.log(self.sigma(t))

    def drift(self, t: ArrayLike) -> Array:
        return np.zeros_like(checked(t))

    def diffusion(self, t: ArrayLike) -> Array:
        return self.sigma_min * np.exp(checked(t) * self._log_ratio) * np.sqrt(2.0 * self._log_ratio)

    def time_of(self, log_snr: ArrayLike) -> Array:
        return (-0.5 * np.asarray(log_snr, dtype=np.float64) - np.log(self.sigma_min)) / self._log_ratio


class RectifiedFlow(SDE):
    """The straight path from data to noise, alpha = 1 - t and sigma = t (Liu et al. 2023, Lipman et al. 2023).

    At t = 1 nothing is left of the data. To keep the log-SNR finite there, alpha(1) is LEAST and not 0, all else is
    exact for alpha = 1 - (1 - LEAST) t: from 1 - t it differs by less than the last bit of a float32 image. Drift and
    diffusion grow without limit as t tends to 1, and the velocity of the probability flow does not: it is
    eps - (1 - LEAST) x0.

    Args:
        steps, t_min, grid: reference times, see SDE; the default ones are those of a thousand equal steps.
    """

    LEAST = 2.0**-24
    prior_std = 1.0
    pure_noise = True

    def __init__(self, steps: int = 1000, t_min: float = 1e-3, grid: str = "uniform") -> None:
        super().__init__(steps, t_min, grid)

    def alpha(self, t: ArrayLike) -> Array:
        return 1.0 - (1.0 - self.LEAST) * checked(t)

    def sigma(self, t: ArrayLike) -> Array:
        return checked(t).copy()

    def log_snr(self, t: ArrayLike) -> Array:
        with np.errstate(divide="ignore"):
            return 2.0 * (np.log(self.alpha(t)) - np.log(self.sigma(t)))

    def drift(self, t: ArrayLike) -> Array:
        return -(1.0 - self.LEAST) / self.alpha(t)

    def diffusion(self, t: ArrayLike) -> Array:
        return np.sqrt(2.0 * self.sigma(t) / self.alpha(t))

    def rates(self, t: ArrayLike) -> tuple[Array, Array]:
        one = np.ones_like(checked(t))
        return -(1.0 - self.LEAST) * one, one

    def time_of(self, log_snr: ArrayLike) -> Array:
        ratio = np.exp(-0.5 * np.asarray(log_snr, dtype=np.float64))
        return ratio / (1.0 + (1.0 - self.LEAST) * ratio)


def _reference(t_min: float) -> dict[str, Field]:
    """Fields of the reference times, which no weights depend on."""
    return {
        "steps": Field(1000, "N, reference steps", low=1, of=("model",)),
        "t_min": Field(t_min, "the first reference time", above=0, below=END, of=("model",)),
        "grid": Field("uniform", "how reference times are spread", choices="grid", of=("model",)),
    }


PROCESSES: dict[str, Kind] = {
    "vp": Kind(VP, "the variance-preserving SDE", fields={**_reference(1e-3), **RATES}),
    "subvp": Kind(SubVP, "the sub-VP SDE", fields={**_reference(1e-3), **RATES}),
    "ve": Kind(
        VE,
        "the variance-exploding SDE",
        fields={
            **_reference(1e-5),
            "sigma_min": Field(0.01, "sigma(0+)", above=0),
            "sigma_max": Field(50.0, "sigma(1), about the largest distance between two images", above=0),
        },
    ),
    "rectified_flow": Kind(
        RectifiedFlow, "rectified flow: alpha = 1 - t, sigma = t (Liu et al. 2023)", fields=_reference(1e-3)
    ),
}
