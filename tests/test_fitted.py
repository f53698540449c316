"""Steps fitted to a network's own flow: exact where the flow is linear, best by brute force, refused in words."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adpm import ideal
from adpm.basis import Matrix, Pixels
from adpm.denoiser import Prediction
from adpm.errors import UserError
from adpm.fitted import Fitted
from adpm.fitting import NODE_BANDS, Flow, Priced, bands_of, fit_steps
from adpm.model import Model
from adpm.process import PROCESSES, Array
from adpm.reference import Reference, Unlimited
from adpm.trajectory import Request, trajectory
from tests.commands import go, refused, the_file

PROCESS = PROCESSES["linear"].build(200)
SHAPE, DIM = (1, 2, 2), 4
SPREAD = np.array([1.0, 0.3, 0.05, 2e-3])
GAUSS = ideal.full_mixture([1.0], np.full((1, DIM), 0.3), np.diag(SPREAD)[None], SHAPE)
MIXED = ideal.full_mixture(
    [0.4, 0.6], np.array([[-1.0, 0.5, 0.2, 0.0], [0.8, -0.3, 0.1, 0.3]]), np.stack([0.05 * np.eye(4)] * 2), SHAPE
)


def model_of(mixture: ideal.Mixture) -> Model:
    images = {"train": mixture.sample(500, 0)}
    return Model.of(ideal.IdealDenoiser(mixture, PROCESS), PROCESS, images=images)


def measured(mixture: ideal.Mixture, **options: Any) -> Flow:
    return model_of(mixture).measure_trajectories(**{"starts": 60, "nodes": 40, "basis": "identity", **options})


def exact(starts: int, nodes: int = 30, seed: int = 0) -> Flow:
    """Trajectories of the Gaussian's flow in closed form, sqrt(lambda + rho^2) being what y - m grows with."""
    times = np.unique(np.round(np.geomspace(1, 200, nodes)))
    rho2 = np.exp(-PROCESS.log_snr(times))
    noise = np.random.default_rng(seed).standard_normal((starts, DIM)) * np.sqrt(SPREAD + rho2[-1])
    scale = np.sqrt((SPREAD + np.concatenate([[0.0], rho2])[:, None]) / (SPREAD + rho2[-1]))
    states = 0.3 + scale[:, None] * noise
    gain = (SPREAD / (SPREAD + rho2[:, None]))[:, None]
    predictions = 0.3 + gain * (states[1:] - 0.3)
    held = (torch.from_numpy(z).reshape(len(z), starts, *SHAPE) for z in (states, predictions))
    own = Reference(np.concatenate([[0.0], times]), *held, basis=Pixels(), shape=SHAPE)
    return Flow(own, ideal.IdealDenoiser(GAUSS, PROCESS), PROCESS)


def walked(flow: Flow, solver: Fitted, y: Tensor) -> Tensor:
    """y at the end of the solver's path from y at its beginning."""
    x, carry = y * float(PROCESS.alpha(solver.times[-1])), None
    for t, s in zip(solver.times[:0:-1].tolist(), solver.times[-2::-1].tolist(), strict=True):
        step = solver.step(flow.denoise, x, t, s, lambda: pytest.fail("noise"), carry)
        x, carry = step.x, step.carry
    return x


# -- the fit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [[0, 200], [0, 60, 200], [0, 7, 31, 90, 200]])
def test_flow_of_a_gaussian_is_followed_exactly_from_new_starts(times: list[float]) -> None:
    """To float32's rounding of the states that the network is shown; DDIM is off by ten times the data's spread."""
    flow, new = exact(60), exact(500, seed=1).reference
    path = np.array(times, dtype=np.float64)
    solver = Fitted(PROCESS, path, lambda: flow, bands=DIM)
    np.testing.assert_allclose(walked(flow, solver, new.states[-1]), new.states[0], atol=1e-5)


