"""The probability-flow likelihood: published values, exact worlds, the error bar of its probes, bad input."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from scipy.stats import t as student
from torch import Tensor

from adpm import ideal
from adpm.denoiser import Counted, Denoiser, Prediction
from adpm.errors import UserError
from adpm.likelihood import Levels, bits_per_dim
from adpm.process import PROCESSES as DISCRETE
from sde.dequantise import uniform
from sde.likelihood import (
    PROBES,
    FlowLikelihood,
    ProbabilityFlow,
    flow_likelihood,
    gaussian_nats,
    keyed_probes,
)
from sde.process import SDE
from tests.goldens import RTOL, golden, rel
from tests.sde_worlds import NAMES, PUBLISHED, WORLDS, gaussian_denoiser

EXT = golden("sde_vp_ext")
SSDE = golden("score_sde")
RUNS = [key.removesuffix("__nll") for key in EXT if key.endswith("__nll")]
CENTRED = Levels(256, -1 + 1 / 256, 1 - 1 / 256)
"""The levels of score_sde's dequantisation on [-1, 1]."""


def by_scipy(flow: ProbabilityFlow, x: Tensor, t_min: float, tol: float, method: str = "RK45") -> FlowLikelihood:
    """The likelihood by solve_ivp on one stacked state, as published; one probe."""

    def velocity(t: float, state: np.ndarray) -> np.ndarray:
        v, divergence = flow(torch.as_tensor(state[: x.numel()]).reshape(x.shape), min(t, 1.0))
        return np.concatenate([v.flatten().numpy(), divergence[0].numpy()])

    start = np.concatenate([x.flatten().numpy(), np.zeros(len(x))])
    end = torch.as_tensor(solve_ivp(velocity, (t_min, 1.0), start, rtol=tol, atol=tol, method=method).y[:, -1])
    latent, divergence = end[: x.numel()].reshape(x.shape), end[x.numel() :]
    prior = gaussian_nats(latent, flow.process.prior_std)
    return FlowLikelihood(prior - divergence, prior, divergence, None, latent, flow.nfe)


def log_density(mixture: ideal.Mixture, sde: SDE, x: Tensor, t: float) -> np.ndarray:
    """log q_t(x), [B]."""
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    rows = []
    for k, (weight, mean, spectrum) in enumerate(zip(mixture.weights, mixture.means, mixture.spectrum, strict=True)):
        u = np.eye(mixture.dim) if mixture.basis is None else mixture.basis[k].numpy()
        covariance = u @ np.diag(alpha**2 * spectrum.numpy() + sigma**2) @ u.T
        density = multivariate_normal(alpha * mean.numpy(), covariance).logpdf(x.flatten(1).numpy())
        rows.append(np.log(float(weight)) + np.atleast_1d(density))
    return logsumexp(rows, axis=0)


def oblique() -> ideal.Mixture:
    """Two Gaussians in six dimensions whose principal axes are not the pixels'."""
    generator = np.random.default_rng(3)
    a = generator.standard_normal((2, 6, 6)) * 0.3
    return ideal.full_mixture(
        [0.4, 0.6], generator.standard_normal((2, 6)) * 0.5, a @ a.transpose(0, 2, 1) + 0.05 * np.eye(6), (1, 2, 3)
    )


def basis_probes(x: Tensor) -> Tensor:
    """sqrt(d) e_i, i = 1..d: their mean is the divergence itself."""
    d = x[0].numel()
    return (math.sqrt(d) * torch.eye(d, dtype=torch.float64)).reshape(d, 1, *x.shape[1:]).expand(d, *x.shape)


def rademacher(x: Tensor, count: int = 1, seed: int = 0) -> Tensor:
    return keyed_probes("rademacher", count, seed, torch.arange(len(x)), tuple(x.shape[1:]))


# published values


