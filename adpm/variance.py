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

from adpm.basis import Basis
from adpm.coordinates import Axes, Spectrum
from adpm.denoiser import Denoise, Prediction
from adpm.errors import UserError, lookup
from adpm.families import Field, Kind
from adpm.gaussian import ZERO, Covariance, Diagonal, InBasis, Number
from adpm.kernel import Kernel
from adpm.moments import ESTIMATORS
from adpm.parametrisation import require_alpha
from adpm.process import Array, Process
from adpm.scale import Scale


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
            raise UserError(f"the rule 'large' goes with `eta` = 1 only, got `eta` = {kernel.eta}.")
        return number(kernel.forward_variance)


class Analytic(PosteriorRule):
    """Var[x_0 | x_t] = Var_t, a scalar function of time such as `MomentTable.variance` gives."""

    def __init__(self, variance: Callable[[Array], Array]) -> None:
        self._variance = variance

    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        return Diagonal(number(self._variance(kernel.t)))


class Spectral(PosteriorRule):
    """Cov[x_0 | x_t] = r_f(t), measured, along the axes f of an orthonormal basis: the best there; docs/spectral.md.

    Args:
        spectrum: gives r_f and the basis; asked for at the first step.
        process: whose times they are.
    """

    def __init__(self, spectrum: Callable[[], Spectrum], process: Process) -> None:
        self._axes = Axes(spectrum, process)

    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        axes = self._axes
        return InBasis(axes.laid_out(axes.residual(kernel.t)), basis=axes.spectrum.basis)


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
    """(cap_levels * width)^2 pi/2 for data levels `width` apart.

    Raises:
        UserError: if that is no number, or 0.
    """
    if not 0.0 < cap_levels * width < 1e100:
        raise UserError(f"`cap_levels` = {cap_levels} must be a positive number of levels; 1 and 2 are published.")
    return (cap_levels * width) ** 2 * math.pi / 2


@dataclass(frozen=True)
class RuleFacts:
    """What may be asked of a rule without building it.

    Attributes:
        state_dependent: whether it reads the prediction, so that states and pixels differ.
        uses_moments: whether it needs Var_t.
        statistics: what else it needs to know of the network, a member of the family `statistics`; "": nothing.
        per_axis: whether a step has a variance along every axis, though states do not differ.
        only_eta: the one eta that it is defined for; None: any.
        trained_with: objectives whose second output it can read; none: it reads none.
        around: (denoiser, process, basis) -> the denoiser whose second output it reads, where that is not trained.
    """

    state_dependent: bool = False
    uses_moments: bool = False
    statistics: str = ""
    per_axis: bool = False
    only_eta: float | None = None
    trained_with: tuple[str, ...] = ()
    around: Callable[[Denoise, Process, Basis], Denoise] | None = None


@dataclass(frozen=True)
class RuleNeeds:
    """What a rule's builder may ask for.

    Attributes:
        variance: estimator -> Var_t as a function of time; from moments, computed when asked.
        data_variance: tr Cov[x_0] / d, which no average over states exceeds; computed when asked.
        state_bound: ((b - a)/2)^2 for data in [a, b], which no state's variance exceeds.
        first_variance: Var[x_1 | x_2, x_0] of the reference times; computed when asked.
        spectrum: r_f(t) in a basis; measured when asked.
        scale: r_f that a trained head is in units of; read when asked.
        process: the forward process.
    """

    variance: Callable[[str], Callable[[Array], Array]]
    data_variance: Callable[[], float]
    state_bound: float
    first_variance: Callable[[], float]
    spectrum: Callable[[], Spectrum]
    scale: Callable[[], Scale]
    process: Process


def variance_by(needs: RuleNeeds, estimator: str) -> Callable[[Array], Array]:
    """Var_t as a function of time by an estimator that has it at every time.

    Raises:
        UserError: for one that divides by alpha on a process that ends in pure noise.
    """
    if lookup(ESTIMATORS, estimator, "`estimator`").facts.divides_by_alpha:
        others = ", ".join(name for name, kind in ESTIMATORS.items() if not kind.facts.divides_by_alpha)
        require_alpha(needs.process, f"`estimator` = '{estimator}'", f"use one of {others}")
    return needs.variance(estimator)


def _analytic(needs: RuleNeeds, estimator: str = "residual", bounds: bool = True) -> Rule:
    rule = Analytic(variance_by(needs, estimator))
    return Bounded(rule, needs.data_variance()) if bounds else rule


ESTIMATOR = Field("residual", "how Var[x0 | x_t] is estimated", choices="estimator")
BOUNDS = "limit Var[x0 | x_t] to {}; the share that this acts on is reported"

RULES: dict[str, Kind] = {
    "small": Kind(
        lambda needs: Small(),
        "Var[x0|x_t] = 0, as if x0 were known: DDPM's beta-tilde at eta 1, DDIM at eta 0",
        RuleFacts(),
    ),
    "unit": Kind(lambda needs: Unit(), "Var[x0|x_t] as if the data were N(0, I)", RuleFacts()),
    "large": Kind(
        lambda needs: Large(), "the forward variance Var[x_t|x_s] as the step's: DDPM's beta", RuleFacts(only_eta=1.0)
    ),
    "analytic": Kind(
        _analytic,
        "Var[x0|x_t] = one number per time, measured: Analytic-DPM (Bao et al. 2022)",
        RuleFacts(uses_moments=True),
        {"estimator": ESTIMATOR, "bounds": Field(True, BOUNDS.format("[0, Var[x0]]"))},
    ),
    "spectral": Kind(
        lambda needs: Spectral(needs.spectrum, needs.process),
        "ours: Var[x0|x_t] = one number per time and coordinate of a basis, measured: the best diagonal there",
        RuleFacts(statistics="coordinates", per_axis=True),
        reads=("moments.statistics=coordinates",),
    ),
}
