"""Where sampling starts: the standard deviation of x at the path's last time, which need not be the process's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adpm.noise import KeyedNoise
from adpm.process import PROCESSES, Process
from adpm.sampler import keyed, sample
from adpm.solver import ReverseGaussian
from adpm.trajectory import Request, trajectory
from adpm.variance import Small
from sde.process import PROCESSES as SDES
from tests.sde_worlds import VARIANCE, WORLDS, Law, centred, response

EARLY = {"quadratic": 26, "stride": 20}  # paths that stop short of N = 1000, and numbers of steps that they have


def last(process: Process, name: str) -> float:
    return float(process.times[trajectory(name, Request(process, EARLY[name]))[-1]])


@pytest.mark.parametrize("path", EARLY)
@pytest.mark.parametrize("name", SDES)
def test_start_is_as_wide_as_the_process(name: str, path: str) -> None:
    """The prior's width at the last time; before, 1 on VP, which is published, sigma_t where sigma is not about 1.

    For data of variance 1/4 the width of x_t is sqrt(alpha^2/4 + sigma^2); the start is within 0.4 % of it, on
    rectified flow, whose paths stop short of more, within 1 %.
    """
    process = WORLDS[name]
    assert process.start_std(1.0) == process.prior_std
    t = last(process, path)
    assert t < 1.0
    start = process.start_std(t)
    assert start == (1.0 if name == "vp" else float(process.sigma(t)))
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    assert start == pytest.approx((alpha**2 * VARIANCE + sigma**2) ** 0.5, rel=1e-2 if process.pure_noise else 4e-3)


@pytest.mark.parametrize("name", sorted(PROCESSES.keys() - {"custom"}))
def test_discrete_schedules_start_from_the_unit_gaussian(name: str) -> None:
    process = PROCESSES[name].build(1000)
    assert [process.start_std(t) for t in process.times[1:]] == [1.0] * 1000


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("path", EARLY)
def test_samples_of_an_early_start_are_right(path: str, eta: float) -> None:
    """VE, rule small, exact denoiser of N(0, I/4); DDIM from prior_std = 50 is 1.5 to 5.5 times too wide.

    Every step is linear, so what the chain makes of the exact law at its start is known, and 8000 pixels agree with it.
    """
    process, n = WORLDS["ve"], 2000
    times = process.times[trajectory(path, Request(process, EARLY[path]))]
    solver, shape = ReverseGaussian(process, Small(), eta), (1, 2, 2)
    noise = keyed(KeyedNoise(0, "sample"), torch.arange(n), shape, torch.float64)
    *_, end = sample(centred(process, shape), solver, process, times, noise)
    law = Law(0.0, VARIANCE + float(process.sigma(times[-1])) ** 2)
    for t, s in zip(times[:0:-1], times[-2::-1], strict=True):
        slope, _, of_noise = response(solver, centred(process, (1, 1, 1)), float(t), float(s))
        law = Law(0.0, slope**2 * law.variance + float(of_noise @ of_noise))
    assert float(end.x.std()) == pytest.approx(law.variance**0.5, rel=4.0 / np.sqrt(8 * n))
    assert 0.6 < law.variance / VARIANCE < 1.0, "what so few steps of this rule lose"
