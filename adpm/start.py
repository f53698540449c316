"""Where sampling begins: with noise at the path's last time, or nearer the data, where a model of them has carried it.

At low SNR the score is that of a Gaussian, whose probability flow is known (adpm/gaussian_score.py): the state jumps
from the process's last time to one nearer the data, and the network takes over there ("teleportation", Wang & Vastola
2024). The jump costs no evaluation. Its error in units of sigma is of the order of (sqrt(c_max) alpha/sigma)^3, c_max
the largest eigenvalue of the data's covariance.

A start says where on a path the network takes over (`landing`), and makes the state there: t, normal noise -> x_t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from adpm.draws import Source
from adpm.errors import UserError
from adpm.families import Field, Kind
from adpm.gaussian_score import check_rank, fit_gaussian, gaussian_flow, largest_variance, mixture_flow
from adpm.ideal import Mixture
from adpm.mixture_fit import fit_mixture
from adpm.process import Process
from adpm.shortest_path import IntArray

WIDE = 5.0
"""Standard deviations of the data's widest direction that sigma/alpha is where the network takes over, unless said."""

_SLACK = 1e-9
"""Of a log-SNR that names a time exactly."""


class Start(Protocol):
    """Where sampling begins.

    Attributes:
        respend: whether a path is made anew from where a jump lands, with as many steps.
        mixture: the model of the data that a jump follows; None: there is no jump.
    """

    respend: bool

    @property
    def mixture(self) -> Mixture | None: ...

    def landing(self, indices: IntArray) -> int:
        """The reference time, by its index, at which the network takes over on a path [0 < t_1 < ... < t_K]."""

    def __call__(self, t: float, noise: Tensor) -> Tensor:
        """The state at `t` made of standard normal noise [B, ...], in its dtype."""


class FromNoise:
    """x = std(t) noise, at the path's own last time."""

    respend = False
    mixture = None

    def __init__(self, process: Process) -> None:
        self.process = process

    def landing(self, indices: IntArray) -> int:
        return int(indices[-1])

    def __call__(self, t: float, noise: Tensor) -> Tensor:
        return self.process.start_std(t) * noise


Flow = Callable[[Mixture, Process, Tensor, float, float], Tensor]


class Teleport:
    """The state of the process's last time, carried along the probability flow of a model of the data.

    Args:
        process: the forward process.
        fit: makes the model; called when it is needed.
        flow: carries states along its flow.
        log_snr: the network takes over at the latest time whose log-SNR is no higher; None: where sigma/alpha is WIDE
            standard deviations of the data in their widest direction.
        respend: the steps that a jump saves are spent on the rest of the way.

    Raises:
        UserError: if `log_snr` lies outside the process's range.
    """

    def __init__(
        self,
        process: Process,
        fit: Callable[[], Mixture],
        flow: Flow,
        log_snr: float | None = None,
        respend: bool = False,
    ) -> None:
        low, high = process.log_snr(process.times[[-1, 1]]).tolist()
        if log_snr is not None and not low - _SLACK <= log_snr <= high + _SLACK:
            raise UserError(
                f"`start_log_snr` = {log_snr:g} must lie in [{low:.6g}, {high:.6g}], the log-SNR that the process has."
            )
        self.process, self.respend = process, respend
        self._fit, self._flow, self._log_snr = fit, flow, log_snr

    @cached_property
    def mixture(self) -> Mixture:
        """The model of the data."""
        return self._fit()

    @property
    def log_snr(self) -> float:
        """Up to which the model stands in for the network."""
        if self._log_snr is not None:
            return self._log_snr
        return -2.0 * math.log(WIDE) - math.log(largest_variance(self.mixture))

    def landing(self, indices: IntArray) -> int:
        """The latest of the path's own times (of all, for a path that is made anew) that the model reaches.

        Raises:
            UserError: if it reaches past them all, or, where the log-SNR was said, none of them.
        """
        nodes = np.arange(1, len(self.process.times)) if self.respend else indices[1:]
        log_snr, wanted = self.process.log_snr(self.process.times[nodes]), self.log_snr
        told = f"a jump to log-SNR {wanted:.4g}" + (" (`start_log_snr`)" if self._log_snr is not None else "")
        if wanted > log_snr[0] + _SLACK:
            raise UserError(
                f"{told} goes past the path's last time before the data, t = {self.process.times[nodes[0]]:g} of "
                f"log-SNR {log_snr[0]:.4g}, and leaves the network nothing to do; lower `start_log_snr`."
            )
        reached = np.flatnonzero(log_snr <= wanted + _SLACK)
        if not reached.size and self._log_snr is not None:
            raise UserError(
                f"{told} ends before the path begins, at log-SNR {log_snr[-1]:.4g}; raise it, or begin with noise."
            )
        return int(nodes[reached[0]]) if reached.size else int(indices[-1])

    def __call__(self, t: float, noise: Tensor) -> Tensor:
        if tuple(noise.shape[1:]) != self.mixture.shape:
            raise UserError(
                f"`start` is about data of shape {self.mixture.shape}, and samples have shape {tuple(noise.shape[1:])}."
            )
        first = float(self.process.times[-1])
        state = self.process.start_std(first) * noise.double()
        return self._flow(self.mixture, self.process, state, first, t).to(noise.dtype)


