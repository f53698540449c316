"""Langevin correctors: steps at a fixed time that pull a state towards q(x_t), before or after any solver's step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from adpm.denoiser import Denoise, per_sample
from adpm.errors import UserError
from adpm.families import Field, Kind
from adpm.gaussian import Diagonal
from adpm.noise import Noise
from adpm.process import Process
from adpm.solver import Solver, Step
from sde.score import score_of

StepSize = Callable[[Tensor, Tensor, "float | Tensor"], "float | Tensor"]
"""(score, noise, sigma) -> the unit that a Langevin step is measured in, a length in x."""


def _norms(score: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    return score.flatten(1).norm(dim=1), noise.flatten(1).norm(dim=1)


def sample_norms(score: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
    """||noise|| / ||score|| of each sample, [B, 1, ...]."""
    of_score, of_noise = _norms(score, noise)
    return (of_noise / of_score).reshape(-1, *[1] * (score.ndim - 1))


def batch_norms(score: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
    """The same with both norms averaged over the batch, as published: samples depend on their batch."""
    of_score, of_noise = _norms(score, noise)
    return of_noise.mean() / of_score.mean()


def noise_level(score: Tensor, noise: Tensor, sigma: float | Tensor) -> float | Tensor:
    """sigma_t: annealed Langevin dynamics (Song & Ermon 2019)."""
    return sigma


class Langevin:
    """Langevin steps at a fixed time (Song et al. 2021, algorithms 4 and 5).

        x <- x + delta score(x) + sqrt(2 delta) z,    delta = 2 a (snr u)^2,    a = (alpha_t / alpha_s)^2

    with the unit u given by `unit`. The factor a is 1 on VE and 1 - beta on a discrete VP schedule, as published; in
    this form it holds on sub-VP as well. On N(m, v I) the stationary variance is

        v / (1 - delta / (2 v))    for a fixed delta < 2 v,       v (1 + a snr^2)    for norms over a large batch

    so 2.6 % too much at the published snr = 0.16; with norms per sample in dimension d the law obeys
    1 / E[1 / ||x - m||^2] = (d + 2) v (1 + a snr^2), where the target has (d - 2) v.

    Args:
        process: any process; alpha and sigma are all that is needed.
        snr: step size in the unit.
        n_steps: steps per correction.
        unit: what the step size is measured in: sample_norms, batch_norms or noise_level.

    Raises:
        UserError: if snr or n_steps is out of range.
    """

    def __init__(self, process: Process, snr: float = 0.16, n_steps: int = 1, unit: StepSize = sample_norms) -> None:
        if not snr > 0.0:
            raise UserError(f"`snr` = {snr} must be positive.")
        if not 1 <= n_steps < 4096:
            raise UserError(f"`n_steps` = {n_steps} must lie in 1..4095; for none, leave the corrector out.")
        self.process, self.snr, self.n_steps, self.unit = process, snr, n_steps, unit

    def correct(
        self, denoise: Denoise, x: Tensor, time: ArrayLike, step: tuple[ArrayLike, ArrayLike], noise: Noise
    ) -> tuple[Tensor, Tensor, Diagonal]:
        """n_steps Langevin steps at `time`.

        Args:
            denoise: the model.
            x: [B, ...].
            time: where the score is taken, a number or [B].
            step: (t, s) of the predictor's step, for the factor a.
            noise: draws 1..n_steps are used.

        Returns:
            The new state, and the last step's x + delta score and 2 delta I. With norms, delta depends on the noise.
        """
        t, s = (np.asarray(end, dtype=np.float64) for end in step)
        factor = per_sample((self.process.alpha(t) / self.process.alpha(s)) ** 2, x)
        sigma = per_sample(self.process.sigma(np.asarray(time, dtype=np.float64)), x)
        for draw in range(1, self.n_steps + 1):
            score, z = score_of(denoise(x, time), sigma), noise(draw)
            delta = 2.0 * factor * (self.snr * self.unit(score, z, sigma)) ** 2
            mean, covariance = x + delta * score, Diagonal(2.0 * delta)
            x = covariance.draw(mean, z)
        return x, mean, covariance


class PredictorCorrector:
    """Any solver, with a corrector before each of its steps (as published) or after it (as in the paper's algorithm 1).

    Before: the corrector acts at t. After: it acts at s, and not at s = 0. With a fixed snr the corrector's bias stays
    however short the steps are: the order is 0.

    Args:
        predictor: any solver.
        corrector: Langevin steps.
        corrector_first: whether it comes before the predictor.
    """

    strong_order = 0.0
    weak_order = 0.0

    def __init__(self, predictor: Solver, corrector: Langevin, corrector_first: bool = True) -> None:
        self.predictor, self.corrector, self.corrector_first = predictor, corrector, corrector_first

    def step(self, denoise: Denoise, x: Tensor, t: float, s: float, noise: Noise, carry: Any = None) -> Step:
        """Mean and covariance are those of the last draw: the predictor's, or the corrector's if that comes after."""

        def rest(draw: int = 0) -> Tensor:  # the multiples of n_steps + 1: what the corrector leaves
            return noise(draw * (self.corrector.n_steps + 1))

        if self.corrector_first:
            x, _, _ = self.corrector.correct(denoise, x, t, (t, s), noise)
            return self.predictor.step(denoise, x, t, s, rest, carry)
        step = self.predictor.step(denoise, x, t, s, rest, carry)
        if s == 0.0:
            return step
        state, mean, covariance = self.corrector.correct(denoise, step.x, s, (t, s), noise)
        return replace(step, x=state, mean=mean, covariance=covariance)


def _around(unit: StepSize) -> Callable[..., Solver]:
    """(solver, process, options) -> the solver with Langevin steps around each of its own."""

    def wrap(solver: Solver, process: Process, snr: float = 0.16, n_steps: int = 1, first: bool = True) -> Solver:
        return PredictorCorrector(solver, Langevin(process, snr, n_steps, unit), first)

    return wrap


_FIELDS = {
    "corrector_snr": Field(0.16, "step size in the corrector's unit", above=0, arg="snr"),
    "corrector_steps": Field(1, "Langevin steps per step of the solver", low=1, below=4096, arg="n_steps"),
    "corrector_first": Field(True, "before each step, as published; else after it", arg="first"),
}

CORRECTORS: dict[str, Kind] = {
    "langevin": Kind(_around(sample_norms), "Langevin steps sized by the norms of each sample", fields=_FIELDS),
    "langevin_batch": Kind(
        _around(batch_norms), "Langevin steps sized by the batch's mean norms, as published", fields=_FIELDS
    ),
    "ald": Kind(_around(noise_level), "annealed Langevin dynamics (Song & Ermon 2019)", fields=_FIELDS),
}
