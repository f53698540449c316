"""Inverse problems: samples of x_0 given y = H x_0 + std n, from a denoiser that knows nothing of y.

The likelihood of x_t needs Cov[x_0 | x_t] = C_t, and whatever rule of adpm/variance.py models C_t may give it:

    p(y | x_t) ~ N(H x0_hat, H C_t H^T + std^2 I)
    x0 = x0_hat + (sigma_t^2/alpha_t) (d x0_hat / d x_t)^T H^T (H C_t H^T + std^2 I)^-1 (y - H x0_hat)

is PiGDM's form (Song et al. 2023), whose guess is the rule `unit`, C_t = sigma_t^2/(alpha_t^2 + sigma_t^2) I; the
measured rules, `analytic` and `spectral`, know better. By Tweedie's second order d x0_hat / d x_t is
(alpha_t/sigma_t^2) Cov[x_0 | x_t], so without a derivative, at half the price, x0_hat + C_t H^T (...)^-1 (y - H x0_hat)
is the mean of N(x0_hat, C_t) given y. On Gaussian data both are exact.

`Conditioned` changes what a denoiser says, for any solver. A step still has the covariance of x_s given x_t alone, too
wide where y says much; `ConditionedGaussian` is the reverse step that knows y in its covariance, too.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from adpm.denoiser import EPS_AFTER_CLIP, Denoise, Prediction, check_range, clipped, per_sample
from adpm.errors import UserError
from adpm.gaussian import Covariance
from adpm.kernel import Kernel, reverse_kernel
from adpm.noise import Noise
from adpm.observations import Observation
from adpm.parametrisation import eps_from_x0
from adpm.process import Process
from adpm.solver import Step, reverse_mean
from adpm.variance import PosteriorRule, Rule


def known(rule: Rule) -> PosteriorRule:
    """The rule, if it models Cov[x_0 | x_t].

    Raises:
        UserError: if it does not.
    """
    if not isinstance(rule, PosteriorRule):
        raise UserError(f"a likelihood needs a rule that models Cov[x_0 | x_t], which {type(rule).__name__} does not.")
    return rule


class Conditioned:
    """A denoiser that knows an observation: x0 and eps are those of x_0 given x_t and y.

    Args:
        denoise: the denoiser.
        process: its process.
        observation: y, with its operator.
        rule: gives C_t.
        jacobian: whether the network is differentiated, by a backward pass that is not counted in NFE; else C_t stands
            for its derivative.
        clip: data range (a, b) that the conditioned x0 is limited to, or None; eps is re-derived.

    Raises:
        UserError: for a rule that is no model of C_t, or a range that is none; when called, for an observation of
            another shape.
    """

    def __init__(
        self,
        denoise: Denoise,
        process: Process,
        observation: Observation,
        rule: Rule,
        *,
        jacobian: bool = True,
        clip: tuple[float, float] | None = None,
    ) -> None:
        check_range(clip)
        self.denoise, self.process, self.observation, self.rule = denoise, process, observation, known(rule)
        self.jacobian, self.clip = jacobian, clip
        self.evaluations = int(getattr(denoise, "evaluations", 1))

    def __call__(self, x: Tensor, t: ArrayLike) -> Prediction:
        time = np.asarray(t, dtype=np.float64)
        alpha, sigma = per_sample(self.process.alpha(time), x), per_sample(self.process.sigma(time), x)
        if self.jacobian:
            said, shift = self._differentiated(x, t, alpha, sigma)
        else:
            said = self.denoise(x, t)
            shift = self.observation.shift(self._covariance(time, said), self.observation.off(said.x0))
        x0 = said.x0 + shift
        eps = eps_from_x0(x, x0, alpha, sigma)
        found = clipped(x, x0, eps, said.head, alpha, sigma, self.clip, EPS_AFTER_CLIP["rederive"].build())
        return replace(found, finite=said.finite)

    def _covariance(self, time: Any, said: Prediction) -> Covariance:
        return self.rule.posterior(_kernel(self.process, time), said)

    def _differentiated(
        self, x: Tensor, t: ArrayLike, alpha: float | Tensor, sigma: float | Tensor
    ) -> tuple[Prediction, Tensor]:
        """What is said, and (sigma^2/alpha) (d x0_hat/d x_t)^T H^T S (y - H x0_hat)."""
        with torch.inference_mode(False), torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            said = self.denoise(at, t)
            x0 = said.x0.detach()
            covariance = self._covariance(np.asarray(t, dtype=np.float64), said)
            weighed = self.observation.weighed(covariance, self.observation.off(x0)).to(x0)
            (back,) = torch.autograd.grad((said.x0 * weighed).sum(), at)
        parts = {name: value.detach() for name, value in vars(said).items() if isinstance(value, Tensor)}
        return replace(said, **parts), (sigma**2 / alpha) * back


def _kernel(process: Process, time: Any) -> Kernel:
    """Of the step from t to the data, for rules, which look at its t."""
    return reverse_kernel(process, time, np.zeros_like(time))


class ConditionedGaussian:
    """The reverse Gaussian of x_s given x_t and an observation, for a denoiser that knows it (`Conditioned`).

    Its covariance is lambda2 I + gain^2 Cov[x_0 | x_t, y], that of N(x0_hat, C_t) given y, drawn by Matheron's rule:
    with the rule's C_t in the mean, too, exact on Gaussian data, whatever the steps.

    Args:
        process: forward process.
        rule: gives C_t.
        observation: y, with its operator.
        eta: 1 = DDPM, 0 = DDIM.

    Raises:
        UserError: for a rule that is no model of C_t.
    """

    def __init__(self, process: Process, rule: Rule, observation: Observation, eta: float = 1.0) -> None:
        self.process, self.rule, self.observation, self.eta = process, known(rule), observation, eta

    def step(self, denoise: Denoise, x: Tensor, t: float, s: float, noise: Noise, carry: Any = None) -> Step:
        """x_s; at s = 0 the mean itself. The step's `covariance` is that of x_s given x_t alone."""
        kernel = reverse_kernel(self.process, t, s, self.eta)
        said = denoise(x, t)
        mean, state = reverse_mean(kernel, said), None
        if s > 0.0:
            off = self.observation.deviation(self.rule.posterior(kernel, said), noise(), noise(1))
            state = mean + float(kernel.gain) * off + math.sqrt(float(kernel.lambda2)) * noise(2)
        return Step(t, s, mean if state is None else state, said, mean, self.rule(kernel, said))
