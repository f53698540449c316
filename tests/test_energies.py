"""Energies around a denoiser: EGSDE's published steps and chains, densities that are known, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adpm import ideal
from adpm.denoiser import Counted, Denoiser
from adpm.egsde import Features, LowPass, LowPassCosine, Noised, OfClass, low_pass_matrix, nearness, timed
from adpm.energies import Steered, gradient_of
from adpm.errors import UserError
from adpm.kernel import reverse_kernel
from adpm.process import DiscreteProcess, Process, linear
from adpm.solver import ReverseGaussian
from adpm.variance import Large, Small
from sde.process import VE, VP, RectifiedFlow
from sde.score import score_of
from tests.goldens import DATA
from tests.test_guidance import PROCESSES, SHAPE, WEIGHTS, exact, log_density

GOLDEN = {name: torch.as_tensor(array) for name, array in np.load(DATA / "egsde.npz").items()}
TIMES = GOLDEN["t"].tolist()  # counted from 0
PUBLISHED = DiscreteProcess(GOLDEN["betas"].numpy())


def features(x: Tensor, t: object) -> Tensor:
    return torch.tanh(F.conv2d(x, GOLDEN["conv_w"], GOLDEN["conv_b"], stride=4, padding=1))


def energies() -> tuple[Noised, Features, LowPass]:
    source = Noised(PUBLISHED, GOLDEN["x0"], GOLDEN["e"])
    return source, Features(source, features), LowPass(source, 4)


# EGSDE as published


def test_the_low_pass_is_the_published_one() -> None:
    found = low_pass_matrix(16, 4)
    torch.testing.assert_close(found, GOLDEN["lowpass_1d"], rtol=0, atol=1e-12)
    torch.testing.assert_close(found, found.mT, rtol=0, atol=1e-15)
    torch.testing.assert_close(found.sum(1), torch.ones(16, dtype=torch.float64))
    assert float((found @ found - found).abs().max()) == pytest.approx(0.058, abs=5e-4), "no projection"


@pytest.mark.parametrize("time", TIMES)
def test_energies_and_their_gradients_are_the_published_ones(time: int) -> None:
    source, realism, faithfulness = energies()
    of = lambda name: GOLDEN[f"t{time}_{name}"]  # noqa: E731
    n, y = time + 1.0, of("y")
    for found, name in (
        (source(n), "xt"),
        (realism(y, n), "Es"),
        (faithfulness(y, n), "Ei"),
        (gradient_of(realism, y, n), "gradEs"),
        (gradient_of(faithfulness, y, n), "gradEi"),
    ):
        torch.testing.assert_close(found, of(name), rtol=0, atol=1e-9)


@pytest.mark.parametrize("time", TIMES)
def test_a_guided_step_of_the_reverse_kernel_is_the_published_one(time: int) -> None:
    """mean = (y - beta/sqrt(1 - abar) eps)/sqrt(a) - beta/sqrt(a) (ls grad E_s + li grad E_i), noise of beta-tilde.

    Inside inference mode, as samplers step.
    """
    _, realism, faithfulness = energies()
    of = lambda name: GOLDEN[f"t{time}_{name}"]  # noqa: E731
    denoise = Denoiser(lambda x, label: of("eps"), PUBLISHED)
    terms = [(realism, float(GOLDEN["ls"])), (faithfulness, float(GOLDEN["li"]))]
    solver = ReverseGaussian(PUBLISHED, Small())
    with torch.inference_mode():
        steered = Steered(denoise, PUBLISHED, terms)
        step = solver.step(steered, of("y"), time + 1.0, float(time), lambda draw=0: of("noise"))
    torch.testing.assert_close(step.mean, of("mean"), rtol=0, atol=1e-9)
    torch.testing.assert_close(step.x, of("next"), rtol=0, atol=1e-9)
    assert steered.evaluations == 3 and Counted(steered)._each == 3


class Pulled:
    """|P (x - x_src)|^2 of vectors as images of one column."""

    def __init__(self, source: Noised, matrix: Tensor) -> None:
        self.source, self.matrix = source, matrix

    def __call__(self, x: Tensor, t: float) -> Tensor:
        return ((x - self.source(t)).flatten(1) @ self.matrix.mT).square().sum(1)


class Chain:
    """The published chain of Gaussian data: what every step makes of the state, found by calling the sampler's own."""

    def __init__(self, weight: float) -> None:
        mu, covariance = GOLDEN["chain_mu"].numpy(), GOLDEN["chain_Sigma"].numpy()
        self.dim, self.weight = len(mu), weight
        self.data = ideal.full_mixture([1.0], mu[None], covariance[None], (1, 1, self.dim))
        self.exact = ideal.IdealDenoiser(self.data, PUBLISHED)
        self.solver = ReverseGaussian(PUBLISHED, Small())

    def step(self, y: Tensor, e: Tensor, n: int, noise: Tensor) -> Tensor:
        """y_{n-1} of states and draws [B, D]."""
        x0 = GOLDEN["chain_x0"].expand_as(e).reshape(-1, 1, 1, self.dim)
        source = Noised(PUBLISHED, x0, e.reshape(x0.shape))
        steered = Steered(self.exact, PUBLISHED, [(Pulled(source, GOLDEN["chain_P"]), self.weight)])
        shaped = noise.reshape(x0.shape)
        return self.solver.step(steered, y.reshape(x0.shape), float(n), n - 1.0, lambda draw=0: shaped).x.flatten(1)

    def start(self, e: Tensor, steps: int) -> Tensor:
        return float(PUBLISHED.alpha(steps)) * GOLDEN["chain_x0"] + float(PUBLISHED.sigma(steps)) * e

    def moments(self, steps: int) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the result from those of (y, e, 1): every step is affine, and says itself how."""
        d = self.dim
        zero, eye = torch.zeros(d, d).double(), torch.eye(d).double()
        one = self.start(torch.zeros(1, d).double(), steps)[0]
        mean = torch.cat([one, torch.zeros(d).double()])
        root = torch.cat([float(PUBLISHED.sigma(steps)) * eye, eye])  # of (y, e) in terms of e
        joint = root @ root.mT
        for n in range(steps, 0, -1):
            probes = torch.cat([zero[:1], eye, zero, zero])
            draws = torch.cat([zero[:1], zero, eye, zero])
            noises = torch.cat([zero[:1], zero, zero, eye])
            out = self.step(probes, draws, n, noises)
            base, of_y, of_e, of_noise = out[0], *(out[1:] - out[0]).reshape(3, d, d).mT
            top = torch.cat([of_y, of_e], 1)
            whole = torch.cat([top, torch.cat([zero, eye], 1)])
            mean = whole @ mean + torch.cat([base, torch.zeros(d).double()])
            joint = whole @ joint @ whole.mT
            joint[:d, :d] += of_noise @ of_noise.mT
        return mean[:d], joint[:d, :d]


@pytest.mark.parametrize("which", range(3))
def test_chains_have_the_moments_in_closed_form(which: int) -> None:
    """E2: by the recursion to 1e-10, and 4,000 chains within 4 standard errors of mean and covariance."""
    chain, steps = Chain(float(GOLDEN["chain_li"][which])), int(GOLDEN["chain_M"])
    mean, covariance = GOLDEN[f"chain_mean_{which}"], GOLDEN[f"chain_cov_{which}"]
    found = chain.moments(steps)
    torch.testing.assert_close(found[0], mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(found[1], covariance, rtol=0, atol=1e-10)
    count, generator = 4000, torch.Generator().manual_seed(which)
    e = torch.randn(count, chain.dim, dtype=torch.float64, generator=generator)
    y = chain.start(e, steps)
    for n in range(steps, 0, -1):
        y = chain.step(y, e, n, torch.randn(count, chain.dim, dtype=torch.float64, generator=generator))
    off = (y.mean(0) - mean).abs() / (covariance.diagonal() / count).sqrt()
    assert off.max() < 4.0
    spread = covariance.diagonal()
    error = ((spread[:, None] * spread + covariance.square()) / count).sqrt()  # of a Gaussian's covariance
    assert ((torch.cov(y.mT) - covariance).abs() / error).max() < 4.0


def test_faithfulness_and_realism_are_traded_monotonically() -> None:
    """E3: |P (mean - x0)| falls and |mean - mu| rises with the weight; with the start's time it is the other way."""
    x0, mu, low_pass = GOLDEN["chain_x0"], GOLDEN["chain_mu"], GOLDEN["chain_P"]
    means = [Chain(weight).moments(500)[0] for weight in (0.0, 0.3, 1.0, 5.0)]
    off = np.array([float((low_pass @ (mean - x0)).norm()) for mean in means])
    away = np.array([float((mean - mu).norm()) for mean in means])
    assert (np.diff(off) < 0.0).all() and (np.diff(away) > 0.0).all()
    later = [float((Chain(0.0).moments(steps)[0] - mu).norm()) for steps in (100, 500, 1000)]
    assert later[0] > later[1] > later[2] and later[2] < 1e-3


