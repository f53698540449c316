"""Solvers of the reverse SDE and of the probability-flow ODE.

For a linear SDE dx = f(t) x dt + g(t) dW and eta in [0, 1], every member of the family

    dx = [ f x - (1 + eta^2)/2 g^2 score ] dt + eta g dW,    t from 1 down to 0,    score = -eps / sigma_t

has the marginals q(x_t) (Song et al. 2021, eq. 6 and 13): eta = 1 is the reverse SDE, eta = 0 the probability flow.
It is the same eta as the reverse kernel's, which agrees with one Euler step to second order in its length. With the
pair x = alpha x0_hat + sigma eps_hat of the prediction the drift is

    alpha' x0_hat + sigma' eps_hat + eta^2/2 g^2/sigma eps_hat

whose first two terms stay finite where alpha is 0 and f and g are not (rectified flow at t = 1).

Ancestral sampling and reverse diffusion are no solvers of their own but the reverse kernel with a variance rule:
PRESETS says which. Any solver becomes a predictor-corrector by being wrapped, see corrector.py.

The last step, to s = 0, adds no noise. It returns x0_hat, which removes the noise that is left in x ("noise removal";
VE's sigma jumps from sigma_min to 0 there, which no step in t would see), or the plain Euler step where that is off.

Each class declares the order of its error at a fixed time in the length of its steps, for smooth scores: `strong_order`
along a path of W, `weak_order` of means and variances. For an ODE they are the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchdiffeq import odeint

from adpm.denoiser import Counted, Denoise, Prediction
from adpm.errors import UserError
from adpm.families import Field, Kind
from adpm.gaussian import ZERO, Diagonal
from adpm.noise import Noise
from adpm.process import Process
from adpm.solver import SolverFacts, Step
from sde.process import SDE, checked
from sde.score import score_of


class ReverseSDE(ABC):
    """A solver in continuous time; subclasses say how they go from t to s > 0.

    Args:
        process: an SDE, see sde/process.py.
        eta: 1 = reverse SDE, 0 = probability flow.
        noise_removal: whether the step to s = 0 returns x0_hat (else the Euler step).

    Raises:
        UserError: if eta lies outside [0, 1], if the process has no drift and diffusion, or with noise an infinite one.
    """

    strong_order: ClassVar[float]
    weak_order: ClassVar[float]

    def __init__(self, process: Process, eta: float, noise_removal: bool = True) -> None:
        if not 0.0 <= eta <= 1.0:
            raise UserError(f"`eta` = {eta} must lie in [0, 1]: 1 is the reverse SDE, 0 the probability flow.")
        if not isinstance(process, SDE):
            raise UserError(
                f"{type(self).__name__} needs an SDE (vp, subvp, ve, rectified_flow), got {type(process).__name__}: a "
                "discrete schedule has no drift; use the solver 'reverse_gaussian'."
            )
        if eta > 0.0 and process.pure_noise:
            raise UserError(
                f"`eta` = {eta:g} adds noise of a diffusion that is infinite at t = 1, where {type(process).__name__} "
                "is pure noise; use `eta` = 0, or the solver 'reverse_gaussian', whose steps hold from there."
            )
        self.process, self.eta, self.noise_removal = process, eta, noise_removal

    def drift(self, prediction: Prediction, x: Tensor, t: float) -> Tensor:
        """f x - (1 + eta^2)/2 g^2 score, as alpha' x0_hat + sigma' eps_hat - eta^2/2 g^2 score."""
        signal, noise = (float(rate) for rate in self.process.rates(t))
        velocity = signal * prediction.x0 + noise * prediction.eps
        if self.eta == 0.0:
            return velocity
        half = 0.5 * (self.eta * float(self.process.diffusion(t))) ** 2
        return velocity - half * score_of(prediction, float(self.process.sigma(t)))

    def step(self, denoise: Denoise, x: Tensor, t: float, s: float, noise: Noise, carry: Any = None) -> Step:
        """One step from t to s.

        Raises:
            UserError: unless 0 <= s < t <= 1.
        """
        checked([s, t])
        if s >= t:
            raise UserError(f"a reverse step goes from t to an earlier s < t, got t = {t:g} and s = {s:g}.")
        if s > 0.0:
            return self._step(denoise, x, t, s, noise, carry)
        prediction = denoise(x, t)
        mean = prediction.x0 if self.noise_removal else x - t * self.drift(prediction, x, t)
        return Step(t, s, mean, prediction, mean, ZERO, carry)

    @abstractmethod
    def _step(self, denoise: Denoise, x: Tensor, t: float, s: float, noise: Noise, carry: Any) -> Step:
        """From t to s > 0."""


class EulerMaruyama(ReverseSDE):
    """x_s = x - h drift(x, t) + eta g(t) sqrt(h) z, h = t - s. The noise is additive, so the strong order is 1, too."""

    strong_order = 1.0
    weak_order = 1.0

    def __init__(self, process: Process, eta: float = 1.0, noise_removal: bool = True) -> None:
        super().__init__(process, eta, noise_removal)

    def _step(self, denoise: Denoise, x: Tensor, t: float, s: float, noise: Noise, carry: Any) -> Step:
        prediction = denoise(x, t)
        mean = x - (t - s) * self.drift(prediction, x, t)
        covariance = Diagonal((self.eta * float(self.process.diffusion(t))) ** 2 * (t - s))
        state = covariance.draw(mean, noise()) if self.eta > 0.0 else mean
        return Step(t, s, state, prediction, mean, covariance)


class ProbabilityFlowEuler(EulerMaruyama):
    """Euler's method for the probability flow: Euler-Maruyama with eta = 0."""

    def __init__(self, process: Process, noise_removal: bool = True) -> None:
        super().__init__(process, 0.0, noise_removal)


