"""Trajectories against the published ones, and the laws that every member keeps."""

from __future__ import annotations

import re
from functools import cache

import mpmath
import numpy as np
import pytest

from adpm.costs import kl_costs
from adpm.errors import UserError
from adpm.planning import Planner, planner
from adpm.process import DiscreteProcess, Process, cosine_betas, linear_betas
from adpm.published_split import published_costs, split_budget
from adpm.shortest_path import IntArray, all_budgets, path_cost, table_edges
from adpm.trajectory import FIXED, TRAJECTORIES, Request, trajectory
from tests.goldens import RTOL, Golden, golden, process, rel

PUBLISHED_NAMES = {"linear": "even", "quad_ddim": "quadratic", "linear_ddim": "stride"}
GAMMAS = {"A": "linear_1000", "B": "cosine_1000", "C": "linear_1000", "V": "vpsde_1000", "A32": "linear_1000"}
SPLITS = (2, 3, 5, 10, 25, 50, 100, 200, 400)
COST_ERROR = {"B": 1.5e-7}
"""By how much stored costs miss exact arithmetic: log(1 - product near 1) loses digits at the end of cosine_1000."""


@pytest.fixture(scope="module")
def stored() -> Golden:
    return golden("trajectories")


@cache
def example(last: int) -> Request:
    """Everything that any member asks for, for data with two variances."""
    p = DiscreteProcess(linear_betas(last) if last > 20 else np.linspace(0.01, 0.5, last))
    gamma = np.exp(p.log_snr(p.times[1:]))
    variance = np.concatenate([[0.0], sum(0.5 * v / (1 + gamma * v) for v in (1.0, 0.01))])
    ms_eps = np.concatenate([[0.0], 1.0 - gamma * variance[1:]])
    solution = planner(kl_costs(p, variance), last)
    return Request(p, 1, ms_eps=lambda: ms_eps, planner=lambda: solution)


def log_snr_path(p: Process, steps: int, ends: tuple[float, float] | None) -> IntArray:
    options = dict(zip(("log_snr_min", "log_snr_max"), ends, strict=True)) if ends else {}
    return trajectory("log_snr", Request(p, steps), **options)


def asked(last: int, steps: int) -> Request:
    request = example(last)
    return Request(request.process, steps, ms_eps=request.ms_eps, planner=request.planner)


MEMBERS = TRAJECTORIES.keys() - {"fitted"}  # which has the times of trajectories alone: tests/test_fitted.py

# Laws of every member


@pytest.mark.parametrize("name", sorted(MEMBERS))
@pytest.mark.parametrize("last", [1, 2, 3, 30, 200])
def test_a_path_or_a_refusal_in_words(name: str, last: int) -> None:
    """For every K: [0 < t_1 < ... < t_K <= N] with K steps, or a sentence with the field, the value and a way out."""
    paths = 0
    for steps in range(last + 3):
        request = asked(last, steps)
        if 1 <= steps <= last:
            try:
                path = trajectory(name, request)
            except UserError as error:
                assert re.search(rf"(trajectory|steps).*\b{steps}\b.*; ?(re-estimate|use|for a single)", str(error))
                continue
            paths += 1
            assert path.dtype == np.int64 and path.shape == (steps + 1,)
            assert path[0] == 0 and path[-1] <= last and (np.diff(path) > 0).all()
        else:
            with pytest.raises(UserError, match=rf"`steps` = {steps} must lie in 1\.\.{last}"):
                trajectory(name, request)
    assert paths >= min(last, 4) // 2 + (last == 1)


@pytest.mark.parametrize("name", sorted(MEMBERS - {"quadratic", "stride"}))
def test_paths_end_at_the_noise(name: str) -> None:
    for steps in (2, 5, 10):
        assert trajectory(name, asked(200, steps))[-1] == 200


