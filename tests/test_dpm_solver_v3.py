"""DPM-Solver-v3 against the released sampler, its own limits, exact flows and the orders that it claims."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

import adpm
from adpm.denoiser import Denoiser
from adpm.dpm_solver_v3 import DPMSolverV3, pseudo_differences, true_differences
from adpm.ems import EMS, data_prediction, half_log_snr
from adpm.ideal import IdealDenoiser, gaussian
from adpm.sampler import walk
from sde.process import VP
from tests.goldens import rel
from tests.mixture_flows import Flow, flow, no_noise

PUBLISHED = {"refine": 1, "snap": True}
OPTIONS = {
    "1": {"order": 1},
    "2": {"order": 2},
    "3": {},
    "3-nolof": {"lower_order_final": False},
    "3p": {"differences": "pseudo"},
    "3c3": {"correct": "true"},
    "3pc3-nolof": {"differences": "pseudo", "correct": "true", "lower_order_final": False},
    "3cp4": {"correct": "pseudo"},
    "2cp3": {"order": 2, "correct": "pseudo"},
    "3-degenerate": {},
    "3c3-time_uniform": {"correct": "true"},
    "3c3-edm": {"correct": "true"},
}
WALKS = [
    (name, *key.removeprefix("out_v3-").rsplit("_", 1))
    for name in ("vp", "edm")
    for key in flow(name).stored
    if key.startswith("out_v3-")
]


def degenerate(world: Flow, refine: int = 1) -> EMS:
    """(1, 0, 0) for every pixel."""
    made = data_prediction(world.process, 120 * refine + 1)
    pixels = np.ones((1, *world.shape))
    return replace(made, **{k: getattr(made, k)[:, None] * pixels for k in ("linear", "scale", "bias")})


def test_there_are_as_many_walks_as_were_stored():
    assert len(WALKS) == 66


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("name", "method", "steps"), WALKS)
def test_walks_are_those_of_the_released_sampler(name, method, steps, dtype):
    """Acceptance A1; A8: one call a step, whether steps are redone or not.

    In float32 by the root mean square: eps rounded to float32, whoever computes it, moves single pixels by 1.2e-3:
    at the start f is a difference 150 times smaller than what it is the difference of.
    """
    world, count = flow(name), int(steps)
    times = world.times(count, method.partition("3c3-")[2])
    ems = degenerate(world) if method == "3-degenerate" else world.ems
    solver = DPMSolverV3(world.process, times, lambda: ems, **OPTIONS[method], **PUBLISHED)
    x, calls = world.end(solver, times, dtype)
    stored = world.stored[f"out_v3-{method}_{steps}"]
    if dtype == torch.float64:
        assert rel(x, stored) < 1e-9
    assert np.sqrt(np.square(x - stored).mean()) < 1e-3
    assert calls == count


@pytest.mark.parametrize("steps", [5, 8, 12])
@pytest.mark.parametrize(
    ("name", "grid"), [("vp", "logSNR"), ("vp", "time_uniform"), ("edm", "logSNR"), ("edm", "edm")]
)
def test_times_snap_to_the_released_nodes(name, grid, steps):
    """Acceptance A1."""
    world = flow(name)
    found = world.ems.nearest(half_log_snr(world.process, world.times(steps, grid)[::-1]))
    assert np.array_equal(found, world.stored[f"idx_{grid}_{steps}"])


def data_prediction_steps(world: Flow, steps: int, order: int, midpoint: bool = False) -> np.ndarray:
    """DPM-Solver++ of orders 1 to 3 (DDIM, 2M, 3M with the whole second derivative), 2M by Taylor unless told."""
    times = world.times(steps)[::-1]
    lam = half_log_snr(world.process, times)
    alpha, sigma = world.process.alpha(times), world.process.sigma(times)
    x, past = torch.as_tensor(world.stored["xT"]), []
    for m in range(steps):
        past = [world.denoise(x, float(times[m])).x0, *past][:3]
        h, use = lam[m + 1] - lam[m], min(order, m + 1, steps - m)
        phi1 = np.expm1(-h)
        phi2 = phi1 / h + 1.0
        phi3 = phi2 / h - 0.5
        new = sigma[m + 1] / sigma[m] * x - alpha[m + 1] * phi1 * past[0]
        if use > 1:
            r0 = (lam[m] - lam[m - 1]) / h
            first = (past[0] - past[1]) / r0
            if use > 2:
                r1 = (lam[m - 1] - lam[m - 2]) / h
                second = (first - (past[1] - past[2]) / r1) / (r0 + r1)
                first = first + r0 * second
                new = new - alpha[m + 1] * phi3 * 2.0 * second
            new = new + alpha[m + 1] * (-0.5 * phi1 if midpoint and use == 2 else phi2) * first
        x = new
    return x.numpy()


@pytest.mark.parametrize("name", ["vp", "edm"])
@pytest.mark.parametrize(("order", "peer"), [(1, "ddim"), (2, "dpmpp2m-taylor"), (3, "dpmpp3m-corrected")])
def test_data_prediction_is_dpm_solver_plus_plus(name, order, peer):
    """Acceptance A3: up to the integrals' own error, which falls with the square of the spacing."""
    world = flow(name)
    for steps in (5, 8):  # the release lowers the order for fewer than ten steps
        times, wanted = world.times(steps), data_prediction_steps(world, steps, order)
        released = data_prediction_steps(world, steps, order, midpoint=order == 3)  # as 3M begins and ends there
        assert rel(released, world.stored[f"out_{peer}_{steps}"]) < 1e-9
        solvers = [DPMSolverV3(world.process, times, lambda: degenerate(world), order, refine=r) for r in (1, 10)]
        coarse, fine = (np.abs(world.end(s, times)[0] - wanted).max() for s in solvers)
        assert fine < 3e-4 and coarse / fine == pytest.approx(100.0, rel=0.1)


