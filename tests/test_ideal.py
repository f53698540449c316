"""Exact denoisers against quadrature, linear algebra, Bayes' rule and automatic differentiation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from adpm import ideal
from adpm.process import PROCESSES
from adpm.run.data import digits

PROCESS = PROCESSES["linear"].build(1000)
TIMES = (1.0, 20.0, 100.0, 300.0, 500.0, 900.0, 1000.0)
WEIGHTS, MEANS, VARIANCES = np.array([0.2, 0.5, 0.3]), np.array([-1.0, 0.1, 0.9]), np.array([0.04, 0.3, 0.01])


def scales(t: float) -> tuple[float, float]:
    return float(PROCESS.alpha(t)), float(PROCESS.sigma(t))


def random_covariances(rng: np.random.Generator, count: int, d: int) -> np.ndarray:
    roots = rng.normal(size=(count, d, d)) / np.sqrt(d)
    return roots @ roots.transpose(0, 2, 1) + 0.02 * np.eye(d)


def full_world(d_shape: tuple[int, ...] = (1, 2, 2), count: int = 3) -> tuple[ideal.Mixture, np.ndarray]:
    rng = np.random.default_rng(5)
    d = int(np.prod(d_shape))
    covariances = random_covariances(rng, count, d)
    return ideal.full_mixture(WEIGHTS[:count], rng.normal(size=(count, d)), covariances, d_shape), covariances


def states(mixture: ideal.Mixture, t: float, n: int, seed: int = 0) -> Tensor:
    """Draws of x_t."""
    alpha, sigma = scales(t)
    x0 = mixture.sample(n, seed)
    return alpha * x0 + sigma * torch.randn(x0.shape, dtype=x0.dtype, generator=torch.Generator().manual_seed(seed + 1))


@pytest.mark.parametrize("t", TIMES)
def test_one_dimensional_mixture_against_quadrature(t):
    alpha, sigma = scales(t)
    denoise = ideal.IdealDenoiser(ideal.diagonal_mixture(WEIGHTS, MEANS[:, None], VARIANCES, (1, 1, 1)), PROCESS)
    x = states(denoise.mixture, t, 25)
    x0 = np.linspace(-6, 6, 200_001)  # a hundred points within the narrowest likelihood
    prior = WEIGHTS * np.exp(-0.5 * (x0[:, None] - MEANS) ** 2 / VARIANCES) / np.sqrt(VARIANCES)
    for value in x.flatten().tolist():
        posterior = prior.sum(1) * np.exp(-0.5 * ((value - alpha * x0) / sigma) ** 2)
        posterior /= posterior.sum()
        mean = posterior @ x0
        variance = posterior @ (x0 - mean) ** 2
        square = posterior @ ((value - alpha * x0) / sigma) ** 2
        one = torch.full((1, 1, 1, 1), value, dtype=torch.float64)
        assert denoise(one, t).x0.item() == pytest.approx(mean, rel=1e-9, abs=1e-12)
        assert denoise.variance(one, t).item() == pytest.approx(variance, rel=1e-9)
        assert denoise.squared_noise(one, t).item() == pytest.approx(square, rel=1e-9)


@pytest.mark.parametrize("t", TIMES)
def test_full_gaussian_against_the_linear_gaussian_formula(t):
    alpha, sigma = scales(t)
    mixture, covariances = full_world((1, 2, 3), 1)
    covariance, mean = covariances[0], mixture.means[0].numpy()
    x = states(mixture, t, 7)
    gain = alpha * covariance @ np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(6))
    expected = mean + (x.flatten(1).numpy() - alpha * mean) @ gain.T
    posterior = covariance - alpha * gain @ covariance
    denoise = ideal.IdealDenoiser(mixture, PROCESS)
    np.testing.assert_allclose(denoise(x, t).x0.flatten(1), expected, atol=1e-11)
    np.testing.assert_allclose(denoise.variance(x, t).flatten(1), np.tile(np.diag(posterior), (7, 1)), rtol=1e-8)


@pytest.mark.parametrize("t", (20.0, 300.0, 700.0))
def test_a_rotated_world_has_rotated_answers(t):
    """x -> Q x carries a diagonal mixture into a full one: means follow Q, tr Cov stays."""
    rng = np.random.default_rng(2)
    means, variances = rng.normal(size=(3, 4)), rng.uniform(0.02, 0.5, (3, 4))
    plain = ideal.diagonal_mixture(WEIGHTS, means, variances, (1, 2, 2))
    x = states(plain, t, 40)
    alpha, sigma = scales(t)
    mean, variance = (z.flatten(1).numpy() for z in plain.posterior(x, alpha, sigma))
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    permutation = np.eye(4)[[2, 0, 3, 1]] * [1, -1, 1, -1]
    for q in (rotation, permutation):
        turned = ideal.full_mixture(WEIGHTS, means @ q.T, q @ (variances[:, :, None] * q.T), (1, 2, 2))
        moved = torch.as_tensor(x.flatten(1).numpy() @ q.T).reshape(x.shape)
        got_mean, got_variance = (z.flatten(1).numpy() for z in turned.posterior(moved, alpha, sigma))
        np.testing.assert_allclose(got_mean, mean @ q.T, atol=1e-10)
        np.testing.assert_allclose(got_variance.sum(1), variance.sum(1), rtol=1e-9)
    np.testing.assert_allclose(got_variance, variance @ (permutation**2).T, rtol=1e-9)


@pytest.mark.parametrize("t", (1.0, 100.0, 300.0, 700.0))
def test_finite_data_against_bayes(t):
    points = torch.randn(20, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 0.3
    denoise = ideal.IdealDenoiser(ideal.finite(points), PROCESS)
    x = states(denoise.mixture, t, 9)
    alpha, sigma = scales(t)
    flat, rows = points.flatten(1).numpy(), x.flatten(1).numpy()
    energy = ((rows[:, None] - alpha * flat) ** 2).sum(2) / (2 * sigma**2)
    weight = np.exp(energy.min(1, keepdims=True) - energy)
    weight /= weight.sum(1, keepdims=True)
    mean = weight @ flat
    variance = weight @ flat**2 - mean**2
    np.testing.assert_allclose(denoise(x, t).x0.flatten(1), mean, atol=1e-12)
    np.testing.assert_allclose(denoise.variance(x, t).flatten(1), variance, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("t", TIMES)
def test_first_and_second_tweedie_identities(t):
    """eps = -sigma grad log p(x_t) and Var[x_0|x_t] = (sigma/alpha)^2 (1 + sigma^2 diag of the Hessian of log p)."""
    alpha, sigma = scales(t)
    mixture, covariances = full_world()
    marginal = MixtureSameFamily(
        Categorical(torch.as_tensor(WEIGHTS)),
        MultivariateNormal(
            alpha * mixture.means, alpha**2 * torch.as_tensor(covariances) + sigma**2 * torch.eye(4).double()
        ),
    )
    denoise = ideal.IdealDenoiser(mixture, PROCESS)
    x = states(mixture, t, 6)
    for row in x:
        flat = row.flatten()
        score = torch.autograd.functional.jacobian(marginal.log_prob, flat)
        hessian = torch.autograd.functional.hessian(marginal.log_prob, flat)
        torch.testing.assert_close(denoise(row[None], t).eps.flatten(), -sigma * score, rtol=1e-8, atol=1e-9)
        variance = (sigma / alpha) ** 2 * (1 + sigma**2 * hessian.diagonal())
        torch.testing.assert_close(denoise.variance(row[None], t).flatten(), variance, rtol=1e-6, atol=1e-12)


def test_a_time_per_state_equals_one_call_per_time():
    mixture, _ = full_world()
    denoise = ideal.IdealDenoiser(mixture, PROCESS)
    x = states(mixture, 300.0, len(TIMES))
    for ask in (lambda x, t: denoise(x, t).x0, lambda x, t: denoise(x, t).eps, denoise.variance, denoise.squared_noise):
        together = ask(x, np.array(TIMES))
        for i, t in enumerate(TIMES):
            torch.testing.assert_close(together[i : i + 1], ask(x[i : i + 1], t), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("t", (100.0, 300.0, 500.0))
def test_law_of_total_variance(t):
    """E Var[x_0|x_t] + Var E[x_0|x_t] = Var[x_0], within four standard errors that are below 2 %."""
    mixture, _ = full_world()
    n = 20000
    mean, variance = mixture.posterior(states(mixture, t, n), *scales(t))
    spread = (mean.flatten(1) - mixture.mean()).square().mean(1)
    total = variance.flatten(1).mean(1) + spread
    error = total.std().item() / np.sqrt(n)
    assert error < 0.02 * mixture.variance()
    assert abs(total.mean().item() - mixture.variance()) < 4 * error
    assert variance.mean() < 0.9 * mixture.variance() and spread.mean() > 0.1 * mixture.variance()


def test_draws_have_the_mixtures_mean_and_covariance():
    mixture, covariances = full_world()
    n, mean, means = 40000, mixture.mean().numpy(), mixture.means.numpy()
    truth = np.einsum("k,kij->ij", WEIGHTS, covariances + means[:, :, None] * means[:, None]) - np.outer(mean, mean)
    assert mixture.variance() == pytest.approx(np.trace(truth) / 4, rel=1e-12)
    x = mixture.sample(n, 1).flatten(1).numpy()
    z = x - mean
    assert (abs(z.mean(0)) < 4 * z.std(0) / np.sqrt(n)).all()
    products = z[:, :, None] * z[:, None]
    assert (abs(products.mean(0) - truth) < 4.5 * products.std(0) / np.sqrt(n)).all()


def test_classwise_mixture_of_digits():
    data = digits()
    images, labels = data.scaled(data.split("train")), data.labels["train"]
    mixture = ideal.classwise(images, labels, ridge=1e-3)
    flat = images.double().flatten(1).numpy()
    np.testing.assert_allclose(mixture.mean(), flat.mean(0), atol=1e-7)
    assert mixture.variance() == pytest.approx(flat.var(0).mean() + 1e-3, rel=1e-6)
    for k in range(10):
        group = flat[labels.numpy() == k]
        assert mixture.weights[k].item() == pytest.approx(len(group) / len(flat))
        covariance = mixture.basis[k] @ torch.diag(mixture.spectrum[k]) @ mixture.basis[k].T
        np.testing.assert_allclose(covariance, np.cov(group.T, bias=True) + 1e-3 * np.eye(64), atol=1e-7)
    # at high SNR the posterior is that of the image's own class: a pixel's variance is below the noise's
    x = states(mixture, 1.0, 50)
    noise = (scales(1.0)[1] / scales(1.0)[0]) ** 2
    variance = mixture.posterior(x, *scales(1.0))[1]
    assert (variance < noise).all() and (variance > noise * 1e-3 / (1e-3 + noise) * (1 - 1e-9)).all()


def test_float32_states_lose_no_more_than_their_own_rounding():
    mixture, _ = full_world()
    denoise = ideal.IdealDenoiser(mixture, PROCESS)
    for t in TIMES:
        x = states(mixture, t, 50).float()
        single, double = denoise(x, t), denoise(x.double(), t)
        torch.testing.assert_close(single.x0.double(), double.x0, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(single.eps.double(), double.eps, rtol=0, atol=1e-6 / scales(t)[1])


def test_a_mixture_moves_to_the_device_of_its_states() -> None:
    """On the meta device, which every machine has: nothing may stay behind on the CPU."""
    mixture = ideal.full_mixture([0.4, 0.6], np.eye(2), np.stack([np.eye(2), 2 * np.eye(2)]), (1, 1, 2))
    mean, variance = mixture.posterior(torch.zeros(3, 1, 1, 2, device="meta"), 0.7, 0.5)
    assert mean.device.type == variance.device.type == "meta" and mean.shape == variance.shape == (3, 1, 1, 2)
