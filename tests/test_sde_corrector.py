"""The Langevin corrector: stationary laws and step-size bias in closed form, its place by a predictor, its noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import roots_genlaguerre
from torch import Tensor

from adpm import ideal
from adpm.denoiser import Counted
from adpm.errors import UserError
from adpm.noise import KeyedNoise
from adpm.process import PROCESSES as DISCRETE
from adpm.process import Process
from adpm.sampler import keyed, sample, walk
from adpm.solver import ReverseGaussian, Step
from adpm.variance import Small
from sde.corrector import CORRECTORS, Langevin, PredictorCorrector, batch_norms, noise_level, sample_norms
from sde.process import SDE, VE
from sde.solver import EulerMaruyama, ProbabilityFlowHeun
from tests.sde_worlds import NAMES, NOISY, WORLDS, centred, gaussian_denoiser, marginal, response, silent, through


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def sde(name: str) -> SDE:
    return WORLDS[name]


@pytest.mark.parametrize("snr", [0.05, 0.16, 0.5])
@pytest.mark.parametrize("t", [0.05, 0.4, 1.0])
def test_stationary_variance_of_a_fixed_step(sde: SDE, t: float, snr: float) -> None:
    """V = v / (1 - delta/(2 v)), delta = 2 a (snr sigma)^2, a = (alpha_t/alpha_s)^2: the recursion's fixed point."""
    t = min(t, 0.99) if sde.pure_noise else t  # at t = 1 the factor a is 0, and there is no step
    s = t - 0.01
    a, b, noise = response(Corrected(noise_level, sde, snr), gaussian_denoiser(sde), t, s, draws=1)
    law = marginal(sde, t)
    delta = 2.0 * float(sde.alpha(t) / sde.alpha(s)) ** 2 * (snr * float(sde.sigma(t))) ** 2
    assert a == pytest.approx(1.0 - delta / law.variance, rel=1e-9)
    assert float(noise @ noise) / (1.0 - a**2) == pytest.approx(
        law.variance / (1.0 - delta / (2.0 * law.variance)), rel=1e-9
    )
    assert b / (1.0 - a) == pytest.approx(law.mean, rel=1e-8), "no bias in the mean"


class Corrected:
    """A corrector alone, as a solver that stays at t; its draw 1 is draw 0 here."""

    def __init__(self, unit, sde: Process, snr: float) -> None:
        self.langevin = Langevin(sde, snr, 1, unit)

    def step(self, denoise, x, t, s, noise, carry=None) -> Step:
        state, mean, covariance = self.langevin.correct(denoise, x, t, (t, s), lambda draw: noise(draw - 1))
        return Step(t, s, state, denoise(x, t), mean, covariance)


def test_too_long_a_fixed_step_diverges() -> None:
    """delta >= 2 v: |A| >= 1. On VE's early times v ~ sigma^2, so snr >= 1 does it."""
    for snr, stable in ((0.99, True), (1.01, False)):
        a, _, _ = response(
            Corrected(noise_level, WORLDS["ve"], snr), gaussian_denoiser(WORLDS["ve"]), 1.0, 0.9, draws=1
        )
        assert (abs(a) < 1.0) == stable


