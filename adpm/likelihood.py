"""The variational bound on -log p(x_0), term by term, in nats; docs/likelihood.md explains the conventions.

For a path 0 = t_0 < ... < t_K and the reverse Gaussians p(x_s | x_t) = N(mean, C) of the kernel,

    -log p(x_0) <= prior + sum over steps of term(s, t)
    prior       = KL( q(x_T | x_0) || N(0, prior_std^2 I) )
    term(s, t)  = KL( q(x_s | x_t, x_0) || p(x_s | x_t) ),  q(x_s | x_t, x_0) = N(m_q, lambda2 I)       s > 0
    term(0, t)  = -log p(x_0 | x_t), a Gaussian around x0_hat of a stated decoder variance, discretised for
                  data with levels
    m_q - mean  = alpha_s (x_0 - x0_hat) + eps_scale (eps - eps_hat)

(Ho et al. 2020, eq. 5, for any eta in (0, 1].) One draw of x_t per image and time, noise keyed by (seed, image, t): the
same draw serves every path that visits t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adpm.denoiser import Denoise, Watched, require_finite
from adpm.errors import UserError
from adpm.families import Kind
from adpm.gaussian import Covariance
from adpm.kernel import reverse_kernel, step_nats
from adpm.moving import moved
from adpm.noise import KeyedNoise
from adpm.process import Array, Process
from adpm.variance import Rule

_FLOOR = 1e-12

NoiseAt = Callable[[float], Tensor]
"""t -> the standard normal noise of x_t."""


@dataclass(frozen=True)
class Levels:
    """What the data look like to a decoder: `count` levels in [low, high], or count = 0 for continuous data.

    Raises:
        UserError: if there are levels, but not two of them in a range.
    """

    count: int
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.count and not -math.inf < self.low < self.high < math.inf:
            raise UserError(f"`low` = {self.low} and `high` = {self.high} must satisfy low < high, and be finite.")
        if self.count and self.count < 2:
            raise UserError(f"`levels` = {self.count} must be at least 2, or 0 for continuous data.")

    @property
    def width(self) -> float:
        """Distance between neighbouring levels."""
        return (self.high - self.low) / (self.count - 1)


def gaussian_cdf(u: Tensor) -> Tensor:
    """The approximation 1/2 (1 + tanh(sqrt(2/pi) (u + 0.044715 u^3))) that published bits/dim are computed with."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (u + 0.044715 * u**3)))


def decoder_nats(x0: Tensor, mean: Tensor, variance: float, levels: Levels) -> Tensor:
    """-log p(x_0 | mean) per example for one variance, nats, [B]; see `pixel_nats`."""
    if not variance > 0.0:
        raise UserError(f"the decoder variance must be positive, got {variance}.")
    return pixel_nats(x0, mean, moved(variance, x0.device, x0.dtype), levels).flatten(1).sum(1)


def pixel_nats(x0: Tensor, mean: Tensor, variance: Tensor, levels: Levels) -> Tensor:
    """-log p(x_0 | mean) per element, nats, of x0's shape; `variance` > 0 broadcasts.

    With levels: P = Phi((x_0 - mean + w/2)/sd) - Phi((x_0 - mean - w/2)/sd) over a bin of one level's width w, the
    lowest and the highest bin open to the outside, P floored at 1e-12. Continuous: the Gaussian density.
    """
    if not levels.count:
        return 0.5 * ((x0 - mean).square() / variance + variance.log() + math.log(2 * math.pi))
    half, sd = levels.width / 2, variance.sqrt()
    upper = gaussian_cdf((x0 - mean + half) / sd)
    lower = gaussian_cdf((x0 - mean - half) / sd)
    one, zero = torch.ones_like(upper), torch.zeros_like(lower)
    upper = torch.where(x0 > levels.high - half / 2, one, upper)
    lower = torch.where(x0 < levels.low + half / 2, zero, lower)
    return -(upper - lower).clamp_min(_FLOOR).log()


Decoder = Callable[[float], float]
"""t -> variance of p(x_0 | x_t) in the last step t -> 0."""


