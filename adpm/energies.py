"""Energies that guide a denoiser: the score of q(x_t) exp(-sum_i w_i E_i(x_t, t)) in place of q(x_t)'s.

    eps = eps_hat + sigma_t g      x0 = x0_hat - (sigma_t^2 / alpha_t) g      g = sum_i w_i grad E_i(x_t, t)

An energy is any function (x [B, ...], t) -> [B] that torch can differentiate, one number for each example of its own.
At eta = 1 the reverse kernel's mean then moves by -(alpha_s / alpha_t) Var[x_t | x_s] g, because its gain is
(alpha_s / sigma_t^2) Var[x_t | x_s]. Between neighbouring discrete steps that is -(beta_t / sqrt(a_t)) g, to the last
digit the published step of EGSDE (Zhao et al. 2022); longer steps, other eta and other solvers follow.

EGSDE's energies compare x_t with a source image x_0 noised by one draw e, which is held through the walk:

    faithfulness  |A (x - x_src)|^2                   A = a low pass, summed over all elements; pulls images together
    realism       mean over places of cos(F(x, t), F(x_src, t))     F = features of an encoder; pushes them apart

and -log p(class | x_t) is the energy of classifier guidance (Dhariwal & Nichol 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from adpm.denoiser import (
    AT_ONCE,
    EPS_AFTER_CLIP,
    Denoise,
    Prediction,
    TimeLabel,
    check_range,
    clipped,
    per_sample,
    unclipped_x0,
)
from adpm.errors import UserError
from adpm.families import built
from adpm.process import Process

NORM_FLOOR = 1e-10
"""Of the features at a place, below which their cosine is not 1 with themselves."""


class Energy(Protocol):
    """(x [B, ...], t: one time or [B]) -> [B]. What is lower is likelier.

    An energy may have a method `gradient(x, t)`, of x's shape, which is then taken in place of torch's, and an
    attribute `evaluations`, the network calls that one gradient takes (0 unless it says so).
    """

    def __call__(self, x: Tensor, t: ArrayLike) -> Tensor: ...


Timed = Callable[[Tensor, ArrayLike], Tensor]
"""A network at a time of the process: (x [B, ...], t) -> whatever it makes of them."""


def timed(network: Callable[[Tensor, Tensor], Tensor], label: TimeLabel) -> Timed:
    """A network of (x, label [B]), told times as it was trained to see them."""

    def call(x: Tensor, t: ArrayLike) -> Tensor:
        number = torch.as_tensor(label(np.asarray(t, dtype=np.float64)), dtype=x.dtype, device=x.device)
        return network(x, number.expand(len(x)))

    return call


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


# EGSDE's


@dataclass(frozen=True)
class Noised:
    """Source images at a time, x_src = alpha_t x_0 + sigma_t e, with one draw e for all times.

    Attributes:
        process: the forward process.
        x0, noise: [B, ...] both.
    """

    process: Process
    x0: Tensor
    noise: Tensor

    def __call__(self, t: ArrayLike) -> Tensor:
        time = np.asarray(t, dtype=np.float64)
        alpha, sigma = per_sample(self.process.alpha(time), self.x0), per_sample(self.process.sigma(time), self.x0)
        return alpha * self.x0 + sigma * self.noise


@lru_cache(maxsize=32)
def low_pass_matrix(side: int, factor: int) -> Tensor:
    """P = U D, [side, side], float64: D averages `factor` pixels by a triangle, U interpolates linearly.

    Output i of D has its centre at c = (i + 1/2) n - 1/2 and the weight tri(q (c - j)), q = 1/n, of pixel j; of U at
    c = (i + 1/2)/n - 1/2, with tri(c - j); tri(u) = max(0, 1 - |u|). Rows are made to sum to 1, and pixels beyond an
    end are those before it, reflected with the end repeated.

    Raises:
        UserError: if `factor` does not divide the side.
    """
    if not 1 <= factor <= side or side % factor:
        raise UserError(f"`factor` = {factor} of a low pass must divide the image's sides, and one of them is {side}.")
    small = side // factor
    with torch.inference_mode(False):  # it is kept, and who asks next may want derivatives
        down = _resampling(side, small, (torch.arange(small).double() + 0.5) * factor - 0.5, float(factor))
        up = _resampling(small, side, (torch.arange(side).double() + 0.5) / factor - 0.5, 1.0)
        return up @ down


def _resampling(inputs: int, outputs: int, centre: Tensor, width: float) -> Tensor:
    """Rows of triangles of a half width around centres, in units of input pixels."""
    reach = math.ceil(width)
    matrix = torch.zeros(outputs, inputs, dtype=torch.float64)
    for offset in range(-reach, reach + 2):
        at = centre.floor().long() + offset
        weight = (1.0 - (centre - at).abs() / width).clamp_min(0.0)
        turned = at % (2 * inputs)
        column = torch.where(turned < inputs, turned, 2 * inputs - 1 - turned)
        matrix.index_put_((torch.arange(outputs), column), weight, accumulate=True)
    return matrix / matrix.sum(1, keepdim=True)


class LowPass:
    """|A (x - x_src)|^2, A Z = P_H Z P_W^T for each channel; its gradient is 2 (P_H^T P_H) (x - x_src) (P_W^T P_W).

    Args:
        source: gives x_src at a time.
        factor: n of `low_pass_matrix`.
    """

    def __init__(self, source: Callable[[ArrayLike], Tensor], factor: int) -> None:
        self._source, self._factor = source, factor

    def _off(self, x: Tensor, t: ArrayLike) -> tuple[Tensor, Tensor, Tensor]:
        off = x - matching(self._source(t), x)
        high, wide = (low_pass_matrix(side, self._factor).to(x) for side in x.shape[-2:])
        return off, high, wide

    def __call__(self, x: Tensor, t: ArrayLike) -> Tensor:
        off, high, wide = self._off(x, t)
        return (high @ off @ wide.mT).square().flatten(1).sum(1)

    def gradient(self, x: Tensor, t: ArrayLike) -> Tensor:
        """In closed form."""
        off, high, wide = self._off(x, t)
        return 2.0 * (high.mT @ high) @ off @ (wide.mT @ wide)


class Features:
    """mean over places of the cosine, over channels, between the features of x and of x_src, both at time t.

    Args:
        source: gives x_src at a time.
        encoder: (x, t) -> features [B, F, h, w], or [B, F].
    """

    evaluations = 2

    def __init__(self, source: Callable[[ArrayLike], Tensor], encoder: Timed) -> None:
        self._source, self._encoder = source, encoder

    def __call__(self, x: Tensor, t: ArrayLike) -> Tensor:
        with torch.no_grad():
            other = self._encoder(matching(self._source(t), x), t)
        cosine = F.cosine_similarity(self._encoder(x, t), other, dim=1, eps=NORM_FLOOR)
        return cosine.flatten(1).mean(1) if cosine.ndim > 1 else cosine


class OfClass:
    """-log p(class | x_t) by a classifier that knows noisy images.

    Args:
        classifier: (x, t) -> logits [B, K].
        target: the class, 0..K - 1.
    """

    evaluations = 1

    def __init__(self, classifier: Timed, target: int) -> None:
        self._classifier, self._target = classifier, target

    def __call__(self, x: Tensor, t: ArrayLike) -> Tensor:
        logits = self._classifier(x, t)
        if not 0 <= self._target < logits.shape[1]:
            raise UserError(
                f"`target` = {self._target} must lie in 0..{logits.shape[1] - 1}, the classifier's classes."
            )
        return -logits.log_softmax(1)[:, self._target]


def matching(source: Tensor, x: Tensor) -> Tensor:
    """The source as the state has it.

    Raises:
        UserError: if it is of another shape.
    """
    if source.shape != x.shape:
        told = f"the source images have shape {tuple(source.shape)}"
        raise UserError(f"{told}, and the images that they are to become {tuple(x.shape)}; both must be the same.")
    return source.to(x)
