"""What the tests in continuous time share: the processes, exact denoisers, and steps as linear maps.

Gaussian data N(MEAN, VARIANCE I) make every solver with a state-independent step size linear: one call of `step` on
unit inputs gives its mean map and its response to each draw of noise; means and variances follow without Monte Carlo.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adpm import ideal
from adpm.denoiser import Denoise
from adpm.process import Process
from adpm.solver import ReverseGaussian, Solver
from adpm.variance import Large, Small
from sde.process import PROCESSES, SDE
from sde.solver import PRESETS

NAMES = sorted(PROCESSES)
PUBLISHED = ["subvp", "ve", "vp"]
"""Those of score_sde, whose values are stored."""
WORLDS: dict[str, SDE] = {name: PROCESSES[name].build() for name in NAMES}
NOISY = [name for name in NAMES if not WORLDS[name].pure_noise]
"""Those whose reverse SDE can be walked from T: its diffusion is finite there."""
FIRST = float(np.nextafter(0.0, 1.0))
"""The time just above 0, where VE has sigma_min (at 0 itself it is 0: the data)."""

MEAN, VARIANCE = 0.3, 0.25


def silent(draw: int = 0) -> Tensor:
    """Noise for what must not ask for any."""
    raise AssertionError("noise was asked for")


def preset_kernel(name: str, preset: str) -> ReverseGaussian:
    """The reverse kernel that a preset stands for on a process."""
    facts = PRESETS[preset][name]
    return ReverseGaussian(WORLDS[name], {"small": Small(), "large": Large()}[facts.rule], facts.eta)


@dataclass(frozen=True)
class Law:
    """A Gaussian in one dimension."""

    mean: float
    variance: float


def marginal(sde: Process, t: float) -> Law:
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    return Law(alpha * MEAN, alpha**2 * VARIANCE + sigma**2)


def gaussian_denoiser(sde: Process) -> ideal.IdealDenoiser:
    return ideal.IdealDenoiser(ideal.gaussian(MEAN, VARIANCE, (1, 1, 1)), sde)


def centred(sde: Process, shape: tuple[int, ...]) -> ideal.IdealDenoiser:
    """Data N(0, VARIANCE I)."""
    return ideal.IdealDenoiser(ideal.gaussian(0.0, VARIANCE, shape), sde)


def bimodal(sde: Process) -> ideal.IdealDenoiser:
    """Two components, where nothing is linear."""
    return ideal.IdealDenoiser(ideal.diagonal_mixture([0.35, 0.65], [[-0.6], [0.7]], [0.03, 0.05], (1, 1, 1)), sde)


def points(sde: Process) -> Tensor:
    """Seven states at t = 1."""
    return torch.linspace(-1.5, 1.5, 7, dtype=torch.float64).reshape(-1, 1, 1, 1) * sde.prior_std


def response(solver: Solver, denoise: Denoise, t: float, s: float, draws: int = 2) -> tuple[float, float, np.ndarray]:
    """(A, b, B) of a linear step x_s = A x_t + b + sum_j B_j z_j, from one call on unit inputs."""
    x = torch.zeros(2 + draws, 1, 1, 1, dtype=torch.float64)
    x[1] = 1.0

    def noise(draw: int = 0) -> Tensor:
        z = torch.zeros_like(x)
        z[2 + draw] = 1.0
        return z

    out = solver.step(denoise, x, t, s, noise, None).x.flatten().numpy()
    return float(out[1] - out[0]), float(out[0]), out[2:] - out[0]


def through(solver: Solver, sde: SDE, times: np.ndarray) -> Law:
    """The law at times[-1] after a linear solver's steps down `times`, from the exact law at times[0]."""
    law, denoise = marginal(sde, times[0]), gaussian_denoiser(sde)
    for t, s in zip(times[:-1], times[1:], strict=True):
        a, b, noise = response(solver, denoise, float(t), float(s))
        law = Law(a * law.mean + b, a**2 * law.variance + float(noise @ noise))
    return law
