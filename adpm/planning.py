"""Which time steps lose the least likelihood: the costs of single steps, and the planner.

With gamma_t the SNR, Var_t = E||x_0 - x0_hat(x_t)||^2 / d and the kernel of a step t -> s, 1 <= s < t, what the step
adds to the variational bound is, in nats per dimension,

    kl       1/2 log1p((gamma_s - gamma_t) Var_t)                                with the optimal isotropic variance
    bound    1/2 [lambda2/w - 1 + log(w/lambda2) + gain^2 Var_t / w]             with variance w, any eta in (0, 1]

(`kl` orders paths as Analytic-DPM's J does, Bao et al. 2022, Theorem 3.) The last step t -> 0 costs the data term
F[0, t], which is measured; without it every path goes through the first reference time at cost 0, the published
convention, and K counts the step 1 -> 0 too.

For exact scores kappa_t = 1/Var_t - gamma_t cannot fall as the SNR rises, and then the `kl` costs satisfy the Monge
condition of adpm/shortest_path.py: log(kappa_t + gamma_s) has mixed derivative -1/(kappa_t + gamma_s)^2. Monte-Carlo
noise breaks this locally, so `kl` plans on the weighted monotone projection of kappa and reports what that changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from adpm import shortest_path
from adpm.errors import UserError, lookup
from adpm.kernel import Kernel, reverse_kernel, step_nats
from adpm.process import Array, Process
from adpm.shortest_path import Budgets, IntArray, edge_table, monge_violation, path_cost, table_edges

MONGE_TOLERANCE = 1e-13  # relative to the largest edge cost: some hundred roundings


@dataclass(frozen=True)
class Costs:
    """Edge costs to plan on, and the costs by which a path is then judged.

    Attributes:
        table: F [N+1, N+1], F[s, t] for s < t, +inf elsewhere.
        raw: cost of a path, with no projection.
    """

    table: Array
    raw: Callable[[IntArray], float]


def kl(process: Process, variance: Array, s: IntArray, t: IntArray) -> Array:
    """1/2 log1p((gamma_s - gamma_t) Var_t) for indices 1 <= s < t that broadcast, in nats per dimension."""
    log_snr_s, log_snr_t = process.log_snr(process.times[s]), process.log_snr(process.times[t])
    return _kl(log_snr_s, log_snr_t, variance[t])


def _kl(log_snr_s: Array, log_snr_t: Array, variance_t: Array) -> Array:
    snr_drop = -np.exp(log_snr_s) * np.expm1(log_snr_t - log_snr_s)
    return 0.5 * np.log1p(snr_drop * variance_t)


def project_variance(process: Process, variance: ArrayLike, variance_se: ArrayLike | None = None) -> Array:
    """Var [N+1] whose kappa_t = 1/Var_t - gamma_t never falls as the SNR rises and never lies below 0.

    Isotonic regression of kappa over t = 1..N with weights 1/se(kappa)^2, se(kappa) = se(Var)/Var^2; without standard
    errors every Var_t counts as known to the same relative error. Entry 0 is 0.

    Raises:
        UserError: if a variance or a standard error is not a positive number.
    """
    values = _positive(process, variance, "variance")
    errors = values if variance_se is None else _positive(process, variance_se, "variance_se")
    snr = np.exp(process.log_snr(process.times[1:]))
    kappa = 1.0 / values[1:] - snr
    weights = (values[1:] ** 2 / errors[1:]) ** 2
    monotone = isotonic_regression(kappa, weights=weights / weights.max(), increasing=False).x
    return np.concatenate([[0.0], 1.0 / (np.maximum(monotone, 0.0) + snr)])


def _positive(process: Process, values: ArrayLike, name: str) -> Array:
    """`values` as float64 [N+1], refused unless the entries 1..N are positive numbers."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (process.steps + 1,):
        raise UserError(f"{name} must hold N + 1 = {process.steps + 1} numbers (entry 0 unused), got {array.shape}.")
    bad = np.flatnonzero(~((array[1:] > 0) & np.isfinite(array[1:])))
    if bad.size:
        t = int(bad[0]) + 1
        raise UserError(f"{name}[{t}] = {array[t]:.6g} must be a positive number; estimate it from more draws.")
    return array


def first_edges(process: Process, data_term: ArrayLike | None) -> Array:
    """F[0, :]: the data term, or 0 for t = 1 and +inf elsewhere.

    Raises:
        UserError: if the data term has another shape than [N+1] or is NaN or -inf somewhere in 1..N.
    """
    first = np.full(process.steps + 1, np.inf)
    if data_term is None:
        first[1] = 0.0
        return first
    given = np.asarray(data_term, dtype=np.float64)
    if given.shape != first.shape:
        raise UserError(f"data_term must hold N + 1 = {len(first)} numbers, entry 0 unused, got shape {given.shape}.")
    if not (given[1:] > -np.inf).all():
        raise UserError("data_term must hold numbers, or +inf where no path may start, but it has NaN or -inf.")
    first[1:] = given[1:]
    return first


