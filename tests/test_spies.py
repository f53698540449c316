"""What the mathematics asks of a network and of its noise, seen by spies in their place.

A spy denoiser keeps the (x, t) it is asked about. The images here are zeros, so that x_t = sigma_t eps gives the noise.
Equal keys (seed, sample, time, draw) must give equal noise, and unequal ones noise that has nothing in common.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adpm.denoiser import LABELS, Counted, Denoise, Denoiser, Prediction, index_label
from adpm.draws import GAMMA, POWER, RESIDUAL, Draws, Source, measure
from adpm.errors import UserError
from adpm.gaussian import ZERO
from adpm.kernel import reverse_kernel
from adpm.likelihood import Levels, keyed_noise, measure_statistics, path_terms
from adpm.noise import KeyedNoise, Noise
from adpm.objective import eps_matching
from adpm.parametrisation import PREDICTIONS
from adpm.process import Array, linear
from adpm.sampler import MAX_STEPS, keyed, sample
from adpm.solver import ReverseGaussian, Step
from adpm.variance import Large, Small, Unit
from covariance.objective import relative, residual, squared_noise
from covariance.rules import Relative, SquaredNoise
from sde.corrector import Langevin, PredictorCorrector, noise_level
from sde.likelihood import ProbabilityFlow, keyed_probes
from sde.process import VP
from sde.score import score_of
from sde.solver import EulerMaruyama

SHAPE = (1, 2, 3)
LINEAR = linear(1000)


@dataclass
class Spy:
    """A denoiser that keeps what it is asked, and says what its x0, eps and eps_network are all different."""

    x0: float = 0.25
    eps: float = 0.5
    eps_network: float = 2.0
    asked: list[tuple[float, Tensor]] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Any) -> Prediction:
        self.asked.append((float(t), x))
        return Prediction(*(torch.full_like(x, value) for value in (self.x0, self.eps, self.eps_network)))

    def noise(self) -> dict[float, Tensor]:
        """The noise of zero images at each time, in the order in which it was asked about."""
        times = dict.fromkeys(t for t, _ in self.asked)
        return {t: torch.cat([x for at, x in self.asked if at == t]) / float(LINEAR.sigma(t)) for t in times}


def zeros(size: int) -> Source:
    return Source(size, lambda index: torch.zeros(len(index), *SHAPE, dtype=torch.float64), torch.zeros(SHAPE), 0.0)


def all_different(noises: Tensor) -> None:
    """No two rows share an element: what is drawn under another key is another number everywhere."""
    for column in noises.flatten(1).T:
        assert len(column.unique()) == len(column)


# -- the network's door -----------------------------------------------------------------------------------------------


def test_every_state_of_a_batch_has_its_own_label_and_its_own_scales() -> None:
    """Labels (t - 1)/2 at t = 3, 7, 999; a network that says x0 = 1 then leaves eps = (x - alpha_t) / sigma_t."""
    seen: list[Tensor] = []

    def network(x: Tensor, label: Tensor) -> Tensor:
        seen.append(label)
        return torch.ones_like(x)

    t, x = np.array([3.0, 7.0, 999.0]), torch.full((3, *SHAPE), 2.0, dtype=torch.float64)
    prediction = Denoiser(network, LINEAR, predicts="x0", time_label=index_label(1.0, 0.5))(x, t)
    assert seen[0].tolist() == [1.0, 3.0, 499.0]
    expected = torch.as_tensor((2.0 - LINEAR.alpha(t)) / LINEAR.sigma(t)).reshape(-1, 1, 1, 1).expand_as(x)
    torch.testing.assert_close(prediction.eps, expected)


def test_evaluations_are_calls_of_the_network_not_images() -> None:
    counted, x = Counted(Spy()), torch.zeros(5, *SHAPE)
    counted(x, 3.0), counted(x, 2.0)
    assert counted.calls == 2


def test_a_label_without_a_scale_is_what_a_thousand_steps_would_have() -> None:
    assert LABELS["index"].build(linear(500), 0.0, 0.0)(np.array([1.0, 500.0])).tolist() == [2.0, 1000.0]
    assert LABELS["index"].build(linear(4000), 1.0, 0.0)(np.array([1.0, 4000.0])).tolist() == [0.0, 999.75]


@pytest.mark.parametrize("predicts", sorted(PREDICTIONS))
def test_all_that_a_network_may_predict_is_the_same_prediction(predicts: str) -> None:
    """x0 = 0.3 and eps = -0.7, said as a network of each kind says it."""
    x0, eps = (torch.full((2, *SHAPE), value, dtype=torch.float64) for value in (0.3, -0.7))
    alpha, sigma = float(LINEAR.alpha(400)), float(LINEAR.sigma(400))
    velocity = alpha * eps - sigma * x0
    said = {"eps": eps, "x0": x0, "score": -eps / sigma, "v": velocity, "flow": eps - x0, "edm": -velocity}[predicts]
    prediction = Denoiser(lambda x, label: said, LINEAR, predicts=predicts)(alpha * x0 + sigma * eps, 400.0)
    torch.testing.assert_close(prediction.x0, x0)
    torch.testing.assert_close(prediction.eps, eps)
    torch.testing.assert_close(prediction.eps_network, eps)
    torch.testing.assert_close(prediction.x0_network, x0)


# -- moments ----------------------------------------------------------------------------------------------------------


def moments_noise(times: tuple[float, ...], seed: int, size: int = 4, draws: int = 10, batch: int = 3) -> Tensor:
    """[times, draws, ...] as the network sees it."""
    spy = Spy()
    list(measure(spy, LINEAR, zeros(size), times, draws, seed, batch))
    return torch.stack(list(spy.noise().values()))


def test_moments_draw_other_noise_at_every_time_in_every_round_and_for_every_seed() -> None:
    """Ten draws of four images: an image that comes again comes with other noise."""
    seen = torch.stack([moments_noise((100.0, 101.0, 900.0), seed) for seed in (5, 6)])
    assert seen.shape == (2, 3, 10, *SHAPE)
    all_different(seen.flatten(0, 2))


def test_moments_repeat_for_equal_keys() -> None:
    seen = moments_noise((100.0, 900.0), 5)
    assert torch.equal(moments_noise((900.0,), 5)[0], seen[1]), "other times do not matter"
    assert torch.equal(moments_noise((100.0, 900.0), 5, size=7, batch=10), seen), "nor do the images and the batch"
    assert torch.equal(moments_noise((100.0, 900.0), 5, draws=4), seen[:, :4]), "nor does the number of draws"


def moments_images(size: int, draws: int, seed: int) -> list[int]:
    """The images' numbers in the order in which the second of two times takes them."""
    taken: list[int] = []

    def images(index: Tensor) -> Tensor:
        taken.extend(index.tolist())
        return torch.zeros(len(index), *SHAPE)

    list(measure(Spy(), LINEAR, Source(size, images, torch.zeros(SHAPE), 0.0), (10.0, 500.0), draws, seed, 7))
    assert taken[:draws] == taken[draws:], "all times see the same images"
    return taken[draws:]


