"""Exact covariances as samplers: what each kind sees of a matrix, the step it makes of it, and a trunk in error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adpm import ideal
from adpm.kernel import reverse_kernel
from adpm.noise import KeyedNoise
from adpm.sampler import keyed, sample
from adpm.solver import ReverseGaussian
from benchmarks.patch_samples import KINDS, Exactly, moments_about
from benchmarks.patch_states import cosine_axes, covariances, kinds, states
from benchmarks.patch_world import SIDE, even_process

PROCESS, D = even_process(12), SIDE**2


def world(seed: int, components: int = 2) -> ideal.Mixture:
    """Components with axes of their own."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((components, D, D)))[0]
    spread = axes @ (np.geomspace(0.3, 1e-3, D) * axes).transpose(0, 2, 1)
    means = 0.3 * rng.standard_normal((components, D))
    return ideal.full_mixture(np.full(components, 1.0 / components), means, spread, (1, SIDE, SIDE))


def scales(k: int) -> tuple[float, float]:
    t = PROCESS.times[k]
    return float(PROCESS.alpha(t)), float(PROCESS.sigma(t))


@pytest.mark.parametrize("kind", ["scalar", "pixel", "DCT"])
def test_each_kind_sees_what_the_table_of_bounds_prices(kind: str) -> None:
    data = world(0)
    r = covariances(data, states(data, PROCESS, 7, 5, 0), *scales(7))
    seen = KINDS[kind](r, torch.Size([5, 1, SIDE, SIDE])).values
    priced = kinds(r, "DCT", cosine_axes())[f"{kind} per state"]
    np.testing.assert_allclose(torch.as_tensor(seen).flatten(1).numpy(), priced, rtol=1e-9)


@pytest.mark.parametrize(("own", "eta"), [(True, 1.0), (False, 1.0), (True, 0.3)])
def test_the_whole_covariance_makes_the_reverse_gaussian_of_the_state(own: bool, eta: float) -> None:
    """C of the step is lambda2 I + gain^2 R(x_t), or R's mean: seen through C z and C^(1/2) C^(1/2) z."""
    data = world(1)
    x, t, s = states(data, PROCESS, 8, 3, 0), float(PROCESS.times[8]), float(PROCESS.times[4])
    r = covariances(data, x, *scales(8))
    means = torch.zeros(12, D, D, dtype=torch.float64)
    means[7] = r.mean(0)
    solver = ReverseGaussian(PROCESS, Exactly("full", moments_about(data, data), None if own else means), eta)
    z = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = solver.step(ideal.IdealDenoiser(data, PROCESS), x, t, s, lambda draw=0: z)
    kernel = reverse_kernel(PROCESS, t, s, eta)
    used = r if own else means[7].expand(3, -1, -1)
    wanted = float(kernel.lambda2) * torch.eye(D, dtype=torch.float64) + float(kernel.gain**2) * used
    expected = torch.einsum("bij,bj->bi", wanted, z.flatten(1)).reshape(z.shape)
    torch.testing.assert_close(step.covariance.times(z), expected)
    root = step.x - step.mean  # C^(1/2) z
    twice = step.covariance.draw(torch.zeros_like(z), root)
    torch.testing.assert_close(twice, expected)


def test_moments_about_a_cruder_mean_are_those_of_its_error() -> None:
    """E (x_0 - x0_hat)^2 per pixel over draws is the mean of R(x_t)'s diagonal, and not that of Cov[x_0 | x_t]."""
    truth, crude, n = world(2), world(3), 4000
    alpha, sigma = scales(8)
    x0 = truth.sample(n, 5)
    x = alpha * x0 + sigma * torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    error = (x0 - crude.posterior(x, alpha, sigma)[0]).flatten(1).square()
    r = moments_about(truth, crude)(x[:400], alpha, sigma).diagonal(dim1=1, dim2=2)
    spread = (error.sum(1).std() / n**0.5 + r.sum(1).std() / 400**0.5).item()
    assert abs(error.sum(1).mean().item() - r.sum(1).mean().item()) < 4.0 * spread
    without = covariances(truth, x[:400], alpha, sigma).diagonal(dim1=1, dim2=2).sum(1).mean().item()
    assert without < error.sum(1).mean().item() - 8.0 * spread


def test_steps_with_the_whole_covariance_draw_gaussian_data_exactly() -> None:
    """One Gaussian in two steps has its variance along every axis; the scalar's has not."""
    data, n = world(4, 1), 2000
    assert data.basis is not None
    times, axes = PROCESS.times[[0, 1, 12]], data.basis[0]
    off = {}
    for kind in ("full", "scalar"):
        solver = ReverseGaussian(PROCESS, Exactly(kind, moments_about(data, data)))
        noise = keyed(KeyedNoise(0, "sample"), torch.arange(n), data.shape, torch.float64)
        *_, last = sample(ideal.IdealDenoiser(data, PROCESS), solver, PROCESS, times, noise)
        off[kind] = ((last.x.flatten(1) @ axes).var(0) / data.spectrum[0] - 1.0).abs().max().item()
    assert off["full"] < 5.0 * (2.0 / n) ** 0.5 and off["scalar"] > 1.0
