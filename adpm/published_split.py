"""The dynamic programme of the public Analytic-DPM code, "dp_seg" (Bao et al. 2022): its costs and its split of K.

It plans on E||eps_network||^2 / d, which noise takes above 1, where no exact score is: from there on times are spread
evenly instead.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpm.errors import UserError
from adpm.process import Array, Process
from adpm.shortest_path import edge_table

Floats = NDArray[np.floating[Any]]


def published_costs(process: Process, ms_eps: Floats, last: int) -> Array:
    """F[s, t] = log(1 - forward_variance(s, t)/sigma_t^2 ms_eps[t]) for 1 <= s < t <= last (J of Bao et al. 2022).

    forward_variance/sigma_t^2 = 1 - gamma_t/gamma_s, and the sum (1 - ms_eps) + ms_eps gamma_t/gamma_s loses no digits
    where ms_eps is near 1. The public code keeps ms_eps/sigma_t^2 in the precision of ms_eps, float32 in its files; so
    does this.
    """
    times = process.times[1 : last + 1]
    log_snr_of = process.log_snr(times)
    ratio = ms_eps[1 : last + 1] / process.sigma(times) ** 2
    kept = ms_eps[1 : last + 1] * (ratio.astype(ms_eps.dtype) / ratio)

    def column(t: int) -> Array:
        return np.log((1.0 - kept[t - 1]) + kept[t - 1] * np.exp(log_snr_of[t - 1] - log_snr_of[: t - 1]))

    return edge_table(last, column)


def split_budget(ms_eps: Floats, steps: int) -> tuple[int, int, int]:
    """(K1, N1, K2): K1 steps are planned on 1..N1, K2 are spread evenly over N1..N ("_split" of the public code).

    From the first n with ms_eps[n] > 1, which no exact score has, twice as many times as follow count as bad:
    N1 = N - 2 (N - n + 1). They get 20 % of the share of steps that their number would give them, at least one.

    Raises:
        UserError: if nothing is left to plan on, or too few steps to plan.
    """
    last = len(ms_eps) - 1
    above = np.flatnonzero(ms_eps[1:] > 1)
    bad = 2 * (last - int(above[0])) if above.size else 0
    end = last - bad
    if end < 1:
        raise UserError(
            f"the trajectory 'published_split' finds ms_eps > 1 from t = {int(above[0]) + 1} of {last} on "
            "and takes twice as many times for bad, which leaves none to plan on; re-estimate ms_eps, or use "
            "'least_cost'."
        )

    def planned(k: int) -> int:
        spread = k - min(math.ceil((1.0 - 0.8 * (bad / last)) * k), end)
        return k - max(min(spread, bad), min(bad, 1))

    if planned(steps) < min(2, end):
        enough = next(k for k in range(steps + 1, last + 1) if planned(k) >= min(2, end))
        raise UserError(
            f"the trajectory 'published_split' with `steps` = {steps} leaves {planned(steps)} of "
            f"them to plan and needs two, for the ends 1 and {end}; use `steps` >= {enough}, or "
            "'least_cost'."
        )
    return planned(steps), end, steps - planned(steps)
