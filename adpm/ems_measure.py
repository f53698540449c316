"""The statistics l, s and b of DPM-Solver-v3 (adpm/ems.py), measured for one's own network by directional derivatives.

States are drawn from the forward process, x = alpha x_0 + sigma eps, with the same images, noises and signs v at every
node: l is differentiated along the nodes, which fresh draws would move by much more than it changes. Two passes:

    1.  l = E[ sigma v (deps/dx v) ], v of independent signs         a derivative of the network along v
    2.  eps' = d eps/dlambda along the flow                          a derivative along (k x - sigma eps, 1)
        f = (sigma eps - l x)/alpha,   f' = e^{-lambda} [ (l - 1) eps + eps' ] - l' x/alpha
        s = Cov(f, f') / Var(f),       b = E[f'] - s E[f]

Moments are centred, in float64, merged from batch to batch: at high noise f is a small difference that e^{-lambda}
makes large. There s is about the network's error rather than the data, so |s| is held to LIMIT. Where f does not vary
at all, as in pixels that are the same in all images, s is 0/0 and taken as 0: then b = E[f'] says all that there is to
say, and (1, 0, 0) is what comes out where the network is right about such a pixel.

Time is a real number: between the steps of a discrete process label and scales are interpolated, `Process.time_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adpm.classes import at
from adpm.denoiser import Denoise, Raw
from adpm.derivative import Derivative, derivative, usable
from adpm.draws import Source
from adpm.ems import EMS, half_log_snr
from adpm.errors import UserError
from adpm.noise import KeyedNoise
from adpm.parametrisation import require_alpha
from adpm.process import Array, Process
from adpm.progress import Arrays, Keep, in_memory

LIMIT = 3.0
"""Of |s|, which runs from 1 at high noise to -2 at low noise for exact networks."""
FLOOR = 1e-14
"""Of Var(f) in units of E[eps^2] e^{-2 lambda}, the size of what cancels in f; 1e-10 would take good values away."""
_STENCIL = 1e-4
"""Length in lambda of the differences of time, label and alpha, smooth functions of it; errors are of its square."""

Draws = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Numbers [B] of draws -> images, noises and signs, [B, ...] each."""


def image_of(source: Source, seed: int) -> Callable[[Tensor], Tensor]:
    """Numbers of draws -> those of their images: one permutation, again from the start when it is used up."""
    order = torch.randperm(source.size, generator=torch.Generator().manual_seed(seed))
    return lambda number: order[number % source.size]


