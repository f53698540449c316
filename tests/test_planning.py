"""Step costs and the planner: Watson's tables, Gaussian data in closed form, and the laws of the projection."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adpm.costs import bound_costs, kl, kl_costs, measured_costs
from adpm.errors import UserError
from adpm.kernel import reverse_kernel, step_nats
from adpm.planning import BUDGETS, MONGE_TOLERANCE, PLANNING_METHODS, Planner, planner
from adpm.prices import project_variance
from adpm.process import DiscreteProcess, Process, cosine_betas, linear_betas, vp_integral_betas
from adpm.shortest_path import all_budgets, divide, monge_violation, path_cost, table_edges
from adpm.trajectory import FIXED
from tests.goldens import RTOL, Golden, golden, process, rel

D = 16  # dimensions of the Watson reference data, whose tables count nats over all of them
RULES = ("small", "large", "opt")
SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas, "vp_integral": vp_integral_betas}


def posterior_variance(p: Process, variances) -> np.ndarray:
    """Var_t [N+1] of data N(m, diag(variances)): mean of v / (1 + gamma_t v); at t = 0 it is 0."""
    v, gamma = np.atleast_1d(variances), np.exp(p.log_snr(p.times[1:]))
    return np.concatenate([[0.0], (v / (1.0 + np.multiply.outer(gamma, v))).mean(axis=1)])


def scalar_rules(variance):
    """w(kernel) of the fixed variances and of the optimum, for discrete processes."""
    return {
        "small": lambda k: k.lambda2,
        "large": lambda k: k.forward_variance,
        "opt": lambda k: k.lambda2 + k.gain**2 * variance[k.t.astype(int)],
    }


@pytest.fixture(scope="module")
def watson() -> Golden:
    return golden("watson")


@pytest.fixture(scope="module")
def watson_process(watson: Golden) -> dict[str, DiscreteProcess]:
    return {size: DiscreteProcess(watson[f"{size}_betas"]) for size in ("small", "big")}


@pytest.fixture(scope="module")
def solved(watson: Golden, watson_process) -> dict[tuple[str, str], Planner]:
    """Planners for all budgets, of both sizes and of the three variances."""
    planners = {}
    for size, p in watson_process.items():
        variance, data_term = watson[f"{size}_R"] / D, watson[f"{size}_dec"] / D
        for name, rule in scalar_rules(variance).items():
            planners[size, name] = planner(bound_costs(p, variance, rule, 1.0, data_term), p.steps)
    return planners


@pytest.fixture(scope="module")
def noisy() -> tuple[Process, np.ndarray, np.ndarray, np.ndarray]:
    """Gaussian data with 10 % noise on every Var_t, N = 200: process, truth, estimate, standard errors."""
    p = DiscreteProcess(linear_betas(200))
    truth = posterior_variance(p, np.logspace(0, -2, 8))
    estimate = truth * np.exp(0.1 * np.random.default_rng([5, 200]).normal(size=201))
    return p, truth, estimate, np.where(truth > 0, 0.1 * estimate, 1.0)


# Costs of one step


@pytest.mark.parametrize("name", RULES)
def test_watson_w2_tables(watson: Golden, solved, name: str) -> None:
    table, stored = solved["small", name].costs.table * D, watson[f"small_F_{name}"]
    inside = np.isfinite(stored)
    np.testing.assert_array_equal(np.isfinite(table), inside)
    assert np.abs(table[inside] / stored[inside] - 1).max() < 1e-10


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_kl_is_the_bound_at_its_minimum(schedule: str) -> None:
    """bound(w) >= bound(lambda2 + gain^2 Var) = 1/2 log(1 + gain^2 Var / lambda2), which at eta = 1 is the KL."""
    p = DiscreteProcess(SCHEDULES[schedule](50))
    variance = posterior_variance(p, [1.0, 0.03])
    s, t = np.triu_indices(50, 1)
    s, t = s + 1, t + 1
    for eta in (0.2, 1.0):
        kernel = reverse_kernel(p, t, s, eta)
        best = kernel.lambda2 + kernel.gain**2 * variance[t]
        least = step_nats(kernel, best, variance[t])
        np.testing.assert_allclose(least, 0.5 * np.log1p(kernel.gain**2 * variance[t] / kernel.lambda2), atol=1e-14)
        for factor in (0.3, 0.99, 1.01, 4.0):
            assert (step_nats(kernel, factor * best, variance[t]) > least).all()
    np.testing.assert_allclose(kl(p, variance, s, t), least, atol=1e-14)
    assert rel(kl(p, variance, s, t), 0.5 * np.log1p(kernel.snr_drop * variance[t])) < 1e-13


def test_watson_w5_monte_carlo(watson: Golden) -> None:
    """E KL(q(x_s | x_t, x_0) || N(mean(x_t), w I)) of the step 420 -> 300 with the exact network, by sampling."""
    p, v, (s, t) = process("linear_1000"), watson["gauss_var"], (300, 420)
    kernel = reverse_kernel(p, t, s)
    rng = np.random.default_rng([20, s, t])
    samples = 100_000
    x0 = np.sqrt(v) * rng.standard_normal((samples, D))
    x_t = kernel.alpha_t * x0 + kernel.sigma_t * rng.standard_normal((samples, D))
    x0_hat = kernel.alpha_t * v / (kernel.alpha_t**2 * v + kernel.sigma_t**2) * x_t

    def mean(x):
        return kernel.alpha_s * x + kernel.eps_scale * (x_t - kernel.alpha_t * x) / kernel.sigma_t

    variance = np.full(p.steps + 1, (v * kernel.sigma_t**2 / (kernel.alpha_t**2 * v + kernel.sigma_t**2)).mean())
    for name, rule in scalar_rules(variance).items():
        w, squared = rule(kernel), ((mean(x0) - mean(x0_hat)) ** 2).sum(axis=1)
        terms = 0.5 * (D * (kernel.lambda2 / w - 1 + np.log(w / kernel.lambda2)) + squared / w)
        exact = D * step_nats(kernel, w, variance[t])
        assert abs(terms.mean() - exact) < 3 * terms.std() / samples**0.5
        if name == "small":
            assert exact == pytest.approx(0.7750, abs=5e-5)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_gaussian_data_cost_the_same_on_every_path(schedule: str) -> None:
    """For N(m, v I), 1 + (gamma_s - gamma_t) Var_t = (1 + gamma_s v)/(1 + gamma_t v): the sum telescopes."""
    p, v = DiscreteProcess(SCHEDULES[schedule](100)), 0.3
    gamma = np.exp(p.log_snr(p.times[1:]))
    total = 0.5 * np.log((1 + gamma[0] * v) / (1 + gamma[-1] * v))
    solution = planner(kl_costs(p, posterior_variance(p, v)), 100)
    assert rel(solution.budgets.costs[2:], np.full(99, total)) < 1e-12


# Planning


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("size", ["small", "big"])
def test_watson_w3_all_budgets(watson: Golden, solved, size: str, name: str) -> None:
    costs, stored = solved[size, name].budgets.costs[1:] * D, watson[f"{size}_cost_{name}"]
    assert np.abs(costs / stored - 1).max() < 1e-8
    for k in (2, 5, 10, 20, 50):
        np.testing.assert_array_equal(solved[size, name].plan(k).path, watson[f"{size}_path_{name}_{k}"])


def test_watson_cost_is_not_monotone(solved) -> None:
    """Forced budgets: the best is K = 978 or 999 of 1000; "at most" stays there."""
    for name, best in zip(RULES, (978, 999, 999), strict=True):
        plan = solved["big", name].plan(1000, "at_most")
        assert (plan.steps, plan.asked, len(plan.path)) == (best, 1000, best + 1)
        assert plan.planned < solved["big", name].plan(1000).planned
    assert D * solved["big", "small"].plan(1000).planned == pytest.approx(13.13, abs=5e-3)


@pytest.mark.parametrize("size", ["small", "big"])
@pytest.mark.parametrize("fixed", sorted(FIXED))
def test_watson_w4_beats_hand_made_paths(solved, watson_process, size: str, fixed: str) -> None:
    """For every K and all three variances; paths that stop short of N are led there instead."""
    last, compared = watson_process[size].steps, 0
    for k in range(2, last + 1):
        path = np.concatenate([[0], FIXED[fixed][0](last, k)])
        path[-1] = last
        if len(path) == k + 1 and (np.diff(path) > 0).all():
            compared += 1
            for name in RULES:
                solution = solved[size, name]
                assert solution.budgets.costs[k] <= path_cost(solution.costs.table, path) + 1e-12
    assert compared >= 6


@pytest.mark.parametrize("gamma", ["A", "B", "V"])
def test_kl_costs_give_the_published_paths(gamma: str) -> None:
    """The best paths through index 1 are those of Analytic-DPM's J: its K nodes are our K steps."""
    stored = golden("trajectories")
    p = process(str(stored["gamma_schedule"][list(stored["gammas"]).index(gamma)]))
    ms_eps = stored[f"ms_eps__{gamma}"]
    variance = np.exp(-p.log_snr(p.times)) * (1.0 - ms_eps)
    solution = planner(kl_costs(p, variance, project=False), 100)
    for k in (2, 3, 5, 10, 25, 50, 100):
        np.testing.assert_array_equal(solution.plan(k).path, [0, *stored[f"dpseg__{gamma}__K{k}"]])


