"""The measured table of all steps: published tables and their paths, the bound itself, and the error of grouping."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adpm import ideal
from adpm.basis import Matrix
from adpm.cost_table import Groups, expected_steps, group, measure_column
from adpm.costs import bound_costs, measured_costs
from adpm.data_term import data_row
from adpm.denoiser import Denoise, Denoiser, Prediction
from adpm.errors import UserError
from adpm.gaussian import Covariance, InBasis
from adpm.kernel import Kernel
from adpm.likelihood import (
    DECODERS,
    DecoderNeeds,
    Levels,
    NoiseAt,
    Statistics,
    bits_per_dim,
    first_posterior_variance,
    measure_statistics,
    path_terms,
    prior_nats,
)
from adpm.moments import spread_times
from adpm.planning import planner
from adpm.process import Array, Process
from adpm.shortest_path import edge_table
from adpm.variance import Averaged, Bounded, Large, LastStepCap, PosteriorRule, Rule, Small
from covariance.rules import Learned, NoiseResidual, Relative, SquaredNoise
from tests.goldens import RTOL, Golden, MixtureNetwork, golden, head_rule, heuristic, process, rel, with_head

BYTES, CONTINUOUS = Levels(256, -1.0, 1.0), Levels(0, -2.0, 2.0)
D = 16
Batches = list[tuple[Tensor, NoiseAt]]


def measured(
    denoise: Denoise, p: Process, rule: Rule, batches: Batches, decoder: Any, levels: Levels, **options: Any
) -> Array:
    """F [N+1, N+1] in nats per dimension."""
    columns = [measure_column(denoise, p, rule, decoder, levels, t, batches, **options) for t in range(1, p.steps + 1)]
    table = edge_table(p.steps, lambda t: columns[t - 1][1:])
    table[0, 1:] = [column[0] for column in columns]
    return table


def published_decoder(p: Process) -> Any:
    return DECODERS["published"].build(DecoderNeeds(p, lambda: pytest.fail("the published decoder needs no moments")))


# The published tables


def golden_batches(stored: Golden, size: int) -> Batches:
    """The images in batches of `size`; one stored noise per time and image, shared by all s."""
    noise, x0 = torch.as_tensor(stored[f"terms_noise_bs{size}"]), torch.as_tensor(stored["terms_x0"])
    parts = torch.arange(len(x0)).split(size)
    return [(x0[part], lambda t, part=part: noise[round(t) - 1, part]) for part in parts]


@cache
def golden_table(j: int, groups: int = 256) -> Array:
    stored = golden("elbo")
    about = json.loads(str(stored[f"table{j}__desc"]))
    p = process(about["schedule"])
    denoise: Denoise = Denoiser(MixtureNetwork(stored, p, about["typ"]), p, clip=(-1.0, 1.0))
    fixed = {"small": Small(), "big": Large()}.get(about["rev_var_type"])
    if fixed is None and about["typ"] == "eps":
        denoise = heuristic(denoise)
    rule = fixed or head_rule(about["typ"], p, clip_covariance=True)
    batches = golden_batches(stored, about["batch_size"])
    return measured(denoise, p, rule, batches, published_decoder(p), BYTES, groups=groups) * D


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("j", range(5))
def test_published_tables(elbo: Golden, j: int) -> None:
    """Small, large, NPR, the heuristic without a head, SN (in two batches): every entry, and the planned paths."""
    kinds = [("eps", "small"), ("eps", "big"), ("eps_epsc", "optimal"), ("eps", "optimal"), ("eps_eps2", "optimal")]
    about = json.loads(str(elbo[f"table{j}__desc"]))
    assert (about["typ"], about["rev_var_type"]) == kinds[j]
    cost, expected = golden_table(j), elbo[f"table{j}__F"]
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(cost), finite)
    assert finite.sum() == 50 * 51 // 2
    assert rel(cost[finite], expected[finite]) < RTOL
    prior = float(prior_nats(process(about["schedule"]), torch.as_tensor(elbo["terms_x0"])).mean())
    assert rel(prior, elbo[f"table{j}__last_term"]) < RTOL
    whole = cost[np.arange(50), np.arange(1, 51)].sum() + prior
    assert rel(bits_per_dim(np.asarray(whole), D), elbo[f"table{j}__bpd_full"]) < RTOL
    plans = planner(measured_costs(cost), 25)
    for steps in (3, 5, 10, 25):
        plan = plans.plan(steps)
        np.testing.assert_array_equal(plan.path, elbo[f"table{j}__dpvb_path__K{steps}"])
        assert rel(plan.raw, elbo[f"table{j}__dpvb_cost__K{steps}"]) < RTOL


# The bound itself


def elbo_world(typ: str) -> tuple[Process, Denoise, Tensor, NoiseAt]:
    stored = golden("elbo")
    p = process("linear_100")
    noise = torch.as_tensor(stored["noise__K100"])
    denoise = Denoiser(MixtureNetwork(stored, p, typ), p, clip=(-1.0, 1.0))
    return p, denoise, torch.as_tensor(stored["x0"]), lambda t: noise[100 - round(t)]


VARIANCE = lambda t: 0.05 + 0.001 * np.asarray(t)  # noqa: E731

RULES: dict[str, tuple[str, Rule]] = {
    "small": ("eps", Small()),
    "large": ("eps", Large()),
    "sn": ("eps_eps2", Bounded(SquaredNoise(), 1.0)),
    "sn averaged": ("eps_eps2", Bounded(Averaged(SquaredNoise()), 1.0)),
    "npr": ("eps_epsc", Bounded(NoiseResidual(), 1.0)),
    "relative": ("eps_iddpm", Relative(VARIANCE)),
    "learned": ("eps_iddpm", Learned(1e-5)),
    "capped": ("eps_epsc", LastStepCap(Bounded(NoiseResidual(), 1.0), 1e-4, 2.0)),
}


@pytest.mark.parametrize("name", RULES)
def test_paths_cost_what_walking_them_costs(name: str) -> None:
    """With few elements the table is exact: along any path it adds up to the bound of the same draws."""
    typ, rule = RULES[name]
    p, denoise, x0, noise = elbo_world(typ)
    decoder = published_decoder(p)
    table = measured(denoise, p, rule, [(x0, noise)], decoder, BYTES)
    for path in ([0, 100], [0, 1, 2, 3, 30, 99, 100], list(range(101))):
        walked = list(path_terms(denoise, p, rule, decoder, BYTES, np.array(path, dtype=float), x0, noise))
        for bound in walked:
            assert float(bound.nats.mean()) / D == pytest.approx(table[int(bound.s), int(bound.t)], rel=1e-10)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("name", ["sn", "npr averaged"])
def test_other_etas(name: str, eta: float) -> None:
    rules = {"sn": ("eps_eps2", Bounded(SquaredNoise(), 1.0)), "npr averaged": ("eps_epsc", Averaged(NoiseResidual()))}
    typ, rule = rules[name]
    p, denoise, x0, noise = elbo_world(typ)
    found = measure_column(denoise, p, rule, None, BYTES, 80, [(x0, noise)], eta)
    assert found[0] == np.inf
    for s in (1, 40, 79):
        times = np.array([0.0, s, 80, 100])
        bound = list(path_terms(denoise, p, rule, published_decoder(p), BYTES, times, x0, noise, eta))[1]
        assert float(bound.nats.mean()) / D == pytest.approx(found[s], rel=1e-9)


@pytest.mark.parametrize("rule", [Small(), Large()], ids=["small", "large"])
def test_rules_of_time_alone_need_the_mean_squared_error_only(rule: Rule) -> None:
    p, denoise, x0, noise = elbo_world("eps")
    table = measured(denoise, p, rule, [(x0, noise)], published_decoder(p), BYTES, groups=1)
    rows = list(measure_statistics(denoise, p, published_decoder(p), BYTES, p.times[1:], x0, noise))
    times, squared, data = (np.array(column) for column in zip(*rows, strict=True))
    statistics = Statistics(times, squared, data, prior_nats(p, x0).numpy(), D)
    row = np.concatenate([[np.inf], data.mean(1) / D])
    variance = np.concatenate([[0.0], statistics.variance()])
    expected = bound_costs(p, variance, lambda kernel: rule(kernel, None).values, 1.0, row).table
    inside = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(table), inside)
    assert rel(table[inside], expected[inside]) < 1e-12


def test_batches_weigh_as_many_images_as_they_have() -> None:
    typ, rule = RULES["npr"]
    p, denoise, x0, noise = elbo_world(typ)
    parts: Batches = [(x0[a:b], lambda t, a=a, b=b: noise(t)[a:b]) for a, b in ((0, 3), (3, 4))]
    whole = measure_column(denoise, p, rule, published_decoder(p), BYTES, 50, [(x0, noise)])
    assert rel(measure_column(denoise, p, rule, published_decoder(p), BYTES, 50, parts), whole) < 1e-12


# Grouping


def wide_world(wrong: float = 0.0) -> tuple[Process, Denoise, Batches]:
    """64 images of 8x8 pixels, variances over six decades; an NPR head, exact but for a factor exp(wrong cos 7x)."""
    p, rng = process("linear_50"), np.random.default_rng(0)
    data = ideal.diagonal_mixture(
        [0.2, 0.5, 0.3], rng.uniform(-1, 1, (3, 64)), 10.0 ** rng.uniform(-6, 0, (3, 64)), (1, 8, 8)
    )
    exact = ideal.IdealDenoiser(data, p)
    noise = torch.randn(51, 64, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def head(x: Tensor, t: float) -> Tensor:
        return exact.variance(x, t) * float(p.alpha(t) / p.sigma(t)) ** 2 * torch.exp(wrong * torch.cos(7 * x))

    return p, with_head(exact, head), [(data.sample(64, 2), lambda t: noise[round(t)])]


WIDE: dict[str, tuple[float, Rule]] = {
    "exact": (0.0, NoiseResidual()),
    "wrong": (1.0, NoiseResidual()),
    "relative": (1.0, Relative(VARIANCE)),
    "capped": (0.0, LastStepCap(NoiseResidual(), 1e-3, 1.0)),
    "learned": (0.0, Learned(1e-5)),
}


@pytest.mark.parametrize("name", WIDE)
def test_grouping_error(name: str) -> None:
    """256 groups of 4096 elements are within 2e-5 of the exact costs (relative to 1 nat per dimension or the cost,
    whichever is more), plan its paths to 1e-5, and four times as many groups are at least 8 times as good."""
    wrong, rule = WIDE[name]
    p, denoise, batches = wide_world(wrong)
    exact, *grouped = (
        measured(denoise, p, rule, batches, published_decoder(p), CONTINUOUS, groups=groups)
        for groups in (4096, 16, 64, 256)
    )
    inside = np.isfinite(exact[1:])
    errors = [float(np.max(np.abs(t[1:][inside] - exact[1:][inside]) / (1.0 + exact[1:][inside]))) for t in grouped]
    assert errors[2] < 2e-5
    assert errors[0] > 8 * errors[1] > 8 * 8 * errors[2] > 0, errors
    for steps in (3, 10, 25):
        best = planner(measured_costs(exact), 25).plan(steps).raw
        judged = measured_costs(exact).raw(planner(measured_costs(grouped[2]), 25).plan(steps).path)
        assert best - 1e-12 <= judged < best + 1e-5


def test_groups_are_weighted_means() -> None:
    """Shares add to 1 and means are kept, whatever the distribution: ties, outliers, a single value."""
    rng = np.random.default_rng(0)
    for sample in (rng.normal(size=5000), np.exp(5 * rng.normal(size=5000)), np.ones(700), np.repeat([1.0, 2.0], 900)):
        parameter, squared = torch.as_tensor(sample), torch.as_tensor(rng.exponential(size=len(sample)))
        found = group(parameter, squared, parameter.clone(), 64)
        assert len(found.share) <= 64
        assert found.share.sum() == pytest.approx(1.0, abs=1e-14)
        assert found.share @ found.parameter == pytest.approx(float(parameter.mean()), rel=1e-12)
        assert found.share @ found.squared == pytest.approx(float(squared.mean()), rel=1e-12)
        product = float((parameter * squared).mean())
        assert found.share @ (found.weighted * found.squared) == pytest.approx(product, rel=1e-12)


def test_no_group_is_wide_and_none_is_large() -> None:
    """With an outlier at 30 standard deviations, a group of 64 has at most 2/64 of the elements and of the range."""
    rng = np.random.default_rng(1)
    parameter = torch.as_tensor(np.append(rng.normal(size=9999), 30.0))
    found = group(parameter, parameter.clone(), parameter, 64)
    assert found.share.max() <= 2 / 64 + 2 / 10000
    nearest = np.abs(parameter.numpy()[:, None] - found.parameter).min(1)
    assert nearest.max() <= 2 / 64 * float(parameter.max() - parameter.min())


def test_few_elements_are_their_own_groups() -> None:
    parameter, squared = torch.tensor([3.0, 1.0, 2.0]).double(), torch.tensor([1.0, 5.0, 7.0]).double()
    found = group(parameter, squared, parameter, 3)
    np.testing.assert_array_equal(found.parameter, parameter)
    np.testing.assert_array_equal(found.squared, squared)
    np.testing.assert_allclose(found.weighted, parameter, rtol=1e-15)


def test_a_group_without_error_has_its_plain_mean() -> None:
    zero = torch.zeros(2).double()
    np.testing.assert_array_equal(group(torch.tensor([3.0, 1.0]).double(), zero, zero, 1).weighted, [2.0])


def test_a_step_of_one_group_is_the_scalar_formula() -> None:
    """With w the optimum for e the cost is 1/2 log(w/lambda2)."""
    p = process("linear_50")
    found = expected_steps(p, NoiseResidual(), 30, 1.0, Groups(np.ones(1), *[np.array([0.2])] * 3))
    drop = np.exp(p.log_snr(p.times[1:30])) - np.exp(p.log_snr(30.0))
    assert rel(found, 0.5 * np.log1p(drop * 0.2)) < 1e-10


# The data term of every time


def test_the_data_term_is_interpolated_in_log_snr() -> None:
    """What is linear in log-SNR is met exactly; where all times were measured, the numbers are kept as they are."""
    p = process("linear_1000")
    line = 0.3 - 0.2 * p.log_snr(p.times[1:])
    at = spread_times(p, 20)
    row = data_row(p, {"times": at, "nats": line[at.astype(int) - 1]})
    assert row[0] == np.inf and len(at) <= 22 and rel(row[1:], line) < 1e-12
    noise = np.random.default_rng(0).normal(size=p.steps)
    np.testing.assert_array_equal(data_row(p, {"times": p.times[1:], "nats": noise}), [np.inf, *noise])


# What is refused


def test_negative_variances_and_ddim_are_refused() -> None:
    p, denoise, x0, noise = elbo_world("eps_eps2")
    negative = with_head(denoise, lambda x, t: -torch.ones_like(x))
    with pytest.raises(UserError, match=r"gives -.* in the step 50 -> 1, not above 0; set `rule.bounds` = True"):
        measure_column(negative, p, NoiseResidual(), None, BYTES, 50, [(x0, noise)])
    with pytest.raises(UserError, match=r"`eta` = 0 has no finite likelihood bound"):
        measure_column(denoise, p, SquaredNoise(), None, BYTES, 50, [(x0, noise)], 0.0)


def test_the_learned_table_plans_better_paths_than_even_ones() -> None:
    """Watson's setting for the learned variance: any budget, against evenly strided steps of the same table."""
    p, denoise, x0, noise = elbo_world("eps_iddpm")
    rule = Learned(first_posterior_variance(p))
    costs = measured_costs(measured(denoise, p, rule, [(x0, noise)], published_decoder(p), BYTES))
    plans = planner(costs, 50)
    for steps in (2, 5, 10, 50):
        even = np.rint(np.arange(steps + 1) * 100 / steps).astype(int)
        assert plans.plan(steps).raw < costs.raw(even)


class InAxes(PosteriorRule):
    """Variances 0.02, 0.04, ... along fixed orthonormal axes."""

    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        basis = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
        return InBasis(0.02 * torch.arange(1, D + 1, dtype=torch.float64).reshape(1, 4, 4), basis=Matrix(basis))


def test_errors_are_measured_along_the_axes_of_the_covariance() -> None:
    p, denoise, x0, noise = elbo_world("eps")
    column = measure_column(denoise, p, InAxes(), None, BYTES, 50, [(x0, noise)])
    for s in (1, 20, 49):
        path = np.array([0.0, s, 50.0, 100.0])
        walked = list(path_terms(denoise, p, InAxes(), lambda t: 1.0, BYTES, path, x0, noise))[1]
        assert (walked.t, walked.s) == (50.0, s)
        assert float(walked.nats.mean()) / D == pytest.approx(column[s], rel=1e-9)