def smooth(world: Flow, taper: float = 0.0) -> EMS:
    """The stored statistics without kinks, which bound any order; they start at (1, 0, 0) if there is a taper."""
    ems, grid = world.ems, np.linspace(*world.ems.grid[[0, -1]], 120 * 64 + 1)
    share = np.clip((grid - grid[0]) / taper, 0.0, 1.0) if taper else np.ones_like(grid)
    share = (share**3 * (10.0 - 15.0 * share + 6.0 * share**2))[:, None]
    of = {k: CubicSpline(ems.grid, getattr(ems, k))(grid) for k in ("linear", "scale", "bias")}
    return EMS(grid, 1.0 + share * (of["linear"] - 1.0), share * of["scale"], share * of["bias"])


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        ({"order": 1}, 0.9, 1.1),
        ({"order": 2}, 1.9, 2.1),
        ({"order": 3}, 2.85, 3.2),
        ({"order": 3, "correct": "true"}, 2.85, 3.7),
        ({"order": 3, "differences": "pseudo"}, 1.9, 2.1),
    ],
    ids=str,
)
def test_orders(options, low, high):
    """Acceptance A4: slopes from 320 to 640 steps, towards which those of fewer steps rise. Pseudo stops at 2."""
    world = flow("vp")
    ems, errors = smooth(world, taper=4.0), []
    for steps in (320, 640):
        times = world.times(steps)
        solver = DPMSolverV3(world.process, times, lambda: ems, **{"lower_order_final": False, "refine": 1, **options})
        errors.append(world.error(world.end(solver, times)[0]))
    assert low < np.log2(errors[0] / errors[1]) < high, errors


