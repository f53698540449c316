"""Classifier-free guidance where scores are known: class-conditional Gaussians and their mixture."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import adpm
from adpm import ideal
from adpm.denoiser import Counted, Denoiser, Prediction, per_sample
from adpm.errors import UserError
from adpm.guidance import Guided, GuidedByClass
from adpm.process import Process, linear
from adpm.solver import ReverseGaussian
from adpm.variance import Analytic
from sde.process import VE, VP, RectifiedFlow
from sde.score import score_of

SHAPE = (1, 1, 2)
WEIGHTS, MEANS = [0.4, 0.6], [[-0.6, 0.2], [0.7, -0.1]]
VARIANCES = [[0.05, 0.2], [0.1, 0.03]]
PROCESSES: dict[str, Process] = {"linear": linear(1000), "vp": VP(), "ve": VE(), "rectified_flow": RectifiedFlow()}


def log_density(x: Tensor, alpha: float, sigma: float, weights: list[float], which: list[int]) -> Tensor:
    """log q(x_t) of these components, written out, [B]."""
    logs = []
    for weight, k in zip(weights, which, strict=True):
        variance = alpha**2 * torch.tensor(VARIANCES[k], dtype=torch.float64) + sigma**2
        off = x.flatten(1) - alpha * torch.tensor(MEANS[k], dtype=torch.float64)
        logs.append(math.log(weight) - 0.5 * (off**2 / variance + variance.log()).sum(1))
    return torch.stack(logs).logsumexp(0)


def exact(process: Process, label: int | None) -> ideal.IdealDenoiser:
    """Of one class, or of both."""
    which = [0, 1] if label is None else [label]
    pick = lambda rows: [rows[k] for k in which]  # noqa: E731
    return ideal.IdealDenoiser(ideal.diagonal_mixture(pick(WEIGHTS), pick(MEANS), pick(VARIANCES), SHAPE), process)


def states(process: Process) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return process.prior_std * torch.randn(5, *SHAPE, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0, 7.5])
@pytest.mark.parametrize("name", PROCESSES)
def test_the_guided_score_is_the_powers_of_the_densities(name: str, scale: float) -> None:
    """score = grad [ (1 - w) log q(x_t) + w log q(x_t | c) ], from the densities themselves; x0 is the one of it."""
    process = PROCESSES[name]
    guided = Guided(exact(process, 1), exact(process, None), process, scale)
    for fraction in (0.02, 0.3, 0.8):
        t = float(process.times[round(fraction * process.steps)])
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        x = (alpha * 0.5 + states(process) / process.prior_std * sigma).requires_grad_()
        both, own = log_density(x, alpha, sigma, WEIGHTS, [0, 1]), log_density(x, alpha, sigma, [1.0], [1])
        (score,) = torch.autograd.grad(((1.0 - scale) * both + scale * own).sum(), x)
        found = guided(x.detach(), t)
        torch.testing.assert_close(score_of(found, sigma), score, rtol=1e-8, atol=1e-8 / sigma)
        torch.testing.assert_close(found.x0, (x.detach() + sigma**2 * score) / alpha, rtol=1e-7, atol=1e-7)


def test_the_scale_is_diffusers() -> None:
    """Their pipelines: noise_uncond + guidance_scale (noise_cond - noise_uncond)."""
    process, x = linear(1000), torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    one, other = torch.cos(x), torch.sin(x)
    a, b = (Denoiser(lambda x, label, out=out: out, process) for out in (one, other))
    torch.testing.assert_close(Guided(a, b, process, 7.5)(x, 300.0).eps, other + 7.5 * (one - other))


def test_networks_of_any_prediction_are_guided_alike() -> None:
    """A conditional v-network and an unconditional flow-network, against the denoisers that they are made of."""
    process, times = linear(1000), np.array([10.0, 300.0, 700.0, 990.0, 1000.0])
    x = states(process)
    alpha, sigma = (per_sample(f(times), x) for f in (process.alpha, process.sigma))
    c, u = exact(process, 0)(x, times), exact(process, None)(x, times)
    networks = {"v": alpha * c.eps - sigma * c.x0, "flow": u.eps - u.x0}
    pair = [Denoiser(lambda x, label, out=out: out, process, predicts=name) for name, out in networks.items()]
    found, wanted = (Guided(*two, process, 4.0)(x, times) for two in (pair, (exact(process, 0), exact(process, None))))
    torch.testing.assert_close(found.x0, wanted.x0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.eps, wanted.eps, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("keep", [False, True])
def test_x0_is_limited_after_it_was_combined(keep: bool) -> None:
    """The networks' own limits have no part in it: 0.2 + 4 (2 - 0.2) is 7.4, and limited 1."""
    process, x, t = linear(1000), torch.full((1, *SHAPE), 0.5, dtype=torch.float64), 400.0
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    two = [
        Denoiser(lambda x, label, out=out: torch.full_like(x, out), process, predicts="x0", clip=(-1.0, 1.0))
        for out in (2.0, 0.2)
    ]
    after = "keep" if keep else "rederive"
    found = Guided(*two, process, 4.0, clip=(-1.0, 1.0), eps_after_clip=after)(x, t)
    raw = (x - alpha * 7.4) / sigma
    assert torch.equal(found.x0, torch.ones_like(x)) and torch.allclose(found.eps_network, raw)
    assert torch.allclose(found.eps, raw if keep else (x - alpha) / sigma)
    assert found.x0_network is not None and torch.allclose(found.x0_network, torch.full_like(x, 7.4))


