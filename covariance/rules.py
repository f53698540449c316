"""Variance rules that read a network's second output h(x_t), `Prediction.head`.

    sn        Var[x_0 | x_t] = (sigma_t/alpha_t)^2 (h - eps_network^2)     h ~ E[eps^2 | x_t]
    npr       Var[x_0 | x_t] = (sigma_t/alpha_t)^2 h                       h ~ E[(eps - eps_network)^2 | x_t]
    ocm       as npr                                                       h ~ diag(I - sigma_t d eps_hat/d x_t)
    relative  Var[x_0 | x_t] = Var_t q(h), q = relative_factor             Var_t from the moment table
    learned   log covariance = f log forward_variance + (1 - f) log lambda2,   f = (h + 1)/2

per pixel, and along the axes f of an orthonormal basis, of which h is then about (spectral.py),

    spectral_head  Var[f(x_0) | x_t] = r_f(t) q(h_f)                       r_f as the head was trained with

`sn` and `npr` are Bao et al. 2022b (Theorems 2 and 3; eps_network is the prediction before any clipping), `learned` is
Improved DDPM (Nichol & Dhariwal 2021, eq. 15), eta = 1 only; after respacing it interpolates between the bounds of the
new, longer step. The heuristic of the published codes for networks without a head, which replaces E[eps^2 | x_t] by 1,
is `sn` with h = 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from adpm.denoiser import Prediction
from adpm.errors import UserError
from adpm.families import Field, Kind
from adpm.gaussian import Covariance, Diagonal, InBasis, Number
from adpm.kernel import Kernel
from adpm.parametrisation import require_alpha
from adpm.process import Array, Process
from adpm.scale import Scale
from adpm.variance import (
    BOUNDS,
    ESTIMATOR,
    Averaged,
    Bounded,
    PosteriorRule,
    Rule,
    RuleFacts,
    RuleNeeds,
    number,
    variance_by,
)
from covariance.interpolation import log_bounds
from covariance.relative import relative_factor
from covariance.second_output import second_output
from covariance.slopes import OneProduct, Sloped


class HeadRule(Rule):
    """A rule about single states and pixels."""

    @property
    def state_dependent(self) -> bool:
        return True


def noise_to_data(kernel: Kernel) -> Number:
    """(sigma_t/alpha_t)^2, which turns Var[eps | x_t] into Var[x_0 | x_t]."""
    return number((kernel.sigma_t / kernel.alpha_t) ** 2)


class SquaredNoise(HeadRule, PosteriorRule):
    """Var[x_0 | x_t] = (sigma_t/alpha_t)^2 (h - eps_network^2); negative where the head is below eps_network^2."""

    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        head = second_output(prediction)
        assert prediction is not None  # there would be no second output
        return Diagonal(noise_to_data(kernel) * (head - prediction.eps_network.square()))


class NoiseResidual(HeadRule, PosteriorRule):
    """Var[x_0 | x_t] = (sigma_t/alpha_t)^2 h; optimal for an imperfect mean, too."""

    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        return Diagonal(noise_to_data(kernel) * second_output(prediction))


@dataclass(frozen=True)
class Relative(HeadRule, PosteriorRule):
    """Var[x_0 | x_t] = Var_t q(h), positive wherever Var_t is; see relative.py.

    Attributes:
        average: Var_t, a scalar function of time such as `MomentTable.variance` gives.
    """

    average: Callable[[Array], Array]

    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        return Diagonal(number(self.average(kernel.t)) * relative_factor(second_output(prediction)))


@dataclass(frozen=True)
class SpectralHead(HeadRule, PosteriorRule):
    """Cov[x_0 | x_t] = r_f(t) q(h_f) along the axes f of an orthonormal basis; a head of zeros is rule spectral.

    Attributes:
        scale: gives r_f and the basis; asked for at the first step.
        process: whose times they are.
    """

    scale: Callable[[], Scale]
    process: Process

    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        head, scale = second_output(prediction), self._scale
        own = scale.laid_out(scale(self.process.log_snr(kernel.t)))
        r = torch.as_tensor(own, dtype=head.dtype, device=head.device)
        return InBasis(r * relative_factor(head), basis=scale.basis)

    @cached_property
    def _scale(self) -> Scale:
        return self.scale()


@dataclass(frozen=True)
class Learned(HeadRule):
    """covariance = lambda2 (forward_variance/lambda2)^f; the parameter is f = (h + 1)/2, not limited to [0, 1].

    Attributes:
        first_variance: stands for lambda2 at s = 0, where lambda2 is 0; published: Var[x_1 | x_2, x_0].

    Raises:
        UserError: when asked for a step with eta < 1.
    """

    first_variance: float

    def parameter(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        return Diagonal((second_output(prediction) + 1.0) / 2.0)

    def variance(self, kernel: Kernel, values: Number) -> Number:
        _only_eta_one(kernel.eta)
        low, width = log_bounds(kernel, self.first_variance)
        return number(np.exp(low)) * number(np.exp(width)) ** values


def _only_eta_one(eta: float) -> None:
    if eta != 1.0:
        raise UserError(f"the rule 'learned' goes with `eta` = 1 only, got `eta` = {eta}.")


def _modelled(build: Callable[..., PosteriorRule]) -> Callable[..., Rule]:
    """A builder of a posterior rule: averaged if asked for, then limited, the order of the published codes.

    The average over pixels is taken first because limiting the noise of a head at 0 would bias it upwards.
    """

    def built(needs: RuleNeeds, bounds: bool = True, average: bool = False, **options: Any) -> Rule:
        rule = build(needs, **options)
        rule = Averaged(rule) if average else rule
        return Bounded(rule, needs.state_bound) if bounds else rule

    return built


def _of_noise(rule: PosteriorRule, name: str) -> Callable[[RuleNeeds], PosteriorRule]:
    """A builder of a rule whose head is about eps."""

    def build(needs: RuleNeeds) -> PosteriorRule:
        require_alpha(needs.process, f"the rule '{name}'", "use relative, analytic or spectral")
        return rule

    return build


def _relative(needs: RuleNeeds, estimator: str = "residual") -> Relative:
    return Relative(variance_by(needs, estimator))


_FIELDS = {
    "bounds": Field(True, BOUNDS.format("[0, half the data range squared]")),
    "average": Field(False, "one variance per state, the mean over its pixels"),
}

RULES: dict[str, Kind] = {
    "sn": Kind(
        _modelled(_of_noise(SquaredNoise(), "sn")),
        "Var[x0|x_t] per pixel by a head that estimates E[eps^2|x_t]: SN (Bao et al. 2022b)",
        RuleFacts(state_dependent=True, trained_with=("sn",)),
        _FIELDS,
    ),
    "npr": Kind(
        _modelled(_of_noise(NoiseResidual(), "npr")),
        "Var[x0|x_t] per pixel by a head that estimates E[(eps - eps_hat)^2|x_t]: NPR (Bao et al. 2022b)",
        RuleFacts(state_dependent=True, trained_with=("npr",)),
        _FIELDS,
    ),
    "ocm": Kind(
        _modelled(_of_noise(NoiseResidual(), "ocm")),
        "npr's, by a head that estimates the diagonal of the score's Jacobian: OCM (Ou et al. 2025)",
        RuleFacts(state_dependent=True, trained_with=("ocm",)),
        _FIELDS,
    ),
    "relative": Kind(
        _modelled(_relative),
        "ours: analytic's variance times a trained factor per pixel",
        RuleFacts(state_dependent=True, uses_moments=True, trained_with=("relative",)),
        {"estimator": ESTIMATOR, **_FIELDS},
    ),
    "spectral_head": Kind(
        lambda needs: SpectralHead(needs.scale, needs.process),
        "ours: spectral's variances times a trained factor per coordinate",
        RuleFacts(state_dependent=True, trained_with=("spectral_head",)),
    ),
    "one_jvp": Kind(
        lambda needs, neighbours=8: OneProduct(needs.scale, needs.process, neighbours),
        "by one Jacobian-vector product a step, in a basis: after Schioppa & Salimans 2026; three calls a step",
        RuleFacts(state_dependent=True, statistics="coordinates", around=Sloped),
        {"neighbours": Field(8, "coordinates on either side that are averaged; 0 = none", low=0)},
        reads=("moments.statistics=coordinates",),
    ),
    "learned": Kind(
        lambda needs: Learned(needs.first_variance()),
        "between small and large on a log scale, per pixel by the network: Improved DDPM (Nichol & Dhariwal 2021)",
        RuleFacts(state_dependent=True, only_eta=1.0, trained_with=("hybrid", "vlb")),
    ),
}