@pytest.mark.parametrize(("intervals", "most"), [(120, 5e-6), (1200, 5e-8)])
def test_one_step_is_exact_on_diagonal_gaussians(intervals, most):
    """Acceptance A5: closed-form statistics leave nothing to a solver but the integrals' own error."""
    process, mean, variance = VP(10, 1e-3), np.array([0.3, -1.1, 0.0]), np.array([0.2, 1.5, 0.04])
    lam = np.linspace(*half_log_snr(process, process.times[[-1, 1]]), intervals + 1)[:, None]
    slope = 1.0 / (1.0 + np.exp(2.0 * lam) * variance)
    ems = EMS(lam[:, 0], slope, 0.0 * slope, 2.0 * slope * (1.0 - slope) * mean)
    denoise, times = IdealDenoiser(gaussian(mean, variance, (3,)), process), process.times[[1, -1]]
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, spread = (
        process.alpha(times),
        np.sqrt(process.alpha(times)[:, None] ** 2 * variance + process.sigma(times)[:, None] ** 2),
    )
    exact = alpha[0] * mean + spread[0] / spread[1] * (x.numpy() - alpha[1] * mean)
    (step,) = walk(denoise, DPMSolverV3(process, times, lambda: ems, order=1, refine=1), times, x, no_noise)
    assert np.abs(step.x.numpy() - exact).max() < most
    plain = DPMSolverV3(process, times, lambda: data_prediction(process), order=1)
    (step,) = walk(denoise, plain, times, x, no_noise)
    assert np.abs(step.x.numpy() - exact).max() > 0.1


PEERS = [
    f"{peer}_{{}}" for peer in ("dpmpp2m-midpoint", "dpmpp2m-taylor", "dpmpp3m-released", "unipc2-bh2", "unipc3-bh2")
]


@pytest.mark.parametrize("options", [PUBLISHED, {}], ids=["published", "ours"])
@pytest.mark.parametrize(
    ("name", "steps", "figure"),
    [("vp", 5, 0.056), ("vp", 8, 0.028), ("vp", 12, 0.012), ("edm", 5, 0.099), ("edm", 8, 0.038), ("edm", 12, 0.0145)],
)
def test_it_beats_its_peers_at_few_steps(name, steps, figure, options):
    """Acceptance A6: root mean square distance from the exact flow, and at most 0.9 of the best peer's."""
    world, times = flow(name), flow(name).times(steps)
    solver = DPMSolverV3(world.process, times, lambda: world.ems, correct="true", **options)
    error = world.error(world.end(solver, times)[0])
    best = min(world.error(world.stored["out_" + peer.format(steps)]) for peer in PEERS)
    assert error == pytest.approx(figure, rel=0.05) and error <= 0.9 * best


@pytest.mark.parametrize(("steps", "figure", "ddim"), [(5, 0.138, 0.244), (8, 0.100, 0.186)])
def test_first_order_against_ddim(steps, figure, ddim):
    """Acceptance A7."""
    world, times = flow("vp"), flow("vp").times(steps)
    solver = DPMSolverV3(world.process, times, lambda: world.ems, order=1)
    assert world.error(world.end(solver, times)[0]) == pytest.approx(figure, rel=0.01)
    assert world.error(world.stored[f"out_ddim_{steps}"]) == pytest.approx(ddim, rel=0.01)


def test_differences_are_derivatives():
    """Exact for polynomials through the points; pseudo differences leave the next term in the first derivative."""
    lam = np.array([1.0, 0.6, 0.1])
    for k, values, derivatives in ((1, lam, (1.0, 0.0)), (2, lam**2, (2.0, 2.0))):
        assert np.allclose(true_differences(lam) @ values, derivatives, atol=1e-12)
        pseudo = pseudo_differences(lam) @ values
        assert np.allclose(pseudo, derivatives if k == 1 else (1.6, 2.0), atol=1e-12)
    assert np.allclose(true_differences(lam[:2]), pseudo_differences(lam[:2]))


def test_the_step_to_the_data_is_the_prediction_clipped_as_the_model_clips():
    """It counts: K calls. The steps before it are those of the raw network."""
    world = flow("vp")
    network = lambda x, label: world.denoise(x, float(label[0]) / 999.0).eps  # noqa: E731
    denoise = Denoiser(network, world.process, time_label=lambda t: 999.0 * t, clip=(-0.5, 0.5))
    times = np.concatenate([[0.0], world.times(5)])
    steps = list(
        walk(
            denoise,
            DPMSolverV3(world.process, times, lambda: world.ems),
            times,
            torch.as_tensor(world.stored["xT"]),
            no_noise,
        )
    )
    raw = DPMSolverV3(world.process, times[1:], lambda: world.ems)
    assert rel(steps[-2].x, world.end(raw, times[1:])[0]) < 1e-9
    assert torch.equal(steps[-1].x, denoise(steps[-2].x, float(times[1])).x0) and float(steps[-1].x.abs().max()) == 0.5
    solver = DPMSolverV3(world.process, times, lambda: world.ems, correct="true")
    assert world.end(solver, times, denoise=denoise)[1] == 6