def test_watson_w6_train_path_on_test_costs(watson: Golden, watson_process) -> None:
    """A path planned on one estimate is judged by another one: never better than the best there."""
    p, v = watson_process["small"], watson["gauss_var"]

    def estimated(part: int, draws: int) -> np.ndarray:
        variance = np.zeros(p.steps + 1)
        for t in range(1, p.steps + 1):
            rng = np.random.default_rng([part, t])
            alpha, sigma = p.alpha(t), p.sigma(t)
            x0 = np.sqrt(v) * rng.standard_normal((draws, D))
            x_t = alpha * x0 + sigma * rng.standard_normal((draws, D))
            variance[t] = np.mean((x0 - alpha * v / (alpha**2 * v + sigma**2) * x_t) ** 2)
        return variance

    test, total = estimated(1, 2000), {}
    for draws in (10, 1000):
        train = estimated(0, draws)
        for name in RULES:
            data_term = watson["small_dec"] / D
            planned = planner(bound_costs(p, train, scalar_rules(train)[name], 1.0, data_term), 60)
            judged = planner(bound_costs(p, test, scalar_rules(test)[name], 1.0, data_term), 60)
            gaps = [
                path_cost(judged.costs.table, planned.plan(k).path) - judged.plan(k).planned for k in (2, 5, 10, 20, 60)
            ]
            print(f"{name}, {draws} draws: test cost of the train path minus optimum, nats/dim:", np.round(gaps, 5))
            assert min(gaps) >= -1e-12 and gaps[-1] == pytest.approx(0.0, abs=1e-12)
            total[name, draws] = sum(gaps)
    for name in RULES:
        assert total[name, 1000] < 0.3 * total[name, 10]