@pytest.mark.parametrize("name", sorted(MEMBERS - {"quadratic"}))
@pytest.mark.parametrize("last", [2, 30, 200])
def test_all_times(name: str, last: int) -> None:
    """K = N leaves one path, and those that can make as many different steps give it."""
    np.testing.assert_array_equal(trajectory(name, asked(last, last)), np.arange(last + 1))


@pytest.mark.parametrize("name", ["even", "power2", "power3", "power4"])
def test_members_recommended_by_refusals_always_work(name: str) -> None:
    for last in range(1, 61):
        for steps in range(2, last + 1):
            path = trajectory(name, asked(last, steps))
            assert path[1] == 1 and path[-1] == last


def test_alternatives_named_by_a_refusal_work() -> None:
    for name, last, steps in (("quadratic", 1000, 30), ("stride", 1000, 7), ("stride", 1000, 400)):
        with pytest.raises(UserError) as refusal:
            trajectory(name, asked(last, steps))
        near = re.search(r"use `steps` = (\d+)(?: or (\d+))?, or 'even'", str(refusal.value))
        assert near is not None
        for alternative in filter(None, near.groups()):
            assert len(trajectory(name, asked(last, int(alternative)))) == int(alternative) + 1


@pytest.mark.parametrize("steps", [30, 50, 1000])
def test_quadratic_says_that_it_repeats(steps: int) -> None:
    with pytest.raises(UserError, match=rf"'quadratic' with `steps` = {steps} at N = 1000 visits index 1 twice.*= 29"):
        trajectory("quadratic", asked(1000, steps))
    assert len(trajectory("quadratic", asked(1000, 29))) == 30


def test_unknown_name() -> None:
    with pytest.raises(UserError, match="`trajectory.name` = 'quadratc' is unknown .did you mean 'quadratic'"):
        trajectory("quadratc", asked(30, 5))


@pytest.mark.parametrize(
    ("name", "need"), [("least_cost", "needs measured costs"), ("published_split", "needs `ms_eps`")]
)
def test_missing_needs(name: str, need: str) -> None:
    with pytest.raises(UserError, match=need):
        trajectory(name, Request(asked(30, 5).process, 5))


# The fixed formulas


def test_published_fixed_steps(stored: Golden) -> None:
    names = [name for name in stored if name.startswith("free__")]
    assert len(names) == 158
    for name in names:
        _, typ, last, steps = name.split("__")
        last, steps = int(last[1:]), int(steps[1:])
        member = PUBLISHED_NAMES.get(typ, typ)
        expected = stored[name]
        np.testing.assert_array_equal(FIXED[member][0](last, steps), expected)
        if (np.diff(expected) > 0).all():
            p = DiscreteProcess(np.full(last, 0.01))
            np.testing.assert_array_equal(trajectory(member, Request(p, steps)), [0, *expected])


def test_published_failures_are_refused_in_words(stored: Golden) -> None:
    failures = [line.split(" :: ")[0].split() for line in stored["failures"]]
    fixed = [(typ, int(last[2:]), int(steps[2:])) for typ, last, steps in failures if typ in PUBLISHED_NAMES]
    assert len(fixed) == 4 and len(failures) == 5
    for typ, last, steps in fixed:
        with pytest.raises(UserError, match="use `steps` = "):
            trajectory(PUBLISHED_NAMES[typ], Request(DiscreteProcess(np.full(last, 0.01)), steps))
    with pytest.raises(UserError, match="`steps` = 2 leaves 1 of them to plan.*use `steps` >= 3"):
        trajectory("published_split", Request(process("linear_1000"), 2, ms_eps=lambda: stored["ms_eps__C"]))


# Even in log-SNR