def test_a_half_of_the_steps_is_redone():
    """Late is t <= T/2, early the rest: they are all, or none, of the steps on either side."""
    world, ends = flow("vp"), {}
    for side, times in (("late", np.linspace(1e-3, 0.5, 9)), ("early", np.linspace(0.5 + 1e-9, 1.0, 9))):
        for half in ("all", "late", "early", None):
            options = {"correct": "true", "correct_half": half} if half else {}
            ends[side, half] = world.end(DPMSolverV3(world.process, times, lambda: world.ems, **options), times)[0]
    for side, other in (("late", "early"), ("early", "late")):
        assert np.array_equal(ends[side, side], ends[side, "all"])
        assert np.array_equal(ends[side, other], ends[side, None])
        assert not np.array_equal(ends[side, "all"], ends[side, None])


def test_a_discrete_process_needs_no_call_between_its_steps():
    """VP observed at N times is the same flow: steps between them end where the SDE's do."""
    world, discrete = flow("vp"), adpm.vp_integral(1000)
    index = np.array([1, 20, 100, 300, 600, 1000])
    denoise = IdealDenoiser(world.denoise.mixture, discrete)
    asked = []

    def watched(x, t):
        asked.append(t)
        return denoise(x, t)

    options = {"statistics": lambda: world.ems, "correct": "true"}
    found, _ = world.end(DPMSolverV3(discrete, index.astype(float), **options), index.astype(float), denoise=watched)
    wanted, _ = world.end(DPMSolverV3(world.process, index / 1000.0, **options), index / 1000.0)
    assert rel(found, wanted) < 1e-6 and asked == [1000.0, 600.0, 300.0, 100.0, 20.0]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"order": 4}, r"`order` = 4 must lie in 1..3"),
        ({"refine": 0}, r"`refine` be at least 1|`refine` = 0 be"),
        ({"order": 1, "correct": "true"}, r"`correct` = 'true' redoes no step of `order` = 1"),
        ({"correct_half": "late"}, r"`correct_half` = 'late' is about steps that are redone"),
        ({"correct": "tru"}, r"`correct` = 'tru' is unknown"),
        ({"steps": 2}, r"`order` = 3 needs as many steps before the one to the data, and a path of 2 steps has 2"),
        ({"steps": 2, "data": True, "order": 2}, r"a path of 2 steps has 1 of them"),
        ({"steps": 300, "snap": True}, r"snap to one of 121 nodes"),
        ({"process": adpm.linear(1000), "snap": True}, r"`snap` = True asks the network between the steps"),
        ({"process": VP(10, 1e-4), "first": 1e-4}, r"reach over log-SNRs of -10.05 to 9.115, and the path"),
        ({"wide": 5}, r"statistics are of samples of shape \(4,\), not \(5,\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_walked_is_refused(options, told):
    world, options = flow("vp"), dict(options)
    process, steps = options.pop("process", world.process), options.pop("steps", 6)
    first, wide, data = options.pop("first", 1e-3), options.pop("wide", 4), options.pop("data", False)
    times = np.linspace(first, 1.0, steps + 1) * (1.0 if process.continuous else 1000.0)
    times[0] *= 0.0 if data else 1.0
    with pytest.raises(adpm.UserError, match=told):
        solver = DPMSolverV3(process, times, lambda: world.ems, **options)
        next(walk(world.denoise, solver, times, torch.zeros(2, wide, dtype=torch.float64), no_noise))


def test_a_step_that_is_not_of_the_path_is_refused():
    world, times = flow("vp"), flow("vp").times(5)
    solver = DPMSolverV3(world.process, times, lambda: world.ems)
    for t, s in ((1.0, 0.3), (0.9, 0.3), (1.0, 0.0)):
        with pytest.raises(adpm.UserError, match="is none of the path"):
            solver.step(world.denoise, torch.zeros(1, 4), t, s, no_noise)
