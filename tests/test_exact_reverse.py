"""Gaussian data make every reverse step and every whole chain exact: two moments say all.

x_0 ~ N(m, C). Then x_t ~ N(alpha_t m, alpha_t^2 C + sigma_t^2 I) and q(x_s | x_t) is Gaussian; a step is an affine map
of x_t plus Gaussian noise, so that laws of chains follow from products of matrices. Steps are the solver's own: their
maps are read off by probing with unit vectors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike

from adpm import ideal
from adpm.basis import Matrix
from adpm.denoiser import Prediction
from adpm.gaussian import Covariance, InBasis
from adpm.kernel import Kernel, reverse_kernel
from adpm.noise import KeyedNoise
from adpm.process import PROCESSES, Array, Process
from adpm.sampler import keyed, sample
from adpm.solver import ReverseGaussian
from adpm.variance import Analytic, Bounded, Large, LastStepCap, PosteriorRule, Rule, Small, Unit

SHAPE, D = (1, 2, 2), 4


class Scales(Process):
    """A process by its alpha and sigma alone, on u in [0, 1]: variance exploding and sub-VP have this form."""

    prior_std = 1.0

    def __init__(self, alpha: Callable[[Array], Array], sigma: Callable[[Array], Array], steps: int) -> None:
        self._alpha, self._sigma = alpha, sigma
        self.times = np.linspace(0.0, 1.0, steps + 1)

    def alpha(self, t: ArrayLike) -> Array:
        return self._alpha(np.asarray(t, dtype=np.float64))

    def sigma(self, t: ArrayLike) -> Array:
        return self._sigma(np.asarray(t, dtype=np.float64))

    def log_snr(self, t: ArrayLike) -> Array:
        with np.errstate(divide="ignore"):
            return 2 * (np.log(self.alpha(t)) - np.log(self.sigma(t)))


def exploding(steps: int) -> Process:
    return Scales(lambda t: np.ones_like(t), lambda t: np.where(t > 0, 0.01 * 5000.0**t, 0.0), steps)


def sub_vp(steps: int) -> Process:
    integral = lambda t: 0.1 * t + 9.95 * t**2  # noqa: E731
    return Scales(lambda t: np.exp(-0.5 * integral(t)), lambda t: -np.expm1(-integral(t)), steps)


WORLDS: dict[str, Process] = {
    **{name: kind.build(200) for name, kind in PROCESSES.items() if name != "custom"},
    "exploding": exploding(200),
    "sub-VP": sub_vp(200),
}
PRESERVING = [name for name in PROCESSES if name != "custom"]
STEPS = ((2, 1), (3, 1), (17, 5), (120, 119), (150, 30), (200, 199), (200, 1), (1, 0), (60, 0), (200, 0))
ETAS = (0.0, 0.3, 0.5, 1.0)


@pytest.fixture(params=WORLDS)
def process(request) -> Process:
    return WORLDS[request.param]


@dataclass(frozen=True)
class Law:
    """A Gaussian's mean and covariance."""

    mean: Array
    covariance: Array

    def close_to(self, other: Law, tolerance: float) -> bool:
        scale = np.abs(other.covariance).max()
        return bool(
            np.abs(self.mean - other.mean).max() <= tolerance * np.sqrt(scale)
            and np.abs(self.covariance - other.covariance).max() <= tolerance * scale
        )


def gaussian_data(seed: int = 0) -> tuple[ideal.Mixture, Law]:
    """Correlated data with variances from 0.003 to 1.2 along their axes."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(D, D)))[0]
    law = Law(rng.normal(size=D), axes @ np.diag([0.003, 0.05, 0.4, 1.2]) @ axes.T)
    return ideal.full_mixture([1.0], law.mean[None], law.covariance[None], SHAPE), law


def isotropic_data(variance: float) -> tuple[ideal.Mixture, Law]:
    law = Law(np.array([0.5, -0.2, 0.0, 1.0]), variance * np.eye(D))
    return ideal.gaussian(law.mean, variance, SHAPE), law


class Exact(PosteriorRule):
    """Cov[x_0 | x_t] of Gaussian data in the basis of its eigenvectors."""

    def __init__(self, mixture: ideal.Mixture) -> None:
        self.spectrum = mixture.spectrum[0].reshape(SHAPE)
        self.basis = Matrix(torch.eye(D).double() if mixture.basis is None else mixture.basis[0])

    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        alpha2, sigma2 = float(kernel.alpha_t) ** 2, float(kernel.sigma_t) ** 2
        return InBasis(self.spectrum * sigma2 / (alpha2 * self.spectrum + sigma2), basis=self.basis)


def marginal(data: Law, process: Process, t: float) -> Law:
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    return Law(alpha * data.mean, alpha**2 * data.covariance + sigma**2 * np.eye(D))


def matrix(covariance: Covariance) -> Array:
    """The dense covariance of a draw, from its response to unit noise."""
    eye = torch.eye(D, dtype=torch.float64).reshape(D, *SHAPE)
    root = covariance.draw(torch.zeros_like(eye), eye).flatten(1).numpy().T
    return root @ root.T


def step_map(process: Process, mixture: ideal.Mixture, rule: Rule, t: float, s: float, eta: float) -> tuple[Array, ...]:
    """A, b, C with x_s | x_t ~ N(A x_t + b, C), from the solver's step at 0 and the unit vectors."""
    probes = torch.cat([torch.zeros(1, D), torch.eye(D)]).double().reshape(D + 1, *SHAPE)
    taken = ReverseGaussian(process, rule, eta).step(
        ideal.IdealDenoiser(mixture, process), probes, t, s, lambda: torch.zeros_like(probes)
    )
    mean = taken.mean.flatten(1).numpy()
    return (mean[1:] - mean[0]).T, mean[0], matrix(taken.covariance)


