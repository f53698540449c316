"""How training times are drawn: the loss-aware sampler's published weights, no bias, less variance, resume."""

from __future__ import annotations

import numpy as np
import pytest

from adpm.errors import UserError
from adpm.process import PROCESSES, DiscreteProcess
from adpm.run.times import TIMES, LossAware, stratified
from sde.process import PROCESSES as SDES
from tests.goldens import golden


def warmed(steps: int, scale: np.ndarray, seed: int) -> LossAware:
    """A sampler that has seen ten losses scale_t chi2_8 / 8 of every time."""
    sampler = LossAware(PROCESSES["linear"].build(steps))
    rng = np.random.default_rng(seed)
    t = np.tile(np.arange(1.0, steps + 1), 10)
    sampler.update(t, np.tile(scale, 10) * rng.chisquare(8, len(t)) / 8)
    assert sampler.warm
    return sampler


def test_weights_are_the_published_samplers() -> None:
    """400 losses at 5 times, fed in the published order; steps are counted from 0 there."""
    z = golden("iddpm")
    sampler = LossAware(DiscreteProcess([0.1] * 5))
    for part in np.array_split(np.arange(len(z["sampler_t"])), 7):  # batches do not matter
        sampler.update(z["sampler_t"][part] + 1.0, z["sampler_loss"][part])
    np.testing.assert_allclose(sampler.probabilities(), z["sampler_weights"], rtol=1e-12)


def test_uniform_with_weight_one_until_every_time_is_known() -> None:
    sampler = LossAware(DiscreteProcess([0.1] * 20))
    for i in range(10):
        t, weights = sampler.draw(stratified(0, i, 40))
        assert np.array_equal(np.sort(t), np.repeat(np.arange(1.0, 21.0), 2)) and np.all(weights == 1.0)
        assert not sampler.warm
        sampler.update(np.arange(1.0, 21.0), np.arange(1.0, 21.0))
    assert sampler.warm
    p = sampler.probabilities()
    np.testing.assert_allclose(p, 0.999 * np.arange(1, 21) / 210 + 0.001 / 20, rtol=1e-12)


def test_loss_aware_times_are_unbiased_and_cut_the_variance() -> None:
    """I5: losses scale_t chi2_8/8, scale 10 -> 1 geometric over 1000 times, batches of 128 independent times."""
    steps, batch, repeats = 1000, 128, 4000
    scale = np.geomspace(10.0, 1.0, steps)
    sampler = warmed(steps, scale, seed=1)
    rng = np.random.default_rng(2)
    means = {"uniform": np.empty(repeats), "aware": np.empty(repeats)}
    for i in range(repeats):
        u, noise = rng.random(batch), rng.chisquare(8, batch) / 8
        t, weights = sampler.draw(u)
        means["aware"][i] = (weights * scale[t.astype(int) - 1] * noise).mean()
        means["uniform"][i] = (scale[(u * steps).astype(int)] * noise).mean()
    for name, values in means.items():
        assert abs(values.mean() - scale.mean()) < 3 * values.std() / repeats**0.5, name
    assert means["uniform"].var() > 2 * means["aware"].var()
    assert means["uniform"].var() == pytest.approx(0.087, rel=0.1)
    # with scale_t known, p_t ~ scale_t leaves mean(scale)^2 Var[chi2_8/8] / 128; ten noisy losses give away a little
    least = scale.mean() ** 2 * 0.25 / batch
    assert 0.9 * least < means["aware"].var() < 1.35 * least


def test_no_time_is_forgotten_and_zero_losses_are_uniform() -> None:
    sampler = warmed(50, np.r_[np.ones(49), 0.0], seed=0)
    assert sampler.probabilities()[-1] == pytest.approx(0.001 / 50)
    t, weights = sampler.draw(np.array([0.0, 1.0 - 1e-16]))
    assert t[0] == 1.0 and t[1] == 50.0 and np.isfinite(weights).all()
    np.testing.assert_allclose(warmed(50, np.zeros(50), seed=0).probabilities(), 1 / 50, rtol=1e-12)


def test_only_the_last_ten_losses_count() -> None:
    sampler = LossAware(DiscreteProcess([0.1] * 3))
    t = np.array([1.0, 2.0, 3.0])
    for k in range(25):
        sampler.update(t, np.array([1.0, 1.0, 1000.0 if k < 15 else 2.0]))
    np.testing.assert_allclose(sampler.probabilities(), 0.999 * np.array([1, 1, 2]) / 4 + 0.001 / 3, rtol=1e-12)


def test_state_restores_everything() -> None:
    first, second = warmed(30, np.linspace(1, 3, 30), seed=5), LossAware(PROCESSES["linear"].build(30))
    second.restore(first.state())
    u = stratified(0, 3, 64)
    first.update(np.array([4.0]), np.array([9.0]))
    second.update(np.array([4.0]), np.array([9.0]))
    for a, b in zip(first.draw(u), second.draw(u), strict=True):
        assert np.array_equal(a, b)


def test_an_sde_has_no_second_visit() -> None:
    with pytest.raises(UserError, match=r"config\.train\.times = 'loss_aware'.*discrete process"):
        LossAware(SDES["vp"].build(steps=10))


@pytest.mark.parametrize("name", sorted(TIMES))
def test_every_sampler_gives_reference_times_and_weights(name: str) -> None:
    process = PROCESSES["cosine"].build(100)
    sampler = TIMES[name].build(process)
    t, weights = sampler.draw(stratified(0, 0, 32))
    assert np.isin(t, process.times[1:]).all() and np.all(weights == 1.0) and t.dtype == weights.dtype == np.float64
    assert sampler.learns == bool(sampler.state()), "what learns from losses has a state to resume"


def test_times_are_uniform_and_stratified() -> None:
    process = PROCESSES["linear"].build(1000)
    steps = np.stack([TIMES["uniform"].build(process).draw(stratified(0, i, 50))[0] for i in range(2000)]).astype(int)
    assert steps.min() == 1 and steps.max() == 1000
    assert np.all(np.diff(np.sort(steps, axis=1), axis=1) <= 40), "one per stratum of 20"
    counts = np.bincount(steps.ravel(), minlength=1001)[1:]
    assert abs(counts - 100).max() < 6 * 10, "100 expected, Poisson-like spread 10"


def test_times_can_be_uniform_in_log_snr() -> None:
    """As many times in each half of the log-SNR range, to the width of a reference step."""
    process = PROCESSES["linear"].build(1000)
    log_snr = process.log_snr(TIMES["log_snr"].build(process).draw(stratified(0, 0, 5000))[0])
    ends = process.log_snr(process.times[[1, -1]])
    edges = np.linspace(ends[1], ends[0], 5)
    assert np.allclose(np.histogram(log_snr, edges)[0] / 5000, 0.25, atol=0.02)
