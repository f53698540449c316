"""The k-edge shortest path against exhaustive search, the published programme, and its own laws."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adpm.errors import UserError
from adpm.shortest_path import (
    all_budgets,
    dense,
    divide,
    edge_table,
    halve,
    monge_violation,
    path_cost,
    priced_edges,
    table_edges,
)
from tests.goldens import RTOL, Golden, golden, rel

UNHURRIED = settings(deadline=None)


@pytest.fixture(scope="module")
def trajectories() -> Golden:
    return golden("trajectories")


@pytest.fixture(scope="module")
def watson() -> Golden:
    return golden("watson")


def brute_force(table, k: int) -> float:
    """The least cost over all paths 0 -> N with k edges, one by one."""
    last = len(table) - 1
    inner = combinations(range(1, last), k - 1)
    return min((path_cost(table, np.array([0, *nodes, last])) for nodes in inner), default=np.inf)


def upper(values) -> np.ndarray:
    """`values` where s < t, +inf elsewhere."""
    values = np.asarray(values, dtype=np.float64)
    return np.where(np.tri(len(values), dtype=bool), np.inf, values)


def published_table(last: int) -> np.ndarray:
    """The stored table "P": neither convex nor Monge."""

    def column(t: int) -> np.ndarray:
        s = np.arange(1, t)
        return 40 * np.log((t + 1) / (s + 1)) ** 2 * (1 + 0.3 * np.sin(0.05 * s + 0.11 * t)) + 0.5 * (t - s) / last

    table = edge_table(last, column)
    table[0, 1:] = 5 + 30 * np.log(np.arange(1, last + 1) + 1) ** 2
    return table


@st.composite
def random_tables(draw: st.DrawFn) -> np.ndarray:
    """Small integers, so that ties are common and sums exact; some edges missing."""
    last = draw(st.integers(1, 7))
    entries = st.integers(-3, 9).map(lambda number: np.inf if number == 9 else float(number))
    values = draw(st.lists(entries, min_size=(last + 1) ** 2, max_size=(last + 1) ** 2))
    return upper(np.reshape(values, (last + 1, last + 1)))


@st.composite
def monge_tables(draw: st.DrawFn, largest: int = 8) -> np.ndarray:
    """u_s + v_t - sum of w_ij over i <= s, j <= t, w >= 0, in small integers; an arbitrary first row."""
    last = draw(st.integers(1, largest))
    size = last + 1
    numbers = st.integers(-5, 5)
    u, v = (np.array(draw(st.lists(numbers, min_size=size, max_size=size)), dtype=float) for _ in "uv")
    w = np.reshape(draw(st.lists(st.integers(0, 2), min_size=size**2, max_size=size**2)), (size, size))
    table = upper(u[:, None] + v - w.cumsum(0).cumsum(1))
    first = st.one_of(numbers.map(float), st.just(np.inf))
    table[0, 1:] = draw(st.lists(first, min_size=last, max_size=last))
    return table


@UNHURRIED
@given(random_tables())
def test_dense_is_exhaustive_search(table) -> None:
    last = len(table) - 1
    budgets = all_budgets(table_edges(table), last + 2)
    expected = [np.inf, *(brute_force(table, k) for k in range(1, last + 1)), np.inf, np.inf]
    np.testing.assert_array_equal(budgets.costs, expected)
    for k in np.flatnonzero(np.isfinite(budgets.costs)):
        path = budgets.path(k)
        assert len(path) == k + 1 and path[0] == 0 and path[-1] == last and (np.diff(path) > 0).all()
        assert path_cost(table, path) == budgets.costs[k]


@UNHURRIED
@given(monge_tables(), st.integers(1, 9))
def test_divide_is_exhaustive_search_on_monge_tables(table, stride: int) -> None:
    last, edges = len(table) - 1, table_edges(table)
    assert monge_violation(table) <= 0
    expected = [np.inf, *(brute_force(table, k) for k in range(1, last + 1))]
    for budgets in (all_budgets(edges, last, lambda e: divide(e, stride)), all_budgets(edges, last, halve)):
        np.testing.assert_array_equal(budgets.costs, expected)
        for k in np.flatnonzero(np.isfinite(budgets.costs)):
            assert path_cost(table, budgets.path(k)) == edges.cost(budgets.path(k)) == budgets.costs[k]


@UNHURRIED
@given(monge_tables(largest=14), st.integers(1, 6))
def test_all_searches_take_the_first_index_on_ties(table, stride: int) -> None:
    edges = table_edges(table)
    searches = (dense, lambda e: divide(e, stride), halve)
    found = [all_budgets(edges, edges.last, search) for search in searches]
    cost = table[0].copy()
    for k in range(2, edges.last + 1):
        total = cost[:, None] + table  # C[k-1, s] + F[s, t], s down, t across
        cost = total.min(axis=0)
        reached = np.isfinite(cost)
        for budgets in found:
            np.testing.assert_array_equal(budgets.parents[k][reached], total.argmin(axis=0)[reached])


@pytest.mark.parametrize("last", [40, 97, 200])
@pytest.mark.parametrize("stride", [1, 7, 96])
def test_divide_equals_dense_on_smooth_monge_costs(last: int, stride: int) -> None:
    """F = log(kappa_t + gamma_s), kappa and gamma falling, is Monge; the first row is noise."""
    rng = np.random.default_rng([last, stride])
    gamma, kappa = (np.exp(np.sort(rng.normal(size=last + 1))[::-1] * 3) for _ in "gk")
    table = edge_table(last, lambda t: np.log(kappa[t] + gamma[1:t]))
    table[0, 1:] = rng.normal(size=last)
    edges = table_edges(table)
    assert monge_violation(table) <= 1e-13
    exhaustive = all_budgets(edges, last)
    for quick in (all_budgets(edges, last, lambda e: divide(e, stride)), all_budgets(edges, last, halve)):
        assert rel(quick.costs[1:], exhaustive.costs[1:]) < 1e-12


@pytest.mark.parametrize("last", [2, 3, 63, 64, 65, 150])
def test_costs_priced_when_they_are_asked_for_are_those_of_the_table(last: int) -> None:
    rng = np.random.default_rng(last)
    numbers, first = rng.normal(size=(last + 1, last + 1)), np.concatenate([[np.inf], rng.normal(size=last)])
    table = upper(numbers)
    table[0] = first

    def price(s: np.ndarray, t: np.ndarray) -> np.ndarray:
        assert (s < t).all() and (s >= 1).all() and (t <= last).all()
        return numbers[s, t]

    for most_tabled in (0, last):
        edges = priced_edges(last, first, price, most_tabled)
        assert edges.tabled == (most_tabled == last)
        np.testing.assert_array_equal(edges.table(), table)
        budgets, expected = (all_budgets(e, last) for e in (edges, table_edges(table)))
        np.testing.assert_array_equal(budgets.parents, expected.parents)
        assert edges.cost(budgets.path(2)) == path_cost(table, budgets.path(2))


def test_too_many_times_to_look_at_every_step_are_refused() -> None:
    edges = priced_edges(20_000, np.zeros(20_001), lambda s, t: 1.0 * (t - s))
    with pytest.raises(UserError, match="20000 reference times are too many to look.*'kl' with its projection"):
        all_budgets(edges, 2, dense)


@pytest.mark.parametrize("last", [200, 1000])
def test_published_programme(trajectories: Golden, last: int) -> None:
    table, key = published_table(last), f"dpvb__P_N{last}"
    finite = table[np.isfinite(table)].sum()
    spots = [table[0, 1], table[0, last], table[1, 2], table[1, last], table[last - 1, last]]
    assert rel([*spots, table[last // 3, last // 2], finite], trajectories[f"{key}__F_check"]) < RTOL
    budgets = all_budgets(table_edges(table), last)
    assert rel(budgets.costs[1:], trajectories[f"{key}__cost_allK"][1:]) < RTOL
    paths = [name for name in trajectories if name.startswith(f"{key}__path__K")]
    assert len(paths) == 8
    for name in paths:
        np.testing.assert_array_equal(budgets.path(int(name.rsplit("K", 1)[1])), trajectories[name])


def test_published_table_is_stored_as_described(trajectories: Golden) -> None:
    stored = trajectories["dpvb__P_N200__F"]
    inside = np.isfinite(stored)
    np.testing.assert_array_equal(np.isfinite(published_table(200)), inside)
    assert rel(published_table(200)[inside], stored[inside]) < RTOL
    assert monge_violation(stored) > 1e-3, "the accelerated search must be able to tell"


@pytest.mark.parametrize("last", [8, 11])
def test_watson_w1(watson: Golden, last: int) -> None:
    table = watson[f"rand{last}_F"]
    budgets = all_budgets(table_edges(table), last)
    assert np.abs(budgets.costs[1:] - watson[f"rand{last}_cost"]).max() < 1e-12
    for k in range(1, last + 1):
        assert budgets.costs[k] == pytest.approx(brute_force(table, k), abs=1e-12)
        np.testing.assert_array_equal(budgets.path(k), watson[f"rand{last}_path{k}"])


@UNHURRIED
@given(random_tables())
def test_neighbouring_quadruples_decide_the_monge_condition(table) -> None:
    quadruples = [
        (table[a, c] + table[b, d], table[a, d] + table[b, c]) for a, b, c, d in combinations(range(1, len(table)), 4)
    ]
    worst = monge_violation(table)
    if not quadruples:
        assert worst == -np.inf
    elif np.isinf(quadruples).any():
        assert worst == np.inf
    else:
        largest = max(left - right for left, right in quadruples)
        assert (worst <= 0) == (largest <= 0) and worst <= largest


@UNHURRIED
@given(random_tables())
def test_at_most_is_the_best_budget_with_the_fewest_edges(table) -> None:
    budgets = all_budgets(table_edges(table), len(table) - 1)
    for k in range(1, len(table)):
        best = budgets.costs[1 : k + 1].min()
        if np.isinf(best):
            with pytest.raises(UserError, match=f"at most {k} steps"):
                budgets.at_most(k)
        else:
            path = budgets.at_most(k)
            assert path_cost(table, path) == best
            assert len(path) - 1 == 1 + int(np.argmin(budgets.costs[1 : k + 1]))


def test_extreme_budgets(trajectories: Golden) -> None:
    table = trajectories["dpvb__P_N200__F"]
    budgets = all_budgets(table_edges(table), 200)
    np.testing.assert_array_equal(budgets.path(1), [0, 200])
    np.testing.assert_array_equal(budgets.path(200), np.arange(201))
    assert budgets.costs[1] == table[0, 200]
    one = all_budgets(table_edges(upper(np.ones((2, 2)))), 1)
    np.testing.assert_array_equal(one.path(1), [0, 1])


def test_no_state_is_kept_between_tables(trajectories: Golden, watson: Golden) -> None:
    tables = [watson["rand8_F"], trajectories["dpvb__P_N200__F"], watson["rand11_F"]]
    alone = [all_budgets(table_edges(t), 8).costs for t in tables]
    mixed = [all_budgets(table_edges(t), 8).costs for t in (*tables, *tables)]
    for costs, again, expected in zip(mixed[:3], mixed[3:], alone, strict=True):
        np.testing.assert_array_equal(costs, expected)
        np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize("edges", [0, 2, 4, 7])
def test_impossible_budgets_say_what_is_possible(edges: int) -> None:
    table = np.full((5, 5), np.inf)
    table[0, 1] = table[1, 2] = table[2, 4] = 1.0
    with pytest.raises(UserError, match=r"possible are 3\.\.3"):
        all_budgets(table_edges(table), 5).path(edges)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.ones((3, 4)), r"\[N\+1, N\+1\].*\(3, 4\)"),
        (np.full((1, 1), np.inf), r"N >= 1"),
        (upper(np.full((3, 3), np.nan)), "NaN"),
        (upper(np.full((3, 3), -np.inf)), "-inf"),
        (upper(np.ones((3, 3))).T, "transposed"),
    ],
)
def test_malformed_tables_are_refused(table, message: str) -> None:
    with pytest.raises(UserError, match=message):
        table_edges(table)


def test_budget_must_be_positive() -> None:
    with pytest.raises(UserError, match="is 0"):
        all_budgets(table_edges(upper(np.ones((3, 3)))), 0)


@UNHURRIED
@given(st.integers(60, 140))
def test_dense_blocks_cover_every_row(last: int) -> None:
    """Around the block size: against the recursion written as one matrix operation per layer."""
    rng = np.random.default_rng(last)
    table = upper(rng.normal(size=(last + 1, last + 1)))
    cost, expected = table[0], [table[0, last]]
    for _ in range(2, last + 1):
        cost = (cost[:, None] + table).min(axis=0)
        expected.append(cost[last])
    np.testing.assert_array_equal(all_budgets(table_edges(table), last, dense).costs[1:], expected)
