"""The variational bound in exact worlds, where it can be equal to -log p(x_0) and its optimum is known.

A term is quadratic in the noise of x_t when the data are Gaussian, and separable over pixels: the average over eps = +1
and eps = -1 in every pixel is its exact expectation. What follows is therefore equality, not Monte Carlo.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from adpm import ideal
from adpm.denoiser import Prediction
from adpm.errors import UserError
from adpm.gaussian import Covariance, Diagonal
from adpm.kernel import Kernel, reverse_kernel, step_nats
from adpm.likelihood import (
    DECODERS,
    Decoder,
    DecoderNeeds,
    Levels,
    NoiseAt,
    Statistics,
    decoder_nats,
    keyed_noise,
    measure_statistics,
    path_terms,
    prior_nats,
)
from adpm.process import PROCESSES, Array, DiscreteProcess, Process
from adpm.variance import Analytic, Bounded, PosteriorRule, Rule, Unit

SHAPE, D = (1, 2, 3), 6
CONTINUOUS = Levels(0, 0.0, 0.0)
NAMES = [name for name in PROCESSES if name != "custom"]
PATHS = ((0, 200), (0, 1, 200), (0, 13, 60, 200), (0, 5, 6, 7, 100, 120, 200), tuple(range(201)))
MEAN, VARIANCE = 0.3, 0.4


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def true_variance(process: Process, variance: float = VARIANCE) -> Callable[[Array], Array]:
    return lambda t: 1.0 / (1.0 / variance + np.exp(process.log_snr(t)))


def optimal(process: Process, variance: Callable[[Array], Array]) -> Decoder:
    return DECODERS["optimal"].build(DecoderNeeds(process, lambda: variance))


def images(n: int, seed: int = 0) -> Tensor:
    return MEAN + math.sqrt(VARIANCE) * torch.randn(
        n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def expected_bound(
    denoise: ideal.IdealDenoiser, rule: Rule, decoder: Decoder, times: Array, x0: Tensor, eta: float = 1.0
) -> Tensor:
    """E over the noise of all x_t of the bound, nats per image: terms averaged over eps = +1 and -1."""
    total = prior_nats(denoise.process, x0)
    for sign in (1.0, -1.0):
        unit = torch.full_like(x0, sign)
        terms = path_terms(denoise, denoise.process, rule, decoder, CONTINUOUS, times, x0, lambda t, u=unit: u, eta)
        total = total + 0.5 * sum(term.nats for term in terms)
    return total


def minus_log_density(x: Tensor, mean: float, variance: float) -> Tensor:
    return 0.5 * ((x - mean).square() / variance + math.log(2 * math.pi * variance)).flatten(1).sum(1)


def prior_mismatch(process: Process, x0: Tensor) -> Tensor:
    """E[ log q(x_T) - log p(x_T) | x_0 ]: what starting from N(0, prior_std^2) instead of q(x_T) costs."""
    alpha2, sigma2 = float(process.alpha(process.times[-1])) ** 2, float(process.sigma(process.times[-1])) ** 2
    marginal, prior = alpha2 * VARIANCE + sigma2, process.prior_std**2
    under_prior = (alpha2 * x0.square() + sigma2) / prior + math.log(prior)
    under_marginal = (alpha2 * (x0 - MEAN).square() + sigma2) / marginal + math.log(marginal)
    return 0.5 * (under_prior - under_marginal).flatten(1).sum(1)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"K={len(path) - 1}")
@pytest.mark.parametrize("name", NAMES)
def test_on_gaussian_data_the_bound_is_the_negative_log_likelihood(name, path):
    """For every image and ANY path: what the prior N(0, I) is not q(x_T) is the whole difference."""
    process = PROCESSES[name].build(200)
    denoise = ideal.IdealDenoiser(ideal.gaussian(MEAN, VARIANCE, SHAPE), process)
    variance, x0 = true_variance(process), images(5)
    bound = expected_bound(denoise, Analytic(variance), optimal(process, variance), process.times[list(path)], x0)
    expected = minus_log_density(x0, MEAN, VARIANCE) + prior_mismatch(process, x0)
    torch.testing.assert_close(bound, expected, rtol=1e-9, atol=1e-9)
    assert prior_mismatch(process, x0).abs().max() < 1.0 < expected.abs().min()


@pytest.mark.parametrize("seed", [0, 1])
def test_measured_bounds_meet_the_likelihood_within_their_error(seed):
    """The same with keyed noise: one draw per time; two noise seeds agree per image within the terms' spread."""
    process = PROCESSES["linear"].build(200)
    denoise = ideal.IdealDenoiser(ideal.gaussian(MEAN, VARIANCE, SHAPE), process)
    variance, n = true_variance(process), 4000
    x0 = images(1, 5).expand(n, *SHAPE)  # one image, many noises
    noise = keyed_noise(seed, process, torch.arange(n), SHAPE, torch.float64)
    times = process.times[[0, 5, 30, 100, 200]]
    args = denoise, process, Analytic(variance), optimal(process, variance), CONTINUOUS, times, x0, noise
    bound = sum(term.nats for term in path_terms(*args)) + prior_nats(process, x0)
    expected = (minus_log_density(x0, MEAN, VARIANCE) + prior_mismatch(process, x0))[0].item()
    error = bound.std().item() / math.sqrt(n)
    assert abs(bound.mean().item() - expected) < 4 * error
    assert error < 0.01 * D


