"""Gaussian scores and their flow: stored values, quadrature of the ODE, exact moments of a fit. T1, T3 of the spec."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from sklearn.datasets import load_digits
from torch import Tensor

import adpm.gaussian_score
from adpm import ideal
from adpm.errors import UserError
from adpm.gaussian_score import fit_gaussian, gaussian_flow, largest_variance, mixture_flow
from adpm.ideal import IdealDenoiser
from adpm.mixture_fit import CLUSTERS, fit_mixture
from adpm.process import Process, linear
from adpm.run.data import digits
from sde.process import VP
from tests.sde_worlds import WORLDS
from tests.teleport_worlds import Edm, low_rank, source_of, tensor

PROCESSES: dict[str, Process] = {**WORLDS, "edm": Edm(), "linear": linear(1000)}
ENDS = {"linear": (1000.0, 320.0)}


def random_mixture(rest: list[float] | None, components: int = 2, rank: int = 2) -> ideal.Mixture:
    """In five dimensions, with `rank` directions of its own for each component."""
    rng = np.random.default_rng(3)
    bases = np.stack([np.linalg.qr(rng.normal(size=(5, 5)))[0][:, :rank] for _ in range(components)])
    weights = torch.as_tensor(rng.dirichlet(3.0 * np.ones(components)))
    spectrum = torch.as_tensor(rng.uniform(0.5, 2.0, (components, rank)))
    outside = None if rest is None else torch.tensor(rest, dtype=torch.float64)
    return ideal.Mixture(
        weights, torch.as_tensor(rng.normal(size=(components, 5))), spectrum, torch.as_tensor(bases), (5,), outside
    )


def covariances(mixture: ideal.Mixture) -> Tensor:
    """Of each component, [K, d, d], written out."""
    assert mixture.basis is not None
    inside = mixture.basis @ torch.diag_embed(mixture.spectrum) @ mixture.basis.mT
    if mixture.rest is None:
        return inside
    left = torch.eye(mixture.dim, dtype=torch.float64) - mixture.basis @ mixture.basis.mT
    return inside + mixture.rest[:, None, None] * left


def states(count: int, dim: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


# -- T1: stored maps and scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", ["full", "lowrank"])
@pytest.mark.parametrize("name", ["edm", "vp"])
def test_t1_maps_are_the_published_ones(name: str, kept: str) -> None:
    process = {"edm": Edm(), "vp": VP()}[name]
    scale = {"edm": 1.0 / 80.0, "vp": 1.0}[name]
    gaussian = low_rank(6, None) if kept == "full" else low_rank(2, 0.0)
    x, first = tensor("gaussian_flow", f"{name}_xT"), float(tensor("gaussian_flow", f"{name}_T"))
    stored = tensor("gaussian_flow", f"{name}_{kept}_xt")
    for t, expected in zip(tensor("gaussian_flow", f"{name}_t").tolist(), stored, strict=True):
        found = gaussian_flow(gaussian, process, x, scale * first, scale * t)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_t1_low_rank_mixture_scores_are_the_published_ones() -> None:
    keys = ("lr_w", "lr_mu", "lr_eig", "lr_U", "lr_x", "lr_sigma", "lr_score")
    w, mu, eig, basis, x, sigmas, scores = (tensor("gaussian_flow", key) for key in keys)
    mixture = ideal.Mixture(w / w.sum(), mu, eig, basis, (8,), torch.zeros(4, dtype=torch.float64))
    for sigma, expected in zip(sigmas.tolist(), scores, strict=True):
        found = (mixture.posterior(x, 1.0, sigma)[0] - x) / sigma**2
        assert float((found - expected).norm() / expected.norm()) < 1e-10


# -- the flow ---------------------------------------------------------------------------------------------------------


def integrated(denoise: IdealDenoiser, process: Process, x: Tensor, t: float, s: float) -> Tensor:
    """The probability flow of a denoiser from t to s by DOP853.

    In time where there is a drift; else in r = sigma/alpha, where d(x/alpha)/dr = (x/alpha - x_0)/r.
    """

    def in_time(time: float, flat: np.ndarray) -> np.ndarray:
        state = torch.as_tensor(flat.reshape(x.shape))
        score = -denoise(state, time).eps / float(process.sigma(time))
        f, g = float(process.drift(time)), float(process.diffusion(time))  # type: ignore[attr-defined]
        return (f * state - 0.5 * g**2 * score).numpy().ravel()

    def in_ratio(r: float, flat: np.ndarray) -> np.ndarray:
        y = torch.as_tensor(flat.reshape(x.shape))
        return ((y - denoise.mixture.posterior(y, 1.0, r)[0]) / r).numpy().ravel()

    options = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-12}
    if process.continuous:
        end = solve_ivp(in_time, (t, s), x.numpy().ravel(), **options).y[:, -1]
        return torch.as_tensor(end.reshape(x.shape))
    alpha, r = process.alpha([t, s]), np.exp(-0.5 * process.log_snr([t, s]))
    end = solve_ivp(in_ratio, tuple(r), (x / alpha[0]).numpy().ravel(), **options).y[:, -1]
    return torch.as_tensor(alpha[1] * end.reshape(x.shape))


@pytest.mark.parametrize("rest", [None, 0.0, 0.3])
@pytest.mark.parametrize("name", PROCESSES)
def test_the_map_of_a_gaussian_solves_the_ode(name: str, rest: float | None) -> None:
    process = PROCESSES[name]
    t, s = ENDS.get(name, (1.0, 0.3))
    gaussian = low_rank(6, None) if rest is None else low_rank(2, rest)
    x = states(5, 6, process.prior_std)
    found = gaussian_flow(gaussian, process, x, t, s)
    expected = integrated(IdealDenoiser(gaussian, process), process, x, t, s)
    scale = float(process.sigma(s))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9 * scale)
    assert float((found - float(process.sigma(s) / process.sigma(t)) * x).abs().max()) > 1e-3 * scale, "not noise"


@pytest.mark.parametrize("name", PROCESSES)
def test_the_map_of_a_mixture_solves_the_ode(name: str) -> None:
    process = PROCESSES[name]
    t, s = ENDS.get(name, (1.0, 0.3))
    mixture = random_mixture([0.05, 0.2])
    x = states(4, 5, process.prior_std)
    found = mixture_flow(mixture, process, x, t, s)
    expected = integrated(IdealDenoiser(mixture, process), process, x, t, s)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8 * float(process.sigma(s)))
    assert torch.equal(mixture_flow(mixture, process, x, t, t), x)


def test_the_map_of_one_component_is_that_of_the_gaussian_and_of_a_diagonal_one() -> None:
    process, gaussian = linear(1000), low_rank(2, 0.1)
    x = states(3, 6)
    closed = gaussian_flow(gaussian, process, x, 1000.0, 400.0)
    torch.testing.assert_close(mixture_flow(gaussian, process, x, 1000.0, 400.0), closed, rtol=1e-8, atol=1e-8)
    spread = np.array([0.3, 0.0, 2.0])
    full = ideal.full_mixture([1.0], [[0.1, -1.0, 0.5]], [np.diag(spread)], (3,))
    there = gaussian_flow(ideal.gaussian([0.1, -1.0, 0.5], spread, (3,)), process, x[:, :3], 1000.0, 400.0)
    torch.testing.assert_close(there, gaussian_flow(full, process, x[:, :3], 1000.0, 400.0), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="one Gaussian"):
        gaussian_flow(random_mixture(None), process, x, 1000.0, 400.0)


def test_the_map_takes_the_law_of_the_data_along() -> None:
    """From N(alpha m, alpha^2 C + sigma^2 I) at t to the same at s, whatever the shape and type of the images."""
    process, gaussian = linear(1000), low_rank(2, 0.1)
    eye = torch.cat([torch.zeros(1, 6), torch.eye(6)]).double()
    out = gaussian_flow(gaussian, process, eye, 1000.0, 300.0)
    slope, offset = (out[1:] - out[0]).mT, out[0]
    c, m = covariances(gaussian)[0], gaussian.means[0]
    (a, b), (u, v) = (f([1000.0, 300.0]).tolist() for f in (process.alpha, process.sigma))
    at, there = (k**2 * c + w**2 * torch.eye(6, dtype=torch.float64) for k, w in ((a, u), (b, v)))
    torch.testing.assert_close(slope @ at @ slope.mT, there, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(slope @ (a * m) + offset, b * m, rtol=1e-10, atol=1e-12)
    image = gaussian_flow(gaussian, process, eye.float().reshape(7, 1, 2, 3), 1000.0, 300.0)
    assert image.dtype == torch.float32 and image.shape == (7, 1, 2, 3)
    torch.testing.assert_close(image.flatten(1).double(), out, rtol=1e-5, atol=1e-6)


# -- low rank with a remainder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", [[0.0, 0.0], [0.05, 0.6]])
@pytest.mark.parametrize("sigma", [0.05, 0.7, 20.0])
def test_low_rank_mixtures_are_full_ones(rest: list[float], sigma: float) -> None:
    """Posterior mean and variance, draws and overall variance, against the same covariances written out in full."""
    mixture = random_mixture(rest)
    full = ideal.full_mixture(mixture.weights, mixture.means, covariances(mixture), (5,))
    x = states(6, 5, 1.0 + sigma)
    scales = (torch.linspace(0.2, 1.0, 6, dtype=torch.float64), torch.full((6,), sigma, dtype=torch.float64))
    for found, expected in zip(mixture.posterior(x, *scales), full.posterior(x, *scales), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert mixture.variance() == pytest.approx(full.variance(), rel=1e-12)


def test_draws_of_a_low_rank_mixture_spread_as_it_says() -> None:
    mixture = random_mixture([0.6], components=1)
    centred = mixture.sample(200_000, 0) - mixture.means[0]
    found, expected = centred.mT @ centred / len(centred), covariances(mixture)[0]
    assert float((found - expected).abs().max()) < 5.0 * 2.0 * (2.0 / 200_000) ** 0.5


def test_the_largest_variance_is_that_of_the_whole_mixture() -> None:
    mixture = random_mixture([0.05, 0.2], rank=3)
    between = mixture.means - mixture.mean()
    whole = torch.einsum("k,kij->ij", mixture.weights, covariances(mixture) + between[:, :, None] * between[:, None])
    assert largest_variance(mixture) == pytest.approx(float(torch.linalg.eigvalsh(whole)[-1]), rel=1e-10)
    diagonal = ideal.diagonal_mixture([0.3, 0.7], [[0.0, 0.0], [3.0, 0.0]], [[0.1, 2.0], [0.2, 1.0]], (2,))
    assert largest_variance(diagonal) == pytest.approx(0.03 + 0.14 + 0.21 * 9.0, rel=1e-12)


# -- fits -------------------------------------------------------------------------------------------------------------


def test_a_fit_has_the_moments_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """1/n, over all of several batches; what rank leaves over keeps the trace."""
    monkeypatch.setattr(adpm.gaussian_score, "AT_ONCE", 7)
    data = digits()
    images = data.scaled(data.split("train"))[:100] + 3.0
    flat = images.double().flatten(1).numpy()
    fit = fit_gaussian(source_of(images))
    np.testing.assert_allclose(fit.means[0], flat.mean(0), rtol=1e-12)
    exact = np.cov(flat.T, bias=True)
    np.testing.assert_allclose(covariances(fit)[0], exact, atol=1e-12)
    assert fit.rest is None and fit.shape == (1, 8, 8) and (fit.spectrum >= 0.0).all()
    few = fit_gaussian(source_of(images), rank=8)
    top = np.linalg.eigvalsh(exact)[::-1]
    np.testing.assert_allclose(few.spectrum[0], top[:8], rtol=1e-10)
    assert few.rest is not None and float(few.rest) == pytest.approx(top[8:].mean(), rel=1e-10)
    assert few.variance() == pytest.approx(np.trace(exact) / 64, rel=1e-12)
    far = fit_gaussian(source_of(images.double() + 1e6), rank=8)  # the source's mean is rounded to float32
    assert far.variance() == pytest.approx(few.variance(), rel=1e-7)


def test_iterated_directions_are_those_of_the_whole_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    data = digits()
    images = data.scaled(data.split("train"))
    whole = fit_gaussian(source_of(images), rank=6)
    monkeypatch.setattr(adpm.gaussian_score, "LARGEST", 63)
    found = fit_gaussian(source_of(images), rank=6)
    torch.testing.assert_close(found.spectrum, whole.spectrum, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(found.rest, whole.rest, rtol=1e-6, atol=0.0)
    assert whole.basis is not None and found.basis is not None
    torch.testing.assert_close((found.basis[0].mT @ whole.basis[0]).abs(), torch.eye(6).double(), rtol=0.0, atol=1e-4)
    with pytest.raises(UserError, match=r"`rank` = 0 keeps all 64 directions"):
        fit_gaussian(source_of(images))


def test_a_mixture_of_far_clusters_has_their_moments() -> None:
    """Three clusters far apart, one of them a single image: shares, means and covariances + ridge I are exact."""
    rng = np.random.default_rng(0)
    groups = [rng.normal(size=(n, 4)) + at for n, at in ((50, 0.0), (30, 100.0), (1, -100.0))]
    points = torch.as_tensor(np.concatenate(groups))
    for clusters in CLUSTERS:
        mixture = fit_mixture(source_of(points), components=3, ridge=1e-3, clusters=clusters)
        order = mixture.means[:, 0].argsort()
        for k, group in zip(order.tolist(), (groups[2], groups[0], groups[1]), strict=True):
            assert float(mixture.weights[k]) == pytest.approx(len(group) / 81, rel=1e-9)
            np.testing.assert_allclose(mixture.means[k], group.mean(0), rtol=1e-9)
            exact = (group - group.mean(0)).T @ (group - group.mean(0)) / len(group) + 1e-3 * np.eye(4)
            np.testing.assert_allclose(covariances(mixture)[k], exact, atol=1e-9)
    few = fit_mixture(source_of(points), components=3, rank=1, ridge=1e-3)
    assert few.spectrum.shape == (3, 1) and few.variance() == pytest.approx(mixture.variance(), rel=1e-9)


def test_what_cannot_be_fitted_is_told() -> None:
    images = torch.zeros(5, 1, 2, 2)
    varied = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    for fit, told in (
        (lambda: fit_gaussian(source_of(images)), "all images are the same: their covariance is singular"),
        (lambda: fit_gaussian(source_of(images / 0.0)), "some are NaN or infinite"),
        (lambda: fit_gaussian(source_of(varied), rank=5), "`rank` = 5 must lie in 1..4"),
        (lambda: fit_mixture(source_of(varied), 6), "`components` = 6 must lie in 1..5, the number of images"),
        (lambda: fit_mixture(source_of(varied), 2, rank=-1), "`rank` = -1 must lie in 1..4"),
        (lambda: fit_mixture(source_of(varied), 2, ridge=0.0), "`ridge` = 0.0 must be positive"),
        (lambda: fit_mixture(source_of(varied), 2, clusters="means"), "`clusters` = 'means' is unknown"),
    ):
        with pytest.raises(UserError) as caught:
            fit()
        assert told in str(caught.value)


# -- T3: what the Gaussian leaves of the score ------------------------------------------------------------------------


def test_t3_the_gaussian_errs_by_the_third_cumulant() -> None:
    """Relative rms error of the score where ten classes of digits are the truth: slope -3 in sigma, and known values.

    Ten classes, not the five of the stored jumps; their widest direction has the standard deviation 1.67.
    """
    digits = load_digits()
    flat = torch.as_tensor(digits.data) / 8.0 - 1.0
    truth = ideal.classwise(flat, torch.as_tensor(digits.target))
    covariance = np.cov(flat.numpy().T, bias=True) + 1e-3 * np.eye(64)
    gaussian = ideal.full_mixture([1.0], flat.mean(0, keepdim=True), covariance[None], (64,))
    assert largest_variance(truth) ** 0.5 == pytest.approx(1.67, abs=5e-3)
    assert largest_variance(truth) == pytest.approx(largest_variance(gaussian), rel=1e-9)
    x0 = truth.sample(2000, 0)
    noise = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    errors = {}
    for sigma, expected in ((64.0, 3.0e-6), (16.0, 1.9e-4), (4.0, 1.1e-2), (1.0, 0.21)):
        x = x0 + sigma * noise
        own, other = (m.posterior(x, 1.0, sigma)[0] - x for m in (truth, gaussian))
        errors[sigma] = float(((own - other).square().mean() / own.square().mean()).sqrt())
        assert errors[sigma] == pytest.approx(expected, rel=0.04)
    slope = np.log(errors[64.0] / errors[16.0]) / np.log(4.0)
    assert -3.2 < slope < -2.7