class ProbabilityFlowHeun(ReverseSDE):
    """Heun's method for the probability flow, two evaluations a step: x - h/2 [ drift(x, t) + drift(x_Euler, s) ]."""

    strong_order = 2.0
    weak_order = 2.0

    def __init__(self, process: Process, noise_removal: bool = True) -> None:
        super().__init__(process, 0.0, noise_removal)

    def _step(self, denoise: Denoise, x: Tensor, t: float, s: float, noise: Noise, carry: Any) -> Step:
        prediction = denoise(x, t)
        first = self.drift(prediction, x, t)
        euler = x - (t - s) * first
        second = self.drift(denoise(euler, s), euler, s)
        state = x - 0.5 * (t - s) * (first + second)
        return Step(t, s, state, prediction, state, ZERO)


class ProbabilityFlowAdaptive(ReverseSDE):
    """The probability flow by an adaptive Runge-Kutta method of order 5 (Dormand-Prince), from t to s in one step.

    A path [0, t_min, 1] is what it wants: one integration and the noise removal. Step sizes are chosen for the whole
    batch, so a sample depends on its batch to within the tolerance. What the user sets is the tolerance, not a length,
    and the error is proportional to it: the order is 1, in the tolerance.

    Args:
        process: an SDE, see sde/process.py.
        rtol, atol: tolerances of one step in the root mean square over the batch.
        max_nfe: evaluations allowed for a path; `carry` counts them from step to step.
        noise_removal: see ReverseSDE.
    """

    strong_order = 1.0
    weak_order = 1.0

    def __init__(
        self,
        process: Process,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        max_nfe: int = 1000,
        noise_removal: bool = True,
    ) -> None:
        if not (rtol > 0.0 and atol > 0.0):
            raise UserError(f"`rtol` = {rtol} and `atol` = {atol} must be positive.")
        super().__init__(process, 0.0, noise_removal)
        self.rtol, self.atol, self.max_nfe = rtol, atol, max_nfe

    def _step(self, denoise: Denoise, x: Tensor, t: float, s: float, noise: Noise, carry: Any) -> Step:
        """See ReverseSDE.

        Raises:
            UserError: if the evaluations are used up or the step size has vanished.
        """
        counted, used = Counted(denoise), carry or 0
        seen: list[Prediction] = []

        def velocity(time: Tensor, state: Tensor) -> Tensor:
            # in the state's precision, and beyond the interval when the first step size is tried out
            now = min(max(float(time), s), t)
            if used + counted.calls >= self.max_nfe:
                raise UserError(
                    self._unsolved(t, s, f"`max_nfe` = {self.max_nfe} evaluations were spent at t = {now:.4g}")
                )
            prediction = counted(state, now)
            seen[:] = seen or [prediction]
            return self.drift(prediction, state, now)

        interval = torch.tensor([t, s], dtype=torch.float64, device=x.device)
        try:
            # step_t: without it the last step would overshoot s and evaluate there
            options = {"step_t": interval[1:]}
            state = odeint(velocity, x, interval, rtol=self.rtol, atol=self.atol, method="dopri5", options=options)[-1]
        except AssertionError as error:
            raise UserError(self._unsolved(t, s, "its step size vanished, or its state is not finite")) from error
        return Step(t, s, state, seen[0], state, ZERO, used + counted.calls)

    def _unsolved(self, t: float, s: float, reason: str) -> str:
        return (
            f"the probability-flow ODE from t = {t:g} to {s:g} was not solved: {reason}; allow more evaluations, "
            f"loosen `rtol` = {self.rtol:g} and `atol` = {self.atol:g}, or end at a larger `t_min`."
        )