@pytest.mark.parametrize("eta", [0.3, 0.8])
def test_below_eta_one_exact_steps_no_longer_close_the_bound(eta):
    """q_eta's x_s given x_t is not all its future knows about x_0: one step per path is tight, more lose something."""
    process = PROCESSES["linear"].build(200)
    denoise = ideal.IdealDenoiser(ideal.gaussian(MEAN, VARIANCE, SHAPE), process)
    variance, x0 = true_variance(process), images(4000)
    rule, decoder = Analytic(variance), optimal(process, variance)
    nll = (minus_log_density(x0, MEAN, VARIANCE) + prior_mismatch(process, x0)).mean().item()
    gaps = []
    for path in ((0, 200), (0, 60, 200), (0, 30, 60, 120, 200)):
        bound = expected_bound(denoise, rule, decoder, process.times[list(path)], x0, eta)
        gaps.append(bound.mean().item() - nll)
    assert abs(gaps[0]) < 1e-9
    assert gaps[2] > gaps[1] > 0.01


class PerPixel(PosteriorRule):
    """Cov[x_0 | x_t] of data whose pixels are independent with different variances."""

    def __init__(self, variances: Tensor) -> None:
        self.variances = variances

    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        return Diagonal(1.0 / (1.0 / self.variances + float(kernel.alpha_t / kernel.sigma_t) ** 2))


def test_a_diagonal_rule_leaves_only_the_decoders_gap():
    """Unequal pixels: with their exact covariance all steps are tight; the one scalar of the decoder costs its known
    KL, and a scalar rule costs more on top, the Jensen gap of every step."""
    process = PROCESSES["linear"].build(200)
    variances = torch.tensor([0.01, 0.05, 0.2, 0.5, 1.0, 3.0]).double().reshape(SHAPE)
    denoise = ideal.IdealDenoiser(ideal.gaussian(0.0, variances.flatten().numpy(), SHAPE), process)
    times = process.times[[0, 20, 60, 200]]
    # a bound is quadratic in x_0 too: averaging x_0 = +sd and -sd gives its exact expectation over the data
    x0 = torch.stack([variances.sqrt(), -variances.sqrt()])
    spread = lambda t: (1.0 / (1.0 / variances + float(np.exp(process.log_snr(t))))).flatten()  # noqa: E731
    scalar = lambda t: np.array([spread(u).mean().item() for u in np.atleast_1d(t)]).reshape(np.shape(t))  # noqa: E731
    decoder = optimal(process, scalar)
    alpha2, sigma2 = (float(f(200.0)) ** 2 for f in (process.alpha, process.sigma))
    last = alpha2 * variances + sigma2
    entropy = 0.5 * (variances.log() + 1 + math.log(2 * math.pi)).sum()
    mismatch = 0.5 * (last - 1 - last.log()).sum()
    jensen = lambda v: 0.5 * (len(v) * v.mean().log() - v.log().sum())  # noqa: E731
    exact = expected_bound(denoise, PerPixel(variances), decoder, times, x0).mean()
    torch.testing.assert_close(exact, entropy + mismatch + jensen(spread(times[1])), rtol=1e-10, atol=1e-10)
    averaged = expected_bound(denoise, Analytic(scalar), decoder, times, x0).mean()
    steps = 0.0
    for t, s in ((60.0, 20.0), (200.0, 60.0)):
        kernel = reverse_kernel(process, t, s)
        steps += jensen(float(kernel.lambda2) + float(kernel.gain) ** 2 * spread(t))
    torch.testing.assert_close(averaged - exact, steps, rtol=1e-8, atol=1e-10)