# The projection


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize("variances", [0.3, 2.0, tuple(np.logspace(0, -2, 16))])
def test_projection_keeps_exact_curves(schedule: str, variances) -> None:
    """kappa is 1/v for N(m, v I), and rises with the SNR for several variances: nothing to project."""
    p = DiscreteProcess(SCHEDULES[schedule](300))
    variance = posterior_variance(p, variances)
    assert rel(project_variance(p, variance), variance) < 1e-12
    errors = np.where(variance > 0, 0.1 * variance, 1.0)
    assert rel(project_variance(p, variance, errors), variance) < 1e-12


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(0.01, 1.0))
def test_projection_is_the_weighted_monotone_fit(seed: int, noise: float) -> None:
    """Monotone, idempotent, not negative; each pooled block is the weighted mean of its kappa."""
    p = DiscreteProcess(linear_betas(40))
    rng = np.random.default_rng(seed)
    variance = posterior_variance(p, [1.0, 0.1]) * np.exp(noise * rng.normal(size=41))
    errors = np.exp(rng.normal(size=41)) * np.maximum(variance, 1e-3)
    projected = project_variance(p, variance, errors)
    gamma = np.exp(p.log_snr(p.times[1:]))
    before, after = 1 / variance[1:] - gamma, 1 / projected[1:] - gamma
    slack = 1e-9 * (gamma + 1.0)
    assert (np.diff(after) <= slack[1:] + slack[:-1]).all() and (after >= -slack).all()
    again = project_variance(p, projected, errors)
    assert rel(again, projected) < 1e-8
    weights = (variance[1:] ** 2 / errors[1:]) ** 2
    cuts = np.flatnonzero(np.abs(np.diff(after)) > slack[1:] + slack[:-1]) + 1
    for block in np.split(np.arange(40), cuts):
        mean = np.average(before[block], weights=weights[block])
        assert after[block] == pytest.approx(max(mean, 0.0), rel=1e-6, abs=2 * slack[block].max())


def test_projection_keeps_kappa_above_zero() -> None:
    """Var_t = 2/gamma_t would mean negative precision of the data: 1/gamma_t is the most that exact scores leave."""
    p = DiscreteProcess(linear_betas(50))
    snr = np.concatenate([[np.inf], np.exp(p.log_snr(p.times[1:]))])
    assert rel(project_variance(p, 2 / snr)[1:], 1 / snr[1:]) < 1e-12


