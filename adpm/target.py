"""Moments to a stated error: how many draws at a time, and which times besides, until Var_t is known well enough.

The error is the relative standard error of the residual estimate, se(Var_t) / Var_t, at every measured time. Draws
grow in rounds, at each time by itself: a round of n draws with the error e asks for n (e / target)^2 in all. The error
bar of the last round is that of all draws together; each is keyed by its number, whatever the rounds. To stop by an
error bar costs it nothing that the tests can see, but few draws know theirs only roughly: begin with some hundred.

Then times: where leaving one out and interpolating it from its neighbours misses it by more than the target, beyond two
standard errors of the miss, the reference times midway to both neighbours are measured, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from adpm.draws import Draws, intercept
from adpm.moments import MomentTable
from adpm.process import Array, Process

MARGIN = 1.05  # a round of just as many draws as needed would often have to be repeated for a few more
FASTEST = 4  # times as many draws in all after a round: the first ones know their error only roughly
MOST = 2**24  # draws at a time, where an error does not fall
SURE = 2.0  # standard errors


def relative_error(draws: Draws) -> float:
    """se(Var_t) / Var_t by the residual; 0 where both are 0."""
    value, error = intercept(draws)
    return 0.0 if error == 0.0 else error / value if value > 0.0 else math.inf


def wanted(draws: Draws, target: float) -> int:
    """How many draws in all the next round should end with; those there are when they are enough."""
    error = relative_error(draws)
    if error <= target or draws.n >= MOST:
        return draws.n
    most = min(FASTEST * draws.n, MOST)
    return most if math.isinf(error) else min(most, math.ceil(draws.n * max((error / target) ** 2 * MARGIN, MARGIN)))


def until(measured: Callable[[range], Draws], first: int, target: float) -> Draws:
    """Sums over as many draws as it takes.

    Args:
        measured: numbers of draws -> their sums.
        first: draws of the first round.
        target: of the relative error; 0: the first round is all.
    """
    total = measured(range(first))
    while target and (count := wanted(total, target)) > total.n:
        total = total.merge(measured(range(total.n, count)))
    return total


def times_between(table: MomentTable, process: Process, target: float) -> Array:
    """Reference times that are not measured, midway in log-SNR beside those that interpolation surely misses."""
    if len(table.times) < 4:
        return np.empty(0)
    estimate, log_snr = table.posterior_variance("residual", process), process.log_snr(table.times)
    share = estimate.relative()
    noise = np.sqrt(share[1:-1] ** 2 + (share[:-2] ** 2 + share[2:] ** 2) / 2.0)
    missed = 1 + np.flatnonzero(np.abs(table.interpolation_error("residual", process)) > target + SURE * noise)
    middle = np.concatenate([(log_snr[missed] + log_snr[missed + side]) / 2.0 for side in (-1, 1)])
    found = process.times[process.nearest_index(middle)] if len(middle) else middle
    return np.setdiff1d(found, table.times)


def reached(table: MomentTable, target: float) -> str:
    """What a target took, in a sentence."""
    counts, worst = [d.n for d in table.draws], max(map(relative_error, table.draws))
    missed = f", which {MOST:,} draws do not reach" if worst > target else ""
    return (
        f"the relative standard error of Var[x0|x_t] is at most {worst:.2%} (target {target:.2%}{missed}): "
        f"{min(counts):,} to {max(counts):,} draws at each of {len(counts)} times, {sum(counts):,} in all"
    )