# Where densities are known


@pytest.mark.parametrize("name", PROCESSES)
def test_a_classifiers_energy_makes_the_score_of_the_class(name: str) -> None:
    """Bayes: the mixture's score and the gradient of log p(class | x_t) are the class's own; twice it is twice."""
    process = PROCESSES[name]

    for fraction in (0.02, 0.3, 0.8):
        t = float(process.times[round(fraction * process.steps)])
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))

        def classifier(x: Tensor, t: object, alpha: float = alpha, sigma: float = sigma) -> Tensor:
            return torch.stack([log_density(x, alpha, sigma, [WEIGHTS[k]], [k]) for k in (0, 1)], 1)

        x = 0.5 * alpha + sigma * torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
        both, own = exact(process, None), exact(process, 1)
        found = Steered(both, process, [(OfClass(classifier, 1), 1.0)])(x, t)
        torch.testing.assert_close(found.eps, own(x, t).eps, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found.x0, own(x, t).x0, rtol=1e-7, atol=1e-7)
        twice = Steered(both, process, [(OfClass(classifier, 1), 0.5), (OfClass(classifier, 1), 1.5)])(x, t)
        wanted = 2.0 * score_of(own(x, t), sigma) - score_of(both(x, t), sigma)
        torch.testing.assert_close(score_of(twice, sigma), wanted, rtol=1e-8, atol=1e-8 / sigma)