def first_posterior_variance(process: Process) -> float:
    """tilde-beta(1, 2) = Var[x_1 | x_2, x_0] of the reference grid, the published decoder variance at t = 1."""
    if process.steps < 2:
        raise UserError(
            f"`process.steps` = {process.steps}: Var[x_1 | x_2, x_0], the published decoder variance and the last "
            "one of the learned rule and of its objectives, needs a process of at least 2 steps; use "
            "`likelihood.decoder` = 'optimal' and another rule."
        )
    return float(reverse_kernel(process, process.times[2], process.times[1]).lambda2)


@dataclass(frozen=True)
class DecoderNeeds:
    """What a decoder's builder may ask for: the process, and Var_t as a function of time, computed when asked."""

    process: Process
    variance: Callable[[], Callable[[Array], Array]]


@dataclass(frozen=True)
class DecoderFacts:
    """Attributes: uses_moments: whether it needs Var_t."""

    uses_moments: bool = False


def _published(needs: DecoderNeeds) -> Decoder:
    """tilde-beta(1, 2) at t = 1, sigma_t^2 elsewhere: the published tables F."""
    process, first = needs.process, first_posterior_variance(needs.process)
    return lambda t: first if t == process.times[1] else float(process.sigma(t)) ** 2


def _published_elbo(needs: DecoderNeeds) -> Decoder:
    """tilde-beta(1, 2) whatever t: the published ELBO."""
    first = first_posterior_variance(needs.process)
    return lambda t: first


def _optimal(needs: DecoderNeeds) -> Decoder:
    """Var_t, the variance that minimises the expected data term of a continuous Gaussian."""
    variance = needs.variance()
    return lambda t: float(variance(np.asarray(t)))


DECODERS: dict[str, Kind] = {
    "published": Kind(
        _published,
        "Var[x_1|x_2, x_0] at the first time, sigma_t^2 elsewhere: the published cost tables",
        DecoderFacts(),
    ),
    "published_elbo": Kind(_published_elbo, "Var[x_1|x_2, x_0] whatever t: the published bound", DecoderFacts()),
    "optimal": Kind(
        _optimal,
        "the measured Var[x0|x_t], which minimises the expected data term",
        DecoderFacts(uses_moments=True),
        reads=("rule.estimator",),
    ),
}


def prior_nats(process: Process, x0: Tensor) -> Tensor:
    """KL( N(alpha_T x_0, sigma_T^2 I) || N(0, prior_std^2 I) ) per example, nats, [B]."""
    last = process.times[-1]
    mean, variance, prior = float(process.alpha(last)) * x0, float(process.sigma(last)) ** 2, process.prior_std**2
    excess = (variance - prior) / prior
    return 0.5 * (excess - math.log1p(excess) + mean.square() / prior).flatten(1).sum(1)


@dataclass(frozen=True)
class Bound:
    """The terms of one step t -> s.

    Attributes:
        t, s: times.
        nats: [B], one draw per image.
        clipped: share of the rule's values that its bounds changed; 0 at s = 0.
    """

    t: float
    s: float
    nats: Tensor
    clipped: float | Tensor


