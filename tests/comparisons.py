"""Hand-made results of comparisons: a small process whose measured variance is V at all times, and rows upon it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
from scipy.linalg import hadamard

from adpm.bound import BitsPerDim
from adpm.draws import Draws
from adpm.kernel import reverse_kernel, step_nats
from adpm.moments import MomentTable
from adpm.process import DiscreteProcess, linear_betas
from adpm.run.compare.method import Method
from adpm.run.compare.results import Bound, Formulation, Results, Row

V = 0.04
PROCESS = DiscreteProcess(linear_betas(100))
PATHS = {
    "even": {1: [100], 2: [10, 100], 4: [1, 34, 67, 100]},
    "least_cost": {2: [5, 100], 4: [4, 20, 50, 100]},
}
DATA, PRIOR = 0.5, 0.01


def moments() -> MomentTable:
    """Draws without scatter, so that the residual is V to the last digit."""
    mean = np.array([V, 0.9, 0.1, 0.0, 0.0, 0.0])
    times = PROCESS.times[[1, 2, 50, 100]]
    return MomentTable(times, tuple(Draws(10, mean, np.zeros((6, 6))) for _ in times), 0.25, {})


def best_variance(times: np.ndarray, eta: float) -> np.ndarray:
    kernel = reverse_kernel(PROCESS, times[1:], times[:-1], eta)
    return kernel.lambda2 + kernel.gain**2 * V


_PATTERNS = itertools.cycle(hadamard(64)[1:])


def per_image(terms: np.ndarray, error: float | None) -> np.ndarray:
    """64 images with the terms' sum as mean and this standard error, uncorrelated from one call to the next."""
    if error is None:
        return np.array([terms.sum()])
    return terms.sum() + error * math.sqrt(63) * next(_PATTERNS)


def row(
    rule: str | None = "analytic",
    distances: tuple[float, ...] = (10.0, 12.0),
    *,
    formulation: str = "vp",
    trajectory: str = "even",
    solver: str = "reverse_gaussian",
    eta: float | None = 1.0,
    steps: int = 4,
    factor: float = 1.0,
    rest: float = 0.0,
    bound: bool = True,
    error: float | None = 0.02,
    clipped: float = 0.0,
    seconds: float = 1.5,
) -> Row:
    """A row whose variances are `factor` times the best, and whose bound has `rest` bits more than these cost.

    The rest lies in the last noisy step.
    """
    times = np.array(PATHS[trajectory][steps], dtype=np.float64)
    variance = np.concatenate([[0.0], factor * best_variance(times, 1.0 if eta is None else eta)])
    found = None
    if bound and rule is not None and eta:
        kernel = reverse_kernel(PROCESS, times[1:], times[:-1], eta)
        cost = step_nats(kernel, variance[1:], V) / math.log(2.0)
        cost[:1] += rest
        terms = np.concatenate([[DATA], cost, [PRIOR]])
        found = Bound(BitsPerDim(float(terms.sum()), error), terms, per_image(terms, error))
    return Row(
        Method(formulation, rule, trajectory, solver, eta),
        steps,
        steps,
        distances,
        times,
        PROCESS.log_snr(times),
        variance,
        np.full(steps, clipped),
        np.zeros((2, 1, 2, 2)),
        np.zeros((1, 2, 1, 2, 2)),
        found,
        seconds,
    )


def results(
    *rows: Row,
    shown: int = 4,
    floor: tuple[float, ...] = (3.0, 4.0),
    levels: int = 17,
    about: Mapping[str, str] | None = None,
) -> Results:
    names = dict.fromkeys(item.method.formulation for item in rows)
    seeds = tuple(range(len(rows[0].distances))) if rows else (0, 1)
    formulations = {name: Formulation(PROCESS, moments(), 1.0) for name in names}
    told = ("digits", "test", "optimal", "digits, 1 x 2 x 2")
    return Results(rows, formulations, floor[: len(seeds)], shown, 1000, seeds, *told, levels, about or {})


def size_of(factor: float) -> float:
    """Bits of the three noisy steps of K = 4 whose variances are `factor` times the best."""
    ratio = 1.0 / factor
    return 3 * 0.5 * (ratio - 1.0 - math.log(ratio)) / math.log(2.0)


def tables(text: str) -> list[list[list[str]]]:
    """The Markdown tables of a text as cells, without the lines below their heads."""
    out: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not inside:
                out.append([])
            if set(line) - set("|- "):
                out[-1].append(cells)
        inside = line.startswith("|")
    return out
