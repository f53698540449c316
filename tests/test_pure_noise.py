"""Rectified flow from t = 1, where nothing is left of the data: what is exact there, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import adpm
from adpm import ideal
from adpm.denoiser import Denoiser, per_sample
from adpm.likelihood import prior_nats
from adpm.members import MEMBERS
from adpm.moments import ESTIMATORS
from adpm.noise import KeyedNoise
from adpm.published_multistep import unipc
from adpm.sampler import keyed, sample
from adpm.solver import ReverseGaussian, Solver
from adpm.variance import RULES, Analytic, RuleNeeds
from covariance.rules import RULES as HEAD_RULES
from sde.likelihood import flow_likelihood, keyed_probes
from sde.process import RectifiedFlow
from sde.solver import ProbabilityFlowAdaptive, ProbabilityFlowEuler, ProbabilityFlowHeun

FLOW = RectifiedFlow()
MEAN, VARIANCE = 0.3, 0.25
SHAPE = (1, 2, 2)


def network(x: Tensor, label: Tensor) -> Tensor:
    """The exact velocity eps - x0 of data N(MEAN, VARIANCE I), in x's precision."""
    alpha, sigma = (per_sample(f(label.detach().double().numpy()), x) for f in (FLOW.alpha, FLOW.sigma))
    slope = (sigma - (1 - sigma) * VARIANCE) / (alpha**2 * VARIANCE + sigma**2)
    return slope * (x - alpha * MEAN) - MEAN


def posterior(t: np.ndarray) -> np.ndarray:
    return VARIANCE * FLOW.sigma(t) ** 2 / (FLOW.alpha(t) ** 2 * VARIANCE + FLOW.sigma(t) ** 2)


def denoiser() -> Denoiser:
    return Denoiser(network, FLOW, predicts="flow", time_label=lambda t: t)