def path_terms(
    denoise: Denoise,
    process: Process,
    rule: Rule,
    decoder: Decoder,
    levels: Levels,
    times: Array,
    x0: Tensor,
    noise: NoiseAt,
    eta: float = 1.0,
) -> Iterator[Bound]:
    """The K step terms of a path, largest t first; add `prior_nats`.

    Args:
        denoise, process, rule, eta: the reverse process.
        decoder: variance of the last step.
        levels: levels of the data.
        times: [K+1], increasing, times[0] = 0.
        x0: images [B, C, H, W]; float64 keeps differences of near-equal means exact.
        noise: the draw for x_t.

    Raises:
        UserError: for eta = 0, where q(x_s | x_t, x_0) has no variance and the bound is infinite, and for a path that
            does not run from 0 to the last reference time, whose terms bound nothing; before the last term is
            yielded at the latest, if the network returned numbers that are not finite.
    """
    if times[0] != 0.0 or times[-1] != process.times[-1]:
        raise UserError(f"a bound needs a path from 0 to {process.times[-1]:g}, got {times[0]:g} to {times[-1]:g}.")
    if eta == 0.0:
        raise UserError("the variational bound is infinite at `eta` = 0 (DDIM); use `eta` in (0, 1].")
    watched = Watched(denoise)
    for t, s in zip(times[:0:-1].tolist(), times[-2::-1].tolist(), strict=True):
        eps = noise(t)
        prediction = watched(float(process.alpha(t)) * x0 + float(process.sigma(t)) * eps, t)
        if s == 0.0:
            watched.check()
            yield Bound(t, s, decoder_nats(x0, prediction.x0, decoder(t), levels), 0.0)
            continue
        kernel = reverse_kernel(process, t, s, eta)
        delta = float(kernel.alpha_s) * (x0 - prediction.x0) + float(kernel.eps_scale) * (eps - prediction.eps)
        covariance: Covariance = rule(kernel, prediction)
        yield Bound(t, s, covariance.kl_from_isotropic(float(kernel.lambda2), delta), covariance.clipped)


def keyed_noise(
    seed: int,
    process: Process,
    images: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    stream: str = "likelihood",
) -> NoiseAt:
    """Noise of image i at time t: a function of (seed, stream, i, t) alone; `images` [B] holds their numbers."""
    keyed = KeyedNoise(seed, stream)
    return lambda t: keyed(images, int(np.searchsorted(process.times, t)), shape).to(dtype)


def bits_per_dim(nats: Tensor | Array, dim: int) -> Tensor | Array:
    """nats of a whole image -> bits per dimension."""
    return nats / (dim * math.log(2.0))


@dataclass(frozen=True)
class Statistics:
    """What the bound of every state-independent rule on every path needs, from one draw per image and time.

    With eps re-derived from x0, m_q - mean = gain (x_0 - x0_hat), so a step's term depends on the draw through
    ||x_0 - x0_hat(x_t)||^2 alone.

    Attributes:
        times: [T].
        squared: [T, B], ||x_0 - x0_hat(x_t)||^2.
        data: [T, B], nats of the last step t -> 0 for the decoder it was measured with.
        prior: [B], nats.
        dim: d.
    """

    times: Array
    squared: Array
    data: Array
    prior: Array
    dim: int

    def variance(self) -> Array:
        """Mean over images of ||x_0 - x0_hat||^2 / d, [T]."""
        return self.squared.mean(1) / self.dim

    def terms(self, process: Process, rule: Rule, times: Array, eta: float = 1.0) -> Array:
        """Terms of a path in nats, [K+1, B]: row j for times[j+1] -> times[j], row K the prior."""
        row = {float(t): i for i, t in enumerate(self.times)}
        at = [row[float(t)] for t in times[1:]]
        kernel = reverse_kernel(process, times[2:], times[1:-1], eta)
        w = np.broadcast_to(np.asarray(rule(kernel, None).values, dtype=np.float64), kernel.lambda2.shape)
        steps = step_nats(kernel, w, self.squared[at[1:]].T / self.dim).T * self.dim
        return np.concatenate([self.data[at[0]][None], steps, self.prior[None]])


def measure_statistics(
    denoise: Denoise,
    process: Process,
    decoder: Decoder,
    levels: Levels,
    times: Array,
    x0: Tensor,
    noise: NoiseAt,
) -> Iterator[tuple[float, Array, Array]]:
    """(t, ||x_0 - x0_hat||^2 [B], nats of t -> 0 [B]) for each time, one network call each.

    Raises:
        UserError: if the network returned numbers that are not finite.
    """
    for t in times.tolist():
        eps = noise(t)
        prediction = require_finite(denoise(float(process.alpha(t)) * x0 + float(process.sigma(t)) * eps, t), t)
        squared = (x0 - prediction.x0).double().square().flatten(1).sum(1)
        data = decoder_nats(x0, prediction.x0, decoder(t), levels)
        yield t, squared.cpu().numpy(), data.double().cpu().numpy()