@pytest.mark.parametrize("betas", [linear_betas, cosine_betas])
@pytest.mark.parametrize("ends", [None, (-6.0, 4.0)])
def test_log_snr_snaps_to_the_nearest_time(betas, ends) -> None:
    """The nearest reference times, as long as they differ."""
    p, compared = DiscreteProcess(betas(400)), 0
    grid = p.log_snr(p.times[1:])
    low, high = ends or (grid[-1], grid[0])
    for steps in range(1, 30):
        path = log_snr_path(p, steps, ends)
        wanted = [low] if steps == 1 else [high + (low - high) * j / (steps - 1) for j in range(steps)]
        nearest = [1 + np.abs(grid - w).argmin() for w in wanted]
        if (np.diff(nearest) > 0).all():
            compared += 1
            np.testing.assert_array_equal(path[1:], nearest)
    assert compared >= 7


@pytest.mark.parametrize("betas", [linear_betas, cosine_betas])
def test_log_snr_has_a_path_for_every_budget_between_its_ends(betas) -> None:
    p = DiscreteProcess(betas(150))
    for ends in (None, (-5.0, 3.0)):
        low, high = ends or (p.log_snr(150), p.log_snr(1))
        first, final = p.nearest_index([high, low])
        for steps in range(2, final - first + 2):
            path = log_snr_path(p, steps, ends)
            assert (path[0], path[1], path[-1]) == (0, first, final) and (np.diff(path) > 0).all()
        if ends:
            with pytest.raises(UserError, match=rf"holds {final - first + 1} reference times.*wider range"):
                log_snr_path(p, final - first + 2, ends)


@pytest.mark.parametrize("ends", [(4.0, -6.0), (-600.0, 0.0), (0.0, 600.0)])
def test_log_snr_ends_outside_the_process(ends) -> None:
    with pytest.raises(
        UserError, match=r"`log_snr_min`, `log_snr_max` = \(-?\d+, -?\d+\) must be low <= high within \("
    ):
        log_snr_path(DiscreteProcess(cosine_betas(400)), 5, ends)


def test_log_snr_ends_may_be_copied_from_a_message() -> None:
    p = DiscreteProcess(cosine_betas(400))
    ends = (float(f"{p.log_snr(400):.6g}"), float(f"{p.log_snr(1):.6g}"))
    path = log_snr_path(p, 5, ends)
    np.testing.assert_array_equal(path, trajectory("log_snr", Request(p, 5)))


@pytest.mark.parametrize("betas", [linear_betas, cosine_betas])
def test_an_unset_end_of_log_snr_is_that_of_the_process(betas) -> None:
    """And a zero is a zero."""
    p = DiscreteProcess(betas(400))
    bottom, top = float(p.log_snr(400)), float(p.log_snr(1))
    for given, ends in (
        ({}, (bottom, top)),
        ({"log_snr_max": 3.0}, (bottom, 3.0)),
        ({"log_snr_min": -3.0}, (-3.0, top)),
        ({"log_snr_max": 0.0}, (bottom, 0.0)),
        ({"log_snr_min": 0.0, "log_snr_max": None}, (0.0, top)),
    ):
        np.testing.assert_array_equal(trajectory("log_snr", Request(p, 7), **given), log_snr_path(p, 7, ends))
        path = trajectory("log_snr", Request(p, 7), **given)
        np.testing.assert_array_equal(path[[-1, 1]], p.nearest_index(ends))


# Least cost


def test_least_cost_is_the_planners_path() -> None:
    request = asked(200, 12)
    assert request.planner is not None
    np.testing.assert_array_equal(trajectory("least_cost", request), request.planner().plan(12).path)


def test_least_cost_says_what_it_is_planned_on() -> None:
    """Options of the costs go to whoever plans; none that are not given."""
    request, seen = asked(30, 4), []

    def plan_on(**costs: object) -> Planner:
        seen.append(costs)
        assert request.planner is not None
        return request.planner()

    given = Request(request.process, 4, planner=plan_on)
    trajectory("least_cost", given)
    trajectory("least_cost", given, cost="measured", method="dense", data_term=False, projection=None, budget="at_most")
    assert seen == [{}, {"cost": "measured", "method": "dense", "data_term": False}]


