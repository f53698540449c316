"""Energies that guide a denoiser: the score of q(x_t) exp(-sum_i w_i E_i(x_t, t)) in place of q(x_t)'s.

    eps = eps_hat + sigma_t g      x0 = x0_hat - (sigma_t^2 / alpha_t) g      g = sum_i w_i grad E_i(x_t, t)

An energy is any function (x [B, ...], t) -> [B] that torch can differentiate, one number for each example of its own.
At eta = 1 the reverse kernel's mean then moves by -(alpha_s / alpha_t) Var[x_t | x_s] g, because its gain is
(alpha_s / sigma_t^2) Var[x_t | x_s]. Between neighbouring discrete steps that is -(beta_t / sqrt(a_t)) g, to the last
digit the published step of EGSDE (Zhao et al. 2022); longer steps, other eta and other solvers follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from adpm.denoiser import (
    AT_ONCE,
    EPS_AFTER_CLIP,
    Denoise,
    Prediction,
    check_range,
    clipped,
    per_sample,
    unclipped_x0,
)
from adpm.errors import UserError
from adpm.families import built
from adpm.process import Process


class Energy(Protocol):
    """(x [B, ...], t: one time or [B]) -> [B]. What is lower is likelier.

    An energy may have a method `gradient(x, t)`, of x's shape, which is then taken in place of torch's, and an
    attribute `evaluations`, the network calls that one gradient takes (0 unless it says so).
    """

    def __call__(self, x: Tensor, t: ArrayLike) -> Tensor: ...


class Steered:
    """A denoiser guided by energies.

    Args:
        denoise: the denoiser.
        process: its process.
        terms: energies with their weights w >= 0; those of weight 0 are not called, and without others the denoiser
            says what it always says.
        clip: data range (a, b) that the shifted x0 is limited to, or None.
        eps_after_clip: "rederive" or "keep", a key of EPS_AFTER_CLIP.

    Attributes:
        evaluations: network calls of one prediction, the energies' among them. A backward pass is not counted.

    Raises:
        UserError: for a weight that is negative or not finite, an unknown name, or a range that is none; when called,
            for an energy of another shape than [B], without a gradient, or with one that is not finite.
    """

    def __init__(
        self,
        denoise: Denoise,
        process: Process,
        terms: Sequence[tuple[Energy, float]],
        *,
        clip: tuple[float, float] | None = None,
        eps_after_clip: str = "rederive",
    ) -> None:
        check_range(clip)
        for energy, weight in terms:
            if not 0.0 <= weight < math.inf:
                raise UserError(f"the weight of {named(energy)} is {weight}; it must be a number of at least 0.")
        self.denoise, self.process, self.clip = denoise, process, clip
        self.terms = tuple((energy, float(weight)) for energy, weight in terms if weight > 0.0)
        self._eps_after_clip = built(EPS_AFTER_CLIP, eps_after_clip, "`eps_after_clip`")
        own = sum(int(getattr(energy, "evaluations", 0)) for energy, _ in self.terms)
        self.evaluations = int(getattr(denoise, "evaluations", 1)) + own

    def __call__(self, x: Tensor, t: ArrayLike) -> Prediction:
        said = self.denoise(x, t)
        if not self.terms:
            return said
        time = np.asarray(t, dtype=np.float64)
        alpha, sigma = per_sample(self.process.alpha(time), x), per_sample(self.process.sigma(time), x)
        slope = sum(weight * gradient_of(energy, x, t) for energy, weight in self.terms)
        x0 = unclipped_x0(said, x, alpha, sigma) - (sigma**2 / alpha) * slope
        eps = said.eps_network + sigma * slope
        found = clipped(x, x0, eps, said.head, alpha, sigma, self.clip, self._eps_after_clip)
        return replace(found, finite=said.finite)


def gradient_of(energy: Energy, x: Tensor, t: ArrayLike) -> Tensor:
    """grad E(x, t) of every example, of x's shape: in closed form where the energy has one, else torch's.

    Raises:
        UserError: see `Steered`.
    """
    closed: Callable[[Tensor, ArrayLike], Tensor] | None = getattr(energy, "gradient", None)
    found = _differentiated(energy, x, t) if closed is None else closed(x, t)
    if found.shape != x.shape:
        raise UserError(f"the gradient of {named(energy)} has shape {tuple(found.shape)}, and x {tuple(x.shape)}.")
    # elsewhere one would wait for the device; the state that comes of it is looked at in the end
    if x.device.type in AT_ONCE and x.isfinite().all() and not found.isfinite().all():
        raise UserError(f"{named(energy)} has a gradient that is not finite at t = {_one(t):g}.")
    return found


def _differentiated(energy: Energy, x: Tensor, t: ArrayLike) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        at = x.detach().clone().requires_grad_()
        values = energy(at, t)
        if values.shape != (len(x),):
            told = f"{named(energy)} gives numbers of shape {tuple(values.shape)}"
            raise UserError(f"{told} for {len(x)} examples; an energy is one number for each, of shape ({len(x)},).")
        if not values.requires_grad:
            raise UserError(f"{named(energy)} has no gradient: it must be computed of x, by functions of torch.")
        (found,) = torch.autograd.grad(values.sum(), at)
    return found


def named(energy: Energy) -> str:
    """An energy as people know it."""
    return f"energy '{getattr(energy, '__name__', type(energy).__name__)}'"


def _one(t: ArrayLike) -> float:
    return float(np.ravel(np.asarray(t, dtype=np.float64))[0])
