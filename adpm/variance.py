"""Variance rules: (kernel, prediction) -> covariance of the reverse step.

Every rule but `large` is a model of Cov[x_0 | x_t], and the step's covariance is lambda2 I + gain^2 Cov[x_0 | x_t]:

    small     Var[x_0 | x_t] = 0                                  "beta-tilde" at eta = 1; DDIM at eta = 0
    unit      Var[x_0 | x_t] = sigma_t^2 / (alpha_t^2 + sigma_t^2)   as if the data were N(0, I)
    analytic  Var[x_0 | x_t] = the moment table's Var_t           Analytic-DPM (Bao et al. 2022), three estimators
    large     covariance = forward_variance, eta = 1 only         "beta"

Wrappers change what a rule says: `Averaged` and `Bounded` the model of Cov[x_0 | x_t], `LastStepCap` the noise of the
last steps. The rules here ignore the prediction; those that read a network's second output are in covariance/.

A rule has two halves, so that planning can ask for the steps from t to all s after one network call: `parameter` is
what it knows at t, `variance` what a step makes of that. Kernels of many steps at once are welcome in both.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from adpm.denoiser import Prediction
from adpm.errors import UserError
from adpm.gaussian import ZERO, Covariance, Diagonal, Number
from adpm.kernel import Kernel
from adpm.process import Array


class Rule(ABC):
    """The covariance of a reverse step: `variance(kernel, parameter)`, along the parameter's axes."""

    @property
    def state_dependent(self) -> bool:
        """Whether the rule reads the prediction; if not, None will do."""
        return False

    @abstractmethod
    def parameter(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        """What the rule knows at t, one value per axis; it depends on the kernel's t, not on its s."""

    @abstractmethod
    def variance(self, kernel: Kernel, values: Number) -> Number:
        """The step's variances from the parameter's values: numbers, tensors of one step, or arrays of many steps.

        It does not fall when a value rises.
        """

    def __call__(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        """The covariance of x_s given x_t."""
        known = self.parameter(kernel, prediction)
        return replace(known, values=self.variance(kernel, known.values))


class PosteriorRule(Rule):
    """A rule that models Cov[x_0 | x_t]: variance = lambda2 + gain^2 Var[x_0 | x_t]."""

    @abstractmethod
    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        """Cov[x_0 | x_t]."""

    def parameter(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        return self.posterior(kernel, prediction)

    def variance(self, kernel: Kernel, values: Number) -> Number:
        return values * number(kernel.gain**2) + number(kernel.lambda2)


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


class Large(Rule):
    """covariance = Var[x_t | x_s]; defined for eta = 1."""

    def parameter(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        return ZERO

    def variance(self, kernel: Kernel, values: Number) -> Number:
        if kernel.eta != 1.0:
            raise UserError(
                f"config.rule.name = 'large' goes with config.sampling.eta = 1 only, got eta = {kernel.eta}."
            )
        return number(kernel.forward_variance)


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

    @property
    def state_dependent(self) -> bool:
        return self.rule.state_dependent

    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        return self.rule.posterior(kernel, prediction).clamp(0.0, self.upper)


@dataclass(frozen=True)
class Averaged(PosteriorRule):
    """`rule` with one variance per state, tr Cov[x_0 | x_t] / d."""

    rule: PosteriorRule

    @property
    def state_dependent(self) -> bool:
        return self.rule.state_dependent

    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        return self.rule.posterior(kernel, prediction).average()


@dataclass(frozen=True)
class LastStepCap(Rule):
    """`rule` with the variance of the steps that land at 0 < s <= last limited to `threshold`.

    The published threshold is (y Delta)^2 pi/2, y = 1 or 2 data levels of width Delta = (b - a)/(L - 1): the mean
    absolute noise added is then at most y levels (Bao et al. 2022, appendix F).
    """

    rule: Rule
    threshold: float
    last: float

    @property
    def state_dependent(self) -> bool:
        return self.rule.state_dependent

    def parameter(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        return self.rule.parameter(kernel, prediction)

    def variance(self, kernel: Kernel, values: Number) -> Number:
        return self._capped(kernel, Diagonal(self.rule.variance(kernel, values))).values

    def __call__(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        return self._capped(kernel, self.rule(kernel, prediction))

    def _capped(self, kernel: Kernel, covariance: Covariance) -> Covariance:
        lands = (kernel.s > 0.0) & (kernel.s <= self.last)
        if not np.any(lands):
            return covariance
        capped = covariance.clamp(0.0, self.threshold)
        return capped if np.all(lands) else replace(capped, values=np.where(lands, capped.values, covariance.values))


def cap_threshold(cap_levels: float, width: float) -> float:
    """(cap_levels * width)^2 pi/2 for data levels `width` apart."""
    return (cap_levels * width) ** 2 * math.pi / 2


@dataclass(frozen=True)
class SecondOutput:
    """What a network's second output is.

    Attributes:
        objective: what it was trained by; None when it is yet to be trained, which no rule can object to.
        said_by: the file or field that says so, for people.
        advice: what would change that, for people.
    """

    objective: str | None
    said_by: str = ""
    advice: str = ""


@dataclass(frozen=True)
class RuleNeeds:
    """What assembly can hand to a rule's builder.

    Attributes:
        eta: the kernel's eta.
        bounds: whether the model of Cov[x_0 | x_t] is limited.
        average_bound: tr Cov[x_0] / d, which no average over states exceeds; computed when asked.
        variance: Var_t as a function of time by the chosen estimator; computed when asked.
        state_bound: ((b - a)/2)^2 for data in [a, b], which no state's variance exceeds.
        average: whether a state's variance is to be one number.
        head: what the network's second output is, None when it has none; looked up when asked.
        first_variance: Var[x_1 | x_2, x_0] of the reference times; computed when asked.
    """

    eta: float
    bounds: bool
    average_bound: Callable[[], float]
    variance: Callable[[], Callable[[Array], Array]]
    state_bound: float
    average: bool
    head: Callable[[], SecondOutput | None]
    first_variance: Callable[[], float]


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
