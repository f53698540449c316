"""Convergence orders against the declared ones, by exact moment recursion; the analytic kernel's exactness."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from scipy.integrate import solve_ivp

from adpm.solver import ReverseGaussian, Solver
from adpm.variance import Analytic, Small
from sde.process import SDE
from sde.score import score_of
from sde.solver import (
    PRESETS,
    SOLVERS,
    EulerMaruyama,
    ProbabilityFlowAdaptive,
    ProbabilityFlowEuler,
    ProbabilityFlowHeun,
    ReverseSDE,
)
from tests.sde_worlds import (
    NAMES,
    NOISY,
    VARIANCE,
    WORLDS,
    bimodal,
    gaussian_denoiser,
    marginal,
    points,
    preset_kernel,
    response,
    silent,
    through,
)


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def sde(name: str) -> SDE:
    return WORLDS[name]


END = 0.5
LENGTHS = (512, 1024)


def weak_error(solver: Solver, sde: SDE, steps: int) -> float:
    """|mean - exact| + |variance - exact| at t = 0.5 after equal steps from the exact law at 1."""
    law, truth = through(solver, sde, np.linspace(1.0, END, steps + 1)), marginal(sde, END)
    return abs(law.mean - truth.mean) + abs(law.variance - truth.variance)


def slope(error: Callable[[int], float]) -> float:
    return float(np.log2(error(LENGTHS[0]) / error(LENGTHS[1])))


FIXED = [name for name, kind in SOLVERS.items() if kind.build is not ProbabilityFlowAdaptive]


BOTH = [(name, member) for name in NAMES for member in FIXED if name in NOISY or member != "euler_maruyama"]
"""(process, solver): those that go together."""


@pytest.mark.parametrize(("name", "member"), BOTH)
def test_weak_order(sde: SDE, member: str) -> None:
    solver = SOLVERS[member].build(sde)
    assert slope(lambda steps: weak_error(solver, sde, steps)) == pytest.approx(solver.weak_order, abs=0.2)


@pytest.mark.parametrize("name", NOISY)
def test_weak_order_between_flow_and_sde(sde: SDE) -> None:
    solver = EulerMaruyama(sde, eta=0.5)
    assert slope(lambda steps: weak_error(solver, sde, steps)) == pytest.approx(solver.weak_order, abs=0.2)


@pytest.mark.parametrize("preset", PRESETS)
def test_weak_order_of_presets(name: str, sde: SDE, preset: str) -> None:
    solver, facts = preset_kernel(name, preset), PRESETS[preset][name]
    assert slope(lambda steps: weak_error(solver, sde, steps)) == pytest.approx(facts.weak_order, abs=0.2)


def flow(sde: SDE, t: float, s: ArrayLike, eta: float) -> np.ndarray:
    """Phi(s, t) of the exact reverse SDE on Gaussian data: log Phi = L_a - (1 + eta^2)/2 (L_v + 2 L_a).

    L_a = log(alpha_s/alpha_t), L_v = -log(v_s/v_t), v the marginal variance: g^2/v = d log v/dt - 2 f.
    """
    alpha, sigma = sde.alpha(s), sde.sigma(s)
    v = alpha**2 * VARIANCE + sigma**2
    log_alpha, log_v = np.log(sde.alpha(t) / alpha), np.log(marginal(sde, t).variance / v)
    return np.exp(-log_alpha - 0.5 * (1 + eta**2) * (log_v - 2 * log_alpha))


def strong_error(solver: ReverseSDE, sde: SDE, steps: int) -> float:
    """E[(x - x_exact)^2]^(1/2) at t = 0.5, both driven by the same W and started at the same state.

    The covariance of (x, x_exact) obeys a 2x2 recursion; a step's increment of W has covariance
    eta/sqrt(h) int Phi(s, r) g(r) dr with the exact noise (Gauss-Legendre, 8 points).
    """
    nodes, weights = np.polynomial.legendre.leggauss(8)
    start = marginal(sde, 1.0)
    joint, mean, denoise = np.full((2, 2), start.variance), start.mean, gaussian_denoiser(sde)
    times = np.linspace(1.0, END, steps + 1)
    for t, s in zip(times[:-1], times[1:], strict=True):
        a, b, noise = response(solver, denoise, float(t), float(s), draws=1)
        phi, h = float(flow(sde, t, s, solver.eta)), t - s
        r = s + 0.5 * h * (1 + nodes)
        inner = np.array([float(flow(sde, u, s, solver.eta)) for u in r]) * sde.diffusion(r)
        shared = noise[0] * solver.eta / h**0.5 * float(weights @ inner) * 0.5 * h
        own = marginal(sde, s).variance - phi**2 * marginal(sde, t).variance
        move = np.diag([a, phi])
        joint = move @ joint @ move + np.array([[noise[0] ** 2, shared], [shared, own]])
        mean = a * mean + b
    difference = joint[0, 0] + joint[1, 1] - 2 * joint[0, 1]
    return float(np.sqrt(difference + (mean - marginal(sde, END).mean) ** 2))


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_strong_order_of_euler_maruyama(sde: SDE, eta: float) -> None:
    solver = EulerMaruyama(sde, eta)
    assert slope(lambda steps: strong_error(solver, sde, steps)) == pytest.approx(solver.strong_order, abs=0.2)


def reference(sde: SDE, end: float) -> np.ndarray:
    """The probability flow of the mixture from `points` at t = 1, by scipy."""
    denoise, shape = bimodal(sde), points(sde).shape

    def velocity(t: float, state: np.ndarray) -> np.ndarray:
        x = torch.as_tensor(state).reshape(shape)
        score = score_of(denoise(x, t), float(sde.sigma(t))).flatten().numpy()
        return sde.drift(t) * state - 0.5 * sde.diffusion(t) ** 2 * score

    return solve_ivp(velocity, (1.0, end), points(sde).flatten().numpy(), method="DOP853", rtol=1e-12, atol=1e-13).y[
        :, -1
    ]


@pytest.mark.parametrize("cls", [ProbabilityFlowEuler, ProbabilityFlowHeun])
def test_pathwise_order_on_a_mixture(sde: SDE, cls: type[ReverseSDE]) -> None:
    """The flow of a two-component mixture, where nothing is linear; the order of a deterministic solver is strong."""
    truth = reference(sde, 0.3)

    def error(steps: int) -> float:
        x = points(sde)
        for t, s in zip(*(np.linspace(1.0, 0.3, steps + 1)[i] for i in (slice(-1), slice(1, None))), strict=True):
            x = cls(sde).step(bimodal(sde), x, float(t), float(s), silent).x
        return float(np.abs(x.flatten().numpy() - truth).mean())

    assert slope(error) == pytest.approx(cls.strong_order, abs=0.2)


def test_order_of_the_adaptive_flow(sde: SDE) -> None:
    """The error follows the tolerance: slope 1 over five decades, and below 30 tolerances."""
    truth, tolerances = reference(sde, 0.1), 10.0 ** -np.arange(6, 11, 0.5)
    errors = []
    for tol in tolerances:
        solver = ProbabilityFlowAdaptive(sde, rtol=tol, atol=tol, max_nfe=10_000)
        state = solver.step(bimodal(sde), points(sde), 1.0, 0.1, silent).x
        errors.append(np.abs(state.flatten().numpy() - truth).max())
    assert (errors < 30 * tolerances).all()
    fitted = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
    assert fitted == pytest.approx(ProbabilityFlowAdaptive.strong_order, abs=0.2)


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_kernel_and_euler_agree_to_second_order(sde: SDE, eta: float) -> None:
    """One step of the kernel and of Euler-Maruyama with the same eta: differences fall with h^2."""
    denoise, kernel, euler = gaussian_denoiser(sde), ReverseGaussian(sde, Small(), eta), EulerMaruyama(sde, eta)

    def difference(h: float) -> np.ndarray:
        (a, b, n), (c, d, m) = (response(solver, denoise, 0.6, 0.6 - h, draws=1) for solver in (kernel, euler))
        return np.abs([a - c, n[0] ** 2 - m[0] ** 2])[: 1 + (eta > 0)]

    np.testing.assert_allclose(np.log2(difference(2e-4) / difference(1e-4)), 2.0, atol=0.05)


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.5), (1.0, 0.001), (0.6, 0.2)])
def test_euler_on_the_straight_path_is_the_kernel(t: float, s: float) -> None:
    """Rectified flow without noise: one step of DDIM, of Euler, and x + (s - t) u are the same, from t = 1, too."""
    sde = WORLDS["rectified_flow"]
    denoise, x = bimodal(sde), points(sde)
    u = denoise(x, t).eps - denoise(x, t).x0
    for solver in (ReverseGaussian(sde, Small(), 0.0), ProbabilityFlowEuler(sde)):
        torch.testing.assert_close(
            solver.step(denoise, x, t, s, lambda draw=0: torch.zeros_like(x)).x, x + (s - t) * u, rtol=0, atol=2e-7
        )


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.0), (1.0, 1e-3), (1.0, 0.999), (0.6, 0.2), (0.01, 0.001), (2e-3, 1e-3)])
def test_analytic_kernel_is_exact_in_one_step(sde: SDE, eta: float, t: float, s: float) -> None:
    """Mean and variance of x_s on Gaussian data, whatever the length of the step."""
    rule = Analytic(lambda t: VARIANCE * sde.sigma(t) ** 2 / (sde.alpha(t) ** 2 * VARIANCE + sde.sigma(t) ** 2))
    x = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    step = ReverseGaussian(sde, rule, eta).step(gaussian_denoiser(sde), x, t, s, lambda draw=0: torch.zeros_like(x))
    b, a = float(step.mean[0]), float(step.mean[1] - step.mean[0])
    start, end = marginal(sde, t), marginal(sde, s)
    assert a * start.mean + b == pytest.approx(end.mean, rel=1e-10)
    assert a**2 * start.variance + step.covariance.values == pytest.approx(end.variance, rel=1e-10)