@pytest.mark.parametrize("name", sorted(TRAJECTORIES.keys() - {"least_cost"}))  # whose costs have options, too
def test_options_of_others_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"'{name}' has no option `log_snr_mx`; its options: "):
        trajectory(name, asked(30, 4), log_snr_mx=1.0)


def test_least_cost_with_at_most() -> None:
    """With a data term that rises from t = 1 on, fewer steps than allowed are best."""
    p = DiscreteProcess(linear_betas(50))
    gamma = np.exp(p.log_snr(p.times[1:]))
    variance = np.concatenate([[0.0], 1 / (1 + gamma)])
    solution = planner(kl_costs(p, variance, data_term=np.linspace(0, 9, 51)), 50)
    path = trajectory("least_cost", Request(p, 50, planner=lambda: solution), budget="at_most")
    assert 2 <= len(path) <= 50
    assert len(trajectory("least_cost", Request(p, 50, planner=lambda: solution))) == 51


# The published split


@pytest.mark.parametrize("gamma", GAMMAS)
def test_published_split(stored: Golden, gamma: str) -> None:
    rows = stored[f"split__{gamma}"]
    assert tuple(rows[:, 0]) == SPLITS
    for steps, planned, end, spread, bad in rows:
        if planned > 1:
            assert split_budget(stored[f"ms_eps__{gamma}"], int(steps)) == (planned, end, spread)
            assert bad == 1000 - end


def exact_cost(betas, ms_eps, path) -> mpmath.mpf:
    """Sum of log(1 - b(s, t) ms_eps[t] / B_t) in 40 digits."""
    with mpmath.workdps(40):
        alpha2 = [mpmath.mpf(1)]
        for beta in betas:
            alpha2.append(alpha2[-1] * (1 - mpmath.mpf(float(beta))))
        total = mpmath.mpf(0)
        for s, t in zip(path[:-1].tolist(), path[1:].tolist(), strict=True):
            skip_beta = 1 - alpha2[t] / alpha2[s]
            total += mpmath.log(1 - skip_beta * mpmath.mpf(float(ms_eps[t])) / (1 - alpha2[t]))
        return total


@pytest.mark.parametrize("gamma", GAMMAS)
def test_published_plans(stored: Golden, gamma: str) -> None:
    p, ms_eps = process(GAMMAS[gamma]), stored[f"ms_eps__{gamma}"]
    assert isinstance(p, DiscreteProcess)
    end = int(stored[f"split__{gamma}"][0, 2])
    table, compared = published_costs(p, ms_eps, end), 0
    for steps, planned, *_ in stored[f"split__{gamma}"]:
        if planned < 2:
            continue
        compared += 1
        path = trajectory("published_split", Request(p, int(steps), ms_eps=lambda: ms_eps))[1:]
        published = stored[f"dpseg__{gamma}__K{steps}"]
        own, theirs = path_cost(table, path[:planned]), path_cost(table, published[:planned])
        assert abs(own - stored[f"dpseg_cost__{gamma}__K{steps}"]) < COST_ERROR.get(gamma, 1e-9)
        if not np.array_equal(path, published):
            # Equal but for the rounding of the published costs, and better.
            assert gamma in COST_ERROR and -1e-8 < own - theirs < 0
            np.testing.assert_array_equal(path[planned:], published[planned:])
    assert compared == len([name for name in stored if name.startswith(f"dpseg__{gamma}__K")])


@pytest.mark.parametrize("gamma", ["A", "B", "C", "V"])
def test_published_costs(stored: Golden, gamma: str) -> None:
    """Single edges, and the best cost of every budget; k nodes from 1 to N1 are k - 1 steps."""
    end, nodes = int(stored[f"dpseg_allK_N1__{gamma}"]), stored[f"dpseg_allK_cost__{gamma}"]
    table = published_costs(process(GAMMAS[gamma]), stored[f"ms_eps__{gamma}"], end)
    s, t = stored[f"dpseg_F_pairs__{gamma}"].T
    tolerance = COST_ERROR.get(gamma, 1e-9)
    assert np.abs(table[s, t] - stored[f"dpseg_F_vals__{gamma}"]).max() < tolerance
    budgets = all_budgets(table_edges(table[1:, 1:]), end - 1)
    assert np.abs(budgets.costs[1:] - nodes[2:]).max() < tolerance


