"""Solvers in continuous time: the last step, evaluations, keyed noise, the adaptive flow, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from adpm.denoiser import Counted, Denoiser, Prediction
from adpm.errors import UserError
from adpm.kernel import reverse_kernel
from adpm.noise import KeyedNoise
from adpm.process import PROCESSES as DISCRETE
from adpm.sampler import keyed, sample, walk
from adpm.solver import Solver
from adpm.variance import Large
from sde.corrector import CORRECTORS
from sde.process import SDE, VE, VP, RectifiedFlow
from sde.solver import SOLVERS, EulerMaruyama, ProbabilityFlowAdaptive, ProbabilityFlowHeun
from tests.sde_worlds import NAMES, NOISY, WORLDS, bimodal, centred, gaussian_denoiser, marginal, points, silent


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def sde(name: str) -> SDE:
    return WORLDS[name]


FIXED = [name for name, kind in SOLVERS.items() if kind.build is not ProbabilityFlowAdaptive]
NFE = {"euler_maruyama": 4, "probability_flow_euler": 4, "probability_flow_heun": 7}


@pytest.mark.parametrize("corrector", [None, *CORRECTORS])
@pytest.mark.parametrize("member", FIXED)
def test_samples_do_not_depend_on_their_batch(member: str, corrector: str | None) -> None:
    """Four steps on VE from keyed noise: evaluations counted; split batches agree, unless norms are the batch's."""
    sde = WORLDS["ve"]
    times = np.array([0.0, 1e-5, 0.4, 0.7, 1.0])

    @torch.inference_mode()
    def samples(numbers: Tensor) -> Tensor:
        denoise = Counted(centred(sde, (1, 2, 2)))
        solver: Solver = SOLVERS[member].build(sde)
        if corrector:
            solver = CORRECTORS[corrector].build(solver, sde)
        noise = keyed(KeyedNoise(0, "sample"), numbers, (1, 2, 2), torch.float64)
        *_, last = sample(denoise, solver, sde, times, noise)
        assert denoise.calls == NFE[member] + (4 if corrector else 0)
        return last.x

    whole, parts = samples(torch.arange(6)), torch.cat([samples(torch.arange(2)), samples(torch.arange(2, 6))])
    assert torch.allclose(whole, parts, rtol=1e-10) == (corrector != "langevin_batch")


BOTH = [(name, member) for name in NAMES for member in SOLVERS if name in NOISY or member != "euler_maruyama"]
"""(process, solver): those that go together."""


@pytest.mark.parametrize(("name", "member"), BOTH)
def test_last_step_removes_the_noise(sde: SDE, member: str) -> None:
    """x0_hat without asking for noise; or the Euler step."""
    denoise, x = gaussian_denoiser(sde), torch.full((1, 1, 1, 1), 0.4, dtype=torch.float64)
    step = SOLVERS[member].build(sde).step(denoise, x, 1e-3, 0.0, silent)
    assert torch.equal(step.x, denoise(x, 1e-3).x0) and step.covariance.values == 0.0
    plain = SOLVERS[member].build(sde, noise_removal=False)
    expected = x - 1e-3 * plain.drift(denoise(x, 1e-3), x, 1e-3)
    assert torch.equal(plain.step(denoise, x, 1e-3, 0.0, silent).x, expected)


# --- the adaptive flow ---


def test_adaptive_flow_is_the_gaussian_map(sde: SDE) -> None:
    """x_s = m_s + sqrt(v_s/v_t) (x_t - m_t), down to t_min; the count is in `carry`; float32 states stay float32."""
    start, end, x = marginal(sde, 1.0), marginal(sde, 1e-5), points(sde)
    denoise = Counted(gaussian_denoiser(sde))
    times = np.array([0.0, 1e-5, 1.0])
    first, last = walk(denoise, ProbabilityFlowAdaptive(sde), times, x, silent)
    exact_map = end.mean + (end.variance / start.variance) ** 0.5 * (x - start.mean)
    assert (first.x - exact_map).abs().max() < 1e-3
    assert first.carry == denoise.calls - 1 == last.carry < 150
    assert torch.equal(first.prediction.x0, denoise(x, 1.0).x0)
    tight = ProbabilityFlowAdaptive(sde, 1e-10, 1e-10, 5000).step(denoise, x, 1.0, 1e-5, silent)
    assert (tight.x - exact_map).abs().max() < 1e-8
    single = ProbabilityFlowAdaptive(sde).step(denoise, x.float(), 1.0, 1e-3, silent)
    assert single.x.dtype == torch.float32


@pytest.mark.parametrize("build", [bimodal, lambda sde: centred(sde, (1, 1, 1))], ids=["mixture", "centred"])
def test_adaptive_flow_stays_inside_its_interval(sde: SDE, build) -> None:
    """Neither the last step nor the first step size, tried out where the flow hardly moves, asks for times beyond."""
    seen: list[float] = []
    inner = build(sde)

    def denoise(x: Tensor, t: ArrayLike) -> Prediction:
        seen.append(float(t))
        return inner(x, t)

    ProbabilityFlowAdaptive(sde).step(denoise, points(sde), 1.0, 0.3, silent)
    assert seen[0] == max(seen) == 1.0 and min(seen) == pytest.approx(0.3, rel=1e-15)


