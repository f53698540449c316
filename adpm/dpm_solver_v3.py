"""DPM-Solver-v3 (Zheng et al. 2023): the probability flow in few steps, by a multistep method on a network's own terms.

Where DPM-Solver++ integrates the predicted x0 against e^lambda, this one integrates what is left of the network when
three measured statistics per pixel are taken out of it, see adpm/ems.py. With an anchor i, the integrals of
adpm/ems_integrals.py, and derivatives d_k of g there, estimated from the latest points,

    x_j = alpha_j decay { x_i/alpha_i - drift - sum_k power_k d_k },    d_0 = g_i = f_i

Once the network has spoken at the end of a step, the step may be redone with that point among its own (`correct`),
before the next one starts; that costs no call. The raw network is integrated, whose statistics these are: clipping has
no part in it until the end. The step to s = 0 returns x0_hat, because lambda is infinite there. It is one of the K.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import factorial, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adpm.denoiser import Denoise
from adpm.ems import EMS, half_log_snr
from adpm.ems_integrals import Integrals
from adpm.errors import UserError
from adpm.families import Field, Kind, built
from adpm.gaussian import ZERO
from adpm.moving import moved
from adpm.noise import Noise
from adpm.parametrisation import require_alpha
from adpm.process import Array, Process
from adpm.solver import SolverFacts, Step

MOST = 3
"""The highest order that is published."""

Differences = Callable[[Array], Array]
"""lambda of n + 1 points, the anchor first -> [n, n + 1] weights with d_k = sum_p weights[k - 1, p] g_p."""


def true_differences(lam: Array) -> Array:
    """Derivatives at the anchor of the polynomial through all points."""
    n = len(lam) - 1
    powers = np.arange(1, n + 1)
    of_gaps = np.linalg.inv((lam[1:, None] - lam[0]) ** powers) * np.cumprod(powers)[:, None]
    return np.concatenate([-of_gaps.sum(1, keepdims=True), of_gaps], axis=1)


def pseudo_differences(lam: Array) -> Array:
    """k! times the divided difference of the first k + 1 points: amplifies less, but is of order 2 at most."""
    n = len(lam) - 1
    weights = np.zeros((n, n + 1))
    for k in range(1, n + 1):
        for p in range(k + 1):
            weights[k - 1, p] = factorial(k) / prod(lam[p] - lam[q] for q in range(k + 1) if q != p)
    return weights


@dataclass(frozen=True)
class Point:
    """Where the flow has been: the number of the time, counted from the start, the state and the raw noise there."""

    number: int
    x: Tensor
    eps: Tensor


@dataclass(frozen=True)
class Road:
    """A path with a network's statistics along it.

    Attributes:
        times: [m] falling, at which the network is asked.
        lam, alpha, sigma: [m] lambda and the scales there.
        integrals: of the statistics between these times.
        shape: of a sample, as the statistics have it.
    """

    times: Array
    lam: Array
    alpha: Array
    sigma: Array
    integrals: Integrals
    shape: tuple[int, ...]


class DPMSolverV3:
    """Steps of the probability flow with empirical model statistics.

    The k-th step has order k at most, since there are no earlier points. For smooth networks the error is of order
    `order` in the length of the steps (2 with pseudo differences), if the statistics start at (1, 0, 0) or the start is
    otherwise exact; a first step of order 1 leaves an error of order 2.

    Args:
        process: any process; alpha, sigma and the log-SNR are all that is used.
        times: [K+1] of the path, rising.
        statistics: gives those of the network; asked for at the first step.
        order: of a step, 1 to 3.
        lower_order_final: whether the order falls to 1 towards the end of the path.
        differences: how derivatives are estimated, a key of DIFFERENCES.
        correct: the same where a step is redone; None: steps are not redone.
        correct_half: which steps are redone, a key of HALVES.
        refine: intervals of the integrals within one of the statistics' grid; 1 as published.
        snap: whether times are moved to the nearest node of the grid, as published; in continuous time only.

    Raises:
        UserError: for an option out of its range, or one that cannot act. At the first step: if the statistics do not
            reach over the path or are of data of another shape; if two times snap to one node.
    """

    def __init__(
        self,
        process: Process,
        times: Array,
        statistics: Callable[[], EMS],
        order: int = 3,
        lower_order_final: bool = True,
        differences: str = "true",
        correct: str | None = None,
        correct_half: str = "all",
        refine: int = 10,
        snap: bool = False,
    ) -> None:
        require_alpha(process, "f of DPM-Solver-v3", "use another solver")
        self.process, self.order, self._lower, self._snap = process, order, lower_order_final, snap
        self._times, self._statistics, self._refine = times[times > 0.0][::-1], statistics, refine
        self._last = len(self._times) - 1
        self._predicting = built(DIFFERENCES, differences, "`differences`")
        self._correcting = None if correct is None else built(DIFFERENCES, correct, "`correct`")
        self._more = 0 if correct is None else DIFFERENCES[correct].facts.more
        self._redoes: Callable[[float], bool] = built(HALVES, correct_half, "`correct_half`")
        self._moves: dict[tuple[Any, ...], Move] = {}
        if not 1 <= order <= MOST or refine < 1:
            raise UserError(f"`order` = {order} must lie in 1..{MOST}, and `refine` = {refine} be at least 1.")
        if order > max(self._last, 1):
            raise UserError(
                f"`order` = {order} needs as many steps before the one to the data, and a path of {len(times) - 1} "
                f"steps has {self._last} of them; lower it, or plan more steps."
            )
        if correct is not None and order + self._more < 2:
            raise UserError(f"`correct` = '{correct}' redoes no step of `order` = 1; use order >= 2, or 'pseudo'.")
        if correct is None and correct_half != ALL:
            raise UserError(f"`correct_half` = '{correct_half}' is about steps that are redone; set `correct`.")
        if snap and not process.continuous:
            raise UserError("`snap` = True asks the network between the steps of a discrete process; set it to False.")

    def step(self, denoise: Denoise, x: Tensor, t: float, s: float, noise: Noise, carry: Any = None) -> Step:
        """One step of the path, from t to s.

        Raises:
            UserError: if there is no such step in the path.
        """
        number, road = int(np.argmin(np.abs(self._times - t))), self._road
        if self._times[number] != t or s != (self._times[number + 1] if number < self._last else 0.0):
            raise UserError(f"the step {t:g} -> {s:g} is none of the path that this solver was made for.")
        if road.shape not in ((), tuple(x.shape[1:])):
            raise UserError(f"the statistics are of samples of shape {road.shape}, not {tuple(x.shape[1:])}.")
        prediction = denoise(x, float(road.times[number]))
        if s == 0.0:
            return Step(t, s, prediction.x0, prediction, prediction.x0, ZERO)
        past: tuple[Point, ...] = carry or ()
        here = self._corrected(Point(number, x, prediction.eps_network), past)
        points = (here, *past)[: self.order]
        state = self._move(points[: self._order(points)], number + 1, self._predicting)
        return Step(t, s, state, prediction, state, ZERO, points)

    def _order(self, points: Sequence[Point]) -> int:
        """Of the step that starts at the first of the points."""
        left = self._last - points[0].number
        return min(self.order, len(points), left if self._lower else self.order)

    def _corrected(self, here: Point, past: tuple[Point, ...]) -> Point:
        """The point when the step to it has been redone; its noise moves along, so that f stays what it was."""
        count = self._order(past) + self._more if past else 0
        if self._correcting is None or count < 2 or not self._redoes(self._share(here.number)):
            return here
        x = self._move((past[0], here, *past[1:])[:count], here.number, self._correcting)
        linear = moved(self._road.integrals.linear(here.number), x.device)
        shift = linear / self._road.sigma[here.number] * (x.double() - here.x.double())
        return replace(here, x=x, eps=(here.eps.double() + shift).to(x.dtype))

    def _share(self, number: int) -> float:
        return float(self._times[number] / self.process.times[-1])

    def _move(self, points: Sequence[Point], to: int, differences: Differences) -> Tensor:
        """The local step from the first point; float64 inside, because f at high noise is a small difference."""
        x, numbers = points[0].x, [point.number for point in points]
        key = (*numbers, to, x.device)
        if key not in self._moves:
            self._moves[key] = move_of(self._road, numbers, to, differences).on(x.device)
        return self._moves[key].of(points).to(x.dtype)

    @cached_property
    def _road(self) -> Road:
        """The path with its statistics, which are asked for here."""
        ems, times = self._statistics(), self._times
        lam = half_log_snr(self.process, times)
        if not ems.covers(lam):
            raise UserError(
                f"the statistics reach over log-SNRs of {2 * ems.grid[0]:.4g} to {2 * ems.grid[-1]:.4g}, and the path "
                f"over {2 * lam[0]:.4g} to {2 * lam[-1]:.4g}: measure them for this process and its first time."
            )
        if self._snap:
            node = ems.nearest(lam)
            if twice := np.flatnonzero(np.diff(node) == 0).tolist():
                raise UserError(
                    f"the times {times[twice[0]]:g} and {times[twice[0] + 1]:g} snap to one of {len(ems.grid)} nodes: "
                    "set `snap` = False, plan fewer steps, or measure with more `nodes`."
                )
            lam = ems.grid[node]
            times = np.clip(self.process.time_of(2.0 * lam), *self.process.times[[1, -1]])
        alpha, sigma = self.process.alpha(times), self.process.sigma(times)
        return Road(times, lam, alpha, sigma, Integrals(ems, lam, self._refine), ems.shape)


@dataclass(frozen=True)
class Move:
    """A local step as a sum over points: constant + sum_p (on_x[p] x_p + on_eps[p] eps_p)."""

    constant: Tensor
    on_x: Tensor
    on_eps: Tensor

    def on(self, device: torch.device) -> Move:
        """The same on a device."""
        return Move(*(moved(part, device) for part in (self.constant, self.on_x, self.on_eps)))

    def of(self, points: Sequence[Point]) -> Tensor:
        """The new state, float64."""
        total = self.constant
        for point, on_x, on_eps in zip(points, self.on_x, self.on_eps, strict=True):
            total = total + on_x * point.x.double() + on_eps * point.eps.double()
        return total


def move_of(road: Road, numbers: list[int], to: int, differences: Differences) -> Move:
    """The local step from numbers[0] to `to`, its derivatives estimated from all points: coefficients of each."""
    anchor, integrals = numbers[0], road.integrals
    step = integrals.step(anchor, to, len(numbers))
    weights = np.concatenate([np.eye(1, len(numbers)), differences(road.lam[numbers])])
    front, constant = road.alpha[to] * step.decay, step.drift
    on_x, on_eps = [], []
    for place, p in enumerate(numbers):
        total = sum(power * weight for power, weight in zip(step.powers, weights[:, place], strict=True))
        scale, shift = integrals.carried(anchor, p) if p != anchor else (1.0, 0.0)
        constant = constant - total * shift
        on_x.append(front * (total * scale * integrals.linear(p) + float(p == anchor)) / road.alpha[p])
        on_eps.append(-front * total * scale * road.sigma[p] / road.alpha[p])
    return Move(*(torch.as_tensor(np.asarray(v)) for v in (-front * constant, on_x, on_eps)))


@dataclass(frozen=True)
class DifferencesFacts:
    """Attributes: more: points that a redone step takes beyond those that it was predicted from."""

    more: int = 0


DIFFERENCES: dict[str, Kind] = {
    "true": Kind(lambda: true_differences, "of the polynomial through all points", DifferencesFacts()),
    "pseudo": Kind(
        lambda: pseudo_differences, "divided differences alone: steadier, of order 2 at most", DifferencesFacts(1)
    ),
}
ALL = "all"
HALVES: dict[str, Kind] = {
    ALL: Kind(lambda: lambda share: True, "every step"),
    "late": Kind(lambda: lambda share: share <= 0.5, "those that end at t <= T/2, as the paper says"),
    "early": Kind(lambda: lambda share: share > 0.5, "those that end at t > T/2, as the released code does"),
}
OPTIONS: dict[str, Field] = {
    "order": Field(3, "of a step", low=1, high=MOST),
    "lower_order_final": Field(True, "let the order fall to 1 towards the end of the path"),
    "differences": Field("true", "how derivatives are estimated", choices="differences"),
    "correct": Field(
        None,
        "redo each step when the network has spoken at its end, by these; unset = no",
        type=str,
        choices="differences",
    ),
    "correct_half": Field(ALL, "which steps are redone", choices="correct_half"),
    "refine": Field(10, "intervals of the integrals within one of the statistics' grid; published: 1", low=1),
    "snap": Field(False, "move times to the grid's nodes, as published; continuous time only"),
}

SOLVERS: dict[str, Kind] = {
    "dpm_solver_v3": Kind(
        DPMSolverV3,
        "DPM-Solver-v3: the probability flow by a multistep method on the network's measured statistics",
        SolverFacts(uses_path=True, statistics="ems"),
        OPTIONS,
        reads=("moments.statistics=ems",),
    ),
}
