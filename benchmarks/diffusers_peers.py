"""diffusers' schedulers, driven by a network of this project: the samplers that most people use.

A scheduler counts steps from 0, our reference times from 1. Its state is ours, x_t = alpha_t x_0 + sigma_t eps
with alpha^2 + sigma^2 = 1, and so is its start; it is told the betas between reference times, of an SDE's, too. `clip`
re-derives eps from x_0 limited to the data range, which for those that have the option is their `clip_sample`, or
`thresholding` with a largest value of 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from adpm.denoiser import Denoise
from adpm.process import Array, Process

Noise = Callable[[int], Tensor]

SPACINGS = ("leading", "trailing", "linspace")
SIGMAS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "lu": "use_lu_lambdas"}

PEERS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}, ()),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}, (2, 3)),
    "DPM-Solver++ SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, (2,)),
    "UniPC": ("UniPCMultistepScheduler", {}, (2, 3)),
    "DEIS": ("DEISMultistepScheduler", {}, (2, 3)),
    "iPNDM": ("IPNDMScheduler", {}, ()),
}
"""Name -> its class in diffusers, what is set, and the orders that are tried."""


def settings(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(in words, options) of every time grid and order that a scheduler has."""
    kind, fixed, orders = PEERS[name]
    takes = inspect.signature(getattr(diffusers, kind).__init__).parameters
    grids = {spacing: {"timestep_spacing": spacing} for spacing in SPACINGS if "timestep_spacing" in takes}
    grids |= {grid: {option: True} for grid, option in SIGMAS.items() if option in takes}
    for grid, chosen in (grids or {"its own": {}}).items():
        for order in orders or (0,):
            of_order = {"solver_order": order} if order else {}
            yield f"{grid}{f', order {order}' if order else ''}", {**fixed, **chosen, **of_order}


def betas(process: Process) -> Array:
    """beta_n = 1 - (alpha_n / alpha_{n-1})^2 of the reference times n = 1 .. N."""
    alpha = process.alpha(process.times)
    return np.asarray(1.0 - (alpha[1:] / alpha[:-1]) ** 2)


def draw(name: str, options: dict[str, Any], denoise: Denoise, process: Process, steps: int, noise: Noise) -> Tensor:
    """Samples of a scheduler from the noise that our loop would use: noise(0) to start with, noise(k) in step k."""
    kind = getattr(diffusers, PEERS[name][0])
    if kind is diffusers.IPNDMScheduler:
        return _ipndm(kind(process.steps), denoise, process, steps, noise)
    scheduler = kind(num_train_timesteps=process.steps, trained_betas=betas(process), **options)
    scheduler.set_timesteps(steps)
    x = process.start_std(float(process.times[-1])) * noise(0)
    noisy = "variance_noise" in inspect.signature(scheduler.step).parameters
    for k, t in enumerate(scheduler.timesteps, start=1):
        given = {"variance_noise": noise(k)} if noisy else {}
        x = scheduler.step(denoise(x, float(process.times[round(float(t)) + 1])).eps, t, x, **given).prev_sample
    return x


def _ipndm(scheduler: Any, denoise: Denoise, process: Process, steps: int, noise: Noise) -> Tensor:
    """iPNDM has times of its own, cos and sin for alpha and sigma, and wants (eps - sigma x)/alpha of the network.

    The network is asked at the step whose alpha is nearest.
    """
    scheduler.set_timesteps(steps)
    alpha = scheduler.alphas.double().clamp_min(float(process.alpha(process.times[-1])))
    steps_of = np.arange(1, len(process.times))
    at = process.times[np.rint(np.interp(-alpha[:-1].numpy(), -process.alpha(process.times[1:]), steps_of)).astype(int)]
    x = noise(0)
    for k, t in enumerate(scheduler.timesteps):
        eps = denoise(x, float(at[k])).eps
        x = scheduler.step((eps - float(scheduler.betas[k]) * x) / float(alpha[k]), t, x).prev_sample
    return x.to(torch.float32)
