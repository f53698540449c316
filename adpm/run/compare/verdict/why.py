"""What a row's figures are made of: where the bits go, and how its variances compare with the measured ones.

For a step t -> s of the reverse Gaussian with a rule, moments on training images give the single variance that is
optimal there, w* = lambda2 + gain^2 E||x_0 - x0_hat(x_t)||^2/d, and `step_nats` what any single variance w costs.
So a bound splits into

    path   data term + prior + sum of step_nats(w*): what these steps would cost with the best single variances
    size   sum of step_nats(w) - step_nats(w*), w the rule's mean variance. With r = w*/w that is (r - 1 - log r)/2 nats
           a step: err^2/w where w is too small, log w where it is too large
    rest   what is left of the measured terms: variances that differ between pixels and states (they save where it is
           negative), and errors on these images that are not those of the training images
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adpm.kernel import Kernel, reverse_kernel, step_nats
from adpm.process import Array
from adpm.run.compare.results import Formulation, Row


@dataclass(frozen=True)
class Band:
    """Steps that land at low < log-SNR <= high."""

    name: str
    low: float
    high: float

    def holds(self, log_snr: Array) -> NDArray[np.bool_]:
        return (log_snr > self.low) & (log_snr <= self.high)


BANDS = (Band("> 2", 2.0, math.inf), Band("-2 to 2", -2.0, 2.0), Band("< -2", -math.inf, -2.0))


@dataclass(frozen=True)
class Bits:
    """A bound in bits/dim, split twice: data + sum(bands) + prior = path + size + rest = the total.

    Attributes:
        data: data term.
        bands: the steps that land in each band.
        prior: of the path's end.
        path, size, rest: see above.
        rests: the rest in each band.
    """

    data: float
    bands: tuple[float, ...]
    prior: float
    path: float
    size: float
    rest: float
    rests: tuple[float, ...]


@dataclass(frozen=True)
class Anatomy:
    """What a row is made of.

    Attributes:
        ratios: geometric mean of w/w* over a band's steps; None for a band without steps or a method without a rule.
        bits: None without a bound.
        last_noise: standard deviation of the noise of the last noisy step over the sigma of where it lands: above 1,
            the one call that follows is told of less noise than there is. None for a single step.
        clipped: mean share, over steps, of the values that the rule's bounds changed.
        end: log-SNR of the last call.
    """

    ratios: tuple[float | None, ...]
    bits: Bits | None
    last_noise: float | None
    clipped: float
    end: float


def anatomy(row: Row, formulation: Formulation) -> Anatomy:
    """Take a row apart."""
    steps = _Steps.of(row, formulation) if row.method.rule is not None and row.method.eta is not None else None
    sigma = float(formulation.process.sigma(row.times[0]))
    return Anatomy(
        (None,) * len(BANDS) if steps is None else steps.ratios(),
        None if steps is None or row.bound is None else steps.bits(),
        float(np.sqrt(max(row.variance[1], 0.0))) / sigma if len(row.times) > 1 else None,
        float(row.clipped.mean()),
        float(row.log_snr[0]),
    )


@dataclass(frozen=True)
class _Steps:
    """A row's steps from times[1:] with what is known about each; the step to 0 has no variance of its own."""

    row: Row
    kernel: Kernel
    squared: Array
    own: Array
    best: Array

    @classmethod
    def of(cls, row: Row, formulation: Formulation) -> _Steps:
        process, times = formulation.process, row.times
        eta = 1.0 if row.method.eta is None else row.method.eta
        kernel = reverse_kernel(process, times[1:], times[:-1], eta)
        squared = formulation.moments.variance("residual", process)(times[1:])
        return cls(row, kernel, squared, row.variance[1:], kernel.lambda2 + kernel.gain**2 * squared)

    def by_band(self, of: Callable[[NDArray[np.bool_]], float]) -> tuple[float, ...]:
        """of(mask of the band's steps) for every band."""
        return tuple(of(band.holds(self.row.log_snr[:-1])) for band in BANDS)

    def ratios(self) -> tuple[float | None, ...]:
        with np.errstate(divide="ignore", invalid="ignore"):
            log_ratio = np.log(self.own / self.best)
        means = self.by_band(lambda held: float(np.exp(log_ratio[held].mean())) if held.any() else math.nan)
        return tuple(None if math.isnan(mean) else mean for mean in means)

    def bits(self) -> Bits:
        assert self.row.bound is not None
        terms = self.row.bound.terms
        data, steps, prior = float(terms[0]), terms[1:-1], float(terms[-1])
        best, own = (self._costs(width) for width in (self.best, self.own))
        path, size = data + prior + float(best.sum()), float((own - best).sum())
        rest = steps - own
        bands = self.by_band(lambda held: float(steps[held].sum()))
        rests = self.by_band(lambda held: float(rest[held].sum()))
        return Bits(data, bands, prior, path, size, float(rest.sum()), rests)

    def _costs(self, width: Array) -> Array:
        """Expected bits/dim of each step with these variances."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return step_nats(self.kernel, width, self.squared) / math.log(2.0)
