"""Which K of the N reference times a sampler visits.

A path is an int64 array [0 = t_0 < t_1 < ... < t_K] of indices into `process.times` (for a discrete process the times
themselves); generation walks it backwards, one network evaluation per step. Members, with u_k = k/(K-1), k = 0..K-1:

    even             round(1 + k (N-1)/(K-1))                   published as "linear" (Bao et al. 2022)
    power2, 3, 4     round(1 + (N-1) (1 - (1 - u_k)^(1/p)))     published as "power2", "power3", "power4"
    quadratic        1 + floor((u_k sqrt(0.8 N))^2)             published as "quad_ddim" (Song et al. 2021)
    stride           1, 1 + S, 1 + 2S, ...,  S = floor(N/K)     published as "linear_ddim" (Song et al. 2021)
    log_snr          even in log-SNR between two ends, each point snapped to the nearest reference time
    karras           the same, even in (sigma/alpha)^(1/rho) (Karras et al. 2022)
    published_split  the dynamic programme of the public Analytic-DPM code ("dp_seg"): adpm/published_split.py
    least_cost       the cheapest path under measured costs: adpm/planning.py

quadratic and stride stop short of N: sampling then starts at an earlier time (`Process.start_std`). Halves are rounded
to even and `even` accumulates its position in floating point. Where rounding repeats a time, the power members take the
next free one. All this is as published. log_snr and karras take the next free time, too; quadratic, which would repeat,
is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from adpm.errors import UserError
from adpm.families import Field, Kind, built
from adpm.fitting import Flow
from adpm.planning import Planner
from adpm.process import Process
from adpm.published_split import Floats, published_costs, split_budget
from adpm.shortest_path import IntArray, all_budgets, table_edges


@dataclass(frozen=True)
class Request:
    """What a member may ask for.

    Needs that cost work are given as functions, so that only a member that needs them pays.

    Attributes:
        process: gives the reference times.
        steps: K, the number of steps, 1..N.
        ms_eps: gives [N+1], E||eps_network||^2 / d per time, entry 0 unused, for `published_split`.
        planner: options of `least_cost` -> solved costs, for `least_cost`.
        flow: gives trajectories of the network, for `fitted`.
    """

    process: Process
    steps: int
    ms_eps: Callable[[], Floats] | None = None
    planner: Callable[..., Planner] | None = None
    flow: Callable[[], Flow] | None = None


@dataclass(frozen=True)
class TrajectoryFacts:
    """What may be asked of a trajectory without building it.

    Attributes:
        plans: whether it is the cheapest path under measured costs.
        uses_moments: whether it needs moments whatever it is planned on.
    """

    plans: bool = False
    uses_moments: bool = False


def even_steps(last: int, steps: int) -> IntArray:
    """The published even steps: a running sum of (N-1)/(K-1) from 1, each rounded half to even."""
    gaps = np.full(steps, (last - 1) / max(steps - 1, 1))
    gaps[0] = 1.0
    return np.rint(np.cumsum(gaps)).astype(np.int64)


def power_steps(power: int) -> Callable[[int, int], IntArray]:
    """Even in 1 - (1 - t)^p, dense near the data; where rounding repeats a time, the next free one."""

    def steps_of(last: int, steps: int) -> IntArray:
        u = np.arange(steps) / max(steps - 1, 1)
        position = 1.0 + (last - 1) * (1.0 - (1.0 - u) ** (1.0 / power))
        return _distinct(np.rint(position).astype(np.int64), last)

    return steps_of


def _distinct(steps: IntArray, last: int) -> IntArray:
    """s_k = max(steps_k, s_{k-1} + 1), but never so late that later ones would pass `last`."""
    k = np.arange(len(steps))
    return np.minimum(np.maximum.accumulate(steps - k) + k, last - k[::-1])


def quadratic_steps(last: int, steps: int) -> IntArray:
    """The published quadratic steps; they repeat small times for large K (from K = 30 on at N = 1000)."""
    return (np.linspace(0.0, np.sqrt(last * 0.8), steps) ** 2).astype(np.int64) + 1


def stride_steps(last: int, steps: int) -> IntArray:
    """Every floor(N/K)-th time from 1; there are K of them only if ceil(N / floor(N/K)) = K."""
    return np.arange(1, last + 1, max(last // steps, 1))


def valid_path(path_of: Callable[[int], IntArray], last: int, steps: int, name: str) -> IntArray:
    """path_of(steps), if it is [0 < t_1 < ... < t_K <= N].

    Args:
        path_of: K -> indices, with the leading 0; called with K in 1..N only.
        last: N.
        steps: K.
        name: the trajectory's name, for the message.

    Raises:
        UserError: if K lies outside 1..N, or if the path has not K different steps; names budgets that work.
    """
    if not 1 <= steps <= last:
        raise UserError(f"`steps` = {steps} must lie in 1..{last}, the number of reference times.")
    path = path_of(steps)
    repeats = np.flatnonzero(np.diff(path) <= 0)
    if len(path) == steps + 1 and not repeats.size:
        assert path[0] == 0 and path[-1] <= last, "a trajectory runs from 0 to at most N"
        return path
    fault = f"visits index {path[repeats[0]]} twice" if repeats.size else f"has {len(path) - 1} steps"
    raise UserError(
        f"the trajectory '{name}' with `steps` = {steps} at N = {last} {fault}; "
        f"use {_working_budgets(path_of, last, steps)}'even' or 'power2', which have a path for 2..{last} steps."
    )


def _working_budgets(path_of: Callable[[int], IntArray], last: int, steps: int) -> str:
    """ "steps = a or b, or ": the budgets >= 2 next to `steps` for which path_of gives a path; "" if there is none."""

    def works(k: int) -> bool:
        path = path_of(k)
        return len(path) == k + 1 and bool((np.diff(path) > 0).all())

    below = next((k for k in range(steps - 1, 1, -1) if works(k)), None)
    above = next((k for k in range(steps + 1, last + 1) if works(k)), None)
    near = " or ".join(str(k) for k in (below, above) if k is not None)
    return f"`steps` = {near}, or " if near else ""


def _from_zero(steps: IntArray) -> IntArray:
    return np.concatenate([np.zeros(1, dtype=np.int64), steps])


def _fixed(name: str, steps_of: Callable[[int, int], IntArray]) -> Callable[[Request], IntArray]:
    """A member given by N and K alone. These start at index 1, so that a single step is a path only if N = 1."""

    def build(request: Request) -> IntArray:
        last, steps = request.process.steps, request.steps
        if steps == 1 and last > 1:
            raise UserError(
                f"the trajectory '{name}' starts at index 1 and needs `steps` >= 2, got 1; for a single step use "
                "'log_snr', or 'least_cost' with a data term."
            )
        return valid_path(lambda k: _from_zero(steps_of(last, k)), last, steps, name)

    return build


def _between(
    name: str, request: Request, low: float | None, high: float | None, points: Callable[[float, float, int], Floats]
) -> IntArray:
    """K times snapped to the log-SNRs points(low, high, K), which rise; one step goes from the low end to the data."""
    process, steps, last = request.process, request.steps, request.process.steps
    bottom, top = float(process.log_snr(process.times[-1])), float(process.log_snr(process.times[1]))
    low, high = bottom if low is None else low, top if high is None else high
    slack = 1e-4 * max(abs(bottom), abs(top))  # ends read off a message are rounded
    ends = f"`log_snr_min`, `log_snr_max` = ({low:.6g}, {high:.6g})"
    if low > high or low < bottom - slack or high > top + slack:
        raise UserError(
            f"{ends} must be low <= high within ({bottom:.6g}, {top:.6g}), the range of the reference times."
        )

    def path_of(k: int) -> IntArray:
        nearest = process.nearest_index(points(low, high, k)[::-1])
        return _from_zero(_distinct(nearest, nearest[-1]))

    first, final = process.nearest_index([high, low])
    if final - first + 1 < steps <= last:
        raise UserError(
            f"{ends} holds {final - first + 1} reference times, fewer than `steps` = {steps}; "
            "use fewer steps or a wider range."
        )
    return valid_path(path_of, last, steps, name)


def log_snr(request: Request, log_snr_min: float | None = None, log_snr_max: float | None = None) -> IntArray:
    """K times even in log-SNR, from the high end to the low end.

    Args:
        request: the process and K.
        log_snr_min, log_snr_max: the ends; None: that of the process.

    Raises:
        UserError: if the ends are not low <= high inside the process's range, or hold fewer than K reference times.
    """
    return _between("log_snr", request, log_snr_min, log_snr_max, np.linspace)


def karras(
    request: Request, rho: float = 7.0, log_snr_min: float | None = None, log_snr_max: float | None = None
) -> IntArray:
    """K times even in (sigma/alpha)^(1/rho) = exp(-log_snr / (2 rho)) (Karras et al. 2022, eq. 5).

    Args:
        request: the process and K.
        rho: 1 is even in sigma/alpha, infinity in log-SNR; larger is denser near the data.
        log_snr_min, log_snr_max: the ends, see `log_snr`.
    """

    def points(low: float, high: float, k: int) -> Floats:
        return -2.0 * rho * np.log(np.linspace(np.exp(-0.5 * low / rho), np.exp(-0.5 * high / rho), k))

    return _between("karras", request, log_snr_min, log_snr_max, points)


def least_cost(request: Request, budget: str = "exactly", **costs: Any) -> IntArray:
    """The planner's path with exactly, or with at most, K steps; `costs` says what it is planned on.

    Raises:
        UserError: if no planner is given, or if it has no such path.
    """
    if request.planner is None:
        raise UserError("the trajectory 'least_cost' needs measured costs: measure the moments first, or use 'even'.")
    return request.planner(**costs).plan(request.steps, budget).path


def published_split(request: Request) -> IntArray:
    """The public code's "dp_seg": index 1 first, least cost up to N1, even from there (K = N: all times).

    Raises:
        UserError: if ms_eps is missing, has another length, or leaves nothing to plan; if K lies outside 1..N.
    """
    last, steps = request.process.steps, request.steps
    ms_eps = np.zeros(0) if request.ms_eps is None else request.ms_eps()
    if ms_eps.shape != (last + 1,):
        raise UserError(f"'published_split' needs `ms_eps` of N + 1 = {last + 1} numbers, got {ms_eps.size}.")

    def path_of(k: int) -> IntArray:
        planned, end, spread = split_budget(ms_eps, k)
        head = np.arange(1, planned + 1)
        if 1 < planned < end:
            edges = table_edges(published_costs(request.process, ms_eps, end)[1:, 1:])
            head = all_budgets(edges, planned - 1).path(planned - 1) + 1
        tail = np.rint(last - (last - end) / max(spread, 1) * np.arange(spread))[::-1]
        return _from_zero(np.concatenate([head, tail.astype(np.int64)]))

    return valid_path(path_of, last, steps, "published_split")


def trajectory(name: str, request: Request, **options: Any) -> IntArray:
    """The path [0 < t_1 < ... < t_K] of the member `name`; K below `request.steps` only with budget = "at_most".

    Raises:
        UserError: if the name or an option is unknown, or as the member says.
    """
    return built(TRAJECTORIES, name, "`trajectory.name`", request, **options)


def fitted(request: Request) -> IntArray:
    """The times at which fitted steps miss least; see adpm/fitting.py."""
    if request.flow is None:
        raise UserError("the times 'fitted' need trajectories: flow = model.measure_trajectories(images).")
    return request.flow().best_times(request.process, request.steps)


FIXED: dict[str, tuple[Callable[[int, int], IntArray], str]] = {
    "even": (even_steps, 'evenly spaced times, published as "linear" (Bao et al. 2022)'),
    "power2": (power_steps(2), 'even in 1 - (1 - t)^2, denser near the data; published as "power2"'),
    "power3": (power_steps(3), 'even in 1 - (1 - t)^3, denser near the data; published as "power3"'),
    "power4": (power_steps(4), 'even in 1 - (1 - t)^4, denser near the data; published as "power4"'),
    "quadratic": (quadratic_steps, 'times (u sqrt(0.8 N))^2, published as "quad_ddim" (Song et al. 2021)'),
    "stride": (stride_steps, 'every floor(N/K)-th time, published as "linear_ddim" (Song et al. 2021)'),
}

ENDS = {
    "log_snr_min": Field(None, "end of the path; unset: that of the last reference time", type=float),
    "log_snr_max": Field(None, "start of the path; unset: that of the first reference time", type=float),
}
PLANNED = {
    "budget": Field("exactly", "how K is meant", choices="budget"),
    "cost": Field("kl", "what a step is priced by", choices="cost"),
    "method": Field("auto", "how the cheapest path is searched", choices="planning_method"),
    "data_term": Field(
        True,
        "price the last step to the data (else the path goes through the first reference time)",
        reads=("likelihood.decoder",),
    ),
}

TRAJECTORIES: dict[str, Kind] = {
    **{name: Kind(_fixed(name, steps_of), about, TrajectoryFacts()) for name, (steps_of, about) in FIXED.items()},
    "log_snr": Kind(log_snr, "even in log-SNR", TrajectoryFacts(), ENDS),
    "karras": Kind(
        karras,
        "even in (sigma/alpha)^(1/rho) (Karras et al. 2022)",
        TrajectoryFacts(),
        {"rho": Field(7.0, "how much denser steps are near the data; 1 = even in sigma/alpha", above=0), **ENDS},
    ),
    "published_split": Kind(
        published_split,
        'the public Analytic-DPM code\'s dynamic programme, "dp_seg"',
        TrajectoryFacts(uses_moments=True),
    ),
    "fitted": Kind(
        fitted,
        "ours: the K times at which steps fitted to the network's own flow miss least",
        TrajectoryFacts(),
        reads=("moments.statistics=trajectories",),
    ),
    "least_cost": Kind(
        least_cost, "the K times whose bound is least by the costs measured", TrajectoryFacts(plans=True), PLANNED
    ),
}