def kl_costs(
    process: Process,
    variance: ArrayLike,
    variance_se: ArrayLike | None = None,
    data_term: ArrayLike | None = None,
    project: bool = True,
) -> Costs:
    """Costs of the optimal isotropic variance, planned on the monotone projection unless `project` is False.

    Args:
        process: the forward process.
        variance: [N+1], E||x_0 - x0_hat(x_t)||^2 / d, entry 0 ignored.
        variance_se: [N+1], its standard errors; None: equal relative errors.
        data_term: [N+1], F[0, t] in nats per dimension; None: every path goes through index 1.
        project: False plans on the variance as given.
    """
    raw = _positive(process, variance, "variance")
    used = project_variance(process, raw, variance_se) if project else raw
    first = first_edges(process, data_term)
    log_snr = np.concatenate([[np.inf], process.log_snr(process.times[1:])])
    table = edge_table(process.steps, lambda t: _kl(log_snr[1:t], log_snr[t], used[t]))
    table[0] = first

    def judged(path: IntArray) -> float:
        return float(first[path[1]] + kl(process, raw, path[1:-1], path[2:]).sum())

    return Costs(table, judged)


def bound_costs(
    process: Process,
    variance: ArrayLike,
    rule: Callable[[Kernel], ArrayLike],
    eta: float = 1.0,
    data_term: ArrayLike | None = None,
) -> Costs:
    """Costs of any scalar variance rule.

    Args:
        process: the forward process.
        variance: [N+1], E||x_0 - x0_hat(x_t)||^2 / d, entry 0 ignored.
        rule: kernel of many steps -> their variances w, a positive number or array that broadcasts.
        eta: in (0, 1].
        data_term: [N+1], F[0, t] in nats per dimension; None: every path goes through index 1.

    Raises:
        UserError: at eta = 0, or if the rule gives a variance that is not positive.
    """
    if eta == 0.0:
        raise UserError(
            "eta = 0 has lambda2 = 0 and therefore no finite likelihood bound to plan on; "
            "take the path of eta = 1 (costs 'kl'), or a fixed trajectory such as 'even'."
        )
    values, times = _positive(process, variance, "variance"), process.times

    def column(t: int) -> Array:
        kernel = reverse_kernel(process, times[t], times[1:t], eta)
        w = np.asarray(rule(kernel), dtype=np.float64)
        if not (w > 0).all():
            raise UserError(f"the variance rule gives {w.min():.6g} for steps from t = {times[t]:g}, not above 0.")
        return step_nats(kernel, w, values[t])

    table = edge_table(process.steps, column)
    table[0] = first_edges(process, data_term)
    return measured_costs(table)


def measured_costs(table: ArrayLike) -> Costs:
    """Costs F [N+1, N+1] measured edge by edge, data term included; the table is planned on as it is."""
    costs = np.asarray(table, dtype=np.float64)
    return Costs(costs, lambda path: path_cost(costs, path))


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
        monge_violation: worst violation of the Monge condition in the costs planned on (<= 0: none).
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
        choose = lookup(BUDGETS, budget, "config.trajectory.budget")
        last, solved = len(self.costs.table) - 1, len(self.budgets.costs) - 1
        if not 1 <= steps <= last:
            raise UserError(f"config.trajectory.steps = {steps} must lie in 1..{last}, the number of reference times.")
        if steps > solved:
            raise UserError(
                f"config.trajectory.steps = {steps}, but the planner was solved for up to {solved} steps only."
            )
        if steps == 1 and last > 1 and np.isinf(self.budgets.costs[1]):
            raise UserError(
                "config.trajectory.steps = 1 has no path: without a data term every path goes through the first "
                "reference time, and the step from there to the data counts; use steps >= 2 or give the data term."
            )
        path = choose(self.budgets, steps)
        planned, raw = path_cost(self.costs.table, path), self.costs.raw(path)
        return Plan(path, len(path) - 1, steps, budget, planned, raw, raw - planned, self.monge_violation, self.method)


def _automatic(violation: float, tolerance: float) -> str:
    return "divide" if violation <= tolerance else "dense"


def _dense(violation: float, tolerance: float) -> str:
    return "dense"


def _divide(violation: float, tolerance: float) -> str:
    if violation > tolerance:
        raise UserError(
            f"config.trajectory.method = 'divide' needs Monge costs, but these violate the condition by "
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
        UserError: if the costs are no table of edge costs, if max_steps lies outside 1..N, or if 'divide' is asked
            for costs that break the Monge condition.
    """
    choose = lookup(PLANNING_METHODS, method, "config.trajectory.method")
    edges = table_edges(costs.table)
    if not 1 <= max_steps <= edges.last:
        raise UserError(
            f"config.trajectory.steps = {max_steps} must lie in 1..{edges.last}, the number of reference times."
        )
    inner = costs.table[1:]
    scale = np.abs(inner).max(where=np.isfinite(inner), initial=0.0)
    violation = monge_violation(costs.table)
    chosen = choose(violation, tolerance * scale)
    budgets = shortest_path.all_budgets(edges, max_steps, shortest_path.METHODS[chosen])
    return Planner(costs, budgets, chosen, violation)


BUDGETS: dict[str, Callable[[Budgets, int], IntArray]] = {"exactly": Budgets.path, "at_most": Budgets.at_most}

PLANNING_METHODS: dict[str, Callable[[float, float], str]] = {"auto": _automatic, "dense": _dense, "divide": _divide}
