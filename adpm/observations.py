"""Linear observations y = H x_0 + std n, n ~ N(0, I): operators, and what a Gaussian x_0 becomes when y is known.

For x_0 ~ N(m, C), of any shape that adpm/gaussian.py has,

    E[x_0 | y]    = m + C H^T S (y - H m),      S = (H C H^T + std^2 I)^-1
    a draw given y: x + C H^T S (y - H x - std n) of draws x ~ N(m, C), n ~ N(0, I)      (Matheron's rule)

S is applied by conjugate gradients, in float64: neither H nor C is ever a matrix, and covariances that differ between
states are as good as others. Observations have the shape of images: a mask leaves zeros where nothing is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adpm.errors import UserError
from adpm.gaussian import Covariance

TOLERANCE = 1e-10
"""Of the residual of S, as a share of what it is applied to."""


class Operator(Protocol):
    """A linear map H of images [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """H x, [B, ...]."""

    def adjoint(self, y: Tensor) -> Tensor:
        """H^T y, of x's shape."""


class Mask:
    """Inpainting: the pixels that are seen; the others are 0.

    Args:
        seen: bool, broadcast to [C, H, W].

    Raises:
        UserError: if no pixel is seen.
    """

    def __init__(self, seen: Tensor) -> None:
        if seen.dtype is not torch.bool or not seen.any():
            raise UserError("a mask is a tensor of bool that is True where a pixel is seen, and one has to be.")
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.seen.to(x.device), x, 0.0)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.forward(y)


class Separable:
    """Z -> A Z B^T for each channel: blur and super-resolution.

    Args:
        rows, columns: A [h, H] and B [w, W].
    """

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.rows.shape[1], self.columns.shape[1]):
            sides = f"{self.rows.shape[1]}x{self.columns.shape[1]}"
            raise UserError(f"the observation is of images of {sides} pixels, got {tuple(x.shape[-2:])}.")
        return self.rows.to(x) @ x @ self.columns.to(x).mT

    def adjoint(self, y: Tensor) -> Tensor:
        return self.rows.to(y).mT @ y @ self.columns.to(y)


def blur(sides: tuple[int, int], width: float) -> Separable:
    """A Gaussian of standard deviation `width` pixels; its rows sum to 1 at the borders, too.

    Raises:
        UserError: if the width is not above 0.
    """
    if not 0.0 < width < math.inf:
        raise UserError(f"`width` = {width} of a blur must be a number of pixels above 0.")
    return Separable(*(_gaussian(side, width) for side in sides))


def _gaussian(side: int, width: float) -> Tensor:
    at = torch.arange(side, dtype=torch.float64)
    return torch.softmax(-0.5 * ((at[:, None] - at) / width).square(), 1)


def reduction(sides: tuple[int, int], factor: int) -> Separable:
    """Means over blocks of `factor` x `factor` pixels: what super-resolution undoes.

    Raises:
        UserError: if the factor does not divide the sides.
    """
    if factor < 1 or any(side % factor for side in sides):
        raise UserError(f"`factor` = {factor} of a reduction must divide the image's sides, {sides[0]}x{sides[1]}.")
    means = (torch.eye(side // factor, dtype=torch.float64).repeat_interleave(factor, 1) / factor for side in sides)
    return Separable(*means)


@dataclass(frozen=True)
class Observation:
    """What was seen.

    Attributes:
        operator: H.
        values: y, [B, ...], or [1, ...] for one observation of all images.
        std: of the noise in it.

    Raises:
        UserError: if a value is not finite, or the deviation no number of at least 0.
    """

    operator: Operator
    values: Tensor
    std: float

    def __post_init__(self) -> None:
        if not self.values.isfinite().all():
            raise UserError("an observation has values that are not finite; leave out what was not seen by a mask.")
        if not 0.0 <= self.std < math.inf:
            raise UserError(f"`std` = {self.std} of an observation's noise must be a number of at least 0.")

    def off(self, x: Tensor) -> Tensor:
        """y - H x.

        Raises:
            UserError: if the observation does not have the shape that the operator gives.
        """
        seen = self.operator.forward(x)
        if self.values.shape[1:] != seen.shape[1:] or len(self.values) not in (1, len(x)):
            told = f"the observation has shape {tuple(self.values.shape)}"
            raise UserError(f"{told}, and what its operator makes of the images {tuple(seen.shape)}.")
        return self.values.to(seen) - seen

    def weighed(self, covariance: Covariance, off: Tensor) -> Tensor:
        """H^T S off, float64, by conjugate gradients; every example on its own."""

        def system(u: Tensor) -> Tensor:
            return self.operator.forward(covariance.times(self.operator.adjoint(u))) + self.std**2 * u

        return self.operator.adjoint(_solved(system, off.double()))

    def shift(self, covariance: Covariance, off: Tensor) -> Tensor:
        """C H^T S off, in off's dtype."""
        return covariance.times(self.weighed(covariance, off)).to(off.dtype)

    def mean(self, mean: Tensor, covariance: Covariance) -> Tensor:
        """E[x_0 | y] for x_0 ~ N(mean, covariance)."""
        return mean + self.shift(covariance, self.off(mean))

    def deviation(self, covariance: Covariance, noise: Tensor, of_observation: Tensor) -> Tensor:
        """A draw of x_0 | y less its mean, for x_0 ~ N(m, covariance): Matheron's rule.

        Args:
            covariance: of x_0.
            noise: standard normal, of x_0's shape.
            of_observation: the same, independent; as much of it as y has entries is used.
        """
        x = covariance.draw(torch.zeros_like(noise), noise)
        seen = self.operator.forward(x)
        blur = of_observation.flatten(1)[:, : seen[0].numel()].reshape(seen.shape)
        return x - self.shift(covariance, seen + self.std * blur)


def _solved(system: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """The u with system(u) = right for a symmetric, positive map, by conjugate gradients, from 0."""
    u, left, sizes = torch.zeros_like(right), right, (-1, *[1] * (right.ndim - 1))
    direction, size = left, left.flatten(1).square().sum(1)
    enough = TOLERANCE**2 * size
    for _ in range(2 * right[0].numel() + 10):
        if bool((size <= enough).all()):
            break
        mapped = system(direction)
        curved = (direction * mapped).flatten(1).sum(1)
        step = torch.where((curved > 0.0) & (size > enough), size / curved, 0.0).reshape(sizes)
        u, left = u + step * direction, left - step * mapped
        before, size = size, left.flatten(1).square().sum(1)
        direction = left + torch.where(before > 0.0, size / before, 0.0).reshape(sizes) * direction
    return u