def test_projection_trusts_small_errors(noisy) -> None:
    p, truth, _, _ = noisy
    wrong, errors = truth.copy(), np.where(truth > 0, 0.01 * truth, 1.0)
    wrong[90], errors[90] = 3 * truth[90], 30 * truth[90]
    projected = project_variance(p, wrong, errors)
    assert np.abs(projected[1:] / truth[1:] - 1).max() < 0.01
    assert np.abs(project_variance(p, wrong)[1:] / truth[1:] - 1).max() > 0.05


def test_noise_is_projected_away_and_the_gap_reported(noisy) -> None:
    p, _, estimate, errors = noisy
    raw, projected = (kl_costs(p, estimate, errors, project=project) for project in (False, True))
    best, plain = planner(projected, 200), planner(raw, 200)
    assert (best.method, plain.method) == ("divide", "dense")
    assert plain.monge_violation > 1e-3 > MONGE_TOLERANCE * 100 > best.monge_violation
    for k in (2, 5, 25, 200):
        plan = best.plan(k)
        assert plan.planned == pytest.approx(best.budgets.costs[k], rel=1e-12)
        assert plan.gap == plan.raw - plan.planned
        assert plan.raw == pytest.approx(path_cost(raw.table, plan.path), rel=1e-12)
        assert plan.raw >= plain.plan(k).planned - 1e-12 and plain.plan(k).gap == pytest.approx(0, abs=1e-12)


def test_projected_plans_are_better_on_average(noisy) -> None:
    """True cost above the optimum, over ten noisy estimates and five budgets."""
    p, truth, _, _ = noisy
    exact, budgets, excess = kl_costs(p, truth, project=False), (5, 10, 25, 50, 100), []
    optimum = planner(exact, 100).budgets.costs[list(budgets)].sum()
    for seed in range(10):
        estimate = truth * np.exp(0.1 * np.random.default_rng([seed, 200]).normal(size=201))
        plans = [planner(kl_costs(p, estimate, project=project), 100) for project in (True, False)]
        excess.append([sum(exact.raw(s.plan(k).path) for k in budgets) - optimum for s in plans])
    projected, raw = np.mean(excess, axis=0)
    print(f"true cost above the optimum: {projected / 5:.4f} projected, {raw / 5:.4f} not, nats/dim")
    assert 0 < projected < 0.8 * raw


@pytest.mark.parametrize("first", [None, "noise"])
def test_divide_equals_dense_on_projected_costs(noisy, first) -> None:
    p, _, estimate, errors = noisy
    data_term = None if first is None else np.random.default_rng(1).normal(size=201)
    costs = kl_costs(p, estimate, errors, data_term)
    quick, exhaustive = planner(costs, 200, "divide"), planner(costs, 200, "dense")
    assert rel(quick.budgets.costs[2:], exhaustive.budgets.costs[2:]) < 1e-12
    strided = all_budgets(table_edges(costs.table), 200, lambda edges: divide(edges, 11))
    assert rel(strided.costs[2:], exhaustive.budgets.costs[2:]) < 1e-12


def test_divide_survives_exact_ties() -> None:
    """Gaussian data: all paths cost the same, so that rounding alone decides every arg-min."""
    p = DiscreteProcess(linear_betas(150))
    costs = kl_costs(p, posterior_variance(p, 0.3))
    for stride in (1, 2, 5, 40):
        found = all_budgets(table_edges(costs.table), 150, lambda edges, stride=stride: divide(edges, stride))
        assert rel(found.costs[2:], np.full(149, found.costs[2])) < 1e-12


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_monotone_kappa_makes_monge_costs(schedule: str) -> None:
    p = DiscreteProcess(SCHEDULES[schedule](150))
    variance = posterior_variance(p, np.logspace(0.5, -3, 6))
    assert monge_violation(kl_costs(p, variance, project=False).table) <= 1e-14
    variance[75] *= 1.02
    assert monge_violation(kl_costs(p, variance, project=False).table) > 1e-5


# Refusals


@pytest.fixture(scope="module")
def forced() -> Planner:
    p = DiscreteProcess(linear_betas(30))
    return planner(kl_costs(p, posterior_variance(p, [1.0, 0.1])), 20)


