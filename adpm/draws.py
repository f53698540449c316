"""Monte-Carlo draws of a denoiser's moments: measuring them, sums merged without loss, and what these estimate.

A draw is a row of six statistics, COLUMNS; adpm/moments.py says what they are. The residual is regressed on the
controls, whose means are exactly zero, by least squares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor

from adpm.classes import at
from adpm.denoiser import Denoise, Prediction, require_finite
from adpm.errors import UserError
from adpm.moving import moved
from adpm.noise import KeyedNoise
from adpm.process import Array, Process

COLUMNS = ("residual", "gamma", "power", "noise_control", "signal_control", "spread_control")
RESIDUAL, GAMMA, POWER = 0, 1, 2
CONTROLS = slice(3, 6)
AT_ONCE, NUMBERS_AT_ONCE = 4096, 2**24  # images in memory to take their mean, and numbers in them: 128 MB
FITTED = 4  # what the regression fits: the intercept and a slope for each control


@dataclass(frozen=True)
class Draws:
    """Sums over draws at one time: count n, mean [6] and scatter [6, 6] = sum (z - mean)(z - mean)^T of COLUMNS."""

    n: int
    mean: Array
    scatter: Array

    @staticmethod
    def of(z: Array) -> Draws:
        """The sums of the rows of z [n, 6]."""
        mean = z.mean(0)
        return Draws(len(z), mean, (z - mean).T @ (z - mean))

    def merge(self, other: Draws) -> Draws:
        """The sums of both sets of draws (Chan et al. 1983)."""
        n = self.n + other.n
        delta = other.mean - self.mean
        mean = self.mean + delta * other.n / n
        return Draws(n, mean, self.scatter + other.scatter + np.outer(delta, delta) * self.n * other.n / n)


@dataclass(frozen=True)
class Estimate:
    """Values with standard errors; `interval` is the half-width of the Student-t confidence interval."""

    values: Array
    errors: Array
    freedom: Array

    def interval(self, level: float = 0.95) -> Array:
        return student_t.ppf(0.5 + level / 2, self.freedom) * self.errors

    def relative(self) -> Array:
        """Standard errors as shares of the values; 0 where both are 0, inf where only the value is."""
        none = np.where(self.errors > 0.0, np.inf, self.errors)
        return np.divide(self.errors, np.abs(self.values), out=none, where=self.values != 0.0)


def require_sums(draws: Sequence[Draws]) -> None:
    """Check sums that come from elsewhere.

    Raises:
        UserError: unless each holds at least one draw of COLUMNS, whose means are numbers, or NaN in a column that was
            measured nowhere, and whose scatter is no infinity and not negative.
    """
    width = len(COLUMNS)
    for d in draws:
        if d.n < 1 or d.mean.shape != (width,) or d.scatter.shape != (width, width):
            raise UserError(
                f"sums over {d.n} draws of shapes {d.mean.shape} and {d.scatter.shape} are none of COLUMNS."
            )
    mean, scatter = np.stack([d.mean for d in draws]), np.stack([d.scatter for d in draws])
    unmeasured = np.isnan(mean)
    if np.isinf(mean).any() or (unmeasured != unmeasured.all(0)).any():
        raise UserError("means of draws must be numbers, or NaN in a column that was measured at no time.")
    if np.isinf(scatter).any() or (np.diagonal(scatter, axis1=1, axis2=2) < 0.0).any():
        raise UserError("sums of squares of draws must be finite and not negative.")


def intercept(d: Draws) -> tuple[float, float]:
    """Least squares of the residual on the controls: intercept and its standard error."""
    if np.isnan(d.mean[RESIDUAL]):
        return np.nan, np.nan
    if d.n <= FITTED + 1:
        raise UserError(f"`draws` = {d.n} is too few for error bars; use at least {FITTED + 2}.")
    control_scatter = d.scatter[CONTROLS, CONTROLS]
    cross = d.scatter[CONTROLS, RESIDUAL]
    slope, *_ = np.linalg.lstsq(control_scatter, cross, rcond=None)
    leverage = d.mean[CONTROLS] @ np.linalg.pinv(control_scatter) @ d.mean[CONTROLS]
    left = max(d.scatter[RESIDUAL, RESIDUAL] - slope @ cross, 0.0)
    return d.mean[RESIDUAL] - slope @ d.mean[CONTROLS], float(np.sqrt(left / (d.n - FITTED) * (1.0 / d.n + leverage)))


def draw_moments(x0: Tensor, eps: Tensor, x0_hat: Tensor, eps_network: Tensor, mean: Tensor, variance: float) -> Array:
    """The statistics of each draw, [B, 6] float64; `mean` is E x_0 [C, H, W], `variance` is tr Cov[x_0] / d."""

    def per_dim(z: Tensor) -> Tensor:
        return z.double().flatten(1).mean(1)

    columns = [
        per_dim((x0 - x0_hat).square()),
        per_dim(eps_network.square()),
        per_dim((x0_hat - mean).square()),
        per_dim(eps.square()) - 1.0,
        per_dim(eps * (x0 - mean)),
        per_dim((x0 - mean).square()) - variance,
    ]
    return torch.stack(columns, dim=1).cpu().numpy()


@dataclass(frozen=True)
class Source:
    """The images that moments are measured on.

    Attributes:
        size: number of images.
        images: indices [B] -> images [B, C, H, W] in the network's range, on its device.
        mean: E x_0 over all of them, [C, H, W].
        variance: tr Cov[x_0] / d over all of them.
    """

    size: int
    images: Callable[[Tensor], Tensor]
    mean: Tensor
    variance: float

    @staticmethod
    def of(
        images: Callable[[Tensor], Tensor],
        size: int,
        in_order: Callable[[Sequence[Tensor]], Iterable[Tensor]] | None = None,
    ) -> Source:
        """The images 0..size-1 with their exact mean and variance, in one pass.

        Args:
            images: see `Source`.
            size: how many there are.
            in_order: images of batches of numbers, for those who can tell before what comes next.
        """
        index = torch.arange(size)
        total, square = torch.zeros_like(images(index[:1])[0], dtype=torch.float64), 0.0
        parts = index.split(max(1, min(AT_ONCE, NUMBERS_AT_ONCE // max(1, total.numel()))))
        for found in map(images, parts) if in_order is None else in_order(parts):
            x0 = found.double()
            total += x0.sum(0)
            square += float(x0.square().sum())
        mean = total / size
        variance = square / (size * mean.numel()) - float(mean.square().mean())
        return Source(size, images, mean.float(), variance)


def noisy(
    process: Process, source: Source, t: float, draws: int, seed: int, batch_size: int, first: int = 0
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The draws first..draws - 1 of (number of the image, x_0, eps, x_t) at a time, batch by batch.

    Draw i takes the i-th image of one permutation (again from the start when draws exceed images) and noise keyed by
    (seed, i, t), so it does not depend on the batch size or on which other times are looked at.
    """
    order = torch.randperm(source.size, generator=torch.Generator().manual_seed(seed))
    keyed = KeyedNoise(seed, "moments")
    step = int(np.searchsorted(process.times, t))
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    for start in range(first, draws, batch_size):
        number = torch.arange(start, min(start + batch_size, draws))
        image = order[number % source.size]
        x0 = source.images(image)
        eps = keyed(moved(number, x0.device), step, x0.shape[1:]).to(x0.dtype)
        yield image, x0, eps, alpha * x0 + sigma * eps