def extended_run(run: str) -> tuple[ideal.IdealDenoiser, ProbabilityFlow, Tensor, float, float]:
    """(denoiser, its ODE, x, t_min, tolerance) of a stored run."""
    case, probe, tol, t_min = re.fullmatch(r"(nll\d)_([RG])_tol(.*)_t(.*)", run).groups()
    x = torch.as_tensor(EXT[f"{case}__x"])
    shape = tuple(x.shape[1:])
    if f"{case}__mean_var" in EXT:
        mixture = ideal.gaussian(*EXT[f"{case}__mean_var"], shape)
    else:
        mixture = ideal.diagonal_mixture(EXT["nllgmm_w"], EXT["nllgmm_m"], EXT["nllgmm_v"], shape)
    denoise = ideal.IdealDenoiser(mixture, WORLDS["vp"])
    probes = torch.as_tensor(EXT[f"{case}_{probe}__z"])[None]
    return denoise, ProbabilityFlow(denoise, WORLDS["vp"], probes), x, float(t_min), float(tol)


def published(run: str) -> tuple[np.ndarray, ...]:
    """(nats, prior, divergence) of a stored run, with our signs."""
    return EXT[f"{run}__nll"], -EXT[f"{run}__prior_logp"], EXT[f"{run}__delta_logp"]


def levels_bits(nats: Tensor) -> Tensor:
    """bits/dim of score_sde's levels in 16 dimensions."""
    _, paid = uniform(CENTRED)(torch.zeros(1, 16), torch.zeros(1, 16), 1e-5)
    return bits_per_dim(nats + paid, 16)


def terms(found: FlowLikelihood) -> tuple[Tensor, Tensor, Tensor]:
    return found.nats, found.prior, found.divergence


def test_every_entry_is_used() -> None:
    assert np.array_equal(EXT["vp_beta_min_max"], [0.1, 20.0]) and len(RUNS) == 15
    gaussian = r"nll[012]_R_tol1e-0[59]_t(1e-05|0\.001)"
    patterns = (
        r"nll\d_._tol.*__(nll|prior_logp|delta_logp|nfe|true_neglogp)",
        gaussian + r"__exact_(delta|prior_logp|nll)",
        r"nll\d_[RG]__z|nll\d__x|nll[012]__mean_var|nllgmm_[wmv]",
    )
    assert all(any(re.fullmatch(p, key) for p in patterns) for key in EXT if key.startswith("nll"))


@pytest.mark.parametrize("run", RUNS)
def test_extended_analytic_dpm(run: str) -> None:
    """Their integrator on our ODE gives their numbers and their NFE; our integrator agrees to its tolerance."""
    denoise, flow, x, t_min, tol = extended_run(run)
    theirs = by_scipy(flow, x, t_min, tol)
    assert all(rel(a, b) < RTOL for a, b in zip(terms(theirs), published(run), strict=True))
    if theirs.divergence.abs().max() > 1e-9:  # N(0, I) does not move: steps are chosen by rounding errors
        assert theirs.nfe == EXT[f"{run}__nfe"]
    assert rel(-log_density(denoise.mixture, WORLDS["vp"], x, t_min), EXT[f"{run}__true_neglogp"]) < RTOL
    ours = flow_likelihood(denoise, WORLDS["vp"], x, flow.probes, t_min=t_min, rtol=tol, atol=tol)
    scale = 1.0 + float(ours.prior.abs().max())
    assert all(
        np.abs(np.asarray(a) - b).max() < 5 * tol * scale for a, b in zip(terms(ours), published(run), strict=True)
    )


@pytest.mark.parametrize("run", [run for run in RUNS if f"{run}__exact_nll" in EXT])
def test_extended_closed_forms(run: str) -> None:
    denoise, flow, x, t_min, _ = extended_run(run)
    found = flow_likelihood(denoise, WORLDS["vp"], x, flow.probes, t_min=t_min, rtol=1e-11, atol=1e-11)
    assert rel(found.nats, EXT[f"{run}__exact_nll"]) < 5e-9
    assert rel(found.prior, -EXT[f"{run}__exact_prior_logp"]) < RTOL
    assert rel(found.divergence, np.full(len(x), EXT[f"{run}__exact_delta"])) < RTOL


