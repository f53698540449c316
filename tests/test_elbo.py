"""The variational bound against the published numbers: single terms, whole paths, and the tables of all transitions."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adpm.denoiser import Denoiser
from adpm.errors import UserError
from adpm.gaussian import Diagonal
from adpm.kernel import reverse_kernel, step_nats
from adpm.likelihood import (
    DECODERS,
    Decoder,
    DecoderNeeds,
    Levels,
    Statistics,
    bits_per_dim,
    decoder_nats,
    first_posterior_variance,
    measure_statistics,
    path_terms,
    prior_nats,
)
from adpm.process import Array, DiscreteProcess, Process
from adpm.variance import Large, Rule, Small
from tests.goldens import RTOL, Golden, MixtureNetwork, golden, head_rule, process, rel, scalar_rule

BYTES = Levels(256, -1.0, 1.0)
PATHS = 44
D = 16


def describe(i: int) -> dict[str, Any]:
    return json.loads(str(golden("elbo")["desc"][i]))


# Model types with a second output use it as a variance that depends on the state: all 20 of them do.
NOISE_ONLY = [i for i in range(PATHS) if describe(i)["typ"] == "eps"]
WITH_HEADS = [i for i in range(PATHS) if describe(i)["typ"] != "eps"]


def decoder(name: str, p: Process) -> Decoder:
    def variance() -> Any:
        raise AssertionError("the published decoders need no moments")

    return DECODERS[name].build(DecoderNeeds(p, variance))


def noise_at(times: Array, stored: Array) -> Any:
    """One stored noise [K, ...] per transition, largest t first."""
    row = {float(t): torch.as_tensor(eps) for t, eps in zip(times[:0:-1], stored, strict=True)}
    return row.__getitem__


def denoiser(p: Process, typ: str, clip: bool = True) -> Denoiser:
    return Denoiser(MixtureNetwork(golden("elbo"), p, typ), p, clip=(-1.0, 1.0) if clip else None)


def terms(p: Process, denoise: Denoiser, rule: Rule, times: Array, x0: Tensor, noise: Array) -> Array:
    """[K+1, B]: row j for times[j+1] -> times[j], row K the prior."""
    steps = path_terms(
        denoise, p, rule, decoder("published_elbo", p), BYTES, times.astype(float), x0, noise_at(times, noise)
    )
    return torch.stack([*reversed([bound.nats for bound in steps]), prior_nats(p, x0)]).numpy()


def test_discretised_gaussian(elbo: Golden) -> None:
    """log P of single pixels: both edges, means inside and outside, variances from 1e-5 to 4."""
    checked = 0
    for x, mu, var, out in zip(*(elbo[f"ldn_{k}"] for k in ("x", "mu", "var", "out")), strict=True):
        nats = decoder_nats(torch.tensor([[x]]), torch.tensor([[mu]]), float(var), BYTES)
        assert rel(-nats, [out]) < RTOL
        checked += 1
    assert checked == 126
    assert elbo["ldn_out"].min() == pytest.approx(math.log(1e-12))  # the floor is among them


@pytest.mark.parametrize("variance", [1e-4, 0.01, 0.3])
@pytest.mark.parametrize("levels", [BYTES, Levels(17, -1.0, 1.0), Levels(2, 0.0, 1.0)])
def test_discretised_gaussian_is_a_distribution(levels: Levels, variance: float) -> None:
    """Over all levels the probabilities add to 1, whatever the mean."""
    x0 = torch.linspace(levels.low, levels.high, levels.count, dtype=torch.float64)[:, None]
    for mean in (levels.low, 0.3, levels.high):
        p = torch.exp(-decoder_nats(x0, torch.full_like(x0, mean), variance, levels))
        assert float(p.sum()) == pytest.approx(1.0, abs=1e-9)


def test_continuous_decoder_is_the_gaussian_density() -> None:
    x0, mean = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = -torch.distributions.Normal(mean, 0.3**0.5).log_prob(x0).sum((1, 2))
    assert rel(decoder_nats(x0, mean, 0.3, Levels(0, -1.0, 1.0)), expected) < 1e-12
    with pytest.raises(UserError, match="decoder variance must be positive, got 0"):
        decoder_nats(x0, mean, 0.0, BYTES)


def test_gaussian_kl(elbo: Golden) -> None:
    """KL( N(m0, v0) || N(m1, v1) ) of single elements."""
    columns = [elbo[f"kl_{k}"] for k in ("m0", "v0", "m1", "v1", "out")]
    for m0, v0, m1, v1, out in zip(*columns, strict=True):
        assert rel(Diagonal(float(v1)).kl_from_isotropic(float(v0), torch.tensor([[m0 - m1]])), [out]) < RTOL
    assert len(columns[0]) == 40


def test_prior_of_any_width(elbo: Golden) -> None:
    """KL( q(x_T | x_0) || N(0, prior_std^2 I) ) where the prior is not the unit Gaussian."""
    p, x0 = DiscreteProcess(np.full(20, 0.1)), torch.as_tensor(elbo["x0"])
    p.prior_std = 1.7
    prior = torch.distributions.Normal(torch.zeros_like(x0), 1.7)
    noised = torch.distributions.Normal(float(p.alpha(20)) * x0, float(p.sigma(20)))
    expected = torch.distributions.kl_divergence(noised, prior).flatten(1).sum(1)
    assert rel(prior_nats(p, x0), expected) < 1e-12


def test_every_path_is_counted(elbo: Golden) -> None:
    assert len(elbo["desc"]) == PATHS
    assert len(NOISE_ONLY) == 24 and len(WITH_HEADS) == 20
    assert not any(describe(i)["ms_eps_passed"] for i in WITH_HEADS)
    assert {(describe(i)["schedule"], describe(i)["K"]) for i in NOISE_ONLY} == {
        *(("linear_100", k) for k in (5, 20, 100)),
        *(("cosine_100", k) for k in (5, 20)),
    }


def path_rule(about: dict[str, Any], ms_eps: Array) -> Rule:
    name, clip = about["schedule"], about["clip_x0"]
    if about["typ"] == "eps":
        return scalar_rule(about["rev_var_type"], clip, name, ms_eps)
    return head_rule(about["typ"], process(name), clip, about["avg_cov"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("i", range(PATHS))
def test_published_elbo(elbo: Golden, i: int) -> None:
    """Every term of every path, their sum, and the bits per dimension; it decodes with tilde-beta(1, 2) whatever t."""
    about = describe(i)
    name = about["schedule"]
    p, x0, times = process(name), torch.as_tensor(elbo["x0"]), elbo[f"elbo{i}__timesteps"]
    rule = path_rule(about, elbo[f"ms_eps__{name}"])
    denoise = denoiser(p, about["typ"], about["clip_x0"])
    found = terms(p, denoise, rule, times, x0, elbo[f"noise__K{about['K']}"])
    assert rel(found, elbo[f"elbo{i}__terms"]) < RTOL
    assert rel(found.sum(0), elbo[f"elbo{i}__nelbo"]) < RTOL
    assert rel(bits_per_dim(found.sum(0), D), elbo[f"elbo{i}__bpd"]) < RTOL
    if i in WITH_HEADS:
        without = terms(p, denoise, Small(), times, x0, elbo[f"noise__K{about['K']}"])
        assert rel(without[1:-1], elbo[f"elbo{i}__terms"][1:-1]) > 1e-3  # the head does matter in between


def table_statistics(stored: Golden, batch: int) -> tuple[Process, Statistics]:
    """The draws of the stored tables: one noise per time and image, shared by all s."""
    p = process(str(stored["terms_schedule"]))
    x0 = torch.as_tensor(stored["terms_x0"])
    noise = noise_at(p.times, stored[f"terms_noise_bs{batch}"][::-1])
    rows = list(measure_statistics(denoiser(p, "eps"), p, decoder("published", p), BYTES, p.times[1:], x0, noise))
    times, squared, data = (np.array(column) for column in zip(*rows, strict=True))
    return p, Statistics(times, squared, data, prior_nats(p, x0).numpy(), D)


def table_costs(p: Process, statistics: Statistics, rule: Rule) -> Array:
    """F[s, t] in nats of an image, mean over images; inf for s >= t."""
    n = p.steps
    cost = np.full((n + 1, n + 1), np.inf)
    cost[0, 1:] = statistics.data.mean(1)
    s, t = np.triu_indices(n, 1)
    s, t = s + 1, t + 1
    kernel = reverse_kernel(p, t, s)
    w = np.broadcast_to(rule(kernel, None).values, t.shape)
    cost[s, t] = step_nats(kernel, w, statistics.variance()[t - 1]) * statistics.dim
    return cost


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("j", "rule"), [(0, Small()), (1, Large())])
def test_published_tables(elbo: Golden, j: int, rule: Rule) -> None:
    about = json.loads(str(elbo[f"table{j}__desc"]))
    assert about["typ"] == "eps" and about["rev_var_type"] == ("small", "big")[j]
    p, statistics = table_statistics(elbo, about["batch_size"])
    cost, expected = table_costs(p, statistics, rule), elbo[f"table{j}__F"]
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(cost), finite)
    assert finite.sum() == 50 * 51 // 2
    assert rel(cost[finite], expected[finite]) < RTOL
    assert rel(statistics.prior.mean(), elbo[f"table{j}__last_term"]) < RTOL
    whole = cost[np.arange(50), np.arange(1, 51)].sum() + statistics.prior.mean()
    assert rel(bits_per_dim(whole, D), elbo[f"table{j}__bpd_full"]) < RTOL
    for steps in (3, 5, 10, 25):
        path = elbo[f"table{j}__dpvb_path__K{steps}"]
        assert rel(cost[path[:-1], path[1:]].sum(), elbo[f"table{j}__dpvb_cost__K{steps}"]) < RTOL


@pytest.mark.parametrize("j", [2, 3, 4])
def test_data_row_of_the_other_tables(elbo: Golden, j: int) -> None:
    """F[0, t] and the prior depend on the noise prediction alone; the rest of tables 2 to 4 does not."""
    about = json.loads(str(elbo[f"table{j}__desc"]))
    _, statistics = table_statistics(elbo, about["batch_size"])
    assert rel(statistics.data.mean(1), elbo[f"table{j}__F"][0, 1:]) < RTOL
    assert rel(statistics.prior.mean(), elbo[f"table{j}__last_term"]) < RTOL


def test_published_elbo_on_a_planned_path(elbo: Golden) -> None:
    """On the path that table 1 plans, the published bound decodes with tilde-beta(1, 2) although the table used B_t."""
    p, x0 = process(str(elbo["terms_schedule"])), torch.as_tensor(elbo["x0"])
    times = elbo["dpvb_elbo__timesteps"]
    np.testing.assert_array_equal(times, elbo["table1__dpvb_path__K5"])
    found = terms(p, denoiser(p, "eps"), Large(), times, x0, elbo["dpvb_elbo__noise"])
    assert rel(found, elbo["dpvb_elbo__terms"]) < RTOL
    assert rel(found.sum(0), elbo["dpvb_elbo__nelbo"]) < RTOL
    first = float(times[1])
    assert decoder("published_elbo", p)(first) == first_posterior_variance(p)
    assert decoder("published", p)(first) == pytest.approx(float(p.sigma(first)) ** 2) and first != 1
    assert decoder("published", p)(1.0) == first_posterior_variance(p)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("kind", "eta"), [("small", 0.4), ("small", 1.0), ("big", 1.0), ("optimal", 0.4), ("optimal", 1.0)]
)
@pytest.mark.parametrize("times", [np.arange(101), np.array([0, 1, 2, 30, 99, 100]), np.array([0, 100])], ids=len)
def test_statistics_give_the_terms_of_any_path(elbo: Golden, kind: str, times: Array, eta: float) -> None:
    """||x_0 - x0_hat||^2 per image and time is all that state-independent rules need: equal to walking the path."""
    name = "linear_100"
    p, x0 = process(name), torch.as_tensor(elbo["x0"])
    rule = scalar_rule(kind, True, name, elbo[f"ms_eps__{name}"])
    noise = noise_at(p.times, elbo["noise__K100"])
    denoise, decode = denoiser(p, "eps"), decoder("published", p)
    walked = [bound.nats for bound in path_terms(denoise, p, rule, decode, BYTES, times.astype(float), x0, noise, eta)]
    rows = list(measure_statistics(denoise, p, decode, BYTES, p.times[1:], x0, noise))
    measured, squared, data = (np.array(column) for column in zip(*rows, strict=True))
    statistics = Statistics(measured, squared, data, prior_nats(p, x0).numpy(), D)
    found = statistics.terms(p, rule, times.astype(float), eta)
    np.testing.assert_allclose(found[:-1], torch.stack(walked[::-1]), rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(found[-1], prior_nats(p, x0))


def test_ddim_has_no_bound(elbo: Golden) -> None:
    p, x0 = process("linear_100"), torch.as_tensor(elbo["x0"])
    noise = noise_at(p.times, elbo["noise__K100"])
    with pytest.raises(UserError, match=r"infinite at `eta` = 0 \(DDIM\)"):
        next(path_terms(denoiser(p, "eps"), p, Small(), decoder("published", p), BYTES, p.times, x0, noise, 0.0))