def classes_world(process: Process) -> tuple[ideal.IdealDenoiser, Tensor]:
    mixture = ideal.diagonal_mixture([0.3, 0.7], [[-0.8] * D, [0.6] * D], [0.02, 0.05], SHAPE)
    return ideal.IdealDenoiser(mixture, process), mixture.sample(300, 4)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_residual_minimises_the_bound_over_scalar_variances(eta):
    """Of all scalar rules c Var_t, none beats c = 1 with Var_t the mean squared error of x0_hat, on the very draws."""
    process = PROCESSES["cosine"].build(100)
    denoise, x0 = classes_world(process)
    noise = keyed_noise(0, process, torch.arange(len(x0)), SHAPE, torch.float64)
    times = process.times[[0, 10, 40, 70, 100]]
    rows = list(measure_statistics(denoise, process, lambda t: 1.0, CONTINUOUS, times[1:], x0, noise))
    residual = {t: squared.mean() / D for t, squared, _ in rows}

    def bound(factor: float) -> tuple[list[float], float]:
        variance = lambda t: factor * np.vectorize(residual.get)(t)  # noqa: E731
        decoder = optimal(process, variance)
        terms = list(path_terms(denoise, process, Analytic(variance), decoder, CONTINUOUS, times, x0, noise, eta))
        return [term.nats.mean().item() for term in terms]

    best = bound(1.0)
    for factor in (0.3, 0.9, 0.999, 1.001, 1.1, 3.0):
        assert all(worse > least for worse, least in zip(bound(factor), best, strict=True))
    up, down = np.array(bound(1 + 1e-4)), np.array(bound(1 - 1e-4))
    assert (abs(up - down) < 1e-3 * (up + down - 2 * np.array(best)) / 1e-4).all()  # flat: slope far below curvature


def test_the_minimum_of_a_step_is_the_log_of_the_snr_drop():
    """1/2 log1p((gamma_s - gamma_t) Var_t) per dimension, what planning pays for a step."""
    process = PROCESSES["linear"].build(1000)
    t, s = process.times[[2, 10, 300, 1000, 1000]], process.times[[1, 9, 100, 999, 1]]
    variance = np.array([1e-4, 1e-3, 0.1, 0.3, 0.3])
    kernel = reverse_kernel(process, t, s)
    best = step_nats(kernel, kernel.lambda2 + kernel.gain**2 * variance, variance)
    np.testing.assert_allclose(best, 0.5 * np.log1p(kernel.snr_drop * variance), rtol=1e-9)
    for factor in (0.9, 1.1):
        assert (step_nats(kernel, kernel.lambda2 + factor * kernel.gain**2 * variance, variance) > best).all()


