"""The benchmark's scores: exact heads leave nothing to gain, a head that says nothing is the scalar."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adpm import ideal
from adpm.process import PROCESSES
from benchmarks.head_training import World, world_of
from benchmarks.heads_exact import binned, evaluate
from tests.test_head_rules import inverse_factor

PATH = np.array([0.0, 1.0, 30.0, 200.0, 500.0, 900.0])


@pytest.fixture(scope="module")
def world() -> World:
    rng = np.random.default_rng(0)
    means, variances = rng.uniform(-0.8, 0.8, (3, 4)), rng.uniform(1e-3, 0.2, (3, 4))
    mixture = ideal.diagonal_mixture([0.3, 0.5, 0.2], means, variances, (1, 2, 2))
    return world_of(mixture, PROCESSES["linear"].build(1000), 500, 20, 300, 0)


def at_times(world, head):
    """A head of (x, t) as one of (x in float32, log-SNR), evaluated in float64."""

    def called(x, log_snr):
        t = world.process.times[1:][
            np.argmin(np.abs(world.process.log_snr(world.process.times[1:]) - float(log_snr[0])))
        ]
        return head(x.double(), t)

    return called


def snr(world, t):
    return float(np.exp(world.process.log_snr(t)))


def test_exact_heads_have_no_gap(world):
    exact = world.exact
    heads = {
        "sn": exact.squared_noise,
        "npr": lambda x, t: exact.variance(x, t) * snr(world, t),
        "relative": lambda x, t: inverse_factor(exact.variance(x, t) / float(world.average(t))),
    }
    rows = evaluate(world, {name: at_times(world, head) for name, head in heads.items()}, PATH, 200, 1)
    assert len(rows) == len(PATH) - 2
    for _, row in rows:
        assert 0.0 < row["per pixel"].r2 < 1.0 and row["scalar"].gap.mean() > row["per pixel"].gap.mean() > 0.0
        assert row["scalar"].r2 == pytest.approx(0.0, abs=1e-12)
        for name in heads:  # the state reaches a head in float32, which sn multiplies by 1/SNR
            assert row[name].r2 > 1.0 - 1e-4 and row[name].gap.mean() < 1e-4 * row["scalar"].gap.mean()
            assert row[name].clipped == 0.0


def test_a_relative_head_of_zeros_is_the_measured_scalar(world):
    rows = evaluate(world, {"relative": lambda x, log_snr: torch.zeros_like(x)}, PATH, 2000, 1)
    for _, row in rows:
        assert row["relative"].r2 == pytest.approx(0.0, abs=0.03) and row["relative"].r2 < 0.0  # none beats the best
        assert row["relative"].gap.mean() == pytest.approx(row["scalar"].gap.mean(), rel=0.05)


def test_the_gap_of_a_variance_twice_too_large(world):
    """1/2 (log 2 + 1/2 - 1) where lambda2 is nothing, less where it is something; bins average their steps."""
    twice = {"npr": at_times(world, lambda x, t: 2.0 * world.exact.variance(x, t) * snr(world, t))}
    rows = evaluate(world, twice, PATH, 200, 1)
    (_, first), (_, second) = rows[:2]
    (label, row), *_ = binned(rows, lambda score: float(score.gap.mean()))
    assert row["npr"] == pytest.approx((first["npr"].gap.mean() + second["npr"].gap.mean()) / 2)
    assert label == f"{rows[0][0]:.1f} to {rows[1][0]:.1f}"
    limit = 0.5 * (np.log(2.0) + 0.5 - 1.0)
    assert 0.5 * limit < first["npr"].gap.mean() < limit  # from t = 30 to t = 1