def test_moments_take_images_of_the_whole_split_in_an_order_of_the_seed() -> None:
    first = moments_images(size=200, draws=40, seed=0)
    assert len(set(first)) == 40 and max(first) >= 150 and min(first) < 50
    assert sorted(moments_images(size=200, draws=200, seed=0)) == list(range(200))
    assert moments_images(size=20, draws=60, seed=3) == 3 * moments_images(size=20, draws=20, seed=3)
    assert moments_images(size=200, draws=40, seed=1) != first


def test_moments_are_about_the_kernels_x0_and_the_networks_eps() -> None:
    """The images are zeros with a mean of 0.1: residual x0^2, power (x0 - 0.1)^2, gamma eps_network^2 and not eps^2."""
    source = Source(4, zeros(4).images, torch.full(SHAPE, 0.1, dtype=torch.float64), 0.0)
    ((_, sums),) = measure(Spy(x0=0.25, eps=0.5, eps_network=2.0), LINEAR, source, (500.0,), 8, 0, 8)
    assert isinstance(sums, Draws)
    found = sums.mean[[RESIDUAL, POWER, GAMMA]]
    np.testing.assert_allclose(found, [0.25**2, 0.15**2, 2.0**2], rtol=1e-12)


# -- the bound --------------------------------------------------------------------------------------------------------

TIMES = np.array([0.0, 1.0, 10.0, 11.0, 1000.0])


def bound_noise(seed: int, numbers: range, times: Array = TIMES, stream: str = "likelihood") -> Tensor:
    """[times, images, ...] as the network sees it on a path."""
    spy, x0 = Spy(), torch.zeros(len(numbers), *SHAPE, dtype=torch.float64)
    noise = keyed_noise(seed, LINEAR, torch.tensor(numbers), SHAPE, torch.float64, stream)
    list(path_terms(spy, LINEAR, Unit(), lambda t: 1.0, Levels(0, -1.0, 1.0), times, x0, noise))
    return torch.stack(list(spy.noise().values()))


def test_the_bound_draws_other_noise_at_every_time_for_every_image_seed_and_purpose() -> None:
    keys = [(0, "likelihood"), (1, "likelihood"), (0, "cost_table")]
    seen = torch.stack([bound_noise(seed, range(5), stream=stream) for seed, stream in keys])
    assert seen.shape == (3, 4, 5, *SHAPE)
    all_different(seen.flatten(0, 2))