@pytest.mark.parametrize("name", PUBLISHED)
def test_score_sde(name: str) -> None:
    """Bits/dim, latents and NFE of the published function, which rounds to float32; the closed forms; the offset 7."""
    x, sde = torch.as_tensor(SSDE["lik_x"]), WORLDS[name]
    denoise = ideal.IdealDenoiser(ideal.gaussian(*SSDE["target_mean_var"], x.shape[1:]), sde)
    probes = torch.as_tensor(SSDE[f"{name}__lik_rademacher"])[None]
    rounded = flow_likelihood(denoise, sde, x, probes)
    exact = flow_likelihood(denoise, sde, x, probes, rtol=1e-9, atol=1e-9)
    theirs = by_scipy(ProbabilityFlow(denoise, sde, probes), x, 1e-5, 1e-5)
    assert theirs.nfe == SSDE[f"{name}__lik_nfe"]
    for found in (rounded, exact, theirs):
        assert rel(levels_bits(found.nats), SSDE[f"{name}__lik_bpd"]) < 1e-5
        assert np.abs(found.latent.numpy() - SSDE[f"{name}__lik_latent"]).max() < 2e-5 * sde.prior_std
    assert rel(levels_bits(exact.nats), SSDE[f"{name}__lik_exact_bpd"]) < RTOL
    true = torch.as_tensor(-log_density(denoise.mixture, sde, x, 1e-5))
    assert rel(levels_bits(true), SSDE[f"{name}__lik_true_bpd"]) < RTOL


# exact worlds


@pytest.mark.parametrize("t_min", [1e-5, 1e-3])
@pytest.mark.parametrize("name", NAMES)
def test_gaussian_data(name: str, t_min: float) -> None:
    """x_T = alpha_T m + (x - alpha m) sqrt(V_T / V); nats are the marginal's plus the mismatch of the prior at x_T."""
    sde, mean, variance = WORLDS[name], 0.3, 0.25
    x = torch.linspace(-1.0, 1.5, 12, dtype=torch.float64).reshape(3, 1, 2, 2)
    denoise = ideal.IdealDenoiser(ideal.gaussian(mean, variance, (1, 2, 2)), sde)
    found = flow_likelihood(denoise, sde, x, rademacher(x, 3), t_min=t_min, rtol=1e-10, atol=1e-10)
    first, last = (float(sde.alpha(t)) ** 2 * variance + float(sde.sigma(t)) ** 2 for t in (t_min, 1.0))
    latent = float(sde.alpha(1.0)) * mean + (x - float(sde.alpha(t_min)) * mean) * math.sqrt(last / first)
    marginal = gaussian_nats(x - float(sde.alpha(t_min)) * mean, math.sqrt(first))
    mismatch = gaussian_nats(latent, sde.prior_std) - gaussian_nats(
        latent - float(sde.alpha(1.0)) * mean, math.sqrt(last)
    )
    assert rel(found.latent, latent) < 1e-8
    assert rel(found.nats, marginal + mismatch) < 1e-8
    assert rel(found.divergence, np.full(3, 2.0 * math.log(last / first))) < 1e-8
    assert found.standard_error is not None and found.standard_error.max() < 1e-12  # a multiple of I: one probe knows


@pytest.mark.parametrize("name", NAMES)
def test_mixtures(name: str) -> None:
    """-log q(x) = -log q_T(x_T) - integral of the divergence; as many probes as dimensions give it exactly."""
    sde, mixture = WORLDS[name], oblique()
    x = mixture.sample(20, seed=1)
    found = flow_likelihood(ideal.IdealDenoiser(mixture, sde), sde, x, basis_probes(x), rtol=1e-10, atol=1e-10)
    expected = -log_density(mixture, sde, found.latent, 1.0) - found.divergence.numpy()
    assert rel(expected, -log_density(mixture, sde, x, 1e-5)) < 1e-8


def test_agrees_with_another_integrator() -> None:
    """solve_ivp's method of order 8, at a tolerance where only rounding is left."""
    denoise, flow, x, t_min, _ = extended_run("nll3_G_tol1e-09_t1e-05")
    theirs = by_scipy(flow, x, t_min, 1e-12, method="DOP853")
    ours = flow_likelihood(denoise, WORLDS["vp"], x, flow.probes, rtol=1e-12, atol=1e-12, max_nfe=2000)
    assert all(rel(a, b) < RTOL for a, b in zip(terms(ours), terms(theirs), strict=True))


# probes


