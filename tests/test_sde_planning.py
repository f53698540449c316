"""Planning on a continuous grid: how much the answer depends on the number of reference points."""

from __future__ import annotations

import numpy as np
import pytest

from adpm.costs import kl_costs
from adpm.planning import planner
from sde.process import PROCESSES


def least_costs(name: str, points: int, budgets: tuple[int, ...]) -> np.ndarray:
    """Least KL costs, nats per dimension, for Gaussian data with 16 variances from 1 to 0.01."""
    process = PROCESSES[name].build(steps=points, t_min=1e-3)
    alpha, sigma = process.alpha(process.times[1:])[:, None], process.sigma(process.times[1:])[:, None]
    v = np.geomspace(1.0, 0.01, 16)
    variance = (v * sigma**2 / (alpha**2 * v + sigma**2)).mean(1)
    solved = planner(kl_costs(process, np.concatenate([[0.0], variance])), max(budgets))
    return np.array([solved.plan(k).planned for k in budgets])


@pytest.mark.parametrize("name", PROCESSES)
def test_a_thousand_reference_points_are_enough(name: str) -> None:
    """From 1000 to 4000 points the least cost falls, by less than 2e-4 nats per dimension up to K = 100."""
    budgets = (5, 10, 25, 50, 100)
    gain = least_costs(name, 1000, budgets) - least_costs(name, 4000, budgets)
    assert np.all(gain > -1e-9) and np.all(gain < 2e-4) and gain[0] < 1e-5
