"""The energies of EGSDE (Zhao et al. 2022) and of classifier guidance (Dhariwal & Nichol 2021).

EGSDE compares x_t with a source image noised by one draw e, x_src = alpha_t x_0 + sigma_t e, held through the walk:

    faithfulness   |A (x - x_src)|^2, summed over all elements, A a low pass          pulls the images together
    realism        mean over places of cos(F(x, t), F(x_src, t)), F an encoder        pushes them apart

Each may be compared as the other is: by minus a mean of cosines, or minus a sum of squares. And -log p(class | x_t),
by a classifier of noisy images, leads to a class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from adpm.denoiser import TimeLabel, per_sample
from adpm.errors import UserError
from adpm.families import Field, Kind
from adpm.process import Process

NORM_FLOOR = 1e-10
"""Of the features at a place, below which their cosine is not 1 with themselves."""


Timed = Callable[[Tensor, ArrayLike], Tensor]
"""A network at a time of the process: (x [B, ...], t) -> whatever it makes of them."""


def timed(network: Callable[[Tensor, Tensor], Tensor], label: TimeLabel) -> Timed:
    """A network of (x, label [B]), told times as it was trained to see them."""

    def call(x: Tensor, t: ArrayLike) -> Tensor:
        number = torch.as_tensor(label(np.asarray(t, dtype=np.float64)), dtype=x.dtype, device=x.device)
        return network(x, number.expand(len(x)))

    return call


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
        return x - matching(self._source(t), x), *low_passes(x, self._factor)

    def __call__(self, x: Tensor, t: ArrayLike) -> Tensor:
        off, high, wide = self._off(x, t)
        return (high @ off @ wide.mT).square().flatten(1).sum(1)

    def gradient(self, x: Tensor, t: ArrayLike) -> Tensor:
        """In closed form."""
        off, high, wide = self._off(x, t)
        return 2.0 * (high.mT @ high) @ off @ (wide.mT @ wide)


def low_passes(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """P_H and P_W of images."""
    high, wide = (low_pass_matrix(side, factor).to(x) for side in x.shape[-2:])
    return high, wide


class LowPassCosine:
    """Minus the mean over places of the cosine, over channels, between A x and A x_src.

    Args:
        source: gives x_src at a time.
        factor: n of `low_pass_matrix`.

    Raises:
        UserError: when called with images of one channel, whose cosine is a sign.
    """

    def __init__(self, source: Callable[[ArrayLike], Tensor], factor: int) -> None:
        self._source, self._factor = source, factor

    def __call__(self, x: Tensor, t: ArrayLike) -> Tensor:
        if x.shape[1] < 2:
            raise UserError("'low_pass_cosine' compares colours, and these images have one channel; use 'low_pass'.")
        high, wide = low_passes(x, self._factor)
        return -cosine(high @ x @ wide.mT, high @ matching(self._source(t), x) @ wide.mT)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Mean over places of the cosine over channels, of [B, F, ...] or [B, F]."""
    found = F.cosine_similarity(a, b, dim=1, eps=NORM_FLOOR)
    return found.flatten(1).mean(1) if found.ndim > 1 else found


def nearness(a: Tensor, b: Tensor) -> Tensor:
    """-|a - b|^2, summed."""
    return -(a - b).flatten(1).square().sum(1)


class Features:
    """How alike the features of x and of x_src are, both at time t.

    Args:
        source: gives x_src at a time.
        encoder: (x, t) -> features [B, F, h, w], or [B, F].
        alike: of two batches of features, [B].
    """

    evaluations = 2

    def __init__(
        self,
        source: Callable[[ArrayLike], Tensor],
        encoder: Timed,
        alike: Callable[[Tensor, Tensor], Tensor] = cosine,
    ) -> None:
        self._source, self._encoder, self._alike = source, encoder, alike

    def __call__(self, x: Tensor, t: ArrayLike) -> Tensor:
        with torch.no_grad():
            other = self._encoder(matching(self._source(t), x), t)
        return self._alike(self._encoder(x, t), other)


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


@dataclass(frozen=True)
class EnergyNeeds:
    """What an energy's builder may ask for.

    Attributes:
        source: the images that are translated, at any time.
        classifier, features: of noisy images; loaded when asked.
    """

    source: Noised
    classifier: Callable[[], Timed]
    features: Callable[[], Timed]


LOW_PASS = {
    "low_pass_weight": Field(2.0, "weight of the low pass's energy, li of EGSDE", low=0, arg="weight"),
    "low_pass_factor": Field(32, "pixels that the low pass averages along a side", low=1, arg="factor"),
}
FEATURES = {"features_weight": Field(500.0, "weight of the features' energy, ls of EGSDE", low=0, arg="weight")}

ENERGIES: dict[str, Kind] = {
    "low_pass": Kind(
        lambda needs, weight=2.0, factor=32: (LowPass(needs.source, factor), weight),
        "keeps the low pass of the source: EGSDE's faithfulness, ILVR's as a soft constraint",
        fields=LOW_PASS,
    ),
    "low_pass_cosine": Kind(
        lambda needs, weight=2.0, factor=32: (LowPassCosine(needs.source, factor), weight),
        "keeps the colours of the source's low pass, by their cosine: EGSDE's other faithfulness",
        fields=LOW_PASS,
    ),
    "features": Kind(
        lambda needs, weight=500.0: (Features(needs.source, needs.features()), weight),
        "leaves the source's features, of a classifier of noisy images: EGSDE's realism",
        fields=FEATURES,
        reads=("classifier.name",),
    ),
    "features_squared": Kind(
        lambda needs, weight=500.0: (Features(needs.source, needs.features(), nearness), weight),
        "leaves the source's features by -|F - F_src|^2: EGSDE's other realism, unbounded",
        fields=FEATURES,
        reads=("classifier.name",),
    ),
    "target": Kind(
        lambda needs, weight=1.0, target=0: (OfClass(needs.classifier(), target), weight),
        "goes towards a class of the classifier (Dhariwal & Nichol 2021)",
        fields={
            "target_weight": Field(1.0, "weight of -log p(class | x_t); 1 is Bayes' rule", low=0, arg="weight"),
            "target_class": Field(0, "the class, from 0", low=0, arg="target"),
        },
        reads=("classifier.name",),
    ),
}
"""Builders take (EnergyNeeds, own options) and give an energy with its weight."""