def test_without_data_term_index_one_is_forced(forced: Planner) -> None:
    assert forced.budgets.costs[2] == forced.costs.table[1, 30]
    for k in (2, 3, 20):
        assert forced.plan(k).path[1] == 1
    for budget in BUDGETS:
        with pytest.raises(UserError, match=r"`steps` = 1 .*first reference time.*`steps` >= 2 or give the data term"):
            forced.plan(1, budget)


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_the_tolerance_is_relative_to_the_largest_cost(unit: float) -> None:
    """F[s, t] = (t - s)^2 is Monge with room 2; a dent of 3 in one edge is a violation by 1, of 100 at most."""
    gap = np.arange(12)[None, :] - np.arange(12)[:, None]
    table = np.where(gap > 0, gap.astype(float) ** 2, np.inf)
    table[1:, 1:][1, 6] += 3.0
    largest = table[1:][np.isfinite(table[1:])].max()
    assert monge_violation(table) == 1.0 and largest == 100.0
    for tolerance, method in ((0.011, "divide"), (0.009, "dense")):
        assert planner(measured_costs(unit * table), 5, tolerance=tolerance).method == method


@pytest.mark.parametrize("method", sorted(PLANNING_METHODS))
def test_one_reference_time(method: str) -> None:
    p = DiscreteProcess([0.3])
    for costs in (kl_costs(p, [0.0, 0.5]), kl_costs(p, [0.0, 0.5], data_term=[0.0, 1.5])):
        plan = planner(costs, 1, method).plan(1)
        np.testing.assert_array_equal(plan.path, [0, 1])
        assert plan.planned == plan.raw == costs.table[0, 1]


@pytest.mark.parametrize(
    ("steps", "budget", "message"),
    [
        (0, "exactly", r"= 0 must lie in 1\.\.30"),
        (31, "at_most", r"= 31 must lie in 1\.\.30"),
        (21, "exactly", "up to 20 steps"),
        (5, "at_mots", "did you mean 'at_most'"),
    ],
)
def test_refused_plans(forced: Planner, steps: int, budget: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        forced.plan(steps, budget)


def test_refused_planners(noisy) -> None:
    p, _, estimate, errors = noisy
    raw = kl_costs(p, estimate, project=False)
    with pytest.raises(UserError, match="'divide' needs Monge costs.*'auto' or 'dense', or project"):
        planner(raw, 10, "divide")
    with pytest.raises(UserError, match="did you mean 'dense'"):
        planner(raw, 10, "dens")
    with pytest.raises(UserError, match=r"= 201 must lie in 1\.\.200"):
        planner(raw, 201)
    with pytest.raises(UserError, match="transposed"):
        planner(measured_costs(raw.table.T), 10)
    blocked = np.where(np.arange(201) == 150, -np.inf, 0.0)
    for wrong, message in (
        ([0.0, 1.0], "data_term.*201"),
        (blocked, "data_term.*-inf"),
        (blocked + np.nan, "data_term.*NaN"),
    ):
        with pytest.raises(UserError, match=message):
            kl_costs(p, estimate, errors, data_term=wrong)
    for variance, se, message in (
        (estimate[1:], None, r"`variance` must hold N \+ 1 = 201"),
        (-estimate, None, r"`variance`\[1\] = -"),
        (estimate, errors * np.nan, r"`variance_se`\[1\] = nan"),
    ):
        with pytest.raises(UserError, match=message):
            kl_costs(p, variance, se)


def test_refused_bounds(noisy) -> None:
    p, truth, _, _ = noisy
    with pytest.raises(UserError, match="`eta` = 0 has lambda2 = 0.*'kl'"):
        bound_costs(p, truth, lambda k: k.forward_variance, eta=0.0)
    with pytest.raises(UserError, match="`eta` = 1.5"):
        bound_costs(p, truth, lambda k: k.forward_variance, eta=1.5)
    with pytest.raises(UserError, match="variance rule gives -1"):
        bound_costs(p, truth, lambda k: -1.0)


def test_all_kinds_of_costs_agree_on_one_problem() -> None:
    p = DiscreteProcess(cosine_betas(60))
    variance, data_term = posterior_variance(p, [1.0, 0.02]), np.linspace(0.0, 3.0, 61)
    reference = kl_costs(p, variance, data_term=data_term)
    expected = planner(reference, 60).plan(7)
    by_rule = bound_costs(p, variance, scalar_rules(variance)["opt"], 1.0, data_term)
    for costs in (by_rule, measured_costs(reference.table)):
        plan = planner(costs, 60).plan(7)
        np.testing.assert_array_equal(plan.path, expected.path)
        assert rel([plan.planned, plan.raw], [expected.planned, expected.raw]) < RTOL