def after(law: Law, linear: Array, offset: Array, noise: Array) -> Law:
    return Law(linear @ law.mean + offset, linear @ law.covariance @ linear.T + noise)


def chain(process: Process, mixture: ideal.Mixture, rule: Rule, times: Array, eta: float, start: Law) -> Law:
    """The law of x_0 when x_T has the law `start`; the last step's covariance is counted."""
    law = start
    for t, s in zip(times[:0:-1], times[-2::-1], strict=True):
        law = after(law, *step_map(process, mixture, rule, float(t), float(s), eta))
    return law


def random_paths(process: Process, steps: int, count: int = 3) -> list[Array]:
    """0, K - 1 random times and T; the first path is even."""
    rng = np.random.default_rng(steps)
    inner = [np.linspace(0, process.steps, steps + 1).round().astype(int)[1:-1]]
    inner += [np.sort(rng.choice(np.arange(1, process.steps), steps - 1, replace=False)) for _ in range(count - 1)]
    return [process.times[np.concatenate([[0], i, [process.steps]])] for i in inner]


def conditioned(process: Process, data: Law, t: float, s: float, eta: float) -> tuple[Array, Array, Array]:
    """E and Cov of x_s given x_t by conditioning the joint Gaussian that x_0, the shared and the fresh noise make.

    x_t = alpha_t x_0 + sigma_t e, x_s = alpha_s x_0 + sqrt(sigma_s^2 - lambda2) e + sqrt(lambda2) e'.
    """
    alpha_t, sigma_t, alpha_s, sigma_s = (float(f(u)) for u in (t, s) for f in (process.alpha, process.sigma))
    lambda2 = eta**2 * (sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2) * sigma_s**2 / sigma_t**2
    eye = np.eye(D)
    cross = alpha_s * alpha_t * data.covariance + np.sqrt(sigma_s**2 - lambda2) * sigma_t * eye
    marginal_s, marginal_t = marginal(data, process, s), marginal(data, process, t)
    linear = np.linalg.solve(marginal_t.covariance, cross.T).T
    return linear, marginal_s.mean - linear @ marginal_t.mean, marginal_s.covariance - linear @ cross.T


@pytest.mark.parametrize("eta", ETAS)
def test_a_step_is_the_conditional_of_the_joint_gaussian(process, eta):
    mixture, data = gaussian_data()
    for n, m in STEPS:
        t, s = process.times[n], process.times[m]
        linear, offset, covariance = step_map(process, mixture, Exact(mixture), t, s, eta)
        expected = conditioned(process, data, t, s, eta)
        for got, want in zip((linear, offset, covariance), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)


