"""Plans among more reference times than a table of their costs has room for: the paths of the plain programme."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from adpm.costs import Costs, axes_costs, kl, kl_costs
from adpm.planning import planner
from adpm.process import DiscreteProcess, linear_betas
from adpm.shortest_path import all_budgets, edge_table, monge_violation, path_cost, priced_edges, table_edges
from tests.goldens import rel
from tests.test_planning import SCHEDULES, noisy, posterior_variance

__all__ = ["noisy"]


def priced(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Costs]) -> tuple[Costs, Costs]:
    """The same costs in a table, and priced whenever they are asked for."""
    tabled = make()
    monkeypatch.setattr("adpm.costs.priced_edges", partial(priced_edges, most_tabled=0))
    return tabled, make()


@pytest.mark.parametrize("first", [None, "noise"])
@pytest.mark.parametrize("cost", ["kl", "projected", "axes"])
def test_paths_without_a_table_are_those_of_the_plain_programme(noisy, monkeypatch, cost: str, first) -> None:
    p, truth, estimate, errors = noisy
    row = None if first is None else np.random.default_rng(1).normal(size=201)
    axes = np.stack([posterior_variance(p, v) for v in np.logspace(0, -2, 40)], 1) + 0.0
    makers = {
        "kl": lambda: kl_costs(p, truth, None, row),
        "projected": lambda: kl_costs(p, estimate, errors, row),
        "axes": lambda: axes_costs(p, axes, 1.0, row, groups=7),
    }
    tabled, asked = priced(monkeypatch, makers[cost])
    assert tabled.edges.tabled and not asked.edges.tabled
    plain, quick = planner(tabled, 200, "dense"), planner(asked, 200)
    assert quick.method == "divide"
    assert rel(quick.budgets.costs[2:], plain.budgets.costs[2:]) < 1e-12
    for k in (2, 3, 7, 30, 120):
        found, expected = quick.plan(k), plain.plan(k)
        assert found.planned == pytest.approx(expected.planned, rel=1e-12)
        if cost != "projected":  # which has exact ties, decided by rounding
            np.testing.assert_array_equal(found.path, expected.path)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_the_monge_condition_is_seen_from_the_variances(schedule: str) -> None:
    """Rounding where it holds; where it does not, at least what neighbours break it by, and all quadruples at most."""
    p = DiscreteProcess(SCHEDULES[schedule](60))
    variance = posterior_variance(p, np.logspace(0.5, -3, 6))
    assert kl_costs(p, variance, project=False).monge()[0] <= 1e-15
    for t, factor in ((30, 1.02), (3, 0.9), (60, 1.5), (59, 0.999)):
        dented = variance.copy()
        dented[t] *= factor
        costs = kl_costs(p, dented, project=False)
        bound, largest = costs.monge()
        table = costs.table
        worst = max(
            (table[a, c] + table[b, c + 1] - table[a, c + 1] - table[b, c])
            for c in range(3, 60)
            for a, b in ((1, c - 1), (1, 2), (c - 2, c - 1))
        )
        assert max(monge_violation(table), worst) <= max(bound, 0.0) + 1e-14
        assert largest == table[1:][np.isfinite(table[1:])].max()
        assert (bound > 1e-13) == (monge_violation(table) > 1e-13)


def test_axes_are_projected_where_there_are_too_many_times(noisy, monkeypatch) -> None:
    """Noise on every axis breaks the condition; the projection mends it, and the gap to the costs as given is told."""
    p = noisy[0]
    rng = np.random.default_rng(8)
    axes = np.stack([posterior_variance(p, v) for v in np.logspace(0, -2, 40)], 1) + 1e-300
    axes *= np.exp(0.1 * rng.normal(size=axes.shape))
    raw, mended = (axes_costs(p, axes, groups=8, project=project) for project in (False, True))
    assert planner(raw, 50).method == "dense" and planner(mended, 50).method == "divide"
    plan, best = planner(mended, 50).plan(20), planner(raw, 50).plan(20)
    assert plan.raw == pytest.approx(path_cost(raw.table, plan.path), rel=1e-12) and best.gap == 0.0
    assert plan.gap != 0.0 and best.raw <= plan.raw < 1.05 * best.raw
    monkeypatch.setattr("adpm.costs.MOST_DENSE", 100)
    assert axes_costs(p, axes, groups=8).edges.cost(plan.path) == pytest.approx(plan.planned, rel=1e-12)


def test_twenty_thousand_reference_times() -> None:
    """Against every fourth of them by the plain programme: what more times can give is little, and never worse."""
    p = DiscreteProcess(linear_betas(20_000))
    variance = posterior_variance(p, np.logspace(0, -2, 16))
    plan = planner(kl_costs(p, variance), 10).plan(10)
    assert plan.method == "divide" and len(plan.path) == 11 and plan.path[1] == 1 and (np.diff(plan.path) > 0).all()
    few = np.concatenate([[0, 1], np.arange(20, 20_001, 20)])
    table = edge_table(len(few) - 1, lambda t: kl(p, variance, few[1:t], few[t]))
    table[0, 1] = 0.0
    coarse = all_budgets(table_edges(table), 10).costs[10]
    assert 0.999 * coarse < plan.planned <= coarse
    for move in (-1, 1):  # no neighbour of a node is better: the path is a minimum among 20,000 times
        for j in range(2, 10):
            other = plan.path.copy()
            other[j] += move
            assert float(kl(p, variance, other[1:-1], other[2:]).sum()) >= plan.planned - 1e-14