class Watcher(Protocol):
    """Sums of other things over the same draws."""

    def add(self, x0: Tensor, eps: Tensor, x: Tensor, prediction: Prediction) -> None:
        """The next draws, [B, ...] each."""


def measure(
    denoise: Denoise,
    process: Process,
    source: Source,
    times: Sequence[float],
    draws: int,
    seed: int,
    batch_size: int,
    watch: Callable[[float], Watcher] | None = None,
    first: int = 0,
) -> Iterator[tuple[float, Draws]]:
    """Measure the moments time by time, on the draws of `noisy`; whatever `watch` gives for a time sees them, too.

    Yields:
        (t, sums over the draws first..draws - 1 at t).

    Raises:
        UserError: if the network returned numbers that are not finite, or so large that their squares are not.
    """
    mean = source.mean
    for t in times:
        total: Draws | None = None
        watcher = watch(t) if watch else None
        for image, x0, eps, x in noisy(process, source, t, draws, seed, batch_size, first):
            prediction = require_finite(at(denoise, image)(x, t), t)
            if watcher:
                watcher.add(x0, eps, x, prediction)
            z = draw_moments(x0, eps, prediction.x0, prediction.eps_network, mean, source.variance)
            if not np.isfinite(z).all():
                raise UserError(
                    f"the squares of what the network returned are not finite at t = {t:g}; check its weights."
                )
            part = Draws.of(z)
            total = part if total is None else total.merge(part)
        assert total is not None
        yield float(t), total