@pytest.mark.parametrize("predicts", ["x0", "v", "flow"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_step_from_pure_noise_is_exact(predicts: str, dtype: torch.dtype) -> None:
    """x0 = x - t u at t = 1 is the mean of the data, whatever x is, and eps is x; DDPM's and DDIM's step follow."""
    x = torch.linspace(-3.0, 3.0, 12, dtype=dtype).reshape(3, *SHAPE)
    says = {
        "x0": lambda x: torch.full_like(x, MEAN),
        "v": lambda x: torch.full_like(x, -MEAN),
        "flow": lambda x: x - MEAN,
    }
    denoise = Denoiser(lambda x, label: says[predicts](x), FLOW, predicts=predicts, time_label=lambda t: t)
    found = denoise(x, 1.0)
    close = {"rtol": 0, "atol": 1e-6 if dtype == torch.float32 else 3e-7}
    torch.testing.assert_close(found.x0, torch.full_like(x, MEAN), **close)
    torch.testing.assert_close(found.eps, x, **close)
    noise, rule = torch.ones_like(x), Analytic(posterior)
    for eta, mean, variance in (
        (1.0, 0.6 * MEAN, 0.4**2 + 0.6**2 * VARIANCE),
        (0.0, 0.6 * MEAN + 0.4 * x, 0.6**2 * VARIANCE),
    ):
        step = ReverseGaussian(FLOW, rule, eta).step(denoise, x, 1.0, 0.4, lambda draw=0: noise)
        torch.testing.assert_close(step.x, mean + variance**0.5 * noise, rtol=0, atol=2e-6)


SOLVERS: dict[str, Callable[[np.ndarray], Solver]] = {
    "reverse_gaussian": lambda times: ReverseGaussian(FLOW, Analytic(posterior), 1.0),
    "ddim": lambda times: ReverseGaussian(FLOW, Analytic(posterior), 0.0),
    "euler": lambda times: ProbabilityFlowEuler(FLOW),
    "heun": lambda times: ProbabilityFlowHeun(FLOW),
    "adaptive": lambda times: ProbabilityFlowAdaptive(FLOW),
    "unipc": lambda times: unipc(FLOW, times),
    **{
        name: lambda times, name=name: MEMBERS["solver"][name].build(FLOW, times) for name in ("dpmpp", "deis", "ipndm")
    },
}


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_walks_from_pure_noise_in_float32(name: str) -> None:
    """The samples are those of float64 to its rounding, and spread as the data to the solver's own error."""

    def drawn(dtype: torch.dtype) -> Tensor:
        times = FLOW.times[[0, *range(20, 1001, 20)]]
        noise = keyed(KeyedNoise(0, "sample"), torch.arange(1000), SHAPE, dtype)
        *_, last = sample(denoiser(), SOLVERS[name](times), FLOW, times, noise)
        return last.x

    single, double = drawn(torch.float32), drawn(torch.float64)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-4 if name == "adaptive" else 2e-5)
    assert float(double.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(double.var()) == pytest.approx(VARIANCE, rel=0.1)


def test_measured_planned_drawn_and_bounded() -> None:
    """The front door on a flow network: exact moments, the plan begins at t = 1, the bound lies at the entropy."""
    data = ideal.gaussian(MEAN, VARIANCE, SHAPE)
    model = adpm.Model(
        network, FLOW, predicts="flow", label=lambda t: t, images={"train": data.sample(2000, 0).float()}
    )
    moments = model.measure(draws=400, times=60)
    estimate = moments.estimate()
    assert moments.times[-1] == 1.0
    assert (np.abs(estimate.values / posterior(moments.times) - 1.0) < 0.05 + 4.0 * estimate.relative()).all()
    plan = model.plan(moments, steps=10, data_term=False)
    assert plan.path.times[-1] == 1.0
    samples = model.sample(plan, n=2000, shape=SHAPE)
    assert float(samples.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(samples.var()) == pytest.approx(VARIANCE, rel=0.1)
    bound = model.bits_per_dim(data.sample(500, 1).float(), model.plan(moments, steps=100, data_term=False))
    entropy = 0.5 * np.log2(2 * np.pi * np.e * VARIANCE)
    assert entropy - 0.05 < bound.total.mean < entropy + 0.15


def test_the_prior_term_is_nothing_and_the_flows_density_exact() -> None:
    """KL(q(x_1 | x0) || N(0, I)) is 0 to LEAST^2; -log p by the flow from a float32 network is the Gaussian's."""
    x = ideal.gaussian(MEAN, VARIANCE, SHAPE).sample(20, 2)
    assert float(prior_nats(FLOW, x).max()) < 1e-13
    probes = keyed_probes("rademacher", 1, 0, torch.arange(20), SHAPE)
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.float32, 1e-4)):
        found = flow_likelihood(denoiser(), FLOW, x.to(dtype), probes, t_min=1e-5, rtol=1e-7, atol=1e-7)
        alpha, sigma = float(FLOW.alpha(1e-5)), float(FLOW.sigma(1e-5))
        variance = alpha**2 * VARIANCE + sigma**2
        exact = 0.5 * ((x - alpha * MEAN) ** 2 / variance + np.log(2 * np.pi * variance)).flatten(1).sum(1)
        torch.testing.assert_close(found.nats, exact, rtol=0, atol=tolerance)


NEEDS = RuleNeeds(lambda name: posterior, lambda: VARIANCE, 1.0, lambda: 1e-5, lambda: None, lambda: None, FLOW)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: Denoiser(network, FLOW), r"x0 of `predicts` = 'eps' divides by alpha, .* one of x0, v, edm, flow\."),
        (lambda: Denoiser(network, FLOW, predicts="score"), r"x0 of `predicts` = 'score' divides by alpha"),
        (lambda: RULES["analytic"].build(NEEDS, "gamma"), r"`estimator` = 'gamma' .* use one of residual, data\."),
        (lambda: HEAD_RULES["relative"].build(NEEDS, estimator="gamma"), r"`estimator` = 'gamma' divides by alpha"),
        (lambda: HEAD_RULES["sn"].build(NEEDS), r"the rule 'sn' .*; use relative, analytic or spectral\."),
        (lambda: HEAD_RULES["npr"].build(NEEDS), r"the rule 'npr' divides by alpha, which is 0 at t = 1, where"),
        (
            lambda: unipc(FLOW, FLOW.times[::100], interpolates="eps"),
            r"a corrector of eps .*; set `interpolates` = 'x0'",
        ),
        (
            lambda: MEMBERS["solver"]["dpm_solver_v3"].build(FLOW, FLOW.times[::100], statistics=lambda: None),
            r"f of DPM-Solver-v3 divides by alpha, .* use another solver",
        ),
        (
            lambda: adpm.Model.of(
                denoiser(), FLOW, data_range=None, device=torch.device("cpu"), images={}
            ).measure_statistics(torch.zeros(4, *SHAPE)),
            r"f of DPM-Solver-v3's statistics divides by alpha",
        ),
    ],
)
def test_what_divides_by_alpha_is_refused_in_words(build: Callable[[], object], told: str) -> None:
    with pytest.raises(adpm.UserError, match=told):
        build()


def test_the_estimators_that_are_left_have_facts() -> None:
    assert [name for name, kind in ESTIMATORS.items() if kind.facts.divides_by_alpha] == ["gamma"]