@pytest.mark.parametrize("process", [linear(1000), VP(), VE(), RectifiedFlow()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("rule", [Small(), Large()], ids=lambda r: type(r).__name__)
def test_the_mean_moves_by_the_forward_variance(process: Process, rule: Small | Large) -> None:
    """-(alpha_s/alpha_t) Var[x_t | x_s] grad E at eta = 1, steps of any length, whatever the variance rule."""
    t, s = (float(process.times[round(f * process.steps)]) for f in (0.6, 0.25))
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3)).double()
    solver, slope = ReverseGaussian(process, rule), torch.randn(2, *SHAPE).double()
    means = [
        solver.step(Steered(exact(process, 0), process, terms), x, t, s, lambda draw=0: x).mean
        for terms in ([(lambda x, t: (slope * x).flatten(1).sum(1), 0.7)], [])
    ]
    kernel = reverse_kernel(process, t, s)
    moved = -float(kernel.alpha_s / kernel.alpha_t * kernel.forward_variance) * 0.7 * slope
    torch.testing.assert_close(means[0] - means[1], moved, rtol=1e-9, atol=1e-9)


def test_no_weight_is_no_guidance_bit_for_bit() -> None:
    """E3: with ls = li = 0 nothing of the energies is called, and every number is the denoiser's own."""
    process, x = linear(1000), torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(4))

    def never(x: Tensor, t: object) -> Tensor:
        raise AssertionError("it has no weight")

    denoise = exact(process, None)
    steered = Steered(denoise, process, [(never, 0.0), (LowPass(never, 1), 0.0)])
    assert torch.equal(steered(x, 400.0).eps, denoise(x, 400.0).eps) and steered.evaluations == 1


