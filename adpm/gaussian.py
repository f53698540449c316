"""Gaussians with a covariance that is diagonal, in pixels or in an orthonormal basis.

A reverse step is N(mean, lambda2 I + gain^2 C) with C = Cov[x_0 | x_t]. C comes as zero, a scalar, one number per
state, one per pixel, or one per coefficient of an orthonormal basis (adpm/basis.py). A multiple of I is diagonal in
all of them, so every shape is closed under C -> shift I + scale C, and nothing outside this file asks which it is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from adpm.basis import Basis
from adpm.errors import UserError
from adpm.moving import moved
from adpm.process import Array

Number = float | Array | Tensor
Self = TypeVar("Self", bound="Covariance")

EXACTLY, DRAWS = 4096, 512  # of a picture's deviations


@dataclass(frozen=True)
class Covariance(ABC):
    """Variances along orthonormal axes.

    Attributes:
        values: variances: a number (times I), [B, 1, ...] (one per state) or the full shape of x; one for each axis and
            the same for all states is [1, ...]. Planning puts float64 arrays of many steps here.
        clipped: share of the values that bounds have changed, 0 to 1.
    """

    values: Number
    clipped: float | Tensor = 0.0

    def clamp(self: Self, low: float, high: float) -> Self:
        """The covariance with values limited to [low, high]; `clipped` is the larger of its share and this one's."""
        if isinstance(self.values, Tensor):
            clamped = self.values.clamp(low, high)
            share = torch.ne(clamped, self.values).double().mean()
            return replace(self, values=clamped, clipped=share.clamp_min(self.clipped))  # no wait for the device
        limited = np.clip(self.values, low, high)
        changed = float(np.mean(limited != self.values)) if np.size(limited) else 0.0
        return replace(self, values=limited if np.ndim(limited) else float(limited), clipped=max(self.clipped, changed))

    def average(self: Self) -> Self:
        """One variance per state: the mean over all axes of tr C / d."""
        if isinstance(self.values, Tensor) and self.values.ndim > 1:
            return replace(self, values=self.values.mean(dim=tuple(range(1, self.values.ndim)), keepdim=True))
        return self

    def deviation(self, like: Tensor) -> Tensor:
        """Standard deviations along the axes, of `like`'s shape."""
        return self._per_element(like).sqrt()

    def pixel_deviation(self, like: Tensor) -> Tensor:
        """Standard deviations of the pixels, the square root of C's own diagonal, of `like`'s shape."""
        return self.deviation(like)

    @abstractmethod
    def forth(self, x: Tensor) -> Tensor:
        """Coordinates of x [B, ...] along the axes."""

    @abstractmethod
    def back(self, coordinates: Tensor) -> Tensor:
        """The inverse of `forth`."""

    def _per_element(self, x: Tensor) -> Tensor:
        return moved(self.values, x.device, x.dtype).expand_as(x)

    def times(self, x: Tensor) -> Tensor:
        """C x."""
        coordinates = self.forth(x)
        return self.back(self._per_element(coordinates) * coordinates)

    def draw(self, mean: Tensor, noise: Tensor) -> Tensor:
        """mean + C^(1/2) noise for standard normal noise of mean's shape.

        Raises:
            UserError: for a negative number, which an estimator's noise can give; negative tensor entries become NaN.
        """
        if isinstance(self.values, float):
            if self.values < 0:
                raise UserError(
                    f"the variance rule gives {self.values:.3g}, which is negative; set `rule.bounds` = True or "
                    "`rule.estimator` = 'residual'."
                )
            return mean + math.sqrt(self.values) * noise  # isotropic: any axes
        return mean + self.back(self._per_element(noise).sqrt() * self.forth(noise))

    def log_density(self, x: Tensor, mean: Tensor) -> Tensor:
        """log N(x; mean, C) per example, nats, [B]."""
        delta = self.forth(x - mean)
        v = self._per_element(delta)
        return -0.5 * (delta.square() / v + v.log() + math.log(2 * math.pi)).flatten(1).sum(1)

    def kl_from_isotropic(self, variance: float, delta: Tensor) -> Tensor:
        """KL( N(m + delta, variance I) || N(m, C) ) per example, nats, [B].

        1/2 sum [ r - 1 - log r + delta^2 / v ] along the axes, r = variance / v; r - 1 - log r is taken through
        log1p, because r is within rounding of 1 at early neighbouring steps.
        """
        coordinates = self.forth(delta)
        v = self._per_element(coordinates)
        excess = (variance - v) / v
        return 0.5 * (excess - torch.log1p(excess) + coordinates.square() / v).flatten(1).sum(1)


@dataclass(frozen=True)
class Diagonal(Covariance):
    """Diagonal over pixels; a number stands for a multiple of the identity."""

    def forth(self, x: Tensor) -> Tensor:
        return x

    def back(self, coordinates: Tensor) -> Tensor:
        return coordinates


@dataclass(frozen=True)
class InBasis(Covariance):
    """Diagonal along the axes of an orthonormal basis; values are laid out as its coordinates."""

    basis: Basis = field(kw_only=True)

    def forth(self, x: Tensor) -> Tensor:
        return self.basis.forward(x)

    def back(self, coordinates: Tensor) -> Tensor:
        return self.basis.inverse(coordinates)

    def pixel_deviation(self, like: Tensor) -> Tensor:
        """sum_f Q_fi^2 c_f, axis by axis; of images of more than 4,096 numbers by 512 draws, to 3 %."""
        values, total = self._per_element(like), torch.zeros_like(like)
        count = like[0].numel()
        if count > EXACTLY:
            signs = torch.randn(DRAWS, *like.shape[1:], generator=torch.Generator().manual_seed(0)).sign().to(like)
            spread = (self.back(values.sqrt() * one).square() for one in signs.split(1))
            return (sum(spread, total) / DRAWS).sqrt()
        for axes in torch.arange(count, device=like.device).split(256):
            units = torch.zeros(len(axes), count, dtype=like.dtype, device=like.device)
            units[torch.arange(len(axes)), axes] = 1.0
            squares = self.back(units.reshape(-1, *like.shape[1:])).square().flatten(1)
            total += (values.flatten(1)[:, axes] @ squares).reshape(like.shape)
        return total.sqrt()


ZERO = Diagonal(0.0)
