"""Linear inverse problems: operators, Gaussians given an observation, posteriors of Gaussian data and mixtures."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adpm import ideal
from adpm.basis import Matrix
from adpm.completion import complete
from adpm.denoiser import Counted, Denoiser, Prediction
from adpm.errors import UserError
from adpm.gaussian import Covariance, Diagonal, InBasis
from adpm.inverse import Conditioned, ConditionedGaussian
from adpm.kernel import Kernel
from adpm.model import Model
from adpm.noise import KeyedNoise
from adpm.observations import Mask, Observation, Operator, Separable, blur, reduction
from adpm.process import Process, linear
from adpm.sampler import keyed, sample
from adpm.solver import ReverseGaussian
from adpm.variance import Large, PosteriorRule, Small, Unit
from benchmarks.inverse import World, operators, posterior
from sde.process import VE, VP

SHAPE, D, STD = (1, 4, 4), 16, 0.1
GENERATOR = torch.Generator().manual_seed(0)
SEEN = torch.rand(SHAPE, generator=GENERATOR) < 0.5
OPERATORS: dict[str, Operator] = {"mask": Mask(SEEN), "blur": blur((4, 4), 0.8), "reduction": reduction((4, 4), 2)}


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


AXES = torch.linalg.qr(normal(D, D))[0]
VARIANCES = torch.logspace(-3, 0, D, dtype=torch.float64)
MEAN = 0.3 * normal(D)
DATA = ideal.full_mixture([1.0], MEAN[None].numpy(), (AXES * VARIANCES @ AXES.mT)[None].numpy(), SHAPE)
COVARIANCES: dict[str, Covariance] = {
    "scalar": Diagonal(0.3),
    "per state": Diagonal(torch.tensor([0.1, 0.5, 2.0]).double().reshape(3, 1, 1, 1)),
    "pixels": Diagonal(normal(3, *SHAPE).exp()),
    "basis": InBasis(VARIANCES.reshape(1, *SHAPE), basis=Matrix(AXES)),
}


def dense(operator: Operator) -> Tensor:
    """H as a matrix."""
    return operator.forward(torch.eye(D).double().reshape(D, *SHAPE)).flatten(1).mT


def matrices(covariance: Covariance) -> Tensor:
    """C of three states, [3, D, D]."""
    units = torch.eye(D).double().reshape(D, *SHAPE)
    return torch.stack([covariance.times(unit.expand(3, *SHAPE)).flatten(1) for unit in units], 2)


@pytest.mark.parametrize("name", OPERATORS)
def test_adjoints_are_those_of_the_operators(name: str) -> None:
    operator, x = OPERATORS[name], normal(5, *SHAPE)
    seen = operator.forward(x)
    y = torch.randn(seen.shape, dtype=torch.float64)
    pair = (seen * y).sum(), (x * operator.adjoint(y)).sum()
    torch.testing.assert_close(*pair)


def test_a_reduction_takes_means_and_a_blur_keeps_constants() -> None:
    x = normal(2, 3, 8, 12)
    torch.testing.assert_close(reduction((8, 12), 4).forward(x), F.avg_pool2d(x, 4))
    constant = torch.ones(1, 1, 8, 12).double()
    torch.testing.assert_close(blur((8, 12), 1.5).forward(constant), constant)
    assert float(blur((8, 12), 1.5).forward(x).var()) < 0.5 * float(x.var())


@pytest.mark.parametrize("std", [0.0, STD])
@pytest.mark.parametrize("shape", COVARIANCES)
@pytest.mark.parametrize("name", OPERATORS)
def test_a_gaussian_given_an_observation_is_the_one_by_matrices(name: str, shape: str, std: float) -> None:
    """Mean m + C H^T (H C H^T + std^2)^-1 (y - H m), deviations of covariance C - C H^T (...)^-1 H C."""
    operator, covariance = OPERATORS[name], COVARIANCES[shape]
    h, c = dense(operator), matrices(covariance)
    truth, m = normal(3, *SHAPE), normal(3, *SHAPE)
    y = operator.forward(truth)
    inverse = torch.linalg.pinv(h @ c @ h.mT + std**2 * torch.eye(len(h)).double(), rtol=1e-12)
    gain = c @ h.mT @ inverse
    observation = Observation(operator, y, std)
    wanted = m.flatten(1) + (gain @ (y - operator.forward(m)).flatten(1)[:, :, None])[:, :, 0]
    torch.testing.assert_close(observation.mean(m, covariance).flatten(1), wanted, rtol=1e-6, atol=1e-6)
    # the deviation is linear in both noises: its covariance is that of the columns that unit noises give
    total, zero = torch.zeros(3, D, D).double(), torch.zeros(3, *SHAPE).double()
    for unit in torch.eye(D).double().reshape(D, 1, *SHAPE).expand(D, 3, *SHAPE):
        for pair in ((unit, zero), (zero, unit)):
            column = observation.deviation(covariance, *pair).flatten(1)[:, :, None]
            total += column @ column.mT
    torch.testing.assert_close(total, c - gain @ h @ c, rtol=1e-5, atol=1e-6)


class Exact(PosteriorRule):
    """Cov[x_0 | x_t] of Gaussian data."""

    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        noise = float(kernel.sigma_t / kernel.alpha_t) ** 2
        return InBasis((VARIANCES * noise / (VARIANCES + noise)).reshape(1, *SHAPE), basis=Matrix(AXES))


def joint_mean(operator: Operator, process: Process, x: Tensor, t: float, y: Tensor) -> Tensor:
    """E[x_0 | x_t, y] of Gaussian data, by the joint Gaussian of the three."""
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    h = dense(operator)
    c = AXES * VARIANCES @ AXES.mT
    whole = torch.cat([alpha * torch.eye(D).double(), h])
    noise = torch.block_diag(sigma**2 * torch.eye(D).double(), STD**2 * torch.eye(len(h)).double())
    off = torch.cat([x.flatten(1), y.flatten(1).expand(len(x), -1)], 1) - MEAN @ whole.mT
    return MEAN + off @ torch.linalg.solve(whole @ c @ whole.mT + noise, whole @ c)


@pytest.mark.parametrize("jacobian", [True, False])
@pytest.mark.parametrize("process", [linear(1000), VP(), VE()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", OPERATORS)
def test_gaussian_data_are_conditioned_exactly(name: str, process: Process, jacobian: bool) -> None:
    operator, y = OPERATORS[name], OPERATORS[name].forward(normal(1, *SHAPE))
    exact = ideal.IdealDenoiser(DATA, process)
    denoise = Conditioned(exact, process, Observation(operator, y, STD), Exact(), jacobian=jacobian)
    for fraction in (0.05, 0.4, 0.9):
        t = float(process.times[round(fraction * process.steps)])
        x = float(process.alpha(t)) * normal(3, *SHAPE) + float(process.sigma(t)) * normal(3, *SHAPE)
        with torch.inference_mode():
            found = denoise(x, t)
        torch.testing.assert_close(found.x0.flatten(1), joint_mean(operator, process, x, t, y), rtol=1e-6, atol=1e-6)
        back = float(process.alpha(t)) * found.x0 + float(process.sigma(t)) * found.eps
        torch.testing.assert_close(back, x)


@pytest.mark.parametrize("name", OPERATORS)
def test_few_steps_draw_from_the_posterior_of_gaussian_data(name: str) -> None:
    """4 steps, the last one from t = 1: mean and covariance of 4,000 samples within 4.5 standard errors of all."""
    process, operator, n = linear(1000), OPERATORS[name], 4000
    y = operator.forward(DATA.sample(1, 3)) + STD * 0.5
    y = operator.forward(y) if name == "mask" else y
    observation = Observation(operator, y, STD)
    denoise = Conditioned(ideal.IdealDenoiser(DATA, process), process, observation, Exact(), jacobian=False)
    noise = keyed(KeyedNoise(1, "sample"), torch.arange(n), SHAPE, torch.float64)
    counted = Counted(denoise)
    with torch.inference_mode():
        solver = ConditionedGaussian(process, Exact(), observation)
        *_, end = sample(counted, solver, process, process.times[[0, 1, 200, 600, 1000]], noise)
    wanted = posterior(DATA, operator, y, STD)
    variance = (wanted.basis[0] * wanted.spectrum[0]) @ wanted.basis[0].mT
    drawn, spread = end.x.flatten(1), variance.diagonal()
    assert counted.calls == 4
    assert ((drawn.mean(0) - wanted.means[0]).abs() / (spread / n).sqrt()).max() < 4.5
    error = ((spread[:, None] * spread + variance.square()) / n).sqrt()
    left = 2e-3 * float(spread.max())  # the last step adds no noise
    assert (((torch.cov(drawn.mT) - variance).abs() - left) / error).max() < 4.5


def test_the_posterior_of_the_mixture_is_the_one_of_importance() -> None:
    """What the benchmark calls exact: means of 200,000 draws weighted by the likelihood, within 5 standard errors."""
    mixture = ideal.full_mixture(
        [0.4, 0.6],
        torch.stack([MEAN, -MEAN]).numpy(),
        torch.stack([0.3 * torch.eye(D).double(), AXES * VARIANCES @ AXES.mT]).numpy(),
        SHAPE,
    )
    operator = OPERATORS["reduction"]
    y = operator.forward(mixture.sample(1, 1))
    draws = mixture.sample(200_000, 2)
    weight = torch.softmax(-0.5 * (y - operator.forward(draws)).square().flatten(1).sum(1) / 0.3**2, 0)
    mean = weight @ draws.flatten(1)
    error = ((weight**2) @ (draws.flatten(1) - mean).square()).sqrt()
    exact = posterior(mixture, operator, y, 0.3)
    assert ((exact.mean() - mean).abs() / error).max() < 5.0


def test_a_measured_covariance_halves_the_distance_to_exact_posteriors_at_least() -> None:
    """Inpainting of six digits at 25 evaluations: energy distance, and 90 % intervals that cover 85 to 95 %.

    benchmarks/inverse.py measures more of them, and other problems.
    """
    world = World(draws=300, times=24)
    found = world.figures(operators(world.mixture.shape)["inpainting"], 6, 60, 25, "even")
    kept, given, quick = range(3)
    distance = {rule: [float(way.distances.mean()) for way in ways] for rule, ways in found.items()}
    for way in (kept, given, quick):
        assert distance["spectral"][way] < 0.5 * distance["guess"][way]
    assert abs(distance["exact"][0]) < 0.01
    assert 0.85 <= float(found["spectral"][given].covered.mean()) <= 0.95
    assert 0.80 <= float(found["exact"][0].covered.mean()) <= 0.95  # few pixels of few problems


# What is refused, and what is left alone


def test_x0_is_limited_after_it_was_conditioned() -> None:
    process, x = linear(1000), torch.zeros(2, *SHAPE)
    denoise = Denoiser(lambda x, label: torch.zeros_like(x), process, predicts="x0")
    observation = Observation(OPERATORS["mask"], torch.where(SEEN, 3.0, 0.0)[None], STD)
    found = Conditioned(denoise, process, observation, Unit(), jacobian=False, clip=(-1.0, 1.0))(x, 500.0)
    assert float(found.x0.max()) == 1.0 and float(found.x0_network.max()) > 2.0
    torch.testing.assert_close(float(process.alpha(500)) * found.x0 + float(process.sigma(500)) * found.eps, x)


def test_a_model_completes_an_image_by_one_call() -> None:
    """Gaussian data: mean and spread of 4,000 completions are those of the exact posterior, in any batches."""
    process = linear(1000)
    model = Model.of(ideal.IdealDenoiser(DATA, process), process)
    y = OPERATORS["mask"].forward(DATA.sample(1, 5))
    observation = Observation(OPERATORS["mask"], y, STD)
    plan = model.plan(steps=4, trajectory="log_snr")
    found = complete(model, plan, observation, 4000, rule=Exact(), shape=SHAPE, batch_size=2000)
    wanted = posterior(DATA, OPERATORS["mask"], y, STD)
    variance = ((wanted.basis[0] * wanted.spectrum[0]) @ wanted.basis[0].mT).diagonal()
    off = (found.double().flatten(1).mean(0) - wanted.means[0]).abs()
    assert (off / (variance / 4000).sqrt()).max() < 4.5
    spread = found.double().flatten(1).var(0)
    assert ((spread - variance).abs() < 4.5 * (2.0 / 4000) ** 0.5 * variance + 2e-3 * variance.max()).all()
    few = complete(model, plan, observation, 3, rule=Exact(), shape=SHAPE, batch_size=1)
    torch.testing.assert_close(few, found[:3], rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"of one image has values \[1, ...\], got \(2, 1, 4, 4\)"):
        complete(model, plan, Observation(OPERATORS["mask"], y.expand(2, *SHAPE), STD), shape=SHAPE, rule=Exact())


def test_no_variance_pulls_nowhere() -> None:
    """C = 0: as if x_0 were known, whatever is observed."""
    process, x = linear(1000), normal(2, *SHAPE)
    exact = ideal.IdealDenoiser(DATA, process)
    observation = Observation(OPERATORS["blur"], normal(1, *SHAPE), STD)
    found = Conditioned(exact, process, observation, Small(), jacobian=False)(x, 500.0)
    torch.testing.assert_close(found.x0, exact(x, 500.0).x0)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Mask(torch.zeros(SHAPE, dtype=torch.bool)), "True where a pixel is seen, and one has to be"),
        (lambda: Mask(torch.ones(SHAPE)), "a mask is a tensor of bool"),
        (lambda: blur((4, 4), 0.0), "`width` = 0.0 of a blur"),
        (lambda: reduction((4, 6), 4), "`factor` = 4 of a reduction must divide the image's sides, 4x6"),
        (lambda: Observation(Mask(SEEN), torch.full((1, *SHAPE), math.nan), 0.1), "values that are not finite"),
        (lambda: Observation(Mask(SEEN), torch.zeros(1, *SHAPE), -0.1), "`std` = -0.1 of an observation's noise"),
        (lambda: Observation(Mask(SEEN), torch.zeros(1, 1, 4, 5), 0.1).off(torch.zeros(2, *SHAPE)), r"\(1, 1, 4, 5\)"),
        (lambda: Observation(Mask(SEEN), torch.zeros(3, *SHAPE), 0.1).off(torch.zeros(2, *SHAPE)), r"\(3, 1, 4, 4\)"),
        (lambda: blur((4, 4), 1.0).forward(torch.zeros(1, 1, 8, 8)), "of images of 4x4 pixels, got"),
        (
            lambda: Conditioned(None, linear(100), Observation(Mask(SEEN), torch.zeros(1, *SHAPE), 0.1), Large()),
            r"a rule that models Cov\[x_0 \| x_t\], which Large does not",
        ),
    ],
)
def test_what_is_no_observation_is_refused_in_words(make: object, told: str) -> None:
    with pytest.raises(UserError, match=told):
        make()


def test_any_solver_takes_a_conditioned_denoiser() -> None:
    """The plain reverse step moves towards what was observed."""
    process, truth = linear(1000), DATA.sample(1, 8)
    observation = Observation(Separable(torch.eye(4).double(), torch.eye(4).double()), truth, 0.01)
    denoise = Conditioned(ideal.IdealDenoiser(DATA, process), process, observation, Exact())
    noise = keyed(KeyedNoise(0, "sample"), torch.arange(4), SHAPE, torch.float64)
    times = process.times[[0, 1, 300, 1000]]
    *_, end = sample(denoise, ReverseGaussian(process, Small()), process, times, noise)
    assert float((end.x - truth).abs().max()) < 0.04
