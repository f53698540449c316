"""Which time steps lose the least likelihood: the path of exactly, or at most, K steps of least cost.

adpm/costs.py prices single steps, adpm/shortest_path.py searches; a planner has all budgets solved in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adpm import shortest_path
from adpm.costs import Costs
from adpm.errors import UserError
from adpm.families import Kind, built
from adpm.shortest_path import Budgets, IntArray

MONGE_TOLERANCE = 1e-13  # relative to the largest edge cost: some hundred roundings


@dataclass(frozen=True)
class Plan:
    """A path and what it costs.

    Attributes:
        path: [0 < t_1 < ... < t_K = N], indices into `process.times`.
        steps: K, steps of the path; below `asked` when fewer are better.
        asked: the budget asked for.
        budget: "exactly" or "at_most".
        planned: cost of the path under the costs planned on.
        raw: cost of the same path with no projection.
        gap: raw - planned.
        monge_violation: worst violation of the Monge condition in the costs planned on (<= 0: none); see `Costs`.
        method: the search that found it.
    """

    path: IntArray
    steps: int
    asked: int
    budget: str
    planned: float
    raw: float
    gap: float
    monge_violation: float
    method: str


@dataclass(frozen=True)
class Planner:
    """All budgets up to a largest one, solved; `planner` builds it."""

    costs: Costs
    budgets: Budgets
    method: str
    monge_violation: float

    def plan(self, steps: int, budget: str = "exactly") -> Plan:
        """The least-cost path with exactly, or with at most, `steps` steps.

        Raises:
            UserError: if no such path exists, or if the planner was solved for fewer steps.
        """
        choose = built(BUDGETS, budget, "`budget`")
        last, solved = self.costs.edges.last, len(self.budgets.costs) - 1
        if not 1 <= steps <= last:
            raise UserError(f"`steps` = {steps} must lie in 1..{last}, the number of reference times.")
        if steps > solved:
            raise UserError(f"`steps` = {steps}, but the planner was solved for up to {solved} steps only.")
        if steps == 1 and last > 1 and np.isinf(self.budgets.costs[1]):
            raise UserError(
                "`steps` = 1 has no path: without a data term every path goes through the first "
                "reference time, and the step from there to the data counts; use `steps` >= 2 or give the data term."
            )
        path = choose(self.budgets, steps)
        planned, raw = self.costs.edges.cost(path), self.costs.raw(path)
        return Plan(path, len(path) - 1, steps, budget, planned, raw, raw - planned, self.monge_violation, self.method)


def _automatic(violation: float, tolerance: float) -> str:
    return "divide" if violation <= tolerance else "dense"


def _dense(violation: float, tolerance: float) -> str:
    return "dense"


def _divide(violation: float, tolerance: float) -> str:
    if violation > tolerance:
        raise UserError(
            f"`method` = 'divide' needs Monge costs, but these violate the condition by "
            f"{violation:.3g} where {tolerance:.3g} is tolerated; use 'auto' or 'dense', or project the variance."
        )
    return "divide"


def planner(costs: Costs, max_steps: int, method: str = "auto", tolerance: float = MONGE_TOLERANCE) -> Planner:
    """Solve all budgets 1..max_steps in one pass.

    Args:
        costs: from `kl_costs`, `bound_costs` or `measured_costs`.
        max_steps: largest budget that will be asked for.
        method: 'divide' (Monge costs), 'dense' (any costs), 'auto': 'divide' where the costs allow it.
        tolerance: violation of the Monge condition that counts as rounding, relative to the largest edge cost.

    Raises:
        UserError: if max_steps lies outside 1..N, if 'divide' is asked for costs that break the Monge condition, or if
            they have to be searched in full and are too many.
    """
    choose = built(PLANNING_METHODS, method, "`method`")
    edges = costs.edges
    if not 1 <= max_steps <= edges.last:
        raise UserError(f"`steps` = {max_steps} must lie in 1..{edges.last}, the number of reference times.")
    violation, scale = costs.monge()
    chosen = choose(violation, tolerance * scale)
    budgets = shortest_path.all_budgets(edges, max_steps, shortest_path.METHODS[chosen])
    return Planner(costs, budgets, chosen, violation)


BUDGETS: dict[str, Kind] = {
    "exactly": Kind(lambda: Budgets.path, "exactly K steps"),
    "at_most": Kind(lambda: Budgets.at_most, "at most K steps, fewer where these cost less"),
}

PLANNING_METHODS: dict[str, Kind] = {
    "auto": Kind(lambda: _automatic, "divide and conquer where the costs allow it, else dense"),
    "dense": Kind(lambda: _dense, "the dense recursion, for any costs"),
    "divide": Kind(lambda: _divide, "divide and conquer, for Monge costs"),
}