def keyed_draws(source: Source, seed: int) -> Draws:
    """Draw i has the i-th image of one permutation, and noise and signs that depend on (seed, i) alone."""
    image, keyed = image_of(source, seed), KeyedNoise(seed, "ems")

    def draws(number: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x0 = source.images(image(number))
        noise, probe = (keyed(number.to(x0.device), k, x0.shape[1:]).to(x0.dtype) for k in (0, 1))
        return x0, noise, torch.where(probe < 0.0, -1.0, 1.0).to(x0.dtype)

    return draws


@dataclass(frozen=True)
class Node:
    """A time, and how fast what depends on it runs along lambda.

    Attributes:
        t: the time, a real number.
        lam, alpha, sigma: lambda, and the scales there.
        k: d log(alpha) / dlambda; d log(sigma) / dlambda = k - 1.
        label, label_rate: what the network receives, and its derivative.
    """

    t: float
    lam: float
    alpha: float
    sigma: float
    k: float
    label: float
    label_rate: float

    @staticmethod
    def at(process: Process, label: Callable[[Array], Array], lam: float) -> Node:
        """The node at lambda, by differences that stay within the reference times."""
        first, last = process.times[[1, -1]]
        low, high = half_log_snr(process, [last, first])
        centre = float(np.clip(lam, low + _STENCIL, high - _STENCIL))
        near = np.array([centre - _STENCIL, centre, centre + _STENCIL, lam])
        times = np.clip(process.time_of(2.0 * near), first, last)
        log_alpha, labels = _log_alpha(process, near, times), np.asarray(label(times), dtype=np.float64)
        alpha = float(np.exp(log_alpha[3]))
        sigma, k = float(np.exp(log_alpha[3] - lam)), _rate(log_alpha, lam - centre)
        return Node(float(times[3]), lam, alpha, sigma, k, float(labels[3]), _rate(labels, lam - centre))


def _log_alpha(process: Process, lam: Array, times: Array) -> Array:
    """log(alpha) where log(alpha/sigma) = lambda."""
    return -0.5 * np.logaddexp(0.0, -2.0 * lam) if process.preserves_variance else np.log(process.alpha(times))


def _rate(values: Array, off: float) -> float:
    """The slope, at a distance from the middle, of the parabola through the first three values."""
    left, middle, right = values[:3]
    return float((right - left) / (2.0 * _STENCIL) + off * (right - 2.0 * middle + left) / _STENCIL**2)


def _raw_at(denoise: Denoise, number: Tensor) -> Raw:
    """The denoiser of a batch of draws, if it can be had between reference times.

    Raises:
        UserError: naming what it does not offer.
    """
    found = at(denoise, number)
    if not isinstance(found, Raw):
        raise UserError(
            f"statistics differentiate a network in x and in time, which {type(found).__name__} does not offer: give "
            "a Denoiser, or a class with its methods `label` and `raw`."
        )
    return found


@torch.no_grad()
def measure_ems(
    denoise: Denoise,
    process: Process,
    draws: Draws,
    count: int = 1000,
    nodes: int = 61,
    *,
    derivative: str = "auto",
    batch_size: int = 256,
    keep: Keep = in_memory,
    provenance: Mapping[str, Any] | None = None,
) -> EMS:
    """The statistics of a network from its last reference time to its first, at nodes even in log-SNR.

    Args:
        denoise: whose raw network is differentiated.
        process: its forward process.
        draws: see `keyed_draws`.
        count: draws per node; their number matters more than that of the nodes.
        nodes: of the grid.
        derivative: how the network is differentiated, a key of DERIVATIVES.
        batch_size: draws per network call.
        keep: see `Keep`; the items are the nodes of the first pass, then those of the second.
        provenance: what the numbers depend on, for the file.

    Raises:
        UserError: if the denoiser cannot be had between reference times; if there are fewer than 3 nodes or 2 draws; if
            the network returned numbers that are not finite.
    """
    require_alpha(process, "f of DPM-Solver-v3's statistics", "use another solver")
    _raw_at(denoise, torch.arange(1))
    if nodes < 3 or count < 2:
        raise UserError(f"`nodes` = {nodes} must be at least 3, and `draws` = {count} at least 2.")
    ends = half_log_snr(process, process.times[[-1, 1]])
    grid = np.linspace(ends[0], ends[1], nodes)
    measured = _Measured(denoise, process, grid, draws, count, batch_size, derivative)
    parts = list(measured.over(keep))
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return EMS(
        grid, measured.linear, draws=count, derivative=measured.method, provenance=dict(provenance or {}), **found
    )


class _Measured:
    """The two passes over the nodes of a grid."""

    def __init__(
        self,
        denoise: Denoise,
        process: Process,
        grid: Array,
        draws: Draws,
        count: int,
        batch_size: int,
        how: str,
    ) -> None:
        self._denoise, self._draws, self._grid = denoise, draws, grid
        self._batches = [torch.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
        first = torch.arange(1)
        self._nodes = [Node.at(process, _raw_at(denoise, first).label, float(lam)) for lam in grid]
        (x0, *_), (x, probe) = draws(first), self._states(self._nodes[0], first)
        self.method = usable(how, self._outwards(self._nodes[0], first, x, probe), x0)
        self._derivative: Derivative = derivative(self.method)

    def over(self, keep: Keep) -> list[Arrays]:
        """What the second pass says of each node."""
        count = len(self._nodes)
        first: list[Any] = []
        second: list[Arrays] = []

        def work(items: range) -> Arrays:
            (i,) = items
            return {"linear": self._first(self._nodes[i])[None]} if i < count else self._second(i - count)

        for part in keep(2 * count, 1, work, "statistics"):
            if len(first) < count:
                first.append(part["linear"])
            else:
                second.append(part)
            if len(first) == count and not second:
                self.linear: Array = np.concatenate(first).astype(np.float64)
                self._slope = np.gradient(self.linear, self._grid, axis=0, edge_order=2)
        return second

    def _outwards(self, node: Node, number: Tensor, x: Tensor, probe: Tensor) -> Callable[[Tensor], Tensor]:
        """The noise prediction along a probe."""
        raw = _raw_at(self._denoise, number).raw
        return lambda d: raw(x + d * probe, node.alpha, node.sigma, node.label)

    def _onwards(self, node: Node, number: Tensor, x: Tensor, velocity: Tensor) -> Callable[[Tensor], Tensor]:
        """The noise prediction along the flow, to first order."""
        raw = _raw_at(self._denoise, number).raw

        def along(d: Tensor) -> Tensor:
            alpha, sigma = node.alpha * (1.0 + d * node.k), node.sigma * (1.0 + d * (node.k - 1.0))
            return raw(x + d * velocity, alpha, sigma, node.label + d * node.label_rate)

        return along

    def _states(self, node: Node, number: Tensor) -> tuple[Tensor, Tensor]:
        """States and probes of a batch."""
        x0, noise, probe = self._draws(number)
        return node.alpha * x0 + node.sigma * noise, probe

    def _first(self, node: Node) -> Array:
        """l of a node."""
        total: Tensor | float = 0.0
        for number in self._batches:
            x, probe = self._states(node, number)
            slope = self._derivative(self._outwards(node, number, x, probe), x)[1]
            total = total + node.sigma * (probe.double() * slope.double()).sum(0)
        return _finite(torch.as_tensor(total) / sum(map(len, self._batches)), node)

    def _second(self, i: int) -> Arrays:
        """s and b of a node, and how many pixels were held."""
        node, sums = self._nodes[i], None
        for number in self._batches:
            x, _ = self._states(node, number)
            linear, slope = (torch.as_tensor(v[i], device=x.device) for v in (self.linear, self._slope))
            eps = _raw_at(self._denoise, number).raw(x, node.alpha, node.sigma, node.label)
            velocity = node.k * x - node.sigma * eps
            along = self._derivative(self._onwards(node, number, x, velocity), x)[1].double()
            x, eps = x.double(), eps.double()
            f = (node.sigma * eps - linear * x) / node.alpha
            rate = ((linear - 1.0) * eps + along) * np.exp(-node.lam) - slope * x / node.alpha
            part = _Sums.of(f, rate, eps)
            sums = part if sums is None else sums.merge(part)
        assert sums is not None
        return {name: np.asarray(value)[None] for name, value in sums.fitted(node).items()}


@dataclass(frozen=True)
class _Sums:
    """Of n draws: means of f and f', sums of centred squares and products, mean square of eps, each [...]."""

    n: int
    f: Tensor
    rate: Tensor
    square: Tensor
    product: Tensor
    power: Tensor

    @staticmethod
    def of(f: Tensor, rate: Tensor, eps: Tensor) -> _Sums:
        """The sums of a batch."""
        off, off_rate = f - f.mean(0), rate - rate.mean(0)
        square, product = off.square().sum(0), (off * off_rate).sum(0)
        return _Sums(len(f), f.mean(0), rate.mean(0), square, product, eps.square().mean(0))

    def merge(self, other: _Sums) -> _Sums:
        """The sums of both sets of draws (Chan et al. 1983)."""
        n = self.n + other.n
        share, cross = other.n / n, self.n * other.n / n
        f, rate = other.f - self.f, other.rate - self.rate
        return _Sums(
            n,
            self.f + f * share,
            self.rate + rate * share,
            self.square + other.square + f.square() * cross,
            self.product + other.product + f * rate * cross,
            self.power + (other.power - self.power) * share,
        )

    def fitted(self, node: Node) -> dict[str, Array]:
        """s and b, and how many pixels are constant or clamped."""
        constant = self.square / self.n <= FLOOR * self.power * np.exp(-2.0 * node.lam)
        free = torch.where(constant, 0.0, self.product / torch.where(constant, 1.0, self.square))
        scale = free.clamp(-LIMIT, LIMIT)
        return {
            "scale": _finite(scale, node),
            "bias": _finite(self.rate - scale * self.f, node),
            "constant": constant.sum().cpu().numpy(),
            "clamped": (free != scale).sum().cpu().numpy(),
        }


def _finite(values: Tensor, node: Node) -> Array:
    """As an array, if they are numbers.

    Raises:
        UserError: naming the time.
    """
    if not values.isfinite().all():
        raise UserError(f"the network returned numbers that are not finite at t = {node.t:g}; check its weights.")
    return values.cpu().numpy()
