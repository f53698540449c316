"""Variance rules: (kernel, prediction) -> covariance of the reverse step.

Every rule but `large` is a model of Cov[x_0 | x_t], and the step's covariance is lambda2 I + gain^2 Cov[x_0 | x_t]:

    small     Var[x_0 | x_t] = 0                                  "beta-tilde" at eta = 1; DDIM at eta = 0
    unit      Var[x_0 | x_t] = sigma_t^2 / (alpha_t^2 + sigma_t^2)   as if the data were N(0, I)
    analytic  Var[x_0 | x_t] = the moment table's Var_t           Analytic-DPM (Bao et al. 2022), three estimators
    large     covariance = forward_variance, eta = 1 only         "beta"

Wrappers limit what a rule says: `Bounded` the model of Cov[x_0 | x_t], `LastStepCap` the noise of the last steps.
State-independent rules ignore the prediction and take kernels of many steps at once, which is how planning asks them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from adpm.denoiser import Prediction
from adpm.errors import UserError
from adpm.gaussian import ZERO, Covariance, Diagonal
from adpm.kernel import Kernel
from adpm.process import Array


class Rule(Protocol):
    """The covariance of a reverse step."""

    def __call__(self, kernel: Kernel, prediction: Prediction | None) -> Covariance: ...


class PosteriorRule(ABC):
    """A rule that models Cov[x_0 | x_t]."""

    @abstractmethod
    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        """Cov[x_0 | x_t]."""

    def __call__(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        return self.posterior(kernel, prediction).affine(number(kernel.gain**2), number(kernel.lambda2))


def number(value: Array) -> float | Array:
    """A float for one step, the array for many."""
    return float(value) if value.ndim == 0 else value


class Small(PosteriorRule):
    """Var[x_0 | x_t] = 0: as if the data were a single point."""

    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        return ZERO


class Unit(PosteriorRule):
    """Var[x_0 | x_t] = sigma_t^2 / (alpha_t^2 + sigma_t^2): as if the data were N(0, I)."""

    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        noise = kernel.sigma_t**2
        return Diagonal(number(noise / (kernel.alpha_t**2 + noise)))


class Large:
    """covariance = Var[x_t | x_s]; defined for eta = 1."""

    def __call__(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        if kernel.eta != 1.0:
            raise UserError(
                f"config.rule.name = 'large' goes with config.sampling.eta = 1 only, got eta = {kernel.eta}."
            )
        return Diagonal(number(kernel.forward_variance))


class Analytic(PosteriorRule):
    """Var[x_0 | x_t] = Var_t, a scalar function of time such as `MomentTable.variance` gives."""

    def __init__(self, variance: Callable[[Array], Array]) -> None:
        self._variance = variance

    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        return Diagonal(number(self._variance(kernel.t)))


@dataclass(frozen=True)
class Bounded(PosteriorRule):
    """`rule` with Cov[x_0 | x_t] limited to [0, upper].

    For data in [a, b] a state's variance is at most ((b - a)/2)^2; an average over states is at most Var[x_0].
    The covariance carries the share of values that the bounds changed.
    """

    rule: PosteriorRule
    upper: float

    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        return self.rule.posterior(kernel, prediction).clamp(0.0, self.upper)


@dataclass(frozen=True)
class LastStepCap:
    """`rule` with the variance of the steps that land at 0 < s <= last limited to `threshold`.

    The published threshold is (y Delta)^2 pi/2, y = 1 or 2 data levels of width Delta = (b - a)/(L - 1): the mean
    absolute noise added is then at most y levels (Bao et al. 2022, appendix F).
    """

    rule: Rule
    threshold: float
    last: float

    def __call__(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        covariance = self.rule(kernel, prediction)
        lands = (kernel.s > 0.0) & (kernel.s <= self.last)
        if not np.any(lands):
            return covariance
        capped = covariance.clamp(0.0, self.threshold)
        return capped if np.all(lands) else replace(capped, values=np.where(lands, capped.values, covariance.values))


def cap_threshold(cap_levels: float, width: float) -> float:
    """(cap_levels * width)^2 pi/2 for data levels `width` apart."""
    return (cap_levels * width) ** 2 * math.pi / 2


@dataclass(frozen=True)
class RuleNeeds:
    """What assembly can hand to a rule's builder.

    Attributes:
        eta: the kernel's eta.
        bounds: whether the model of Cov[x_0 | x_t] is limited.
        average_bound: tr Cov[x_0] / d, which no average over states exceeds; computed when asked.
        variance: Var_t as a function of time by the chosen estimator; computed when asked.
    """

    eta: float
    bounds: bool
    average_bound: Callable[[], float]
    variance: Callable[[], Callable[[Array], Array]]


def _large(needs: RuleNeeds) -> Rule:
    if needs.eta != 1.0:
        raise UserError(f"config.rule.name = 'large' goes with config.sampling.eta = 1 only, got {needs.eta}.")
    return Large()


def _analytic(needs: RuleNeeds) -> Rule:
    rule = Analytic(needs.variance())
    return Bounded(rule, needs.average_bound()) if needs.bounds else rule


RULES: dict[str, Callable[[RuleNeeds], Rule]] = {
    "small": lambda needs: Small(),
    "unit": lambda needs: Unit(),
    "large": _large,
    "analytic": _analytic,
}