@pytest.mark.parametrize("kind", PROBES)
@pytest.mark.parametrize("name", NAMES)
def test_the_error_bar_covers_the_truth(name: str, kind: str) -> None:
    """Over 600 images with 24 probes each: the share within Student's quantile of the error bar; its mean square."""
    sde, mixture = WORLDS[name], oblique()
    x = mixture.sample(600, seed=0)
    denoise = ideal.IdealDenoiser(mixture, sde)
    truth = flow_likelihood(denoise, sde, x, basis_probes(x)).nats
    found = flow_likelihood(denoise, sde, x, keyed_probes(kind, 24, 0, torch.arange(600), (1, 2, 3)))
    error, bar = (found.nats - truth).abs(), found.standard_error
    assert bar is not None and float(bar.median()) > 0.1
    for level in (0.5, 0.68, 0.95):
        share = float((error < student.ppf(0.5 + level / 2, 23) * bar).double().mean())
        assert abs(share - level) < 4.0 * math.sqrt(level * (1.0 - level) / 600)
    assert float(error.square().mean() / bar.square().mean()) == pytest.approx(1.0, abs=0.25)


def test_probes() -> None:
    """One probe has variance 2 ||J||^2, Rademacher's without the diagonal; an image's probes are its own."""
    generator = torch.Generator().manual_seed(0)
    j = torch.randn(5, 5, dtype=torch.float64, generator=generator)
    j = 0.5 * (j + j.mT)
    off = j - j.diag().diag()
    numbers = torch.arange(40_000)
    for kind, matrix in (("gaussian", j), ("rademacher", off)):
        z = keyed_probes(kind, 1, 7, numbers, (5,))[0]
        forms = torch.einsum("bi,ij,bj->b", z, j, z)
        variance = 2.0 * float(matrix.square().sum())
        assert abs(float(forms.mean() - j.trace())) < 4.0 * math.sqrt(variance / 40_000)
        assert float(forms.var()) == pytest.approx(variance, rel=0.05)
        some = keyed_probes(kind, 3, 7, numbers[10:12], (5,))
        assert torch.equal(some[0], z[10:12]) and not torch.equal(some[0], some[1])
    assert set(z.flatten().tolist()) == {-1.0, 1.0}


def test_the_error_bar_is_that_of_a_mean() -> None:
    """Three probes together and one by one; one probe has no error bar."""
    sde, mixture = WORLDS["vp"], oblique()
    x = mixture.sample(4, seed=3)
    denoise, probes = ideal.IdealDenoiser(mixture, sde), rademacher(x, 3)
    found = flow_likelihood(denoise, sde, x, probes, rtol=1e-9, atol=1e-9)
    alone = [flow_likelihood(denoise, sde, x, z[None], rtol=1e-9, atol=1e-9) for z in probes]
    values = np.stack([one.nats.numpy() for one in alone])
    assert rel(found.nats, values.mean(0)) < 1e-6
    assert found.standard_error is not None
    assert rel(found.standard_error, values.std(0, ddof=1) / math.sqrt(3)) < 1e-5
    assert all(one.standard_error is None for one in alone)


# evaluation


def network(x: Tensor, label: Tensor) -> Tensor:
    return torch.tanh(x.roll(1, -1)) + 0.5 * x


def test_clipping_has_no_part_in_it() -> None:
    x = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64).reshape(2, 1, 2, 2)
    free, limited = (
        flow_likelihood(Denoiser(network, WORLDS["vp"], clip=clip), WORLDS["vp"], x, rademacher(x, 2))
        for clip in (None, (-0.1, 0.1))
    )
    assert torch.equal(free.nats, limited.nats) and free.nfe == limited.nfe


def test_inference_mode_and_single_precision() -> None:
    """Inside inference mode; the denoiser sees x's dtype, the result is float64; evaluations are counted."""
    seen = []

    def watched(x: Tensor, label: Tensor) -> Tensor:
        seen.append(x.dtype)
        return network(x, label)

    x = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64).reshape(2, 1, 2, 2)
    expected = flow_likelihood(Denoiser(network, WORLDS["vp"]), WORLDS["vp"], x, rademacher(x))
    with torch.inference_mode():
        single = x.float()
        found = flow_likelihood(Denoiser(watched, WORLDS["vp"]), WORLDS["vp"], single, rademacher(x))
        double = flow_likelihood(Denoiser(network, WORLDS["vp"]), WORLDS["vp"], x.clone(), rademacher(x))
    assert torch.equal(double.nats, expected.nats)
    assert set(seen) == {torch.float32} and len(seen) == found.nfe
    assert found.nats.dtype == torch.float64 and not found.nats.requires_grad
    assert rel(found.nats, expected.nats) < 1e-4