@pytest.mark.parametrize(("scale", "calls"), [(0.0, (0, 1)), (1.0, (1, 0)), (2.0, (1, 1))])
def test_network_calls_are_counted(scale: float, calls: tuple[int, int]) -> None:
    """Two a prediction, and none of a network that has no weight."""
    process = linear(1000)
    two = [Counted(exact(process, label)) for label in (1, None)]
    counted = Counted(Guided(*two, process, scale))
    for t in (900.0, 500.0, 100.0):
        counted(states(process), t)
    assert tuple(one.calls for one in two) == tuple(3 * n for n in calls) and counted.calls == 3 * sum(calls)


def test_the_head_is_the_conditional_ones_and_both_have_to_be_finite() -> None:
    x = torch.zeros(2, *SHAPE)
    yes, no = torch.tensor([True, True]), torch.tensor([True, False])
    c, u = (lambda x, t, p=p: p for p in (Prediction(x, x, x, x + 3.0, yes), Prediction(x, x, x, x + 9.0, no)))
    found = Guided(c, u, linear(100), 2.0)(x, 5.0)
    assert found.head is not None and found.head.unique().tolist() == [3.0]
    assert found.finite is not None and found.finite.tolist() == [True, False]
    alone = Guided(c, u, linear(100), 1.0)(x, 5.0)
    assert alone.finite is not None and alone.finite.all()
    assert Guided(exact(linear(100), 0), exact(linear(100), None), linear(100), 2.0)(x, 5.0).finite is None


@pytest.mark.parametrize("scale", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("name", PROCESSES)
def test_equal_widths_are_guided_to_a_gaussian_that_is_known(name: str, scale: float) -> None:
    """N(m, v) guided against N(0, v) has the score of N(w m, v): one exact step to the data's side gives its law."""
    process, mean, variance = PROCESSES[name], 0.4, 0.09
    c, u = (ideal.IdealDenoiser(ideal.gaussian(m, variance, SHAPE), process) for m in (mean, 0.0))
    guided = Guided(c, u, process, scale)
    t, s = (float(process.times[round(f * process.steps)]) for f in (1.0, 0.3))
    rule = Analytic(
        lambda t: variance * process.sigma(t) ** 2 / (process.alpha(t) ** 2 * variance + process.sigma(t) ** 2)
    )
    x = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1).expand(2, *SHAPE)
    step = ReverseGaussian(process, rule, 1.0).step(guided, x, t, s, lambda draw=0: torch.zeros_like(x))
    b, a = float(step.mean[0, 0, 0, 0]), float((step.mean[1] - step.mean[0])[0, 0, 0])
    (at, st), (as_, ss) = ((float(process.alpha(r)), float(process.sigma(r))) for r in (t, s))
    assert a * at * scale * mean + b == pytest.approx(as_ * scale * mean, rel=1e-6)
    total = a**2 * (at**2 * variance + st**2) + float(np.asarray(step.covariance.values))
    assert total == pytest.approx(as_**2 * variance + ss**2, rel=1e-8)


