"""The statement of docs/spectral.md in exact worlds: the optimal covariance, its bound, bases, and what bounds it.

Nothing here but the kernel's numbers: a mixture's posterior moments are in closed form; their averages over x_t, by
quadrature, are compared with bounds measured on draws of (x_0, eps).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from adpm.kernel import Kernel, reverse_kernel
from adpm.process import Array, linear
from tests.test_exact_reverse import WORLDS, random_paths

D, NODES, DRAWS = 3, 16, 20_000
PROCESS = linear(1000)
STEPS = ((60, 20), (300, 100), (700, 300), (1000, 500))
Moments = tuple[Array, Array]
"""Mean [n, D] and covariance [n, D, D]."""


@dataclass(frozen=True)
class World:
    """x_0 ~ sum_k w_k N(m_k, C_k)."""

    weights: Array
    means: Array
    covariances: Array

    def mean(self) -> Array:
        return self.weights @ self.means

    def covariance(self) -> Array:
        off = self.means - self.mean()
        return np.einsum("k,kij->ij", self.weights, self.covariances + off[:, :, None] * off[:, None])

    def posterior(self, x: Array, alpha: float, sigma: float) -> Moments:
        """E and Cov of x_0 given x_t = x."""
        marginals = alpha**2 * self.covariances + sigma**2 * np.eye(D)
        precisions = np.linalg.inv(marginals)
        off = x[:, None] - alpha * self.means
        distance = np.einsum("nki,kij,nkj->nk", off, precisions, off)
        log_weight = np.log(self.weights) - 0.5 * (distance + np.linalg.slogdet(marginals)[1])
        share = np.exp(log_weight - log_weight.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        gains = alpha * self.covariances @ precisions
        each = self.means + np.einsum("kij,nkj->nki", gains, off)
        inner = self.covariances - alpha * gains @ self.covariances
        mean = np.einsum("nk,nki->ni", share, each)
        around = each - mean[:, None]
        return mean, np.einsum("nk,kij->nij", share, inner) + np.einsum("nk,nki,nkj->nij", share, around, around)

    def states(self, alpha: float, sigma: float) -> tuple[Array, Array]:
        """Nodes and weights of Gauss-Hermite quadrature over x_t."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        z = np.array(list(itertools.product(nodes, repeat=D)))
        w = np.prod(list(itertools.product(weights / weights.sum(), repeat=D)), axis=1)
        roots = np.linalg.cholesky(alpha**2 * self.covariances + sigma**2 * np.eye(D))
        x = alpha * self.means[:, None] + np.einsum("kij,nj->kni", roots, z)
        return x.reshape(-1, D), (self.weights[:, None] * w).ravel()

    @functools.cached_property
    def draws(self) -> tuple[Array, Array]:
        """DRAWS of x_0 and of eps."""
        rng = np.random.default_rng(0)
        k = rng.choice(len(self.weights), DRAWS, p=self.weights)
        z, eps = rng.normal(size=(2, DRAWS, D))
        return self.means[k] + np.einsum("nij,nj->ni", np.linalg.cholesky(self.covariances)[k], z), eps


def turned(variances: list[float], seed: int) -> Array:
    axes = np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))[0]
    return axes @ np.diag(variances) @ axes.T


MIXTURE = World(
    np.array([0.35, 0.65]),
    np.array([[0.9, -0.3, 0.2], [-0.4, 0.5, -0.1]]),
    np.stack([turned([0.02, 0.1, 0.4], 0), turned([0.05, 0.2, 0.01], 1)]),
)
GAUSSIAN = World(np.ones(1), MIXTURE.means[:1], turned([0.003, 0.05, 1.2], 2)[None])

Predictor = Callable[[World, Array, float, float], Array]
PREDICTORS: dict[str, Predictor] = {
    "exact": lambda world, x, alpha, sigma: world.posterior(x, alpha, sigma)[0],
    "shrunk": lambda world, x, alpha, sigma: 0.7 * world.posterior(x, alpha, sigma)[0] + 0.2,
    "affine": lambda world, x, alpha, sigma: x @ np.diag([0.8, 0.3, 0.6]) + np.array([0.1, 0.0, -0.2]),
}


def scales(t: float) -> tuple[float, float]:
    return float(PROCESS.alpha(t)), float(PROCESS.sigma(t))


def residual(world: World, predictor: Predictor, t: float) -> Array:
    """R = E (x_0 - x0_hat)(x_0 - x0_hat)^T = E [Cov[x_0 | x_t] + (mean - x0_hat)(mean - x0_hat)^T], by quadrature."""
    alpha, sigma = scales(t)
    x, weights = world.states(alpha, sigma)
    mean, covariance = world.posterior(x, alpha, sigma)
    off = mean - predictor(world, x, alpha, sigma)
    return np.einsum("n,nij->ij", weights, covariance + off[:, :, None] * off[:, None])


