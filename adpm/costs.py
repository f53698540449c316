"""The costs of single steps: what a step adds to the variational bound, from moments or measured.

With gamma_t the SNR, Var_t = E||x_0 - x0_hat(x_t)||^2 / d and the kernel of a step t -> s, 1 <= s < t, what the step
adds is, in nats per dimension,

    kl       1/2 log1p((gamma_s - gamma_t) Var_t)                                with the optimal isotropic variance
    bound    1/2 [lambda2/w - 1 + log(w/lambda2) + gain^2 Var_t / w]             with variance w, any eta in (0, 1]
    axes     1/2 mean_f log1p(gain^2 r_f / lambda2)            with the optimal covariance in a basis, any eta in (0, 1]

(`kl` orders paths as Analytic-DPM's J does, Bao et al. 2022, Theorem 3.) The last step t -> 0 costs the data term
F[0, t], which is measured; without it every path goes through the first reference time at cost 0, the published
convention, and K counts the step 1 -> 0 too.

For exact scores kappa_t = 1/Var_t - gamma_t cannot fall as the SNR rises, and then the `kl` costs satisfy the Monge
condition of adpm/shortest_path.py: log(kappa_t + gamma_s) has mixed derivative -1/(kappa_t + gamma_s)^2. Monte-Carlo
noise breaks this locally, so `kl` plans on the weighted monotone projection of kappa and reports what that changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from adpm.errors import UserError
from adpm.families import Field, Kind
from adpm.kernel import Kernel, reverse_kernel, step_nats
from adpm.prices import Price, axes_price, grouped, kl_price, monge_bound, positive, project_variance, projected
from adpm.process import Array, Process
from adpm.shortest_path import (
    MOST_DENSE,
    Edges,
    IntArray,
    edge_table,
    monge_violation,
    priced_edges,
    require_room,
    table_edges,
)


@dataclass(frozen=True)
class Costs:
    """Edge costs to plan on, and the costs by which a path is then judged.

    Attributes:
        edges: the costs.
        raw: cost of a path, with no projection.
        monge: gives the worst violation of the Monge condition, or a bound on it that is above 0 only where it is
            violated, and the largest cost of an edge that does not begin at 0.
    """

    edges: Edges
    raw: Callable[[IntArray], float]
    monge: Callable[[], tuple[float, float]]

    @property
    def table(self) -> Array:
        """F [N+1, N+1], F[s, t] for s < t, +inf elsewhere."""
        return self.edges.table()


def kl(process: Process, variance: Array, s: IntArray, t: IntArray) -> Array:
    """1/2 log1p((gamma_s - gamma_t) Var_t) for indices 1 <= s < t that broadcast, in nats per dimension."""
    return kl_price(process, variance)(s, t)


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
        raise UserError(f"`data_term` must hold N + 1 = {len(first)} numbers, entry 0 unused, got shape {given.shape}.")
    if not (given[1:] > -np.inf).all():
        raise UserError("`data_term` must hold numbers, or +inf where no path may start, but it has NaN or -inf.")
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
    raw = positive(process, variance, "variance")
    used = project_variance(process, raw, variance_se) if project else raw
    first, price = first_edges(process, data_term), kl_price(process, used)

    def judged(path: IntArray) -> float:
        return float(first[path[1]] + kl(process, raw, path[1:-1], path[2:]).sum())

    def monge() -> tuple[float, float]:
        return monge_bound(process, used), _largest(process, price)

    return Costs(priced_edges(process.steps, first, price), judged, monge)


def _largest(process: Process, price: Price) -> float:
    """The largest of costs that fall as s rises."""
    return float(price(np.array(1), np.arange(2, process.steps + 1)).max(initial=0.0))


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
        UserError: at eta = 0, if the rule gives a variance that is not positive, or if there are too many times.
    """
    _finite_bound(eta)
    values, times = positive(process, variance, "variance"), process.times

    require_room(process.steps)

    def column(t: int) -> Array:
        kernel = reverse_kernel(process, times[t], times[1:t], eta)
        w = np.asarray(rule(kernel), dtype=np.float64)
        if w.ndim > 1:
            raise UserError("`cost` = 'bound' needs one variance per step; this rule wants 'axes' or 'measured'.")
        if not (w > 0).all():
            raise UserError(f"the variance rule gives {w.min():.6g} for steps from t = {times[t]:g}, not above 0.")
        return step_nats(kernel, w, values[t])

    table = edge_table(process.steps, column)
    table[0] = first_edges(process, data_term)
    return measured_costs(table)