def test_the_bound_repeats_for_equal_keys() -> None:
    """An image's noise at a time is the same on every path, in every batch, and where statistics are measured."""
    seen = bound_noise(0, range(5))  # from the largest time down: 1000, 11, 10, 1
    assert torch.equal(bound_noise(0, range(3, 5)), seen[:, 3:])
    assert torch.equal(bound_noise(0, range(5), np.array([0.0, 11.0, 1000.0])), seen[:2])
    spy, x0 = Spy(), torch.zeros(5, *SHAPE, dtype=torch.float64)
    noise = keyed_noise(0, LINEAR, torch.arange(5), SHAPE, torch.float64)
    list(measure_statistics(spy, LINEAR, lambda t: 1.0, Levels(0, -1.0, 1.0), TIMES[1:], x0, noise))
    assert torch.equal(torch.stack(list(spy.noise().values())), seen.flip(0))


def test_the_bound_is_about_the_pair_that_the_kernel_uses() -> None:
    """x0 and eps are right, eps_network is not: the means agree, and `small` has q's own variance: 0 nats a step."""
    x0, eps = torch.zeros(2, *SHAPE, dtype=torch.float64), torch.full((2, *SHAPE), 0.5, dtype=torch.float64)
    spy = Spy(x0=0.0, eps=0.5, eps_network=7.0)
    terms = list(path_terms(spy, LINEAR, Small(), lambda t: 1.0, Levels(0, -1.0, 1.0), TIMES, x0, lambda t: eps))
    assert [term.s for term in terms] == [11.0, 10.0, 1.0, 0.0]
    for term in terms[:-1]:
        torch.testing.assert_close(term.nats, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


# -- sampling ---------------------------------------------------------------------------------------------------------


@dataclass
class SpySolver:
    """A solver that takes three draws a step, and counts its steps in `carry`."""

    drawn: list[Tensor] = field(default_factory=list)
    carried: list[Any] = field(default_factory=list)

    def step(self, denoise: Denoise, x: Tensor, t: float, s: float, noise: Noise, carry: Any = None) -> Step:
        self.drawn += [noise(), noise(1), noise(2)]
        self.carried.append(carry)
        return Step(t, s, x, denoise(x, t), x, ZERO, (carry or 0) + 1)


def test_sampling_draws_other_noise_at_every_step_for_every_draw_sample_and_seed() -> None:
    """Six steps with three draws each, and the start; the steps are as many as draws, so that sums of both collide."""
    rows = []
    for seed in (0, 1):
        solver = SpySolver()
        noise = keyed(KeyedNoise(seed, "sample"), torch.arange(3), SHAPE)
        spy = Spy()
        list(sample(spy, solver, LINEAR, np.arange(7.0), noise))
        assert solver.carried == [None, 1, 2, 3, 4, 5], "what a step hands on reaches the next one"
        rows += [spy.asked[0][1], *solver.drawn]
    assert len(rows) == 2 * 19
    all_different(torch.cat(rows))


def test_numbers_of_steps_and_draws_never_meet() -> None:
    """A long path and the largest number of draws: other numbers are other noise, whatever their size."""
    noise = keyed(KeyedNoise(0, "sample"), torch.arange(2), SHAPE)
    numbers = [0, 1, 255, 256, 257, 65536, MAX_STEPS - 1, MAX_STEPS, MAX_STEPS + 1, 4095 * MAX_STEPS]
    all_different(torch.cat([noise(k) for k in numbers]))


def test_the_reverse_step_uses_the_eps_of_the_clipped_x0() -> None:
    x = torch.zeros(1, *SHAPE, dtype=torch.float64)
    step = ReverseGaussian(LINEAR, Small()).step(Spy(eps_network=99.0), x, 500.0, 400.0, lambda draw=0: x)
    expected = ReverseGaussian(LINEAR, Small()).step(Spy(eps_network=0.5), x, 500.0, 400.0, lambda draw=0: x)
    assert torch.equal(step.mean, expected.mean)


def test_a_predictor_of_many_draws_shares_none_with_its_corrector() -> None:
    asked: list[int] = []
    x = torch.ones(2, *SHAPE, dtype=torch.float64)

    def noise(draw: int = 0) -> Tensor:
        asked.append(draw)
        return x

    PredictorCorrector(SpySolver(), Langevin(VP(), n_steps=2)).step(Spy(), x, 0.5, 0.4, noise)
    assert len(asked) == 5 and len(set(asked)) == 5


def test_the_large_variance_is_for_eta_one_alone() -> None:
    for eta in (0.0, 0.5):
        with pytest.raises(UserError, match=f"1 only, got .*{eta}"):
            Large()(reverse_kernel(LINEAR, 500, 400, eta), None)


def test_langevin_takes_the_score_where_it_acts() -> None:
    """At s, after a step t -> s: score = -eps / sigma_s, delta = 2 (alpha_t / alpha_s)^2 (snr sigma_s)^2."""
    sde, x, t, s = VP(), torch.ones(2, *SHAPE, dtype=torch.float64), 0.7, 0.3
    langevin = Langevin(sde, snr=0.2, unit=noise_level)
    _, mean, covariance = langevin.correct(Spy(eps=0.5), x, s, (t, s), lambda draw: x)
    sigma = float(sde.sigma(s))
    delta = 2.0 * float(sde.alpha(t) / sde.alpha(s)) ** 2 * (0.2 * sigma) ** 2
    torch.testing.assert_close(mean, x - delta * 0.5 / sigma)
    assert float(covariance.values) == pytest.approx(2.0 * delta)


# -- which eps --------------------------------------------------------------------------------------------------------


def test_objectives_are_about_the_networks_own_eps() -> None:
    """What is trained is the network's output, never the eps that goes with a clipped x0."""
    x = torch.zeros(2, *SHAPE, dtype=torch.float64)
    eps, head, t = torch.full_like(x, 1.5), torch.zeros_like(x), np.array([1.0, 2.0])
    prediction = Prediction(x, torch.full_like(x, 9.0), torch.full_like(x, 1.0), head)
    one = torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(eps_matching(prediction, x, eps, t), 0.5**2 * one)
    torch.testing.assert_close(residual(prediction, x, eps, t), 0.5**4 * one)
    torch.testing.assert_close(squared_noise(prediction, x, eps, t), 1.5**4 * one)


def test_a_heads_target_is_held_fixed() -> None:
    """Only the head learns: no gradient reaches the prediction that its target is made of."""
    x, eps, t = torch.zeros(2, *SHAPE), torch.ones(2, *SHAPE), np.array([1.0, 2.0])
    for objective in (residual, relative(lambda t: np.full(t.shape, 0.1))):
        x0, guess, head = (torch.full_like(x, 0.5).requires_grad_() for _ in range(3))
        objective(Prediction(x0, guess, guess, head), x, eps, t).sum().backward()
        assert x0.grad is None and guess.grad is None
        assert head.grad is not None and head.grad.abs().min() > 0.0


def test_the_relative_rule_takes_the_average_at_the_time_that_it_leaves() -> None:
    x = torch.zeros(1, *SHAPE, dtype=torch.float64)
    rule = Relative(lambda t: 0.001 * t)
    found = rule.posterior(reverse_kernel(LINEAR, 500, 400), Prediction(x, x, x, x)).values
    torch.testing.assert_close(found, torch.full_like(x, 0.5))


def test_the_squared_noise_rule_is_about_the_networks_own_eps() -> None:
    kernel = reverse_kernel(LINEAR, 500, 400)
    x = torch.ones(1, *SHAPE, dtype=torch.float64)
    rule, ratio = SquaredNoise(), float((kernel.sigma_t / kernel.alpha_t) ** 2)
    found = rule.posterior(kernel, Prediction(x, 9.0 * x, 0.5 * x, 2.0 * x)).values
    torch.testing.assert_close(found, ratio * (2.0 - 0.25) * x)


def test_solvers_follow_the_clipped_score_and_the_flows_density_the_networks_own() -> None:
    """Euler-Maruyama and Langevin take the eps of the clipped x0; a density needs the network's, which has a slope."""
    sde, x = VP(), torch.ones(2, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(score_of(Spy(eps=0.5)(x, 0.5), 2.0), -0.25 * x)
    wanted, found = (
        EulerMaruyama(sde).step(Spy(eps_network=value), x, 0.5, 0.4, lambda draw=0: x).mean for value in (0.5, 99.0)
    )
    assert torch.equal(wanted, found)
    flow = ProbabilityFlow(lambda x, t: Prediction(x, 0.0 * x, 3.0 * x), sde, x[None])
    velocity, slope = flow(x, 0.5)
    expected = float(sde.drift(0.5)) + 0.5 * float(sde.diffusion(0.5)) ** 2 / float(sde.sigma(0.5)) * 3.0
    torch.testing.assert_close(velocity, expected * x)
    torch.testing.assert_close(slope, expected * torch.full((1, 2), 6.0, dtype=torch.float64))


def test_probes_differ_between_each_other_between_images_and_seeds() -> None:
    rows = [keyed_probes("gaussian", 3, seed, torch.arange(4), SHAPE).flatten(0, 1) for seed in (0, 1)]
    all_different(torch.cat(rows))
    part = keyed_probes("gaussian", 2, 1, torch.arange(2, 4), SHAPE)
    assert torch.equal(part, rows[1].reshape(3, 4, *SHAPE)[:2, 2:]), "equal keys, equal probes"