def test_the_closed_form_is_torchs_gradient() -> None:
    x0, e, x = torch.randn(3, 2, 3, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    low_pass = LowPass(Noised(linear(100), x0, e), 4)
    found = gradient_of(lambda x, t: low_pass(x, t), x, np.array([3.0, 70.0]))
    torch.testing.assert_close(low_pass.gradient(x, np.array([3.0, 70.0])), found, rtol=1e-12, atol=1e-12)


def test_the_other_similarities_are_what_they_say() -> None:
    """-|W (x - x_src)|^2 of linear features; minus a cosine of colours, which knows no length and not of greys."""
    x0, e, x = torch.randn(3, 2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    source, mix = Noised(linear(100), x0, e), torch.randn(5, 3, dtype=torch.float64)
    off = x - source(30.0)
    far = Features(source, lambda x, t: torch.einsum("fc,bchw->bfhw", mix, x), nearness)
    torch.testing.assert_close(far(x, 30.0), -(torch.einsum("fc,bchw->bfhw", mix, off) ** 2).sum((1, 2, 3)))
    wanted = -2.0 * torch.einsum("fd,fc,bchw->bdhw", mix, mix, off)
    torch.testing.assert_close(gradient_of(far, x, 30.0), wanted)

    colours, a, b = LowPassCosine(source, 1), x, source(30.0)
    cosine = (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()
    torch.testing.assert_close(colours(x, 30.0), -cosine.mean((1, 2)))
    torch.testing.assert_close(colours(3.0 * x, 30.0), colours(x, 30.0))
    unit = a / a.norm(dim=1, keepdim=True)
    towards = -(b / b.norm(dim=1, keepdim=True) - cosine[:, None] * unit) / a.norm(dim=1, keepdim=True) / 16
    torch.testing.assert_close(gradient_of(colours, x, 30.0), towards)
    smooth = low_pass_matrix(4, 2)
    through = lambda z: smooth @ z @ smooth.mT  # noqa: E731
    low = LowPassCosine(lambda t: through(b), 1)(through(x), 30.0)
    torch.testing.assert_close(LowPassCosine(source, 2)(x, 30.0), low)
    with pytest.raises(UserError, match="these images have one channel; use 'low_pass'"):
        colours(x[:, :1], 30.0)


@pytest.mark.parametrize("keep", [False, True])
def test_x0_is_limited_after_it_was_shifted(keep: bool) -> None:
    process, x, t = linear(1000), torch.full((1, *SHAPE), 0.5, dtype=torch.float64), 400.0
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    denoise = Denoiser(lambda x, label: torch.full_like(x, 0.2), process, predicts="x0")
    after = "keep" if keep else "rederive"
    push = [(lambda x, t: -5.0 * x.flatten(1).sum(1), 2.0)]
    found = Steered(denoise, process, push, clip=(-1.0, 1.0), eps_after_clip=after)(x, t)
    shifted = 0.2 + 10.0 * sigma**2 / alpha
    assert shifted > 1.0 and torch.equal(found.x0, torch.ones_like(x))
    raw = (x - alpha * shifted) / sigma
    torch.testing.assert_close(found.eps, raw if keep else (x - alpha) / sigma)


def test_networks_are_told_times_by_their_label() -> None:
    told: list[Tensor] = []
    call = timed(lambda x, label: told.append(label) or x, lambda n: n - 1.0)
    call(torch.zeros(3, 1, 2, 2), 250.0)
    assert told[0].tolist() == [249.0] * 3


# What is refused


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_weights_are_numbers_of_at_least_0(weight: float) -> None:
    with pytest.raises(UserError, match=r"the weight of energy 'LowPass' is .*; it must be a number of at least 0"):
        Steered(exact(linear(100), None), linear(100), [(LowPass(lambda t: torch.zeros(1), 1), weight)])


@pytest.mark.parametrize(
    ("energy", "told"),
    [
        (lambda x, t: x.square().sum(), r"numbers of shape \(\) for 2 examples; .* of shape \(2,\)"),
        (lambda x, t: x.square().flatten(1), r"numbers of shape \(2, 2\) for 2 examples"),
        (lambda x, t: torch.zeros(2), "has no gradient: it must be computed of x"),
        (lambda x, t: (x - x).sqrt().flatten(1).sum(1), "has a gradient that is not finite at t = 4"),
        (OfClass(lambda x, t: x.flatten(1), 2), r"`target` = 2 must lie in 0..1"),
        (LowPass(lambda t: torch.zeros(2, 1, 4, 2), 1), r"the source images have shape \(2, 1, 4, 2\), and the images"),
        (LowPass(lambda t: torch.zeros(2, *SHAPE), 2), "`factor` = 2 of a low pass must divide the image's sides"),
    ],
)
def test_energies_that_are_none_are_refused_in_words(energy: object, told: str) -> None:
    process = linear(100)
    with pytest.raises(UserError, match=told):
        Steered(exact(process, None), process, [(energy, 1.0)])(torch.ones(2, *SHAPE), 4.0)


def test_a_gradient_of_another_shape_is_refused() -> None:
    class Wide(LowPass):
        def gradient(self, x: Tensor, t: object) -> Tensor:
            return x[..., :1]

    with pytest.raises(
        UserError, match=r"the gradient of energy 'Wide' has shape \(2, 1, 1, 1\), and x \(2, 1, 1, 2\)"
    ):
        gradient_of(Wide(lambda t: torch.zeros(2, *SHAPE), 1), torch.ones(2, *SHAPE), 4.0)