def axes_costs(
    process: Process,
    residual: ArrayLike,
    eta: float = 1.0,
    data_term: ArrayLike | None = None,
    groups: int = 256,
    project: bool | None = None,
) -> Costs:
    """Costs of the covariance lambda2 + gain^2 r_f along the axes of a basis.

    Args:
        process: the forward process.
        residual: [N+1, d], r_f = E (x_0 - x0_hat)_f^2 at each reference time, entry 0 ignored.
        eta: in (0, 1].
        data_term: [N+1], F[0, t] in nats per dimension; None: every path goes through index 1.
        groups: axes of nearly equal r_f are priced together by their mean where there are more; what that leaves out
            is of second order in the width of a group.
        project: plan on the monotone projection of each group; None: only where N is too large for the dense search.

    Raises:
        UserError: at eta = 0, or if some r_f is not positive.
    """
    _finite_bound(eta)
    values = np.asarray(residual, dtype=np.float64)
    if values.shape[:1] != (process.steps + 1,) or not (values[1:] > 0.0).all():
        raise UserError(f"`residual` must hold N + 1 = {process.steps + 1} rows of positive numbers, entry 0 unused.")
    measured, share = grouped(values, groups)
    first, used = first_edges(process, data_term), measured
    if project or (project is None and process.steps > MOST_DENSE):
        used = np.stack([projected(process, column, column) for column in measured.T], axis=1)
    price, judge = (axes_price(process, means, share, eta) for means in (used, measured))
    edges = priced_edges(process.steps, first, price)
    costs = _as_they_are(edges)
    if used is not measured:
        costs = replace(costs, raw=replace(edges, pairs=judge).cost)
    if eta == 1.0 and not edges.tabled:
        costs = replace(costs, monge=lambda: (monge_bound(process, used), _largest(process, price)))
    return costs


def _finite_bound(eta: float) -> None:
    if eta == 0.0:
        raise UserError(
            "`eta` = 0 has lambda2 = 0 and therefore no finite likelihood bound to plan on; "
            "take the path of `eta` = 1 (costs 'kl'), or a fixed trajectory such as 'even'."
        )


def measured_costs(table: ArrayLike) -> Costs:
    """Costs F [N+1, N+1] measured edge by edge, data term included; the table is planned on as it is.

    Raises:
        UserError: if it is no table of edge costs.
    """
    return _as_they_are(table_edges(table))


def _as_they_are(edges: Edges) -> Costs:
    """Costs that are planned on without a projection; whether they are Monge is seen from the table of them all."""

    def monge() -> tuple[float, float]:
        if not edges.tabled:
            return np.inf, np.inf
        costs = edges.table()
        inner = costs[1:]
        return monge_violation(costs), float(np.abs(inner).max(where=np.isfinite(inner), initial=0.0))

    return Costs(edges, edges.cost, monge)


@dataclass(frozen=True)
class CostNeeds:
    """What the builder of costs may ask for; everything that costs work is a function.

    Attributes:
        process: the forward process.
        variance, errors: [N+1], E||x_0 - x0_hat(x_t)||^2 / d by the moments, and its standard errors; entry 0 unused.
        data_row: [N+1], F[0, t], or None where the last step is not priced.
        width: kernel of many steps -> the rule's variances, for rules that are one number per step.
        axes: [N+1, d], r_f along the axes of a basis; entry 0 unused.
        table: [N+1, N+1], the rule's measured costs.
        eta: of the kernel.
    """

    process: Process
    variance: Callable[[], Array]
    errors: Callable[[], Array]
    data_row: Callable[[], Array | None]
    width: Callable[[], Callable[[Kernel], Array]]
    axes: Callable[[], Array]
    table: Callable[[], Array]
    eta: float


@dataclass(frozen=True)
class CostFacts:
    """What may be asked of a way to price steps without building it.

    Attributes:
        of_rule: whether the costs are those of the rule and eta in use, else of the best scalar at eta = 1.
        of_states: whether the rule may be more than one number per step.
        uses_moments: whether it needs Var_t whatever the rule.
    """

    of_rule: bool = False
    of_states: bool = True
    uses_moments: bool = False


def _priced_kl(needs: CostNeeds, projection: bool = True) -> Costs:
    return kl_costs(needs.process, needs.variance(), needs.errors(), needs.data_row(), projection)


def _priced_bound(needs: CostNeeds) -> Costs:
    return bound_costs(needs.process, needs.variance(), needs.width(), needs.eta, needs.data_row())


_OF_RULE = ("rule.name", "sampling.eta")

COSTS: dict[str, Kind] = {
    "kl": Kind(
        _priced_kl,
        "the bound of the best scalar variance, from the moments",
        CostFacts(uses_moments=True),
        {"projection": Field(True, "plan on the monotone projection of the excess precision")},
    ),
    "bound": Kind(
        _priced_bound,
        "the bound of a rule with one variance per step, from the moments",
        CostFacts(of_rule=True, of_states=False, uses_moments=True),
        reads=_OF_RULE,
    ),
    "axes": Kind(
        lambda needs: axes_costs(needs.process, needs.axes(), needs.eta, needs.data_row()),
        "the bound of the best covariance in a basis, rule spectral's, from the moments per coordinate",
        CostFacts(of_rule=True),
        reads=("sampling.eta", "moments.statistics=coordinates"),
    ),
    "measured": Kind(
        lambda needs: measured_costs(needs.table()),
        "the bound of any rule, measured on training images at every time",
        CostFacts(of_rule=True),
        reads=(*_OF_RULE, "moments.draws"),
    ),
}