@dataclass(frozen=True)
class StartNeeds:
    """What a start's builder may ask for.

    Attributes:
        process: the forward process.
        shape: of an image; found when asked.
        source: the images that a model of the data is fitted to; made when asked.
    """

    process: Process
    shape: Callable[[], tuple[int, ...]]
    source: Callable[[], Source]

    @staticmethod
    def of(process: Process, given: Callable[[], tuple[Callable[[Tensor], Tensor], int]]) -> StartNeeds:
        """With images by their numbers, and how many there are."""
        return StartNeeds(process, lambda: tuple(given()[0](torch.arange(1)).shape[1:]), lambda: Source.of(*given()))


@dataclass(frozen=True)
class StartFacts:
    """Attributes: jumps: whether the network takes over later than the path begins."""

    jumps: bool = True


def _gaussian(needs: StartNeeds, log_snr: float | None = None, respend: bool = False, rank: int = 0) -> Teleport:
    check_rank(rank, needs.shape())

    def fit() -> Mixture:
        return fit_gaussian(needs.source(), rank)

    return Teleport(needs.process, fit, gaussian_flow, log_snr, respend)


def _mixture(
    needs: StartNeeds,
    log_snr: float | None = None,
    respend: bool = False,
    rank: int = 0,
    components: int = 10,
    ridge: float = 1e-5,
    clusters: str = "kmeans",
) -> Teleport:
    check_rank(rank, needs.shape())

    def fit() -> Mixture:
        return fit_mixture(needs.source(), components, rank, ridge, clusters)

    return Teleport(needs.process, fit, mixture_flow, log_snr, respend)


def rank_field(prefix: str = "") -> dict[str, Field]:
    """How many directions of a covariance are kept, under a name of its own."""
    return {f"{prefix}rank": Field(0, "directions of a covariance that are kept; 0 = all", low=0, arg="rank")}


def mixture_fields(prefix: str = "") -> dict[str, Field]:
    """The fit of a mixture, under names of its own."""
    return {
        **rank_field(prefix),
        f"{prefix}components": Field(10, "Gaussians of the mixture", low=1, arg="components"),
        f"{prefix}ridge": Field(1e-5, "variance added to each in every direction", above=0, arg="ridge"),
        f"{prefix}clusters": Field("kmeans", "how they are found", choices="clusters", arg="clusters"),
    }


_JUMP = {
    "start_log_snr": Field(
        None,
        "log-SNR at which the network takes over; unset: where sigma/alpha is 5 standard deviations of the data in "
        "their widest direction",
        type=float,
        arg="log_snr",
        of=("samples",),
    ),
    "start_respend": Field(
        False, "all K steps come after the jump; else the path's own last ones", arg="respend", of=("samples",)
    ),
}

STARTS: dict[str, Kind] = {
    "noise": Kind(lambda needs: FromNoise(needs.process), "noise, at the path's last time", StartFacts(jumps=False)),
    "gaussian": Kind(
        _gaussian,
        "the Gaussian of the data, along its probability flow in closed form (Wang & Vastola 2024)",
        StartFacts(),
        {**_JUMP, **rank_field("start_")},
    ),
    "gaussian_mixture": Kind(
        _mixture,
        "a Gaussian mixture fitted to the data, along its probability flow by an ODE solver",
        StartFacts(),
        {**_JUMP, **mixture_fields("start_")},
    ),
}
"""Builders take (StartNeeds, own options)."""