def best(kernel: Kernel, moments: Array) -> Array:
    return float(kernel.lambda2) * np.eye(len(moments)) + float(kernel.gain) ** 2 * moments


def minimum(kernel: Kernel, moments: Array) -> float:
    """1/2 log det(I + gain^2/lambda2 R)."""
    ratio = float(kernel.gain) ** 2 / float(kernel.lambda2)
    return 0.5 * float(np.linalg.slogdet(np.eye(len(moments)) + ratio * moments)[1])


def measured(world: World, predictor: Predictor, kernel: Kernel, covariance: Array) -> Array:
    """KL( q(x_s | x_t, x_0) || N(mean, covariance) ) for each draw, from x_0 and eps themselves."""
    x0, eps = world.draws
    alpha_t, sigma_t = float(kernel.alpha_t), float(kernel.sigma_t)
    x = alpha_t * x0 + sigma_t * eps
    x0_hat = predictor(world, x, alpha_t, sigma_t)
    eps_hat = (x - alpha_t * x0_hat) / sigma_t
    off = float(kernel.alpha_s) * (x0 - x0_hat) + float(kernel.eps_scale) * (eps - eps_hat)
    lambda2, precision = float(kernel.lambda2), np.linalg.inv(covariance)
    constant = lambda2 * np.trace(precision) - D + np.linalg.slogdet(covariance)[1] - D * np.log(lambda2)
    return 0.5 * (constant + np.einsum("ni,ij,nj->n", off, precision, off))


def surely(values: Array) -> tuple[float, float]:
    """Mean and five standard errors."""
    return float(values.mean()), 5.0 * float(values.std(ddof=1)) / len(values) ** 0.5