def test_the_front_door_takes_it() -> None:
    """Measured, planned and drawn: samples of N(w m, v), which none of the two denoisers has."""
    process = linear(1000)
    c, u = (ideal.IdealDenoiser(ideal.gaussian(m, 0.09, SHAPE), process) for m in (0.4, 0.0))
    wanted = ideal.gaussian(1.2, 0.09, SHAPE).sample(2000, 0)
    model = adpm.Model.of(
        Guided(c, u, process, 3.0), process, data_range=None, device=torch.device("cpu"), images={"train": wanted}
    )
    moments = model.measure(draws=100, times=30)
    samples = model.sample(model.plan(moments, steps=12, data_term=False), n=2000)
    assert float(samples.mean()) == pytest.approx(1.2, abs=0.02)
    assert float(samples.var()) == pytest.approx(0.09, rel=0.1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"scale": math.nan}, r"`scale` = nan must be a finite number; 1 is the conditional denoiser alone"),
        ({"scale": 2.0, "clip": (1.0, -1.0)}, r"`clip` = \(1\.0, -1\.0\) must be a range"),
        ({"scale": 2.0, "eps_after_clip": "kept"}, r"`eps_after_clip` = 'kept' is unknown"),
    ],
)
def test_bad_requests_are_refused_in_words(options: dict, told: str) -> None:
    process = linear(100)
    with pytest.raises(adpm.UserError, match=told):
        Guided(exact(process, 0), exact(process, None), process, **options)


def conditional(process: Process) -> Denoiser:
    """A network that is told classes 0 and 1, and knows what no class is."""

    def network(x: Tensor, label: Tensor, classes: Tensor | None) -> Tensor:
        t = float(label[0])
        if classes is None:
            return exact(process, None)(x, t).eps
        both = torch.stack([exact(process, k)(x, t).eps for k in (0, 1)])
        return both[classes, torch.arange(len(x))]

    return Denoiser(network, process, time_label=lambda t: t)


def test_a_model_is_guided_towards_the_class_of_each_sample() -> None:
    """In one batch of both classes, as each class by itself; without classes nothing is guided."""
    process = PROCESSES["vp"]
    given, x = GuidedByClass(conditional(process), 3.0), states(process)
    classes = torch.tensor([0, 1, 1, 0, 1])
    found = given.given(classes)(x, 0.4)
    for k in (0, 1):
        alone = Guided(exact(process, k), exact(process, None), process, 3.0)(x, 0.4)
        torch.testing.assert_close(found.eps[classes == k], alone.eps[classes == k])
    torch.testing.assert_close(given.given(None)(x, 0.4).eps, exact(process, None)(x, 0.4).eps)


def test_guided_samples_lie_where_their_class_is_likely() -> None:
    """Equal widths: N(m_k, v) against the mixture; guided means go beyond their class's own, each to its side."""
    model = adpm.Model(conditional(linear(200)).network, linear(200), label=lambda t: t)
    plan = model.plan(trajectory="even", steps=40)
    classes = torch.arange(400) % 2
    own, guided = (
        m.told(classes).sample(plan, rule="small", n=400, shape=SHAPE, seed=1).flatten(1)[:, 0]
        for m in (model, model.guided(3.0))
    )
    for k, side in ((0, -1.0), (1, 1.0)):
        assert abs(float(own[classes == k].mean()) - MEANS[k][0]) < 0.06
        assert side * float((guided - own)[classes == k].mean()) > 0.02
        assert float(guided[classes == k].std()) < float(own[classes == k].std())


def test_guidance_that_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="`scale` = nan must be a finite number"):
        GuidedByClass(conditional(PROCESSES["linear"]), math.nan)
    exactly = adpm.Model.of(exact(PROCESSES["linear"], 0), PROCESSES["linear"])
    with pytest.raises(UserError, match="guidance is of a network that is told classes; guide first"):
        exactly.guided(2.0)
