"""Data with levels before the flow: offsets of published conventions, and bounds that are exact where they can be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import ndtr

from adpm import ideal
from adpm.likelihood import Levels, bits_per_dim, decoder_nats
from adpm.noise import KeyedNoise
from sde.dequantise import diffusion, uniform
from sde.likelihood import flow_likelihood, keyed_probes
from tests.sde_worlds import MEAN, NAMES, VARIANCE, WORLDS, gaussian_denoiser, marginal


@pytest.mark.parametrize(
    ("levels", "bits"),
    [
        (Levels(256, -1 + 1 / 256, 1 - 1 / 256), 7.0),  # score_sde, centred
        (Levels(256, 1 / 512, 1 - 1 / 512), 8.0),  # score_sde, not centred
        (Levels(256, -1, 1), math.log2(127.5)),  # the grid of the networks
        (Levels(0, -1, 1), 0.0),  # continuous data
    ],
)
def test_offsets(levels: Levels, bits: float) -> None:
    _, paid = uniform(levels)(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), 1e-5)
    assert bits_per_dim(paid, 48).tolist() == pytest.approx([bits, bits], rel=1e-12)


def test_uniform_noise_fills_the_bins() -> None:
    levels = Levels(8, -1.0, 1.0)
    x = torch.linspace(-1.0, 1.0, 8).repeat(5000)[:, None]
    noise = KeyedNoise(0, "dequantise")(torch.arange(len(x)), 0, (1,))
    offset = (uniform(levels)(x, noise, 1e-5)[0] - x.double()) / levels.width
    ordered = offset.flatten().sort().values
    assert -0.5 <= ordered[0] and ordered[-1] <= 0.5
    even = (torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x) - 0.5
    assert float((ordered - even).abs().max()) < 2.23 / math.sqrt(len(x))  # Kolmogorov-Smirnov at level 1e-4
    assert torch.equal(uniform(Levels(0, -1, 1))(x, noise, 1e-5)[0], x.double())


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_density_bounds_the_probability_of_the_levels(scale: float) -> None:
    """N(0, 1/4) cut into 64 levels, dequantised and read by the flow of that Gaussian; the scale drops out."""
    levels, std = Levels(64, -2.0 * scale, 2.0 * scale), 0.5 * scale
    sde = WORLDS["vp"]
    x = torch.linspace(-2.0, 2.0, 64, dtype=torch.float64)[16:48].reshape(-1, 1, 1, 1) * scale
    u = torch.special.ndtri((torch.arange(50, dtype=torch.float64) + 0.5) / 50)
    starts = [uniform(levels)(x, value * torch.ones_like(x), 1e-5) for value in u]
    data, paid = torch.cat([start[0] for start in starts]), torch.cat([start[1] for start in starts])
    denoise = ideal.IdealDenoiser(ideal.gaussian(0.0, std**2, (1, 1, 1)), sde)
    probes = keyed_probes("rademacher", 1, 0, torch.arange(len(data)), (1, 1, 1))
    found = flow_likelihood(denoise, sde, data, probes, rtol=1e-7, atol=1e-7)
    bound = (found.nats + paid).reshape(50, -1).mean(0).numpy()
    edges = np.stack([x.flatten() - levels.width / 2, x.flatten() + levels.width / 2]) / std
    gap = bound + np.log(np.diff(ndtr(edges), axis=0)[0])
    # for a bin of width w at x: E(-log p) + log P -> (x w / std^2)^2 / 24, the variance of log p in the bin over 2
    expected = (x.flatten().numpy() * levels.width / std**2) ** 2 / 24
    assert np.abs(gap - expected).max() < 2e-3 and gap.mean() > 0.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("t_min", [0.01, 0.3])
def test_diffusion_loses_nothing_where_the_decoder_is_the_posterior(name: str, t_min: float) -> None:
    """Gaussian data, decoder variance Var[x_0 | x_t]: by Bayes' rule the sum is -log p(x_0) for every draw of noise."""
    sde, denoise = WORLDS[name], gaussian_denoiser(WORLDS[name])
    x0 = torch.tensor([-0.4, 0.1, 0.3, 0.9], dtype=torch.float64).reshape(4, 1, 1, 1)
    z = KeyedNoise(0, "dequantise")(torch.arange(4), 0, (1, 1, 1)).double()
    alpha, sigma = float(sde.alpha(t_min)), float(sde.sigma(t_min))
    posterior = VARIANCE * sigma**2 / (alpha**2 * VARIANCE + sigma**2)
    x, paid = diffusion(denoise, sde, lambda t: posterior, Levels(0, -1, 1))(x0, z, t_min)
    assert torch.allclose(x, alpha * x0 + sigma * z, rtol=1e-14)
    law = marginal(sde, t_min)
    density = 0.5 * ((x - law.mean).square() / law.variance + math.log(2.0 * math.pi * law.variance)).flatten(1).sum(1)
    exact = decoder_nats(x0, torch.full_like(x0, MEAN), VARIANCE, Levels(0, -1, 1))
    assert torch.allclose(density + paid, exact, rtol=1e-9)