def test_quadrature_finds_the_moments_of_an_affine_mean():
    """x_0 - A x_t - b is affine in x_0 and eps: R from the first two moments of the data alone."""
    for t, _ in STEPS:
        alpha, sigma = scales(t)
        linear_part = np.diag([0.8, 0.3, 0.6])
        kept = np.eye(D) - alpha * linear_part
        bias = kept @ MIXTURE.mean() - np.array([0.1, 0.0, -0.2])
        expected = kept @ MIXTURE.covariance() @ kept + sigma**2 * linear_part @ linear_part + np.outer(bias, bias)
        np.testing.assert_allclose(residual(MIXTURE, PREDICTORS["affine"], t), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.parametrize("world", [MIXTURE, GAUSSIAN], ids=["mixture", "gaussian"])
def test_the_bound_with_the_best_covariance_is_half_a_log_determinant(world, name, eta):
    for t, s in STEPS:
        kernel, moments = reverse_kernel(PROCESS, t, s, eta), residual(world, PREDICTORS[name], t)
        mean, error = surely(measured(world, PREDICTORS[name], kernel, best(kernel, moments)))
        assert abs(mean - minimum(kernel, moments)) < error < 0.1 * mean, (t, s)
    if eta == 1.0:
        drop = np.exp(PROCESS.log_snr(s)) - np.exp(PROCESS.log_snr(t))
        expected = 0.5 * np.log1p(drop * np.linalg.eigvalsh(moments)).sum()
        assert minimum(kernel, moments) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("name", PREDICTORS)
def test_any_other_covariance_costs_more(name, eta):
    """In every direction of the symmetric matrices, both ways, on the same draws."""
    for t, s in STEPS[1:3]:
        kernel = reverse_kernel(PROCESS, t, s, eta)
        covariance = best(kernel, residual(MIXTURE, PREDICTORS[name], t))
        root, least = np.linalg.cholesky(covariance), measured(MIXTURE, PREDICTORS[name], kernel, covariance)
        for (i, j), sign in itertools.product(itertools.combinations_with_replacement(range(D), 2), (-0.3, 0.3)):
            direction = np.zeros((D, D))
            direction[i, j] = direction[j, i] = sign
            other = root @ (np.eye(D) + direction) @ root.T
            rise, error = surely(measured(MIXTURE, PREDICTORS[name], kernel, other) - least)
            assert rise > error, (t, s, i, j, sign)


def test_no_eta_has_a_lower_bound_than_one():
    """gain^2/lambda2 = gamma_s (1 - sqrt((1 - u)(1 - eta^2 u)))^2 / (eta^2 u), u = 1 - gamma_t/gamma_s; least at 1."""
    for t, s in STEPS:
        snr_t, snr_s = np.exp(PROCESS.log_snr(np.array([t, s], dtype=float)))
        u, last = 1.0 - snr_t / snr_s, np.inf
        for eta in (0.05, 0.3, 0.5, 0.9, 1.0):
            kernel = reverse_kernel(PROCESS, t, s, eta)
            ratio = float(kernel.gain) ** 2 / float(kernel.lambda2)
            kept = np.sqrt((1.0 - u) * (1.0 - eta**2 * u))
            assert ratio == pytest.approx(snr_s * (1.0 - kept) ** 2 / (eta**2 * u), rel=1e-9)
            assert ratio < last
            last = ratio
        assert last == pytest.approx(snr_s - snr_t, rel=1e-9)


def in_basis(moments: Array, axes: Array) -> Array:
    """The part of the moments that is diagonal along the columns of `axes`."""
    return axes @ np.diag(np.diag(axes.T @ moments @ axes)) @ axes.T


@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_scalar_basis_matrix(name, eta):
    """Each is at most the one before, in any basis, with equality where there is nothing to lose."""
    for t, s in STEPS:
        kernel, moments = reverse_kernel(PROCESS, t, s, eta), residual(MIXTURE, PREDICTORS[name], t)
        own = np.linalg.eigh(moments)[1]
        scalar, matrix = minimum(kernel, np.trace(moments) / D * np.eye(D)), minimum(kernel, moments)
        pca = np.linalg.eigh(MIXTURE.covariance())[1]
        for axes in (np.eye(D), *(np.linalg.eigh(turned([1, 2, 3], seed))[1] for seed in range(5))):
            assert scalar > minimum(kernel, in_basis(moments, axes)) > matrix
        assert scalar > minimum(kernel, in_basis(moments, pca)) > matrix - 1e-12  # at low SNR PCA is the matrix
        assert minimum(kernel, in_basis(moments, own)) == pytest.approx(matrix, rel=1e-10)
        flat = 0.3 * np.eye(D)
        assert minimum(kernel, in_basis(flat, own)) == pytest.approx(minimum(kernel, flat), rel=1e-10)


def test_on_gaussian_data_pca_is_the_matrix():
    for t, s in STEPS:
        kernel, moments = reverse_kernel(PROCESS, t, s), residual(GAUSSIAN, PREDICTORS["exact"], t)
        along = in_basis(moments, np.linalg.eigh(GAUSSIAN.covariance())[1])
        pixel, scalar = in_basis(moments, np.eye(D)), np.trace(moments) / D * np.eye(D)
        costs = [minimum(kernel, part) for part in (scalar, pixel, along)]
        assert costs[0] > costs[1] > costs[2]
        assert costs[2] == pytest.approx(minimum(kernel, moments), rel=1e-6)


@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", WORLDS)
def test_gaussian_data_are_exact_at_any_number_of_steps(name, eta):
    """The chain's law is that of the process at every node, with r_f = lambda_f rho^2/(lambda_f + rho^2) along PCA."""
    process, data, mean = WORLDS[name], GAUSSIAN.covariances[0], GAUSSIAN.means[0]
    spectrum, axes = np.linalg.eigh(data)
    for steps in (1, 2, 5, 20):
        for times in random_paths(process, steps, 2):
            law = marginal(process, times[-1])
            for t, s in zip(times[:0:-1], times[-2::-1], strict=True):
                kernel = reverse_kernel(process, t, s, eta)
                rho2, alpha_t, sigma_t = np.exp(-process.log_snr(t)), float(kernel.alpha_t), float(kernel.sigma_t)
                wiener = axes @ np.diag(spectrum / (spectrum + rho2) / alpha_t) @ axes.T
                step = float(kernel.alpha_s) * wiener
                step += float(kernel.eps_scale) * (np.eye(D) - alpha_t * wiener) / sigma_t
                offset = float(kernel.gain) * (np.eye(D) - alpha_t * wiener) @ mean  # of x0_hat at x_t = 0
                noise = best(kernel, axes @ np.diag(spectrum * rho2 / (spectrum + rho2)) @ axes.T)
                law = step @ law[0] + offset, step @ law[1] @ step.T + noise
                for got, wanted in zip(law, marginal(process, s), strict=True):
                    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-10 * max(1.0, np.abs(wanted).max()))


def marginal(process, t: float) -> tuple[Array, Array]:
    """Mean and covariance of x_t of the Gaussian data."""
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    return alpha * GAUSSIAN.means[0], alpha**2 * GAUSSIAN.covariances[0] + sigma**2 * np.eye(D)


