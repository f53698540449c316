"""Our multistep solvers against diffusers' schedulers where the formulas are the same: same nodes, same noise."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from adpm.ideal import IdealDenoiser, diagonal_mixture
from adpm.members import MEMBERS
from adpm.process import linear
from adpm.sampler import walk

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what diffusers imports is not ours
    import diffusers
from benchmarks.diffusers_peers import PEERS, draw, settings  # noqa: E402

PROCESS = linear(1000)
DATA = diagonal_mixture([0.3, 0.7], [[-0.6, 0.4, 0.1], [0.7, -0.2, 0.5]], [[0.03] * 3, [0.05] * 3], (3, 1, 1))
DENOISE = IdealDenoiser(DATA, PROCESS)
X, *Z = torch.randn(13, 16, 3, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers' own
BETAS = {"num_train_timesteps": 1000, "trained_betas": PROCESS.betas}
STEPS = 8
FIXED = np.unique(np.rint(np.geomspace(2, 1000, STEPS)))
TO_ZERO, TO_ONE = np.concatenate([[0.0], FIXED]), np.concatenate([[1.0], FIXED])


def ours(name: str, times: np.ndarray, **options: object) -> torch.Tensor:
    solver = MEMBERS["solver"][name].build(PROCESS, times=times, **options)
    for step in walk(DENOISE, solver, times, X, lambda k: Z[k]):
        x = step.x
    return x


def theirs(kind: type, times: np.ndarray, noisy: bool = False, **options: object) -> torch.Tensor:
    """A scheduler down the same times, its float64 sigmas put in by hand."""
    down = times[::-1]
    scheduler = kind(**BETAS, **options)
    scheduler.set_timesteps(len(times) - 1)
    scheduler.sigmas = torch.as_tensor(np.where(down > 0, PROCESS.sigma(down) / PROCESS.alpha(down), 0.0))
    scheduler.timesteps = torch.as_tensor(down[:-1].copy()).long()
    scheduler._step_index, scheduler._begin_index = None, 0
    x = X
    for k, t in enumerate(scheduler.timesteps, start=1):
        extra = {"variance_noise": Z[k]} if noisy else {}
        x = scheduler.step(DENOISE(x, float(t)).eps, t, x, **extra).prev_sample.double()
    return x


@pytest.mark.parametrize(("ends", "times"), [("zero", TO_ZERO), ("sigma_min", TO_ONE)])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solvers_agree(order, ends, times):
    for kind, variant in (("midpoint", "midpoint"), ("heun", "taylor")):
        own = {"order": order, "final_order": "always"}
        own |= {"variant": variant} if order > 1 else {}
        own |= {"third": "released"} if order > 2 else {}
        common = {"solver_order": order, "solver_type": kind, "final_sigmas_type": ends}
        peer = diffusers.DPMSolverMultistepScheduler
        a = theirs(peer, times, algorithm_type="dpmsolver++", **common)
        assert (ours("dpmpp", times, **own) - a).abs().max() < 1e-5
        if order < 3:  # theirs of order 3 has a sign that is wrong
            b = theirs(peer, times, noisy=True, algorithm_type="sde-dpmsolver++", **common)
            assert (ours("dpmpp_sde", times, eta=1.0, **own) - b).abs().max() < 1e-5


@pytest.mark.parametrize("basis", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_agrees(order, basis):
    cases = [("sigma_min", TO_ONE, "x0"), ("sigma_min", TO_ONE, "eps")]
    cases += [("zero", TO_ZERO, "x0")] if basis == "bh2" else []  # theirs with bh1 is NaN there
    for ends, times, of in cases:
        common = {"solver_order": order, "solver_type": basis, "predict_x0": of == "x0", "final_sigmas_type": ends}
        peer = theirs(diffusers.UniPCMultistepScheduler, times, **common)
        own = ours("unipc", times, order=order, basis=basis, interpolates=of, final_order="always")
        assert (own - peer).abs().max() < 1e-5


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_agrees(order):
    peer = theirs(diffusers.DEISMultistepScheduler, TO_ONE, solver_order=order)
    assert (ours("deis", TO_ONE, order=order, final_order="always") - peer).abs().max() < 1e-5


def test_schedulers_are_driven_as_their_makers_mean():
    """Every peer of the table, on every grid that it has, comes to where the data are."""
    expected = 0.3 * 0.09 + 0.7 * 0.15  # squared distance to the nearest mean: d times the variance
    for name in PEERS:
        for told, options in settings(name):
            x = draw(name, options, DENOISE, PROCESS, 24, lambda k: Z[k % len(Z)].float()).double()
            found = float((x.flatten(1)[:, None] - DATA.means).square().sum(2).min(1).values.mean())
            assert 0.5 * expected < found < 2.0 * expected, (name, told)


def test_ddim_is_ours_on_the_same_times():
    """diffusers counts from 0: its leading times 0, 125, ... are ours 1, 126, ..."""
    x = draw("DDIM", dict(settings("DDIM"))["leading"], DENOISE, PROCESS, STEPS, lambda k: X.float())
    times = np.concatenate([[0.0], np.arange(0, 1000, 1000 // STEPS) + 1.0])
    solver = MEMBERS["solver"]["dpmpp"].build(PROCESS, times=times, order=1)
    for step in walk(DENOISE, solver, times, PROCESS.start_std(1000.0) * X.float(), lambda k: X):
        own = step.x
    assert (own - x).abs().max() < 1e-4