def test_a_batch_matters_to_the_tolerance_only() -> None:
    sde, mixture = WORLDS["ve"], oblique()
    x = mixture.sample(6, seed=2)
    denoise, probes = ideal.IdealDenoiser(mixture, sde), rademacher(x, 2)
    for tol in (1e-5, 1e-8):
        whole, part = (flow_likelihood(denoise, sde, x[:n], probes[:, :n], rtol=tol, atol=tol).nats[:2] for n in (6, 2))
        assert 0.0 < float((whole - part).abs().max()) < 100 * tol


@pytest.mark.parametrize("name", NAMES)
def test_both_tolerances_act(name: str) -> None:
    """An error is measured against atol + rtol |x|: loosening either saves evaluations."""
    sde = WORLDS[name]
    mixture = ideal.diagonal_mixture([0.35, 0.65], [[-0.6], [0.7]], [0.03, 0.05], (1, 1, 1))
    x = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64).reshape(-1, 1, 1, 1)

    def nfe(rtol: float, atol: float) -> int:
        denoise = ideal.IdealDenoiser(mixture, sde)
        found = flow_likelihood(denoise, sde, x, torch.ones(1, *x.shape).double(), rtol=rtol, atol=atol, max_nfe=9999)
        return found.nfe

    tight = nfe(1e-8, 1e-8)
    assert nfe(1e-3, 1e-8) < 0.7 * tight and nfe(1e-8, 1e-3) < 0.7 * tight


def test_budget() -> None:
    sde = WORLDS["vp"]
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    denoise = Counted(gaussian_denoiser(sde))
    with pytest.raises(UserError, match=r"not solved: `max_nfe` = 20 evaluations were spent at t = .*loosen `rtol`"):
        flow_likelihood(denoise, sde, x, rademacher(x), max_nfe=20)
    assert denoise.calls == 20
    needed = flow_likelihood(denoise, sde, x, rademacher(x)).nfe
    assert denoise.calls == 20 + needed
    assert flow_likelihood(denoise, sde, x, rademacher(x), max_nfe=needed).nfe == needed


def test_bad_input() -> None:
    sde, x = WORLDS["vp"], torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    good = {"denoise": gaussian_denoiser(sde), "process": sde, "x": x, "probes": rademacher(x)}

    def cut(x: Tensor, t: float) -> Prediction:
        return Prediction(x, x.detach(), x.detach())

    def broken(x: Tensor, t: float) -> Prediction:
        return Prediction(x, x * math.nan, x * math.nan)

    for change, message in (
        ({"t_min": 0.0}, "`t_min` = 0.0 must lie in"),
        ({"t_min": 1.0}, "`t_min` = 1.0 must lie in"),
        ({"rtol": 0.0}, "`rtol` = 0.0"),
        ({"atol": math.nan}, "`atol` = nan"),
        ({"x": x * math.nan}, "not finite"),
        ({"probes": x}, r"shape \[P, \*\(1, 1, 1, 1\)\]"),
        ({"probes": x[None, :0]}, "`probes` must have shape"),
        ({"process": DISCRETE["linear"].build(100)}, "needs an SDE"),
        ({"denoise": cut}, "cuts gradients"),
        ({"denoise": broken}, "state is not finite"),
    ):
        with pytest.raises(UserError, match=message):
            flow_likelihood(**(good | change))
    with pytest.raises(UserError, match="`probe` = 'rademacer' is unknown .did you mean 'rademacher'"):
        keyed_probes("rademacer", 1, 0, torch.arange(1), (1,))
    with pytest.raises(UserError, match="`probes` = 0 must be at least 1"):
        keyed_probes("gaussian", 0, 0, torch.arange(1), (1,))


# data with levels