def test_at_eta_one_the_step_is_that_of_the_markov_chain(process):
    """x_t = (alpha_t/alpha_s) x_s + noise of the forward variance: Bayes' rule between neighbours, no x_0 at all."""
    mixture, data = gaussian_data(1)
    for n, m in STEPS[:7]:
        t, s = process.times[n], process.times[m]
        ratio = float(process.alpha(t) / process.alpha(s))
        forward = float(process.sigma(t)) ** 2 - ratio**2 * float(process.sigma(s)) ** 2
        prior = marginal(data, process, s)
        linear = ratio * prior.covariance @ np.linalg.inv(ratio**2 * prior.covariance + forward * np.eye(D))
        offset = prior.mean - linear @ (ratio * prior.mean)
        covariance = prior.covariance - ratio * linear @ prior.covariance
        got = step_map(process, mixture, Exact(mixture), t, s, 1.0)
        for a, b in zip(got, (linear, offset, covariance), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("steps", [2, 5, 20])
def test_a_chain_of_exact_steps_ends_in_the_data(process, steps, eta):
    """For every eta, not only 1: each step's Gaussian is q_eta(x_s | x_t), and q_eta has the marginals of q."""
    mixture, data = gaussian_data()
    for times in random_paths(process, steps):
        start = marginal(data, process, times[-1])
        assert chain(process, mixture, Exact(mixture), times, eta, start).close_to(data, 1e-10)


@pytest.mark.parametrize("variance", [0.01, 0.5, 3.0])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_scalar_rule_is_exact_on_isotropic_data(process, variance, eta):
    mixture, data = isotropic_data(variance)
    rule = Analytic(lambda t: 1.0 / (1.0 / variance + np.exp(process.log_snr(t))))
    for steps, times in itertools.chain(*[[(k, p) for p in random_paths(process, k, 2)] for k in (2, 5, 20)]):
        law = chain(process, mixture, rule, times, eta, marginal(data, process, times[-1]))
        assert law.close_to(data, 1e-10), steps


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_unit_is_exact_on_the_standard_normal(process, eta):
    mixture, data = ideal.gaussian(0.0, 1.0, SHAPE), Law(np.zeros(D), np.eye(D))
    for times in random_paths(process, 5):
        law = chain(process, mixture, Unit(), times, eta, marginal(data, process, times[-1]))
        assert law.close_to(data, 1e-10)
    wide = ideal.gaussian(0.0, 2.0, SHAPE)
    start = marginal(Law(np.zeros(D), 2 * np.eye(D)), process, times[-1])
    assert np.trace(chain(process, wide, Unit(), times, eta, start).covariance) < 0.99 * 2 * D


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_small_is_exact_on_a_point_and_too_narrow_on_everything_else(process, eta):
    point = np.array([0.5, -0.2, 0.0, 1.0])
    times = random_paths(process, 5, 1)[0]
    data = Law(point, np.zeros((D, D)))
    start = marginal(data, process, times[-1])
    law = chain(process, ideal.gaussian(point, 0.0, SHAPE), Small(), times, eta, start)
    np.testing.assert_allclose(law.mean, point, atol=1e-10)
    np.testing.assert_allclose(law.covariance, 0.0, atol=1e-10)
    mixture, data = gaussian_data()
    start = marginal(data, process, times[-1])
    narrow = chain(process, mixture, Small(), times, eta, start).covariance
    assert np.linalg.eigvalsh(data.covariance - narrow).min() > 1e-4


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_what_small_loses_halves_with_twice_the_steps(eta):
    """DDPM with beta-tilde and DDIM are first order: their lost variance is O(1/K)."""
    process = PROCESSES["vp_integral"].build(4000)
    mixture, data = isotropic_data(0.3)
    start = marginal(data, process, 4000.0)
    lost = []
    for steps in (100, 200, 400):
        times = process.times[:: 4000 // steps]
        law = chain(process, mixture, Small(), times, eta, start)
        lost.append(1 - np.trace(law.covariance) / np.trace(data.covariance))
    ratios = np.array(lost[:-1]) / np.array(lost[1:])
    assert ((ratios > 1.8) & (ratios < 2.2)).all(), lost


def test_the_scalar_optimum_keeps_the_trace(process):
    """Analytic-DPM's one number on anisotropic data: wrong in every direction, right in tr Cov[x_s] after one step."""
    mixture, data = gaussian_data()
    spectrum = mixture.spectrum[0].numpy()
    rule = Analytic(lambda t: float(np.mean(1.0 / (1.0 / spectrum + np.exp(process.log_snr(t))))) * np.ones_like(t))
    for eta, (n, m) in itertools.product(ETAS, STEPS):
        t, s = process.times[n], process.times[m]
        law = after(marginal(data, process, t), *step_map(process, mixture, rule, t, s, eta))
        target = marginal(data, process, s)
        assert np.trace(law.covariance) == pytest.approx(np.trace(target.covariance), rel=1e-10)
    assert not law.close_to(target, 1e-2)


def test_the_published_last_step_leaves_out_its_own_covariance(process):
    """x_0 is the mean of the last Gaussian: Cov[x_0] of the samples lacks exactly E Cov[x_0 | x_t1]."""
    mixture, data = gaussian_data()
    times = random_paths(process, 5, 1)[0]
    law = chain(process, mixture, Exact(mixture), times[1:], 1.0, marginal(data, process, times[-1]))
    last = step_map(process, mixture, Exact(mixture), times[1], 0.0, 1.0)
    noiseless = after(law, last[0], last[1], np.zeros((D, D)))
    snr = np.exp(process.log_snr(times[1]))
    expected = data.covariance - np.linalg.inv(np.linalg.inv(data.covariance) + snr * np.eye(D))
    np.testing.assert_allclose(noiseless.covariance, expected, atol=1e-10)
    np.testing.assert_allclose(noiseless.mean, data.mean, atol=1e-10)


def test_at_eta_one_gain_squared_over_lambda2_is_the_drop_in_snr(process):
    """gain^2 / lambda2 = gamma_s - gamma_t, for neighbours and across the whole range."""
    n = np.arange(2, process.steps + 1)
    for m in (n - 1, np.maximum(n // 2, 1), np.ones_like(n)):
        t, s = process.times[n], process.times[m]
        kernel = reverse_kernel(process, t, s)
        snr_s, snr_t = ((process.alpha(u) / process.sigma(u)) ** 2 for u in (s, t))
        np.testing.assert_allclose(kernel.gain**2 / kernel.lambda2, snr_s - snr_t, rtol=1e-8)
        np.testing.assert_allclose(kernel.snr_drop, snr_s - snr_t, rtol=1e-8)


@pytest.mark.parametrize("name", PRESERVING)
def test_large_equals_unit_on_variance_preserving_processes(name):
    process = WORLDS[name]
    t, s = (process.times[np.array(i)] for i in zip(*STEPS, strict=True))
    kernel = reverse_kernel(process, t, s)
    np.testing.assert_allclose(Large()(kernel, None).values, Unit()(kernel, None).values, rtol=1e-9)


def test_large_is_far_too_wide_on_the_exploding_process():
    process = WORLDS["exploding"]
    kernel = reverse_kernel(process, process.times[[100, 200]], process.times[[50, 100]])
    ratio = Large()(kernel, None).values / Unit()(kernel, None).values
    assert ratio[0] > 1.4 and ratio[1] > 1000
    mixture, data = gaussian_data()
    times = random_paths(process, 5, 1)[0]
    start = marginal(data, process, times[-1])
    wide = chain(process, mixture, Large(), times, 1.0, start)
    assert np.linalg.eigvalsh(wide.covariance - data.covariance).min() > 0


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_state_independent_rules_say_the_same_of_many_steps_as_of_each(process, eta):
    """Planning asks for all steps at once; caps and bounds act on each as if it were alone."""
    analytic = Analytic(lambda t: 1.0 / (2.0 + np.exp(process.log_snr(t))))
    rules: list[Rule] = [Small(), Unit(), analytic, Bounded(analytic, 0.2)]
    rules += [LastStepCap(rule, 1e-3, process.times[20]) for rule in rules]
    t, s = (process.times[np.array(i)] for i in zip(*STEPS, strict=True))
    for rule in rules:
        together = rule(reverse_kernel(process, t, s, eta), None).values
        alone = [rule(reverse_kernel(process, a, b, eta), None).values for a, b in zip(t, s, strict=True)]
        np.testing.assert_allclose(np.asarray(together) * np.ones_like(t), alone, rtol=1e-12)
    capped = LastStepCap(Unit(), 1e-9, process.times[20])
    values = capped(reverse_kernel(process, t, s, eta), None).values
    np.testing.assert_array_equal(values == 1e-9, (s > 0) & (s <= process.times[20]))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_sampling_loop_draws_from_the_law_of_the_recursion(eta):
    """4000 samples from the prior through `sample`: means and covariances within 4.5 standard errors."""
    process, n = WORLDS["linear"], 4000
    mixture, _ = gaussian_data()
    times = process.times[[0, 40, 80, 200]]
    solver = ReverseGaussian(process, Exact(mixture), eta)
    noise = keyed(KeyedNoise(0, "sample"), torch.arange(n), SHAPE, torch.float64)
    steps = list(sample(ideal.IdealDenoiser(mixture, process), solver, process, times, noise))
    law = chain(process, mixture, Exact(mixture), times[1:], eta, Law(np.zeros(D), np.eye(D)))
    last = step_map(process, mixture, Exact(mixture), times[1], 0.0, eta)
    for taken, expected in ((steps[-2], law), (steps[-1], after(law, last[0], last[1], np.zeros((D, D))))):
        x = taken.x.flatten(1).numpy()
        assert (abs(x.mean(0) - expected.mean) < 4.5 * x.std(0) / np.sqrt(n)).all()
        z = x - expected.mean
        products = z[:, :, None] * z[:, None]
        assert (abs(products.mean(0) - expected.covariance) < 4.5 * products.std(0) / np.sqrt(n)).all()