def test_an_exact_mean_is_at_least_as_good_as_the_best_linear_one():
    """r_f <= lambda_f rho^2/(lambda_f + rho^2) in any basis, kappa_f >= 1/lambda_f; as matrices too."""
    data = MIXTURE.covariance()
    for t in (60, 300, 700, 1000):
        rho2, moments = float(np.exp(-PROCESS.log_snr(t))), residual(MIXTURE, PREDICTORS["exact"], t)
        linear_best = np.linalg.inv(np.linalg.inv(data) + np.eye(D) / rho2)
        assert np.linalg.eigvalsh(linear_best - moments).min() > 0.0
        for seed in range(5):
            axes = np.linalg.eigh(turned([1, 2, 3], seed))[1]
            r, variance = np.diag(axes.T @ moments @ axes), np.diag(axes.T @ data @ axes)
            assert (r < variance * rho2 / (variance + rho2)).all()
            assert (1.0 / r - 1.0 / rho2 > 1.0 / variance).all()


def test_a_cap_that_is_right_for_an_exact_mean_costs_an_imperfect_one():
    """At low SNR r_f of the shrunk mean exceeds the data's variance, and the bound is lower with r_f as it is."""
    axes = np.linalg.eigh(MIXTURE.covariance())[1]
    variance = np.diag(axes.T @ MIXTURE.covariance() @ axes)
    kernel, predictor = reverse_kernel(PROCESS, 1000, 300), PREDICTORS["shrunk"]
    r = np.diag(axes.T @ residual(MIXTURE, predictor, 1000) @ axes)
    assert (r > variance).any()
    capped, free = (axes @ np.diag(v) @ axes.T for v in (np.minimum(r, variance), r))
    rise, error = surely(
        measured(MIXTURE, predictor, kernel, best(kernel, capped))
        - measured(MIXTURE, predictor, kernel, best(kernel, free))
    )
    assert rise > error
    exact = np.diag(axes.T @ residual(MIXTURE, PREDICTORS["exact"], 1000) @ axes)
    assert (exact < variance).all()


@pytest.mark.parametrize("name", [*PREDICTORS, "best linear"])
def test_the_slope_of_the_mean(name):
    """E d x0_hat_f/d y_f = E (y_f - x0_f) x0_hat_f / rho^2 for any mean; r_f/rho^2 for exact and best linear ones."""
    t = 300
    alpha, sigma = scales(t)
    rho2 = (sigma / alpha) ** 2
    gains = MIXTURE.covariance() @ np.linalg.inv(MIXTURE.covariance() + rho2 * np.eye(D)) / alpha

    def linear_mean(world: World, x: Array, alpha: float, sigma: float) -> Array:
        return world.mean() + (x - alpha * world.mean()) @ gains.T

    predictor = PREDICTORS.get(name, linear_mean)
    x, weights = MIXTURE.states(alpha, sigma)
    h = 1e-4
    ahead, behind = (
        np.stack([predictor(MIXTURE, x + way * h * e, alpha, sigma)[:, f] for f, e in enumerate(np.eye(D))], axis=1)
        for way in (1, -1)
    )
    slope = weights @ (ahead - behind) / (2.0 * h) * alpha
    mean, _ = MIXTURE.posterior(x, alpha, sigma)
    stein = weights @ ((x / alpha - mean) * predictor(MIXTURE, x, alpha, sigma)) / rho2
    np.testing.assert_allclose(slope, stein, rtol=2e-4)
    r = np.diag(residual(MIXTURE, predictor, t))
    assert np.allclose(slope, r / rho2, rtol=2e-4) == (name in ("exact", "best linear"))


@pytest.mark.parametrize("name", ["exact", "affine"])
def test_noisier_states_add_nothing_to_an_exact_mean(name):
    """E (x_0 - x0_hat(x_t)) g = 0 for predictions and states at noisier times, if x0_hat is exact; not else."""
    x0, eps = MIXTURE.draws
    predictor, other = PREDICTORS[name], np.random.default_rng(1).normal(size=eps.shape)
    (alpha_t, sigma_t), (alpha, sigma) = scales(300), scales(700)
    x_t = alpha_t * x0 + sigma_t * eps
    ratio = alpha / alpha_t
    noisier = ratio * x_t + np.sqrt(sigma**2 - (ratio * sigma_t) ** 2) * other
    left = x0 - predictor(MIXTURE, x_t, alpha_t, sigma_t)
    seen = np.concatenate([noisier, predictor(MIXTURE, noisier, alpha, sigma)], 1)
    products = left[:, :, None] * (seen - seen.mean(0))[:, None]
    off = np.abs(products.mean(0)) / (products.std(0) / np.sqrt(DRAWS))
    assert (off.max() < 4.0) == (name == "exact")