@pytest.mark.parametrize("snr", [0.16, 0.4])
def test_stationary_variance_with_batch_norms(sde: SDE, snr: float) -> None:
    """V = v (1 + a snr^2): with mean norms in the ratio sqrt(V) of states to noise, the variance stays V."""
    t, s = 0.5, 0.45
    a = float(sde.alpha(t) / sde.alpha(s)) ** 2
    v = marginal(sde, t).variance
    stationary = v * (1.0 + a * snr**2)
    z = torch.randn(64, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = stationary**0.5 * z.flip(0)
    _, mean, covariance = Langevin(sde, snr, 1, batch_norms).correct(
        centred(sde, (1, 3, 3)), x, t, (t, s), lambda draw: z
    )
    shrunk = float((mean / x).mean()) ** 2
    assert shrunk * stationary + float(covariance.values) == pytest.approx(stationary, rel=1e-12)


@pytest.mark.parametrize("side", [2, 5])
def test_stationary_law_with_sample_norms(sde: SDE, side: int) -> None:
    """E||x'||^2 = r^2 - 4 c v d + 4 c v^2 (1 + c) d (d + 2)/r^2 at ||x|| = r, c = a snr^2; so in a stationary law

    1 / E[1/r^2] = (d + 2) v (1 + c). The expectation over the noise is exact: opposite directions, and two radii from
    Gauss's rule for chi^2_d, enough for a polynomial of degree 2 in ||z||^2.
    """
    t, s, snr, d = 0.5, 0.45, 0.3, side**2
    c = float(sde.alpha(t) / sde.alpha(s)) ** 2 * snr**2
    v = marginal(sde, t).variance
    roots, weights = roots_genlaguerre(2, d / 2 - 1)
    generator = torch.Generator().manual_seed(1)
    toward, u = torch.randn(2, 1, 1, side, side, dtype=torch.float64, generator=generator)
    toward, u = toward / toward.norm(), u / u.norm()
    z = torch.cat([sign * (2 * root) ** 0.5 * u for root in roots for sign in (1, -1)])
    langevin = Langevin(sde, snr, 1, sample_norms)
    for r2 in (v * d, 0.3 * v * d, (d + 2) * v * (1 + c)):
        x = (r2**0.5 * toward).expand(4, -1, -1, -1)
        state, _, _ = langevin.correct(centred(sde, (1, side, side)), x, t, (t, s), lambda draw: z)
        squares = state.flatten(1).square().sum(1).reshape(2, 2).mean(1).numpy()
        expected = float(squares @ weights / weights.sum())
        formula = r2 - 4 * c * v * d + 4 * c * v**2 * (1 + c) * d * (d + 2) / r2
        assert expected == pytest.approx(formula, rel=1e-11)
    assert formula == pytest.approx(r2, rel=1e-11), "the last radius is where the square stays the same"


def test_simulated_law_with_sample_norms() -> None:
    """4000 chains of 120 steps in 16 dimensions: E[1/r^2] within 4 standard errors of the formula, not the target's."""
    sde, t, s, snr, n, shape = WORLDS["vp"], 0.5, 0.45, 0.3, 4000, (1, 4, 4)
    c, v = float(sde.alpha(t) / sde.alpha(s)) ** 2 * snr**2, marginal(sde, t).variance
    noise = keyed(KeyedNoise(0, "langevin"), torch.arange(n), shape, torch.float64)
    langevin = Langevin(sde, snr, 120)
    state, _, _ = langevin.correct(centred(sde, shape), v**0.5 * noise(0), t, (t, s), noise)
    inverse = (1.0 / state.flatten(1).square().sum(1)).numpy()
    error = inverse.std() / n**0.5
    assert abs(inverse.mean() - 1.0 / (18 * v * (1 + c))) < 4 * error
    assert abs(inverse.mean() - 1.0 / (14 * v)) > 10 * error


@pytest.mark.parametrize("corrector_first", [True, False])
def test_bias_of_predictor_corrector_stays(sde: SDE, corrector_first: bool) -> None:
    """Order 0: with ever more steps the variance tends to the corrector's stationary one, to first order."""
    solver = CORRECTORS["ald"].build(ProbabilityFlowHeun(sde), sde, first=corrector_first)
    law, finer = (through(solver, sde, np.linspace(1.0, 0.5, steps + 1)) for steps in (512, 1024))
    v, delta = marginal(sde, 0.5).variance, 2.0 * (0.16 * float(sde.sigma(0.5))) ** 2
    limit = v / (1.0 - delta / (2.0 * v))
    assert (law.variance - limit) / (finer.variance - limit) == pytest.approx(2.0, abs=0.3)
    order = np.log2((law.variance - v) / (finer.variance - v))
    assert order == pytest.approx(PredictorCorrector.weak_order, abs=0.2)


def test_draws_of_predictor_and_corrector_are_apart() -> None:
    """The predictor keeps draw 0, which it has without a corrector; the corrector takes 1..n; nested ones differ."""
    sde, x = WORLDS["vp"], torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    asked: list[int] = []

    def noise(draw: int = 0) -> Tensor:
        asked.append(draw)
        return torch.ones_like(x)

    inner = PredictorCorrector(EulerMaruyama(sde), Langevin(sde, n_steps=2))
    for first, expected in ((True, [1, 2, 0]), (False, [0, 1, 2])):
        PredictorCorrector(EulerMaruyama(sde), Langevin(sde, n_steps=2), first).step(
            gaussian_denoiser(sde), x, 0.5, 0.4, noise
        )
        assert asked == expected
        asked.clear()
    PredictorCorrector(inner, Langevin(sde, n_steps=3)).step(gaussian_denoiser(sde), x, 0.5, 0.4, noise)
    assert sorted(asked) == [0, 1, 2, 3, 4, 8] and len(set(asked)) == len(asked)


def test_draws_of_a_step_are_independent() -> None:
    seen: dict[tuple[float, int], Tensor] = {}
    numbers = torch.arange(2000)

    class Spy:
        def step(self, denoise, x, t, s, noise, carry=None) -> Step:
            seen.update({(t, draw): noise(draw) for draw in range(3)})
            return Step(t, s, x, None, x, None)

    shared = keyed(KeyedNoise(0, "sample"), numbers, (4,), torch.float64)
    list(walk(None, Spy(), np.array([0.0, 0.5, 1.0]), None, shared))
    assert torch.equal(seen[1.0, 0], shared(1)) and torch.equal(seen[0.5, 0], shared(2))
    flat = torch.stack([z.flatten() for z in seen.values()])
    correlation = torch.corrcoef(flat) - torch.eye(6)
    assert correlation.abs().max() < 4.0 / flat.shape[1] ** 0.5


@pytest.mark.parametrize("name", NOISY)
def test_predictor_first_leaves_the_data_alone(sde: SDE) -> None:
    x = torch.full((1, 1, 1, 1), 0.4, dtype=torch.float64)
    denoise = Counted(gaussian_denoiser(sde))
    solver = PredictorCorrector(EulerMaruyama(sde), Langevin(sde), corrector_first=False)
    assert torch.equal(solver.step(denoise, x, 1e-3, 0.0, silent).x, denoise(x, 1e-3).x0)
    assert denoise.calls == 2


def test_corrector_goes_with_discrete_processes_and_any_predictor() -> None:
    process = DISCRETE["linear"].build(100)
    solver = PredictorCorrector(ReverseGaussian(process, Small()), Langevin(process))
    noise = keyed(KeyedNoise(0, "sample"), torch.arange(3), (1, 2, 2), torch.float64)
    *_, last = sample(
        ideal.IdealDenoiser(ideal.gaussian(0, 1, (1, 2, 2)), process), solver, process, process.times, noise
    )
    assert torch.isfinite(last.x).all()


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: Langevin(VE(), snr=0.0), r"`snr` = 0\.0 must be positive"),
        (lambda: Langevin(VE(), n_steps=0), r"`n_steps` = 0 must lie in 1\.\.4095"),
        (lambda: Langevin(VE(), n_steps=4096), r"`n_steps` = 4096 must lie in 1\.\.4095"),
    ],
)
def test_bad_requests_are_refused_in_words(build, told: str) -> None:
    with pytest.raises(UserError, match=told):
        build()