def test_where_costs_miss_the_stored_ones_the_stored_ones_are_rounded(stored: Golden) -> None:
    """Gamma "B" in exact arithmetic: ours to 1e-12, the stored costs to 1.5e-7 only, the stored path no better."""
    p, ms_eps = process(GAMMAS["B"]), stored["ms_eps__B"]
    assert isinstance(p, DiscreteProcess)
    table, misses = published_costs(p, ms_eps, 1000), []
    for steps in (2, 10, 400):
        path, published = (
            trajectory("published_split", Request(p, steps, ms_eps=lambda: ms_eps))[1:],
            stored[f"dpseg__B__K{steps}"],
        )
        exact, theirs = exact_cost(p.betas, ms_eps, path), exact_cost(p.betas, ms_eps, published)
        assert abs(path_cost(table, path) - exact) < 1e-12
        assert exact <= theirs
        misses.append(float(abs(stored[f"dpseg_cost__B__K{steps}"] - theirs)))
    assert 1e-8 < max(misses) < COST_ERROR["B"]


def test_published_arithmetic_gives_the_stored_costs(stored: Golden) -> None:
    """The published formula as written, on the stored paths; this is all that the stored costs hold."""
    for gamma, name in GAMMAS.items():
        p, ms_eps = process(name), stored[f"ms_eps__{gamma}"]
        assert isinstance(p, DiscreteProcess)
        alphas = np.concatenate([[1.0], 1.0 - p.betas])
        score = np.zeros_like(ms_eps)
        score[1:] = ms_eps[1:] / (1.0 - np.cumprod(alphas)[1:])
        for steps, planned, *_ in stored[f"split__{gamma}"][1:]:
            path = stored[f"dpseg__{gamma}__K{steps}"][:planned]
            pairs = zip(path[:-1], path[1:], strict=True)
            terms = [np.log(1.0 - (1.0 - np.cumprod(alphas[s + 1 : t + 1])[-1]) * score[t]) for s, t in pairs]
            assert rel(np.sum(terms), stored[f"dpseg_cost__{gamma}__K{steps}"]) < RTOL


@pytest.mark.parametrize(
    ("first_bad", "steps", "message"),
    [
        (10, 5, r"ms_eps > 1 from t = 10 of 30 on .*use 'least_cost'"),
        (15, 5, r"ms_eps > 1 from t = 15 of 30 on"),
        (29, 2, r"`steps` = 2 leaves 1 of them to plan"),
    ],
)
def test_split_refusals(first_bad: int, steps: int, message: str) -> None:
    ms_eps = np.where(np.arange(31) >= first_bad, 1.01, 0.9)
    with pytest.raises(UserError, match=message):
        trajectory("published_split", Request(asked(30, steps).process, steps, ms_eps=lambda: ms_eps))


@pytest.mark.parametrize("first_bad", [17, 25, 30])
def test_split_spends_every_step(first_bad: int) -> None:
    """K1 + K2 = K, K1 <= N1 <= N - K2, for all K; the spread part ends at N."""
    ms_eps = np.where(np.arange(31) >= first_bad, 1.01, 0.9 + 0.003 * np.arange(31))
    p: Process = asked(30, 1).process
    for steps in range(5 if first_bad == 17 else 3, 31):
        planned, end, spread = split_budget(ms_eps, steps)
        assert planned + spread == steps and 1 <= spread <= 30 - end and planned <= end == 30 - 2 * (31 - first_bad)
        path = trajectory("published_split", Request(p, steps, ms_eps=lambda: ms_eps))
        assert path[1] == 1 and path[planned] == end and path[-1] == 30
