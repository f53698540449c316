"""Solvers: one step from t to s < t.

    step(denoise, x, t, s, noise, carry) -> Step

`noise()` gives standard normal noise of x's shape and is called only when the step needs it; `carry` is whatever a
solver with a history wants to see again at its next step. A solver writes `step` and nothing else; the loop is in
sampler.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from adpm.denoiser import Denoise, Prediction
from adpm.families import Kind
from adpm.gaussian import Covariance
from adpm.kernel import Kernel, reverse_kernel
from adpm.noise import Noise
from adpm.process import Array, Process
from adpm.variance import Rule


@dataclass(frozen=True)
class Step:
    """One step t -> s as it was taken.

    Attributes:
        t, s: times.
        x: the new state x_s.
        prediction: what the denoiser said at t.
        mean: the Gaussian's mean.
        covariance: the Gaussian's covariance; the published last step (s = 0) has one but adds no noise.
        carry: for the solver's next step.
    """

    t: float
    s: float
    x: Tensor
    prediction: Prediction
    mean: Tensor
    covariance: Covariance
    carry: Any = None


class Solver(Protocol):
    """One step of a sampler."""

    def step(self, denoise: Denoise, x: Tensor, t: float, s: float, noise: Noise, carry: Any) -> Step: ...


def reverse_mean(kernel: Kernel, prediction: Prediction) -> Tensor:
    """alpha_s x0_hat + eps_scale eps_hat."""
    return float(kernel.alpha_s) * prediction.x0 + float(kernel.eps_scale) * prediction.eps


class ReverseGaussian:
    """The reverse kernel with a variance rule: DDPM, DDIM, Analytic-DPM, SN and NPR are values of eta and rule.

    Args:
        process: forward process.
        rule: variance rule.
        eta: 1 = DDPM, 0 = DDIM.
    """

    def __init__(self, process: Process, rule: Rule, eta: float = 1.0) -> None:
        self.process, self.rule, self.eta = process, rule, eta

    def step(self, denoise: Denoise, x: Tensor, t: float, s: float, noise: Noise, carry: Any = None) -> Step:
        """x_s ~ N(mean, covariance); at s = 0 the mean itself."""
        kernel = reverse_kernel(self.process, t, s, self.eta)
        prediction = denoise(x, t)
        mean = reverse_mean(kernel, prediction)
        covariance = self.rule(kernel, prediction)
        state = covariance.draw(mean, noise()) if s > 0 else mean
        return Step(t, s, state, prediction, mean, covariance)


@dataclass(frozen=True)
class SolverFacts:
    """What may be asked of a solver without building it.

    Attributes:
        uses_rule: whether the variance rule is its covariance, given as `rule`; else it has none, or noise of its own.
        uses_eta: whether eta is a choice, given as `eta`; else it is part of the solver.
        uses_path: whether it wants to know the whole path from the start, given as `times` [K+1].
        statistics: the kind of statistics of the network that it needs, "moments", "coordinates" or "ems"; given as
            `statistics`, a function that measures them when it is called. "": none.
    """

    uses_rule: bool = False
    uses_eta: bool = False
    uses_path: bool = False
    statistics: str = ""

    def given(
        self, times: Array, eta: float, rule: Callable[[], Rule], statistics: Callable[[], Any]
    ) -> dict[str, Any]:
        """What the builder is given by keyword besides its own options."""
        out: dict[str, Any] = {"eta": eta} if self.uses_eta else {}
        out |= {"rule": rule()} if self.uses_rule else {}
        out |= {"times": times} if self.uses_path else {}
        return out | ({"statistics": statistics} if self.statistics else {})


SOLVERS: dict[str, Kind] = {
    "reverse_gaussian": Kind(
        ReverseGaussian,
        "the reverse Gaussian around DDPM's mean (eta 1) or DDIM's (eta 0) with the rule's variance",
        SolverFacts(uses_rule=True, uses_eta=True),
        reads=("rule.name", "sampling.eta"),
    ),
}
"""Builders take (process, rule=, eta=, times=, statistics=, own options): the named ones where the facts say so."""
