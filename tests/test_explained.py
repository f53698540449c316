"""What a model of the data leaves of a network's score, and how far a start may jump by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from adpm.denoiser import Prediction
from adpm.draws import Estimate, noisy
from adpm.explained import reach, unexplained
from adpm.gaussian_score import fit_gaussian
from adpm.ideal import IdealDenoiser
from adpm.process import linear
from adpm.run.data import toy
from tests.commands import go, the_file
from tests.teleport_worlds import source_of


def test_the_unexplained_share_is_the_mean_of_each_draws_ratio() -> None:
    """Of networks that are known multiples of the model's: (1 - f)^2 / f^2, on the draws of the moments."""
    process = linear(50)
    truth = toy().truth
    assert truth is not None
    source = source_of(truth.sample(40, 0).float())
    model = IdealDenoiser(fit_gaussian(source), process)
    scale = torch.tensor([0.5, 2.0, 1.0, 4.0]).repeat(10).reshape(-1, 1, 1, 1)
    seen: list[Tensor] = []

    def network(x: Tensor, t: float) -> Prediction:
        seen.append(x)
        eps = scale[: len(x)] * model(x, t).eps_network
        return Prediction(x, torch.zeros_like(x), eps)

    found = unexplained(network, model, process, source, [10.0, 30.0], 40, seed=3, batch_size=40)
    ratios = np.tile([1.0, 0.25, 0.0, 0.5625], 10)
    np.testing.assert_allclose(found["share"], ratios.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["error"], ratios.std(ddof=1) / 40**0.5, rtol=1e-5)
    (draws,) = noisy(process, source, 30.0, 40, 3, 40)
    assert torch.equal(seen[1], draws[3])


def test_the_reach_ends_where_the_share_first_rises() -> None:
    def at(*values: float, error: float = 0.0) -> int | None:
        n = len(values)
        return reach(Estimate(np.array(values), np.full(n, error), np.full(n, 30.0)), 0.01)

    assert at(0.5, 0.009, 0.008) == 1 and at(0.009, 0.5, 0.008) == 2 and at(0.001, 0.002) == 0
    assert at(0.001, 0.5) is None and at(0.001, np.nan) is None
    assert at(0.5, 0.009, 0.001, error=1e-3) == 2, "one-sided at 95 %: 1.7 errors"
    assert at(0.5, 0.009, 0.001, error=5e-4) == 1


def test_estimate_says_how_far_a_start_may_jump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The toy mixture's exact network: where a jump is free, and what it costs to ask again."""
    few = ("moments.draws=40", "moments.times=12", f"cache={tmp_path / 'cache'}")
    assert go(tmp_path / "w", "toy", "estimate", *few) == 0
    assert "unexplained" not in capsys.readouterr().out
    assert go(tmp_path / "w", "toy", "estimate", *few, "sampling.start=gaussian") == 0
    told = capsys.readouterr().out
    assert "'gaussian' leaves less than 1% of the score unexplained up to t = " in told
    kept = np.load(the_file(tmp_path / "cache", "unexplained-*.npz"))
    assert kept["share"][-1] < 1e-4 < 0.1 < kept["share"][0]
    accumulator = EventAccumulator(str(the_file(tmp_path / "w" / "tensorboard" / "estimate", "*")))
    accumulator.Reload()
    curve = [event.value for event in accumulator.Scalars("moments/unexplained_share")]
    np.testing.assert_allclose(curve, kept["share"], rtol=1e-6)
    assert "moments/unexplained_share" in accumulator.Tags()["images"]
    assert (tmp_path / "w" / "unexplained-gaussian.png").stat().st_size > 0
    jumped = next(word for word in told.split() if word.startswith("-") and "start_log_snr = " + word in told)
    assert (
        go(tmp_path / "w", "toy", "estimate", *few, "sampling.start=gaussian", f"sampling.start_log_snr={jumped}") == 0
    )
    assert "measuring" not in capsys.readouterr().out, "where a jump lands is no part of what a model explains"
    the_file(tmp_path / "cache", "unexplained-*.npz")