def test_samples_of_the_adaptive_flow_depend_on_their_batch_to_the_tolerance(sde: SDE) -> None:
    solver = ProbabilityFlowAdaptive(sde, 1e-6, 1e-6)
    whole = solver.step(bimodal(sde), points(sde), 1.0, 0.1, silent).x
    alone = torch.cat([solver.step(bimodal(sde), x[None], 1.0, 0.1, silent).x for x in points(sde)])
    assert 0.0 < (whole - alone).abs().max() < 1e-4


def test_spent_evaluations_are_told(sde: SDE) -> None:
    """The budget is that of the whole path: what an earlier step used is in `carry`."""
    x = points(sde)
    with pytest.raises(
        UserError, match=r"from t = 1 to 0\.001 was not solved: `max_nfe` = 20 evaluations were spent at t = 0"
    ):
        ProbabilityFlowAdaptive(sde, max_nfe=20).step(bimodal(sde), x, 1.0, 1e-3, silent)
    with pytest.raises(
        UserError, match=r"from t = 0\.5 to 0\.4 .* `max_nfe` = 1000 .* loosen `rtol` = 1e-05 and `atol` = 1e-05"
    ):
        ProbabilityFlowAdaptive(sde).step(bimodal(sde), x, 0.5, 0.4, silent, carry=995)


def test_the_budget_of_a_path_counts_all_its_steps(sde: SDE) -> None:
    denoise, used = Counted(bimodal(sde)), []
    for step in walk(denoise, ProbabilityFlowAdaptive(sde), np.array([0.0, 0.1, 0.5, 1.0]), points(sde), silent):
        used.append((step.carry, denoise.calls))
    (first, _), (second, _), last = used
    assert 0 < first < second and [carry for carry, _ in used[:2]] == [calls for _, calls in used[:2]]
    assert last == (second, second + 1), "the last step, to the data, is one more call and no part of the integration"


def test_both_tolerances_act(sde: SDE) -> None:
    """An error is measured against atol + rtol |x|: loosening either saves evaluations."""

    def nfe(rtol: float, atol: float) -> int:
        return ProbabilityFlowAdaptive(sde, rtol, atol, 5000).step(bimodal(sde), points(sde), 1.0, 0.1, silent).carry

    tight = nfe(1e-9, 1e-9)
    assert nfe(1e-3, 1e-9) < 0.5 * tight and nfe(1e-9, 1e-3) < 0.5 * tight


def test_a_flow_that_breaks_down_is_told(sde: SDE) -> None:
    def broken(x: Tensor, t: ArrayLike) -> Prediction:
        eps = torch.full_like(x, float("nan") if float(t) < 0.5 else 0.0)
        return Prediction(x, eps, eps)

    with pytest.raises(UserError, match=r"was not solved: its step size vanished, or its state is not finite"):
        ProbabilityFlowAdaptive(sde).step(broken, points(sde), 1.0, 0.1, silent)


# --- bad input ---


@pytest.mark.parametrize(("name", "member"), BOTH)
@pytest.mark.parametrize(
    ("t", "s", "told"), [(0.5, 0.5, "earlier s < t"), (1.1, 0.5, "lies outside"), (0.5, -0.1, "-0.1 lies")]
)
def test_bad_steps_are_refused(sde: SDE, member: str, t: float, s: float, told: str) -> None:
    with pytest.raises(UserError, match=told):
        SOLVERS[member].build(sde).step(gaussian_denoiser(sde), torch.zeros(1, 1, 1, 1), t, s, silent)


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: EulerMaruyama(VP(), eta=1.2), r"`eta` = 1\.2 must lie in \[0, 1\]: 1 is the reverse SDE"),
        (lambda: EulerMaruyama(VP(), eta=float("nan")), r"`eta` = nan must lie"),
        (
            lambda: EulerMaruyama(RectifiedFlow(), eta=0.3),
            r"`eta` = 0\.3 adds noise of a diffusion that is infinite at t = 1, .*; use `eta` = 0, or .*_gaussian",
        ),
        (
            lambda: Denoiser(torch.cos, RectifiedFlow(), predicts="eps"),
            r"x0 of `predicts` = 'eps' divides by alpha, which is 0 at t = 1, .* that predicts one of x0, v, edm, flow",
        ),
        (
            lambda: ProbabilityFlowHeun(DISCRETE["linear"].build(100)),
            r"ProbabilityFlowHeun needs an SDE \(vp, subvp, ve, rectified_flow\)",
        ),
        (
            lambda: ProbabilityFlowAdaptive(VE(), rtol=0.0),
            r"`rtol` = 0\.0 and `atol` = 1e-05 must be positive",
        ),
        (
            lambda: Large()(reverse_kernel(VE(), 0.5, 0.1, 0.5), None),
            r"'large' goes with `eta` = 1 only, got `eta` = 0\.5",
        ),
    ],
)
def test_bad_requests_are_refused_in_words(build, told: str) -> None:
    with pytest.raises(UserError, match=told):
        build()
