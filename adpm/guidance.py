"""Classifier-free guidance: two denoisers of one process as one (Ho & Salimans 2022).

    eps = eps_u + w (eps_c - eps_u),    w = `scale`,    u unconditional, c conditional

is -sigma_t times the score of q(x_t) (q(x_t | c) / q(x_t))^w. w = 1 is the conditional denoiser and 0 the unconditional
one; this is `guidance_scale` of diffusers, and one more than the paper's own w. Because x = alpha x0 + sigma eps is
linear, x0, v, flow and score are combined with the same weights: what the networks predict makes no difference.

What is combined is what the networks say before clipping; x0 is limited afterwards. A second output is the conditional
denoiser's: it is about the variance of the conditional law, and rules that subtract the square of eps (sn) have no use
for it where w is not 1. Moments are to be measured of the denoiser that is used, so of the guided one.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from adpm.denoiser import (
    EPS_AFTER_CLIP,
    Denoise,
    Denoiser,
    Prediction,
    check_range,
    clipped,
    per_sample,
    unclipped_x0,
)
from adpm.errors import UserError
from adpm.families import built
from adpm.process import Process


class Guided:
    """A denoiser guided towards a condition.

    Args:
        conditional, unconditional: denoisers of the same process, each with its condition inside; they may share a
            network.
        process: theirs.
        scale: w; above 1 samples agree more with the condition and differ less.
        clip: data range (a, b) that the combined x0 is limited to, or None.
        eps_after_clip: "rederive" or "keep", a key of EPS_AFTER_CLIP.

    Attributes:
        evaluations: network calls of one prediction: 2, or 1 where the scale leaves one of the two out.

    Raises:
        UserError: for a scale that is not finite, an unknown name, or a range that is none.
    """

    def __init__(
        self,
        conditional: Denoise,
        unconditional: Denoise,
        process: Process,
        scale: float,
        *,
        clip: tuple[float, float] | None = None,
        eps_after_clip: str = "rederive",
    ) -> None:
        check_range(clip)
        self.conditional, self.unconditional, self.process = conditional, unconditional, process
        self.scale, self.clip = _finite(scale), clip
        self._eps_after_clip = built(EPS_AFTER_CLIP, eps_after_clip, "`eps_after_clip`")
        self.evaluations = 1 if self.scale in (0.0, 1.0) else 2

    def __call__(self, x: Tensor, t: ArrayLike) -> Prediction:
        time = np.asarray(t, dtype=np.float64)
        alpha, sigma = per_sample(self.process.alpha(time), x), per_sample(self.process.sigma(time), x)
        # the first one's head is kept; what has no weight is not called
        terms = ((self.conditional, self.scale), (self.unconditional, 1.0 - self.scale))
        said = [(denoise(x, t), weight) for denoise, weight in terms if weight != 0.0]
        x0 = _total([(unclipped_x0(prediction, x, alpha, sigma), weight) for prediction, weight in said])
        eps = _total([(prediction.eps_network, weight) for prediction, weight in said])
        found = clipped(x, x0, eps, said[0][0].head, alpha, sigma, self.clip, self._eps_after_clip)
        asked = [prediction.finite for prediction, _ in said if prediction.finite is not None]
        return replace(found, finite=torch.stack(asked).all(0) if asked else None)


class GuidedByClass:
    """A class-conditional denoiser that is guided towards the class it is told; told none, it is as it was.

    Args:
        denoise: of a network that knows what no class is.
        scale: w of `Guided`.

    Raises:
        UserError: for a scale that is not finite.
    """

    def __init__(self, denoise: Denoiser, scale: float) -> None:
        self._denoise, self._scale = denoise, _finite(scale)

    def given(self, classes: Tensor | None) -> Denoise:
        """See `adpm.classes.Conditional`."""
        plain = self._denoise.given(None)
        if classes is None:
            return plain
        limits: dict[str, Any] = {"clip": self._denoise.clip, "eps_after_clip": self._denoise.eps_after_clip}
        return Guided(self._denoise.given(classes), plain, self._denoise.process, self._scale, **limits)

    def __call__(self, x: Tensor, t: ArrayLike) -> Prediction:
        return self._denoise(x, t)


def _finite(scale: float) -> float:
    if not math.isfinite(scale):
        raise UserError(f"`scale` = {scale} must be a finite number; 1 is the conditional denoiser alone.")
    return float(scale)


def _total(terms: list[tuple[Tensor, float]]) -> Tensor:
    """The weighted sum of one or two, as w = 1 or b + w (a - b): where both are equal, they are the answer."""
    if len(terms) == 1:
        return terms[0][0]
    (first, weight), (second, _) = terms
    return second + weight * (first - second)