def test_means_of_coordinates_and_variances_of_bands_are_kept() -> None:
    flow = measured(MIXED)
    path, solver = np.array([0.0, 30.0, 110.0, 200.0]), None
    for bands in (1, 2, 4):
        solver = Fitted(PROCESS, path, lambda: flow, bands=bands)
        got, wanted = (
            z.double().flatten(1) for z in (walked(flow, solver, flow.reference.states[-1]), flow.reference.states[0])
        )
        np.testing.assert_allclose(got.mean(0), wanted.mean(0), atol=1e-4)
        for group in bands_of(flow.reference.variance, bands):
            spreads = [((z - z.mean(0))[:, group] ** 2).sum() for z in (got, wanted)]
            np.testing.assert_allclose(spreads[0], spreads[1], rtol=1e-4)


def test_first_step_is_least_squares_on_state_and_prediction() -> None:
    flow = measured(MIXED)
    reference = flow.reference
    (step,) = fit_steps(reference, PROCESS, np.array([0.0, 200.0]), flow.predict, DIM)
    y, d, end = (
        z.double().flatten(1).numpy() for z in (reference.states[-1], reference.predictions[-1], reference.states[0])
    )
    for f in range(DIM):
        columns = np.stack([y[:, f], d[:, f], np.ones(len(y))], 1)
        plain = np.linalg.lstsq(columns, end[:, f], rcond=None)[0]
        kept = end[:, f].std() / (columns @ plain).std()
        np.testing.assert_allclose(step.weights[:, f], kept * plain[:2], rtol=2e-3)


def test_fitted_steps_end_nearer_the_flow_than_formulas_do() -> None:
    """Root mean square distance to where the flow leads new starts; the second-order method on the same path."""
    flow, new = measured(MIXED, starts=200), measured(MIXED, starts=200, seed=5).reference
    model, path = model_of(MIXED), PROCESS.times[flow.best_times(PROCESS, 4)]
    own = walked(flow, Fitted(PROCESS, path, lambda: flow, bands=4), new.states[-1])
    off = {"fitted": float((own - new.states[0]).square().mean().sqrt())}
    for name, options in (("ddim", {"order": 1}), ("dpmpp", {"order": 2})):
        solver = model.families["solver"]["dpmpp"].build(PROCESS, times=path, **options)
        off[name] = float((walked(flow, solver, new.states[-1]) - new.states[0]).square().mean().sqrt())
    assert off["fitted"] < 0.6 * min(off["ddim"], off["dpmpp"]), off


