"""What outputs stand for, and losses in each parametrisation: exact in a Gaussian world, by quadrature."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from adpm.denoiser import Denoiser, per_sample, unclipped_x0
from adpm.likelihood import Levels
from adpm.objective import OBJECTIVES, ObjectiveNeeds, losses
from adpm.parametrisation import PREDICTIONS
from adpm.process import Process, cosine, linear
from sde.process import VE, SubVP
from tests.goldens import rel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what diffusers imports is not ours
    import diffusers

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers' own

WORLDS: dict[str, tuple[Process, np.ndarray]] = {
    "linear": (linear(1000), np.array([1.0, 30.0, 400.0, 1000.0])),
    "cosine": (cosine(1000), np.array([1.0, 30.0, 400.0, 999.0])),
    "subvp": (SubVP(), np.array([1e-3, 0.1, 0.5, 1.0])),
    "ve": (VE(), np.array([1e-5, 0.1, 0.5, 1.0])),
}
VARIANCE = 0.3

Say = Callable[[Tensor, Tensor, "float | Tensor", "float | Tensor"], Tensor]
SAY: dict[str, Say] = {
    "eps": lambda x0, eps, alpha, sigma: eps,
    "x0": lambda x0, eps, alpha, sigma: x0,
    "score": lambda x0, eps, alpha, sigma: -eps / sigma,
    "v": lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
    "flow": lambda x0, eps, alpha, sigma: eps - x0,
    "edm": lambda x0, eps, alpha, sigma: sigma * x0 - alpha * eps,
}
"""What a network of each kind says of a pair."""


@pytest.fixture(params=sorted(WORLDS))
def world(request) -> tuple[Process, np.ndarray]:
    return WORLDS[request.param]


def quadrature(nodes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """x0 ~ N(0, VARIANCE), eps ~ N(0, 1) as weighted points [n, 1]: exact for squares of linear functions."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    x0, eps = (torch.as_tensor(a).reshape(-1, 1) for a in np.meshgrid(points, points))
    return VARIANCE**0.5 * x0, eps, torch.as_tensor(np.outer(weights, weights).ravel() / (2 * np.pi))


def knows(process: Process, predicts: str, gain: float = 1.0) -> Denoiser:
    """The posterior mean of that world times `gain`, said as `predicts` says it."""

    def network(x: Tensor, label: Tensor) -> Tensor:
        alpha, sigma = (per_sample(f(label.numpy()), x) for f in (process.alpha, process.sigma))
        x0 = gain * alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * x
        return SAY[predicts](x0, (x - alpha * x0) / sigma, alpha, sigma)

    return Denoiser(network, process, predicts=predicts, time_label=lambda t: t)


def test_each_prediction_says_the_same_of_every_process(world) -> None:
    process, times = world
    x = torch.linspace(-2.0, 2.0, 8, dtype=torch.float64).reshape(4, 2)
    assert SAY.keys() == PREDICTIONS.keys()
    alpha, sigma = (per_sample(f(times), x) for f in (process.alpha, process.sigma))
    x0 = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * x
    for predicts in PREDICTIONS:
        found = knows(process, predicts)(x, times)
        torch.testing.assert_close(found.x0, x0, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(alpha * found.x0 + sigma * found.eps, x, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(unclipped_x0(found, x, alpha, sigma), x0, rtol=1e-9, atol=1e-12)


def test_x0_before_clipping_is_kept_and_found_again() -> None:
    """Beside a clipped x0; where a denoiser does not say it, eps_network does."""
    process, x = linear(1000), torch.full((1, 3), 9.0, dtype=torch.float64)
    alpha, sigma = float(process.alpha(400)), float(process.sigma(400))
    found = Denoiser(lambda x, label: 0.1 * x, process, predicts="v", clip=(-1.0, 1.0))(x, 400)
    raw = alpha * x - sigma * 0.1 * x
    assert found.x0.max() == 1.0 and torch.allclose(unclipped_x0(found, x, alpha, sigma), raw)
    other = type(found)(found.x0, found.eps, found.eps_network)
    assert torch.allclose(unclipped_x0(other, x, alpha, sigma), raw)


def test_v_is_diffusers() -> None:
    """Its target for training, and x0 of it in a step."""
    peer = diffusers.DDIMScheduler(1000, 1e-4, 2e-2, "linear", prediction_type="v_prediction", clip_sample=False)
    peer.set_timesteps(1000)
    process, generator = linear(1000), torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, 1, 2, 2, dtype=torch.float64, generator=generator)
    for t in (1, 400, 1000):
        v = peer.get_velocity(x0, eps, torch.full((3,), t - 1))
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        assert rel(SAY["v"](x0, eps, alpha, sigma), v) < 1e-4  # its schedule is float32, and 1 - prod loses digits
        x = alpha * x0 + sigma * eps
        theirs = peer.step(v, t - 1, x).pred_original_sample
        assert rel(Denoiser(lambda x, label, v=v: v, process, predicts="v")(x, t).x0, theirs) < 1e-4


@pytest.mark.parametrize("predicts", sorted(PREDICTIONS))
def test_every_loss_is_the_weighted_error_of_x0(world, predicts: str) -> None:
    """E||x0 - x0_hat||^2 of x0_hat = gain E[x0 | x] is Var_t + (1 - gain)^2 E[E[x0 | x]^2], however it is said."""
    process, times = world
    x0, eps, weight = quadrature()
    for t in times:
        alpha, sigma, at = float(process.alpha(t)), float(process.sigma(t)), np.full(len(x0), t)
        posterior = VARIANCE * sigma**2 / (alpha**2 * VARIANCE + sigma**2)
        error = posterior + (1.0 - 0.8) ** 2 * (VARIANCE - posterior)
        scale = {"eps": alpha, "x0": sigma, "v": alpha**2 + sigma**2, "flow": alpha + sigma}
        for objective, factor in scale.items():
            loss = OBJECTIVES[objective].build(
                ObjectiveNeeds(process, Levels(0, -1.0, 1.0), lambda: np.ones_like, None)
            )
            found = float(weight @ losses(loss, knows(process, predicts, 0.8), process, x0, eps, at))
            assert found == pytest.approx((factor / sigma) ** 2 * error, rel=1e-6), (objective, t)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize("predicts", sorted(PREDICTIONS))
def test_the_posterior_mean_is_what_every_loss_trains(predicts: str, objective: str) -> None:
    """Newton's step from a linear network that is wrong leads to it: the loss is a parabola in the weight."""
    process, t = cosine(1000), 700.0
    x0, eps, weight = quadrature()
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    slope = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    denoise = Denoiser(lambda x, label: slope * x, process, predicts=predicts)
    loss = OBJECTIVES[objective].build(ObjectiveNeeds(process, Levels(0, -1.0, 1.0), lambda: np.ones_like, None))
    mean = weight @ losses(loss, denoise, process, x0, eps, np.full(len(x0), t))
    (first,) = torch.autograd.grad(mean, slope, create_graph=True)
    (second,) = torch.autograd.grad(first, slope)
    x = torch.ones(1, 1, dtype=torch.float64)
    posterior = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * x
    best = SAY[predicts](posterior, (x - alpha * posterior) / sigma, alpha, sigma)
    assert float((slope - first / second).detach()) == pytest.approx(float(best), rel=1e-9)