def test_on_gaussian_data_every_path_costs_the_i_mmse_integral():
    """Half the integral of Var over the SNR, from one step to thousands: the steps are exact."""
    process = PROCESSES["vp_integral"].build(4096)
    variance = true_variance(process)
    ends = np.exp(process.log_snr(process.times[[256, 4096]]))
    integral = 0.5 * math.log((1 / VARIANCE + ends[0]) / (1 / VARIANCE + ends[1]))
    sums = []
    for stride in (3840, 256, 16, 1):
        times = process.times[256::stride]
        kernel = reverse_kernel(process, times[1:], times[:-1])
        sums.append(0.5 * np.log1p(kernel.snr_drop * variance(times[1:])).sum())
    np.testing.assert_allclose(sums, integral, rtol=1e-10)


@pytest.mark.parametrize("rule", ["analytic", "unit"])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_statistics_price_a_path_as_the_path_itself(rule, eta):
    process = PROCESSES["linear"].build(100)
    denoise, x0 = classes_world(process)
    noise = keyed_noise(3, process, torch.arange(len(x0)), SHAPE, torch.float64)
    rules = {"analytic": Analytic(true_variance(process)), "unit": Unit()}
    decoder = optimal(process, true_variance(process))
    measured = process.times[[1, 10, 40, 70, 100]]
    rows = list(measure_statistics(denoise, process, decoder, CONTINUOUS, measured, x0, noise))
    prior = prior_nats(process, x0).numpy()
    statistics = Statistics(measured, np.stack([r[1] for r in rows]), np.stack([r[2] for r in rows]), prior, D)
    for path in ([0, 100], [0, 1, 100], [0, 10, 40, 70, 100]):
        times = process.times[path]
        terms = path_terms(denoise, process, rules[rule], decoder, CONTINUOUS, times, x0, noise, eta)
        expected = [term.nats.numpy() for term in terms][::-1]
        got = statistics.terms(process, rules[rule], times, eta)
        np.testing.assert_allclose(got, [*expected, prior], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(statistics.variance(), [r[1].mean() / D for r in rows], rtol=1e-12)


@pytest.mark.parametrize("count", [2, 3, 17, 256])
@pytest.mark.parametrize("sd", [0.003, 0.05, 0.4, 3.0])
def test_decoder_probabilities_sum_to_one_over_all_levels(count, sd):
    """For means on, between and beyond the levels; the floor of 1e-12 adds at most itself per level."""
    levels = Levels(count, -1.0, 1.0)
    x0 = torch.linspace(-1, 1, count, dtype=torch.float64).reshape(-1, 1, 1, 1)
    for mean in (-1.3, -1.0, -0.37, 0.0, 0.5 * levels.width, 0.999, 1.0, 2.0):
        nats = decoder_nats(x0, torch.full_like(x0, mean), sd**2, levels)
        assert torch.exp(-nats).sum().item() == pytest.approx(1.0, abs=1e-12 * count + 1e-12)
        assert (nats >= -1e-12).all()


def test_a_narrow_bin_holds_density_times_width():
    """With many levels the discretised Gaussian is the continuous one: nats differ by -log(width) per pixel."""
    levels = Levels(4001, -1.0, 1.0)
    x0 = torch.linspace(-0.5, 0.5, 41, dtype=torch.float64).reshape(-1, 1, 1, 1)
    mean = torch.full_like(x0, 0.1)
    discrete = decoder_nats(x0, mean, 0.3**2, levels)
    continuous = decoder_nats(x0, mean, 0.3**2, CONTINUOUS) - math.log(levels.width)
    torch.testing.assert_close(discrete, continuous, rtol=0, atol=8e-3)  # the published cdf is an approximation


def test_terms_do_not_depend_on_the_batch():
    """Noise is keyed by (seed, image, t): an image's terms are the same alone, in any batch and on any path."""
    process = PROCESSES["linear"].build(100)
    denoise, x0 = classes_world(process)
    x0, numbers = x0[:30], torch.arange(1000, 1030)
    variance = true_variance(process)

    def terms(part: Tensor, path: list[int], seed: int = 7) -> dict[tuple[float, float], Tensor]:
        noise = keyed_noise(seed, process, numbers[part], SHAPE, torch.float64)
        steps = path_terms(
            denoise, process, Analytic(variance), optimal(process, variance), CONTINUOUS,
            process.times[path], x0[part], noise,
        )  # fmt: skip
        return {(step.t, step.s): step.nats for step in steps}

    order = torch.arange(30)
    whole = terms(order, [0, 10, 50, 100])
    for size in (1, 7, 29):
        parts = [terms(part, [0, 10, 50, 100]) for part in order.split(size)]
        for key, nats in whole.items():
            torch.testing.assert_close(torch.cat([p[key] for p in parts]), nats, rtol=1e-9, atol=1e-9)
    other_path = terms(order, [0, 3, 10, 50, 80, 100])
    torch.testing.assert_close(other_path[50.0, 10.0], whole[50.0, 10.0], rtol=0, atol=0)
    assert (terms(order, [0, 10, 50, 100], seed=8)[50.0, 10.0] != whole[50.0, 10.0]).all()


def test_a_step_says_how_much_its_rules_bounds_have_changed():
    """The posterior variance is above 1e-9 everywhere: all is changed, but in the last step, which has no rule."""
    process = PROCESSES["linear"].build(100)
    denoise = ideal.IdealDenoiser(ideal.gaussian(MEAN, VARIANCE, SHAPE), process)
    for upper, share in ((1e-9, 1.0), (9.0, 0.0)):
        rule = Bounded(Analytic(true_variance(process)), upper)
        steps = path_terms(
            denoise, process, rule, lambda t: 1.0, CONTINUOUS, process.times[[0, 10, 50, 100]], images(2),
            lambda t: torch.ones(2, *SHAPE, dtype=torch.float64),
        )  # fmt: skip
        assert [float(step.clipped) for step in steps] == [share, share, 0.0]


def test_prior_is_the_divergence_of_two_gaussians():
    process = PROCESSES["linear"].build(1000)
    x0 = images(4)
    alpha, sigma = float(process.alpha(1000)), float(process.sigma(1000))
    ends = torch.distributions.Normal(alpha * x0, sigma), torch.distributions.Normal(0.0 * x0, 1.0)
    expected = torch.distributions.kl_divergence(*ends).flatten(1).sum(1)
    torch.testing.assert_close(prior_nats(process, x0), expected, rtol=1e-6, atol=1e-12)


def test_impossible_requests_are_refused_in_words():
    process = PROCESSES["cosine"].build(10)
    denoise = ideal.IdealDenoiser(ideal.gaussian(MEAN, VARIANCE, SHAPE), process)
    noise: NoiseAt = lambda t: torch.zeros(2, *SHAPE).double()  # noqa: E731
    terms = path_terms(denoise, process, Unit(), lambda t: 1.0, CONTINUOUS, process.times, images(2), noise, eta=0.0)
    with pytest.raises(UserError, match=r"infinite at `eta` = 0 .*use `eta` in \(0, 1\]"):
        next(terms)
    for path in ([0, 5], [1, 10]):
        times = process.times[path]
        terms = path_terms(denoise, process, Unit(), lambda t: 1.0, CONTINUOUS, times, images(2), noise)
        with pytest.raises(UserError, match="a bound needs a path from 0 to 10"):
            next(terms)
    for low, high in ((1.0, 1.0), (1.0, -1.0), (-1.0, float("inf")), (float("nan"), 1.0)):
        with pytest.raises(
            UserError, match=rf"`low` = {low} and `high` = {high} must satisfy low < high, and be finite"
        ):
            Levels(17, low, high)
    for count in (1, -3):
        with pytest.raises(UserError, match=rf"`levels` = {count} must be at least 2, or 0 for continuous data"):
            Levels(count, -1.0, 1.0)
    with pytest.raises(UserError, match="decoder variance must be positive, got -0.1"):
        decoder_nats(images(2), images(2), -0.1, CONTINUOUS)
    with pytest.raises(UserError, match="at least 2 steps; use `likelihood.decoder` = 'optimal'"):
        DECODERS["published"].build(DecoderNeeds(DiscreteProcess([0.1]), lambda: true_variance(process)))