def test_order_two_on_a_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Like the methods whose numbers it could take, from new starts, on times even in log-SNR."""
    process = PROCESSES["linear"].build(1000)
    monkeypatch.setattr(sys.modules[__name__], "PROCESS", process)
    flow, new = (measured(MIXED, nodes=200, seed=seed) for seed in (0, 5))

    def error(steps: int) -> float:
        path = process.times[trajectory("log_snr", Request(process, steps))]
        off = walked(flow, Fitted(process, path, lambda: flow, bands=1), new.reference.states[-1])
        return float((off - new.reference.states[0]).abs().mean())

    assert np.log2(error(24) / error(48)) == pytest.approx(2.0, abs=0.15)


def test_variance_is_that_of_the_ends_along_the_basis() -> None:
    reference = measured(GAUSS, basis="pca").reference
    ends = reference.basis.forward(reference.states[0].double()).flatten(1).numpy()
    np.testing.assert_allclose(reference.variance, ends.var(0), rtol=1e-12)
    np.testing.assert_allclose(reference.variance, SPREAD, rtol=0.6)  # 60 starts


def test_bands_are_even_and_in_order_of_variance() -> None:
    variance = torch.tensor([1.0, 5.0, 3.0, 2.0, 4.0])
    assert [b.tolist() for b in bands_of(variance, 2)] == [[1, 4, 2], [3, 0]]
    for bands in (0, 6):
        with pytest.raises(UserError, match=f"`bands` = {bands} must lie in 1..5"):
            bands_of(variance, bands)


# -- times ------------------------------------------------------------------------------------------------------------


def test_what_a_step_misses_is_the_residual_of_its_regression() -> None:
    reference = measured(MIXED, starts=50, nodes=12).reference
    priced, variance = Priced(reference, PROCESS), reference.variance.numpy()
    assert NODE_BANDS >= DIM, "every coordinate is a band here"
    at, before, to = 7, 10, 3
    rho2 = np.exp(-PROCESS.log_snr(reference.times[to]))
    total = 0.0
    for f in range(DIM):
        z = [
            reference.states[at],
            reference.predictions[at - 1],
            reference.predictions[before - 1],
            reference.states[to],
        ]
        y, d, p, goal = (v.double().flatten(1).numpy()[:, f] for v in z)
        columns = np.stack([y, d, p, np.ones(50)], 1)
        left = goal - columns @ np.linalg.lstsq(columns, goal, rcond=None)[0]
        total += variance[f] / (variance[f] + rho2) * np.square(left).mean()
    np.testing.assert_allclose(priced.missed(before, at)[to], total, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_best_times_are_the_best_of_all(steps: int) -> None:
    reference = measured(MIXED, starts=50, nodes=8).reference
    priced, last = Priced(reference, PROCESS), len(reference.times) - 1

    def missed(path: tuple[int, ...]) -> float:
        down = path[::-1]
        first = priced.missed(None, down[0])[down[1]]
        return first + sum(priced.missed(p, i)[j] for p, i, j in zip(down, down[1:], down[2:], strict=False))

    paths = [(0, *inner, last) for inner in itertools.combinations(range(1, last), steps - 1)]
    assert tuple(priced.best(steps)) == min(paths, key=missed)


# -- trajectories -----------------------------------------------------------------------------------------------------


def test_trajectories_follow_the_flow_and_are_read_between_their_times() -> None:
    flow, (rho2,) = measured(GAUSS, nodes=100, starts=20), [np.exp(-PROCESS.log_snr(PROCESS.times[1:]))]
    start = flow.reference.states[-1].double().flatten(1).numpy()

    def exact_at(rho2_s: float) -> Array:
        return 0.3 + np.sqrt((SPREAD + rho2_s) / (SPREAD + rho2[-1])) * (start - 0.3)

    for t in (3, 30, 77, 150):
        own = flow.reference.at(float(t), PROCESS).flatten(1).numpy()
        np.testing.assert_allclose(own, exact_at(rho2[t - 1]), atol=2e-2 * np.sqrt(rho2[t - 1]) + 2e-3)
    dense, coarse = (exact(5, nodes).reference for nodes in (200, 25))
    for t in (12.0, 63.0, 140.0):
        np.testing.assert_allclose(coarse.at(t, PROCESS), dense.at(t, PROCESS), rtol=2e-3, atol=2e-4)
    with pytest.raises(UserError, match="hold times 1 to 200, not t = 0.5"):
        coarse.at(0.5, PROCESS)


def test_limits_have_no_part_in_trajectories() -> None:
    def limited(x: Tensor, t: Any) -> Prediction:
        eps = 0.1 * x
        return Prediction(torch.zeros_like(x), x / float(PROCESS.sigma(t)), eps)

    x = torch.randn(3, *SHAPE)
    found = Unlimited(limited, PROCESS)(x, 50.0)
    torch.testing.assert_close(found.x0, (1 - 0.1 * float(PROCESS.sigma(50))) / float(PROCESS.alpha(50)) * x)
    torch.testing.assert_close(found.eps, 0.1 * x)


def test_batches_change_nothing_and_a_file_keeps_everything(tmp_path: Path) -> None:
    whole = measured(MIXED, starts=9, nodes=6, basis="pca", provenance={"weights": "abc"}).reference
    parts = measured(MIXED, starts=9, nodes=6, basis="pca", batch_size=4).reference
    torch.testing.assert_close(whole.states, parts.states, rtol=1e-5, atol=1e-5)
    whole.save(tmp_path / "t.npz")
    back = Reference.load(tmp_path / "t.npz")
    assert torch.equal(back.states, whole.states) and torch.equal(back.predictions, whole.predictions)
    assert np.array_equal(back.times, whole.times) and back.shape == SHAPE and back.provenance == {"weights": "abc"}
    assert isinstance(back.basis, Matrix) and torch.equal(back.variance, whole.variance)
    with pytest.raises(UserError, match="belongs to something else .*weights"):
        back.require({"weights": "xyz"}, tmp_path / "t.npz")


@pytest.mark.parametrize("damage", ["times", "states", "predictions", "shape"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    whole, path = measured(MIXED, starts=4, nodes=6).reference, tmp_path / "t.npz"
    bad: dict[str, Any] = {
        "times": whole.times[::-1].copy(),
        "states": whole.states * np.nan,
        "predictions": whole.predictions[1:],
        "shape": (1, 2, 3),
    }
    replace(whole, **{damage: bad[damage]}).save(path)
    with pytest.raises(UserError, match="is not a trajectories file"):
        Reference.load(path)


# -- refusals, commands -----------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_in_words() -> None:
    model, flow = model_of(MIXED), measured(MIXED, starts=3, nodes=6)
    with pytest.raises(UserError, match="the times 'fitted' need trajectories"):
        model.plan(steps=3, trajectory="fitted")
    plan = model.plan(steps=3, trajectory="fitted", statistics=flow)
    with pytest.raises(UserError, match="solver 'fitted' needs `statistics`"):
        model.sample(plan, solver="fitted", n=2)
    with pytest.raises(UserError, match="`starts` = 3 and `bands` = 4 leave 3 numbers"):
        model.sample(plan, solver="fitted", n=2, statistics=flow, bands=4)
    with pytest.raises(UserError, match=r"`steps` = 50 must lie in 1\.\."):
        model.plan(steps=50, trajectory="fitted", statistics=flow)
    solver = Fitted(PROCESS, np.array([0.0, 200.0]), lambda: flow, 1)
    with pytest.raises(UserError, match="made for another path"):
        solver.step(flow.denoise, torch.zeros(1, *SHAPE), 100.0, 0.0, lambda: pytest.fail("noise"))


FEW = ("moments.starts=12", "moments.flow_nodes=10", "trajectory.steps=3", "sampling.samples=4")
FITTED = ("sampling.solver=fitted", "trajectory.name=fitted", *FEW)


def test_commands_measure_once_and_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go(tmp_path / "run", "toy", "estimate", "moments.statistics=trajectories", *FEW[:2]) == 0
    told = capsys.readouterr().out
    assert "12 trajectories at" in told and "K =  3: t = 1000" in told
    assert go(tmp_path / "run", "toy", "sample", *FITTED) == 0
    told = capsys.readouterr().out
    assert "no trajectories" not in told and "3 network calls each" in told, "fitting is none of the sampler's calls"
    file = the_file(tmp_path / "cache", "trajectories-*.npz")
    named = f"moments.trajectories_file={file}"
    assert go(tmp_path / "same", "toy", "sample", *FITTED, named, "sampling.bands=2") == 0
    told = refused(capsys, tmp_path / "other", "toy", "sample", *FITTED, named, "data.seed=7")
    assert "belongs to something else" in told


JUMP = ("sampling.start=gaussian", "sampling.start_log_snr=-2.0", "sampling.start_respend=True")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (("moments.starts=50",), "config.moments.starts = 50 does not go with"),
        (("sampling.bands=2",), "config.sampling.bands = 2 does not go with"),
        (
            (*FITTED, "moments.flow_basis=auto"),
            "in one basis (config.moments.flow_basis), and 'auto' stands for several",
        ),
        ((*FITTED, "moments.trajectories_file=none.npz"), "trajectories_file = 'none.npz' is no file"),
        ((*FITTED, *JUMP), "a start that jumps wants another config.trajectory.name"),
    ],
)
def test_refused_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: tuple[str, ...], told: str
) -> None:
    assert told in refused(capsys, tmp_path / "run", "toy", "sample", *fields)
