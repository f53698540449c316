"""One network call a step, and the predictions of earlier steps in place of further calls.

A step is the reverse kernel's, whose mean is DDIM's for eta = 0, with weighted differences of predictions:

    x_s = alpha_s x0_hat + eps_scale eps_hat + r (correction of x_t) - W sum_j c_j (m_j - m_t) + sqrt(lambda2) z

r, W and m are those of exponential.py, and so are the rules for c; a method is a `Scheme`. Nothing but alpha, sigma and
the log-SNR is asked of a process: discrete schedules and SDEs are the same here.

The noise of a step is the kernel's lambda2 for eta. With 1 - eta^2 (1 - gamma_t/gamma_s) = exp(-2 tau^2 h) the step
solves the SDE of strength tau (sde/solver.py has it); tau tends to eta as steps get short. The step to s = 0, where
the log-SNR is infinite, returns x0_hat.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adpm.denoiser import Denoise, Prediction
from adpm.errors import UserError
from adpm.exponential import Weights
from adpm.families import Kind
from adpm.gaussian import ZERO, Diagonal
from adpm.kernel import Kernel, reverse_kernel
from adpm.noise import Noise
from adpm.parametrisation import require_alpha
from adpm.process import Array, Process
from adpm.solver import Step, reverse_mean

Points = tuple[tuple[float, Tensor], ...]
"""(t, m), newest first."""


@dataclass(frozen=True)
class Interpolated:
    """What the polynomial goes through; the columns of exponential.py's table.

    Attributes:
        value: m, of a prediction.
        scale: W, of alpha_s and sigma_s.
        exponent: z, of h and (1 + tau^2) h.
        kept: r, of the step's kernel.
    """

    value: Callable[[Prediction], Tensor]
    scale: Callable[[float, float], float]
    exponent: Callable[[float, float], float]
    kept: Callable[[Kernel], float]


DATA = Interpolated(
    lambda prediction: prediction.x0,
    lambda alpha, sigma: alpha,
    lambda h, h_noisy: -h_noisy,
    lambda kernel: float(kernel.eps_scale / kernel.sigma_t),
)
NOISE = Interpolated(
    lambda prediction: prediction.eps,
    lambda alpha, sigma: sigma,
    lambda h, h_noisy: h,
    lambda kernel: float(kernel.alpha_s / kernel.alpha_t),
)


@dataclass(frozen=True)
class History:
    """What a step leaves for the next one.

    Attributes:
        points: of this step and of those before it, as many as the order.
        used: how many of them the step was made of.
    """

    points: Points = ()
    used: int = 0


@dataclass(frozen=True)
class Scheme:
    """Which multistep method.

    Attributes:
        order: most predictions that a step is made of.
        converges: order of its error at a fixed time in the length of steps even in log-SNR, without noise and with
            the full order to the end.
        predictor: weights of the past ones.
        corrector: weights of the same and of the one at the new state, which is then corrected; None: it stays.
        of: what they weigh.
        final: (steps left with this one, K) -> the most predictions that a step may be made of.
    """

    order: int
    converges: int
    predictor: Weights
    corrector: Weights | None = None
    of: Interpolated = DATA
    final: Callable[[int, int], int] = field(default=lambda left, steps: steps)


class Multistep:
    """A multistep method along one path.

    Args:
        process: any process.
        times: the path [K+1], increasing.
        scheme: the method.
        eta: of the kernel; 0 = the probability flow, 1 = the reverse SDE.
        noisy: (low, high) of sigma/alpha at the start of a step, outside of which eta is 0.

    Raises:
        UserError: if the path has fewer steps than the order, or a corrector weighs eps where alpha is 0.
    """

    def __init__(
        self,
        process: Process,
        times: Array,
        scheme: Scheme,
        eta: float = 0.0,
        noisy: tuple[float, float] = (0, math.inf),
    ) -> None:
        self.process, self.times, self.scheme, self.eta, self.noisy = process, np.asarray(times), scheme, eta, noisy
        if scheme.corrector is not None and scheme.of is NOISE:
            require_alpha(process, "a corrector of eps", "set `interpolates` = 'x0'")
        if scheme.order > self.steps:
            raise UserError(
                f"`order` = {scheme.order} needs a path of at least as many steps, but this one has {self.steps}; "
                "lower it, or raise `trajectory.steps`."
            )

    @property
    def weak_order(self) -> float:
        """Of means and variances at a fixed time; noise that one call a step cannot follow limits it to 2."""
        return float(min(self.scheme.converges, 2) if self.eta > 0.0 else self.scheme.converges)

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    def step(self, denoise: Denoise, x: Tensor, t: float, s: float, noise: Noise, carry: Any = None) -> Step:
        """One step along the path.

        Raises:
            UserError: if t is no time of the path that the solver was made for.
        """
        left, eta = self._left(t), self._eta(t)
        kernel, prediction = reverse_kernel(self.process, t, s, eta), denoise(x, t)
        if s == 0.0:
            return Step(t, s, prediction.x0, prediction, prediction.x0, ZERO)
        scheme, before = self.scheme, carry or History()
        points = ((t, scheme.of.value(prediction)), *before.points)
        mean = reverse_mean(kernel, prediction)
        if before.used and scheme.corrector is not None:
            mean = mean + scheme.of.kept(kernel) * self._correction(points, before.used, scheme.corrector)
        points = points[: scheme.order]
        used = min(len(points), scheme.final(left, self.steps))
        if used > 1:
            z, nodes = self._nodes(points[:used], s)
            mean = mean + self._difference(points[:used], scheme.predictor(z, nodes), s)
        if eta == 0.0:
            return Step(t, s, mean, prediction, mean, ZERO, History(points, used))
        covariance = Diagonal(float(kernel.lambda2))
        return Step(t, s, covariance.draw(mean, noise()), prediction, mean, covariance, History(points, used))

    def _left(self, t: float) -> int:
        """How many steps are left at t, the one from there included."""
        (found,) = np.nonzero(self.times == t)
        if not found.size:
            raise UserError(f"the solver was made for another path: t = {t:g} is none of its {self.steps + 1} times.")
        return int(found[0])

    def _eta(self, t: float) -> float:
        low, high = self.noisy
        return self.eta if low <= math.exp(-0.5 * float(self.process.log_snr(t))) <= high else 0.0

    def _nodes(self, points: Points, s: float) -> tuple[float, Array]:
        """z and u_1..u_n of the step from the first of the points to s."""
        log_snr = self.process.log_snr(np.array([time for time, _ in points]))
        drop, eta = float(log_snr[0] - self.process.log_snr(s)), self._eta(points[0][0])
        keep = drop if eta == 1.0 else math.log1p(eta**2 * math.expm1(drop))
        return self.scheme.of.exponent(-0.5 * drop, -0.5 * (drop + keep)), (log_snr[0] - log_snr[1:]) / drop

    def _difference(self, points: Points, weights: Array, s: float) -> Tensor:
        """-W sum_j c_j (m_j - m_t)."""
        scale = self.scheme.of.scale(float(self.process.alpha(s)), float(self.process.sigma(s)))
        (_, newest), *past = points
        total = torch.zeros_like(newest)
        for c, (_, m) in zip(weights, past, strict=True):
            total += float(c) * (m - newest)
        return -scale * total

    def _correction(self, points: Points, used: int, corrector: Weights) -> Tensor:
        """How far the state at the first of the points lies from where the corrected step would have led.

        A shift of the state that is there, so that whatever happened to it since (a Langevin corrector) is kept.
        """
        new, *old = points
        start, past = tuple(old[:used]), (*old[:used], new)
        z, nodes = self._nodes(start, new[0])
        weights = corrector(z, np.append(nodes, 1.0))
        if used > 1:
            weights[:-1] -= self.scheme.predictor(z, nodes)
        return self._difference(past, weights, new[0])


INTERPOLATED: dict[str, Kind] = {
    "x0": Kind(lambda: DATA, "predictions of the data"),
    "eps": Kind(lambda: NOISE, "predictions of the noise"),
}

FINAL_ORDERS: dict[str, Kind] = {
    "off": Kind(lambda: lambda left, steps: steps, "the full order to the end"),
    "always": Kind(lambda: lambda left, steps: left, "order 1 in the last step, 2 in the last but one"),
    "short": Kind(
        lambda: lambda left, steps: left if steps < 10 else steps,
        "the same on paths of fewer than 10 steps, as released",
    ),
}