@dataclass(frozen=True)
class Preset:
    """A published sampler as the reverse kernel with a rule.

    Attributes:
        rule: a key of `adpm.variance.RULES`.
        eta: the kernel's eta.
        weak_order: of means and variances in the length of the steps.
    """

    rule: str
    eta: float
    weak_order: float = 1.0


def _tolerances() -> dict[str, Field]:
    return {
        "rtol": Field(1e-5, "relative tolerance of a step", above=0),
        "atol": Field(1e-5, "absolute tolerance of a step", above=0),
        "max_nfe": Field(1000, "evaluations allowed", low=1),
    }


SOLVERS: dict[str, Kind] = {
    "euler_maruyama": Kind(
        EulerMaruyama,
        "Euler-Maruyama steps of the reverse SDE (eta 1; eta 0 is the probability flow)",
        SolverFacts(uses_eta=True),
        reads=("sampling.eta",),
    ),
    "probability_flow_euler": Kind(
        ProbabilityFlowEuler, "Euler steps of the probability-flow ODE, no noise", SolverFacts()
    ),
    "probability_flow_heun": Kind(
        ProbabilityFlowHeun,
        "Heun steps of the probability-flow ODE, two network calls each",
        SolverFacts(),
    ),
    "probability_flow_adaptive": Kind(
        ProbabilityFlowAdaptive,
        "the probability-flow ODE by Dormand-Prince with adaptive steps",
        SolverFacts(),
        _tolerances(),
    ),
}

# preset -> process -> kernel. Published VP ancestral sampling adds beta, VE's the variance of x_s given x_t and x_0.
# Published VE reverse diffusion is `large` exactly, VP's to O(beta^2) in the mean, sub-VP's is Euler-Maruyama.
# Rectified flow has no published names for steps with noise; `ddim` is Euler's step of its velocity, exactly.
_LARGE, _SMALL, _DDIM = Preset("large", 1.0), Preset("small", 1.0), Preset("small", 0.0)
PRESETS: dict[str, dict[str, Preset]] = {
    "reverse_diffusion": {"vp": _LARGE, "subvp": _LARGE, "ve": _LARGE, "rectified_flow": _LARGE},
    "ancestral": {"vp": _LARGE, "subvp": _SMALL, "ve": _SMALL, "rectified_flow": _SMALL},
    "ddim": {"vp": _DDIM, "subvp": _DDIM, "ve": _DDIM, "rectified_flow": _DDIM},
}
