"""Solvers with a history: published values, measured orders, exact moments, and what they share with the kernel."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from scipy.integrate import quad, solve_ivp
from torch import Tensor

import adpm
from adpm import exponential, ideal
from adpm.denoiser import Counted, Denoise, Prediction
from adpm.errors import UserError
from adpm.families import built
from adpm.multistep import Multistep
from adpm.process import Array, Process, linear, vp_integral
from adpm.published_multistep import SOLVERS, dpmpp, ipndm, sa, unipc
from adpm.sampler import walk
from adpm.solver import ReverseGaussian, Step
from adpm.trajectory import Request, trajectory
from adpm.variance import Small
from sde.corrector import CORRECTORS
from sde.process import SDE, VP
from tests.commands import SMALL, go, refused
from tests.goldens import golden
from tests.sde_worlds import NAMES, WORLDS, bimodal, gaussian_denoiser, marginal, points, silent

Options = dict[str, Any]
END = 0.3


class Edm(Process):
    """alpha = 1, sigma = t, with any reference times."""

    prior_std = 80.0

    def __init__(self, times: Array) -> None:
        self.times = times

    def alpha(self, t: ArrayLike) -> Array:
        return np.ones_like(np.asarray(t, dtype=np.float64))

    def sigma(self, t: ArrayLike) -> Array:
        return np.asarray(t, dtype=np.float64)

    def log_snr(self, t: ArrayLike) -> Array:
        with np.errstate(divide="ignore"):
            return -2.0 * np.log(self.sigma(t))


def made(name: str, process: Process, times: Array, options: Options) -> Multistep:
    return built(SOLVERS, name, "`solver`", process, protocol={"times": times}, **options)


def ends_at(solver: Multistep, denoise: Denoise, x: Tensor, noise: Callable[[int], Tensor] | None = None) -> Tensor:
    """The state at the end of the solver's path."""

    def none(k: int) -> Tensor:
        return silent(k)

    *_, last = walk(denoise, solver, solver.times, x, noise or none)
    return last.x


def begin(process: Process) -> float:
    """1, or 0.99 where most of the log-SNR's way is between pure noise and there."""
    return 0.99 if process.pure_noise else 1.0


def even_in_log_snr(process: SDE, steps: int, end: float) -> Array:
    bounds = process.log_snr(np.array([end, begin(process)]))
    times = process.time_of(np.linspace(bounds[0], bounds[1], steps + 1))
    times[[0, -1]] = end, begin(process)
    return times


# Published values

PUBLISHED: dict[str, tuple[str, Options]] = {
    "ddim": ("dpmpp", {"order": 1}),
    "dpmpp2m-midpoint": ("dpmpp", {"order": 2}),
    "dpmpp2m-taylor": ("dpmpp", {"order": 2, "variant": "taylor"}),
    "dpmpp3m-released": ("dpmpp", {"order": 3, "third": "released"}),
    "dpmpp3m-corrected": ("dpmpp", {"order": 3}),
    "unipc2-bh2-noisepred": ("unipc", {"order": 2, "interpolates": "eps"}),
    **{f"unipc{p}-{b}": ("unipc", {"order": p, "basis": b}) for p in (1, 2, 3) for b in ("bh1", "bh2")},
}
WORLD = ("vp", "edm")
OUTPUTS = [
    (world, key) for world in WORLD for key in golden(f"solvers_{world}") if re.match("out_(ddim|dpmpp|unipc)", key)
]


@cache
def world(name: str) -> tuple[Process, Array, ideal.IdealDenoiser]:
    """(process, times of the stored grid from noise to data, exact denoiser)."""
    stored = golden(f"solvers_{name}")
    log_snr, vp = 2.0 * stored["lam_grid"], VP()
    times = np.minimum(vp.time_of(log_snr), 1.0) if name == "vp" else np.exp(-0.5 * log_snr)
    process: Process = vp if name == "vp" else Edm(np.append(0.0, times[::-1]))
    mixture = ideal.full_mixture(stored["w"], stored["mu"], stored["S"], (stored["mu"].shape[1],))
    return process, times, ideal.IdealDenoiser(mixture, process)


def published(name: str, method: str, steps: int) -> tuple[Tensor, Counted]:
    stored, (process, times, denoise) = golden(f"solvers_{name}"), world(name)
    path, counted = times[stored[f"idx_logSNR_{steps}"]][::-1], Counted(denoise)
    solver = made(PUBLISHED[method][0], process, path, PUBLISHED[method][1])
    return ends_at(solver, counted, torch.as_tensor(stored["xT"])), counted


def test_all_outputs_are_asked_for() -> None:
    assert {key.split("_")[1] for _, key in OUTPUTS} == PUBLISHED.keys() and len(OUTPUTS) == 72


@pytest.mark.parametrize(("name", "key"), OUTPUTS)
def test_published_outputs(name: str, key: str) -> None:
    """To rounding, with one network call a step."""
    _, method, steps = key.split("_")
    found, counted = published(name, method, int(steps))
    np.testing.assert_allclose(found.numpy(), golden(f"solvers_{name}")[key], rtol=0, atol=1e-10)
    assert counted.calls == int(steps)


def test_errors_of_the_released_and_the_corrected_third_order() -> None:
    """Neither wins with few calls: root mean squares against the exact flow, at 8 calls."""
    exact = golden("solvers_vp")["x_exact"]
    errors = [np.sqrt(np.mean((published("vp", f"dpmpp3m-{c}", 8)[0].numpy() - exact) ** 2)) for c in THIRDS]
    np.testing.assert_allclose(errors, [0.102, 0.120], atol=5e-4)


THIRDS = ("released", "corrected")

# Weights


@pytest.mark.parametrize("z", [-12.0, -1.0, -1e-3, 1e-6, 0.7, 6.0])
@pytest.mark.parametrize("nodes", [[-1.0], [-0.4, -2.0], [-1.0, -1.7, -3.0], [-0.5, 1.0], [-1.0, -2.0, -3.0, 1.0]])
def test_exact_weights_integrate_polynomials(z: float, nodes: list[float]) -> None:
    """sum_j c_j (p(u_j) - p(0)) = z int exp((1-u) z) (p(u) - p(0)) du, by quadrature."""
    u, coefficients = np.array(nodes), np.array([0.7, -1.3, 0.4, 0.9])[: len(nodes)]
    p = np.polynomial.Polynomial([0.0, *coefficients])
    wanted = quad(lambda v: z * math.exp((1.0 - v) * z) * p(v), 0.0, 1.0, epsabs=0.0, epsrel=1e-11)[0]
    assert exponential.exact(z, u) @ p(u) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("z", [-40.0, -1e-7, 1e-9, 30.0])
def test_moments_lose_no_digits(z: float) -> None:
    """I_1 = (exp(z) - 1)/z - 1, which cancels near 0; its series there."""
    found = exponential.moments(z, 2)
    small = [z / 2 + z**2 / 6, z / 3 + z**2 / 12]
    large = [math.expm1(z) / z - 1.0, 2.0 / z * (math.expm1(z) / z - 1.0) - 1.0]
    np.testing.assert_allclose(found, small if abs(z) < 1e-3 else large, rtol=1e-13)


@pytest.mark.parametrize("z", [0.05, 0.8, 3.0])
def test_adams_in_sigma_over_alpha_integrates_polynomials_of_it(z: float) -> None:
    """With rho relative to the step: rho_t = 1, rho_s = exp(-z), weights times -1/(exp(z) - 1) are int p d rho."""
    u = np.array([-0.6, -1.5])
    p, rho = np.polynomial.Polynomial([0.0, 0.5, -1.2]), lambda v: math.exp(-z * v) - 1.0
    found = exponential.adams_rho(z, u) @ np.array([p(rho(v)) for v in u]) * math.exp(-z)
    assert -found == pytest.approx(p.integ()(rho(1.0)), rel=1e-11)


def test_equal_steps_have_the_weights_of_adams_and_bashforth() -> None:
    for count, wanted in ((1, [-1 / 2]), (2, [-16 / 12, 5 / 12]), (3, [-59 / 24, 37 / 24, -9 / 24])):
        found = exponential.adams_even(0.3, -np.geomspace(1.0, 5.0, count)) / math.expm1(0.3)
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


# With noise


def law(solver: Multistep, process: SDE) -> tuple[float, float]:
    """(mean, variance) at the end: one walk of unit inputs gives the response to the start and to every draw."""
    count = solver.steps
    x = torch.zeros(count + 2, 1, 1, 1, dtype=torch.float64)
    x[1] = 1.0

    def noise(k: int) -> Tensor:
        z = torch.zeros_like(x)
        z[k + 1] = 1.0
        return z

    out = ends_at(solver, gaussian_denoiser(process), x, noise).flatten().numpy()
    start, answer = marginal(process, float(solver.times[-1])), out[1:] - out[0]
    return answer[0] * start.mean + out[0], answer[0] ** 2 * start.variance + float(answer[1:] @ answer[1:])


def weak_error(member: str, process: SDE, steps: int, options: Options) -> tuple[float, float]:
    """(|mean - exact| + |variance - exact|, the declared order)."""
    solver = SOLVERS[member].build(process, even_in_log_snr(process, steps, END), **options)
    (mean, variance), truth = law(solver, process), marginal(process, END)
    return abs(mean - truth.mean) + abs(variance - truth.variance), solver.weak_order


NOISY: list[tuple[str, Options]] = [
    ("dpmpp_sde", {"order": 1}),
    ("dpmpp_sde", {"order": 2}),
    ("dpmpp_sde", {"order": 2, "variant": "taylor"}),
    ("dpmpp_sde", {"order": 3, "third": "released"}),
    ("sa", {"order": 1}),
    ("sa", {"order": 1, "corrects": False}),
    ("sa", {"order": 2, "corrects": False}),
]
WEAK = [
    (name, member, options)
    for name in NAMES
    for member, options in NOISY
    if not (options.get("third") and WORLDS[name].pure_noise)  # where the error's terms nearly cancel
]


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize(("name", "member", "options"), WEAK)
def test_weak_order(name: str, eta: float, member: str, options: Options) -> None:
    (long, order), (short, _) = (weak_error(member, WORLDS[name], k, {**options, "eta": eta}) for k in (160, 320))
    assert np.log2(long / short) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("member", "options"), [("dpmpp_sde", {"order": 3}), *[("sa", {"order": order}) for order in (2, 3, 4)]]
)
def test_more_predictions_come_closer(name: str, member: str, options: Options) -> None:
    """The order stays 2, but terms nearly cancel, so that slopes go their own way: errors below half of 2M SDE's.

    On rectified flow below 0.7 of them.
    """
    (error, order), (other, _) = (
        weak_error(which, WORLDS[name], 160, {**chosen, "eta": 1.0})
        for which, chosen in ((member, options), ("dpmpp_sde", {"order": 2, "variant": "taylor"}))
    )
    assert order == 2.0 and error < (0.7 if WORLDS[name].pure_noise else 0.5) * other


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("process", [*WORLDS.values(), linear(50)], ids=[*NAMES, "linear"])
def test_order_one_is_the_reverse_kernel(process: Process, eta: float) -> None:
    """Bit by bit, at every eta, the step to the data included."""
    times = process.times[[0, 7, 20, 50] if process.steps == 50 else [0, 70, 400, 1000]]
    x, z = points(WORLDS["vp"]), torch.linspace(-1, 1, 7, dtype=torch.float64).reshape(-1, 1, 1, 1)
    denoise = bimodal(process)
    a = list(walk(denoise, dpmpp(process, times, eta, order=1), times, x, lambda k: z * k))
    b = list(walk(denoise, ReverseGaussian(process, Small(), eta), times, x, lambda k: z * k))
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one.x, other.x, rtol=1e-15, atol=0)
        assert one.covariance.values == pytest.approx(float(other.covariance.values), rel=1e-15)


@pytest.mark.parametrize("options", [{"order": 2}, {"order": 3}, {"order": 3, "third": "released"}])
def test_without_noise_the_stochastic_solvers_are_the_flow(options: Options) -> None:
    process, times = WORLDS["vp"], even_in_log_snr(WORLDS["vp"], 12, END)
    ode = ends_at(made("dpmpp", process, times, options), bimodal(process), points(process))
    sde = ends_at(dpmpp(process, times, 0.0, **options), bimodal(process), points(process))
    assert torch.equal(ode, sde)
    unic = unipc(process, times, order=3, final_order="off")
    third = ends_at(sa(process, times, 0.0, order=3), bimodal(process), points(process))
    first = unic.step(bimodal(process), points(process), 1.0, float(times[-2]), silent)
    assert torch.equal(
        first.x, sa(process, times, 0.0).step(bimodal(process), points(process), 1.0, times[-2], silent).x
    )
    assert float((third - torch.as_tensor(flow("vp")).reshape(third.shape)).abs().max()) < 2e-3


def test_noise_is_added_between_the_limits_only() -> None:
    process, times = WORLDS["ve"], WORLDS["ve"].times[[0, 200, 400, 600, 800, 1000]]
    sigma = process.sigma(times)
    solver = sa(process, times, order=2, noise_low=0.9 * float(sigma[3]), noise_high=1.1 * float(sigma[4]))
    steps = list(walk(bimodal(process), solver, times, points(process), lambda k: torch.zeros(7, 1, 1, 1)))
    noisy = [float(step.covariance.values) > 0.0 for step in steps]
    assert noisy == [False, True, True, False, False]
    with pytest.raises(UserError, match=r"`noise_low` = 2.0 must lie below `noise_high` = 1.0"):
        sa(process, times, noise_low=2.0, noise_high=1.0)
    with pytest.raises(UserError, match=r"`noise_low` and `noise_high` are about noise, .* `eta` = 0; unset them"):
        sa(process, times, eta=0.0, noise_high=1.0)


# Steps

EVERY = [(name, {"eta": 1.0} if kind.facts.uses_eta else {}) for name, kind in SOLVERS.items()]


def every(name: str, process: Process, times: Array, options: Options) -> Multistep:
    return SOLVERS[name].build(process, times, **options)


@pytest.mark.parametrize(("name", "options"), EVERY)
@pytest.mark.parametrize("process", [*WORLDS.values(), linear(1000)], ids=[*NAMES, "linear"])
def test_the_step_to_the_data_returns_x0(process: Process, name: str, options: Options) -> None:
    """One of the K steps, with a call of its own, and without noise; what came before lies near the truth."""
    times = process.times[[0, *trajectory("log_snr", Request(process, 20))[1:]]]
    counted, x = Counted(bimodal(process)), points(WORLDS["vp"]) * process.prior_std
    generator = torch.Generator().manual_seed(0)
    noise = lambda k: torch.randn(7, 1, 1, 1, generator=generator)  # noqa: E731
    steps = list(walk(counted, every(name, process, times, options), times, x, noise))
    assert counted.calls == len(steps) == 20
    assert torch.equal(steps[-1].x, steps[-1].prediction.x0) and steps[-1].covariance.values == 0.0
    assert float((steps[-1].x.abs() - 0.65).abs().max()) < 0.7  # components at -0.6 and 0.7, deviations about 0.2


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_a_schedule_is_its_sde_observed(name: str, options: Options) -> None:
    """The VP-SDE at 1000 times and the discrete schedule of the same alphas give the same states."""
    indices, discrete, vp = np.array([0, 30, 120, 300, 550, 800, 1000]), vp_integral(1000), VP()
    z = torch.linspace(-1, 1, 7, dtype=torch.float64).reshape(-1, 1, 1, 1)
    found = [
        ends_at(every(name, process, times, options), bimodal(process), points(vp), lambda k: z)
        for process, times in ((discrete, discrete.times[indices]), (vp, indices / 1000.0))
    ]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_a_solver_keeps_nothing_between_batches(name: str, options: Options) -> None:
    """Two walks in turn with one solver, and each alone with its own; a sample does not see its batch."""
    process = WORLDS["vp"]
    times, noise = even_in_log_snr(process, 6, END), lambda k: torch.full((), 0.1 * k, dtype=torch.float64)
    x = points(process)
    shared = every(name, process, times, options)
    pair = [walk(bimodal(process), shared, times, part, noise) for part in (x[:3], x[3:])]
    for _ in range(5):
        for path in pair:
            next(path)
    together = torch.cat([next(path).x for path in pair])
    alone = ends_at(every(name, process, times, options), bimodal(process), x, noise)
    assert torch.equal(together, alone)


@pytest.mark.parametrize("interpolates", ["x0", "eps"])
def test_what_moves_a_state_between_steps_is_kept(interpolates: str) -> None:
    """A shift of x_t by delta is one of x_s by r delta, if the predictions stay: no corrector undoes it."""
    process = WORLDS["vp"]
    times = even_in_log_snr(process, 5, END)
    solver = unipc(process, times, order=2, interpolates=interpolates)
    fixed = {float(t): torch.full((2, 1, 1, 1), math.cos(5 * float(t)), dtype=torch.float64) for t in times}
    start = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)

    def data(x: Tensor, t: ArrayLike) -> Prediction:
        return Prediction(fixed[float(t)], (x - float(process.alpha(t)) * fixed[float(t)]) / float(process.sigma(t)), x)

    def noise(x: Tensor, t: ArrayLike) -> Prediction:
        return Prediction((x - float(process.sigma(t)) * fixed[float(t)]) / float(process.alpha(t)), fixed[float(t)], x)

    denoise, scale = {"x0": (data, process.sigma), "eps": (noise, process.alpha)}[interpolates]
    carry = None
    for t, s in ((times[5], times[4]), (times[4], times[3]), (times[3], times[2])):
        step: Step = solver.step(denoise, start, float(t), float(s), silent, carry)
        carry = step.carry
        moved = float(step.x[1] - step.x[0])
        assert moved == pytest.approx(float(scale(s) / scale(t)), rel=1e-12)


def test_a_langevin_corrector_around_unipc() -> None:
    """It moves the states, and they stay near the data."""
    process = WORLDS["vp"]
    times = np.append(0.0, even_in_log_snr(process, 30, 0.01))
    inner = unipc(process, times)
    solver = CORRECTORS["ald"].build(inner, process, snr=0.05, n_steps=1, first=True)
    z = torch.linspace(-1, 1, 7, dtype=torch.float64).reshape(-1, 1, 1, 1)
    *_, last = walk(bimodal(process), solver, times, points(process), lambda k: z * (-1) ** k)
    assert not torch.allclose(last.x, ends_at(inner, bimodal(process), points(process)))
    assert float((last.x.abs() - 0.65).abs().max()) < 0.7


@pytest.mark.parametrize(
    ("final_order", "steps", "used"),
    [
        ("off", 6, [1, 2, 3, 3, 3, 3]),
        ("always", 6, [1, 2, 3, 3, 2, 1]),
        ("short", 6, [1, 2, 3, 3, 2, 1]),
        ("short", 9, [1, 2, 3, 3, 3, 3, 3, 2, 1]),
        ("short", 10, [1, 2, *[3] * 8]),
        ("always", 10, [1, 2, *[3] * 6, 2, 1]),
    ],
)
def test_orders_along_a_path(final_order: str, steps: int, used: list[int]) -> None:
    process = WORLDS["vp"]
    times = even_in_log_snr(process, steps, END)
    solver = dpmpp(process, times, order=3, final_order=final_order)
    walked = walk(bimodal(process), solver, times, points(process), silent)
    assert [step.carry.used for step in walked] == used


# What is refused


def test_messages() -> None:
    process = WORLDS["vp"]
    times = even_in_log_snr(process, 2, END)
    with pytest.raises(UserError, match=r"`order` = 3 needs a path of at least as many steps, but this one has 2"):
        unipc(process, times, order=3)
    with pytest.raises(UserError, match=r"`third` = 'released' is about steps of order 3, but `order` = 2; unset it"):
        dpmpp(process, times, third="released")
    with pytest.raises(UserError, match=r"`variant` = 'taylor' is about steps of order 2, but `order` = 1; unset it"):
        dpmpp(process, times, order=1, variant="taylor")
    with pytest.raises(UserError, match=r"`basis` = 'bh3' is unknown"):
        unipc(process, times, order=2, basis="bh3")
    with pytest.raises(UserError, match=r"made for another path: t = 0.5 is none of its 3 times"):
        unipc(process, times, order=2).step(bimodal(process), points(process), 0.5, 0.4, silent)
    for name, most in (("dpmpp", 3), ("dpmpp_sde", 3), ("unipc", 3), ("sa", 4), ("deis", 4), ("ipndm", 4)):
        for order in (0, most + 1):
            with pytest.raises(
                UserError, match=rf"`order` = {order} must be a number of at least 1 and of at most {most}"
            ):
                made(name, process, times, {"order": order})


# Paths, the front door, the command line


@pytest.mark.parametrize("steps", [5, 8, 12])
def test_karras_paths_of_the_published_grids(steps: int) -> None:
    """The stored node numbers count from the noise, the ones of the path from the data; 121 nodes."""
    process = world("edm")[0]
    stored = golden("solvers_edm")
    for name in ("karras", "log_snr"):
        key = {"karras": "edm", "log_snr": "logSNR"}[name]
        path = trajectory(name, Request(process, steps + 1))
        np.testing.assert_array_equal(path[1:], 121 - stored[f"idx_{key}_{steps}"][::-1])


def test_karras_is_even_in_a_root_of_sigma_over_alpha() -> None:
    process = VP(steps=20_000)
    ends = {"log_snr_min": -6.0, "log_snr_max": 8.0}
    for rho in (1.0, 3.0, 7.0):
        path = trajectory("karras", Request(process, 9), rho=rho, **ends)
        root = np.exp(-0.5 * process.log_snr(process.times[path[1:]]) / rho)
        np.testing.assert_allclose(np.diff(root), np.diff(root).mean(), rtol=0.03)
        assert process.log_snr(process.times[path[[1, -1]]]) == pytest.approx([8.0, -6.0], abs=0.02)
    assert list(trajectory("karras", Request(process, 1), **ends)) == [0, path[-1]]
    with pytest.raises(UserError, match=r"`log_snr_min`, `log_snr_max` = \(9, 8\) must be low <= high"):
        trajectory("karras", Request(process, 3), log_snr_min=9.0, log_snr_max=8.0)


def test_the_front_door_draws_the_data() -> None:
    """256 samples of a Gaussian in 50 calls: mean and deviation, with and without noise."""
    process = linear(1000)
    model = adpm.Model.of(gaussian_denoiser(process), process)
    plan = model.plan(steps=50, trajectory="karras")
    for solver, options in (("unipc", {"order": 3}), ("dpmpp_sde", {"order": 2}), ("dpmpp_sde", {"eta": 0.0})):
        found = model.sample(plan, solver=solver, n=256, shape=(1, 1, 1), **options).double()
        assert float(found.mean()) == pytest.approx(0.3, abs=0.1) and float(found.std()) == pytest.approx(0.5, abs=0.08)
    with pytest.raises(UserError, match="`solver` 'unipc' has no option `variant`"):
        model.sample(plan, solver="unipc", n=4, shape=(1, 1, 1), variant="taylor")


PATH = ("trajectory.name=karras", "trajectory.steps=8", "sampling.samples=4")


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The variance rule is not read: no moments are measured, and no option of it is part of the samples."""
    command = ("toy", "sample", *PATH, "sampling.solver=unipc", "sampling.order=2")
    assert go(tmp_path, *command) == 0, capsys.readouterr().err
    (folder,) = (tmp_path / "samples").glob("unipc-karras-K8-*")
    protocol = json.loads((folder / "protocol.json").read_text())
    own = {key: protocol["own"][key] for key in protocol["own"] if key.startswith(("sampling", "rule"))}
    assert own["sampling.order"] == 2 and own["sampling.basis"] == "bh2" and "rule.name" not in own
    assert np.load(folder / "steps.npz")["nfe"] == 8 and not list(tmp_path.rglob("moments*.npz"))
    assert go(tmp_path, "toy", "sample", *PATH, "sampling.solver=sa", "sampling.eta=0.5") == 0
    assert len(list((tmp_path / "samples").glob("sa-karras-K8-*"))) == 1


def test_refused_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*fields: str) -> str:
        return refused(capsys, tmp_path, "toy", "sample", *SMALL, *fields)

    assert (
        "config.sampling.order = 3 needs a path of at least as many steps, but this one has 2; lower it, or raise "
        in (said := told("sampling.solver=unipc", "trajectory.steps=2"))
    )
    assert "config.trajectory.steps" in said
    assert "config.sampling.order = 4 must be a number of at least 1 and of at most 3" in told(
        "sampling.solver=unipc", "sampling.order=4"
    )
    assert "config.sampling.variant = 'taylor' is about steps of order 2, but config.sampling.order = 1" in told(
        "sampling.solver=dpmpp", "sampling.order=1", "sampling.variant=taylor"
    )
    assert "it is an option of dpmpp, dpmpp_sde" in told("sampling.solver=unipc", "sampling.variant=taylor")
    assert "config.sampling.basis = 'bh4' is unknown" in told("sampling.solver=unipc", "sampling.basis=bh4")
    assert not (tmp_path / "samples").exists()


SLOPES = [
    ("dpmpp", {"order": 1}),
    ("dpmpp", {"order": 2}),
    ("dpmpp", {"order": 3, "third": "released"}),
    ("dpmpp", {"order": 3}),
    *[("unipc", {"order": p, "final_order": "off"}) for p in (1, 2, 3)],
]


@pytest.mark.parametrize(("member", "options"), SLOPES)
def test_slopes_down_to_the_data(member: str, options: Options) -> None:
    """Over the whole stored path of VP, where steps of one length in log-SNR meet every kind of state."""
    stored, (process, times, denoise) = golden("solvers_vp"), world("vp")
    errors = []
    for steps in (320, 640):
        path = even_in_log_snr(process, steps, float(times[-1]))  # type: ignore[arg-type]
        solver = made(member, process, path, options)
        found = ends_at(solver, denoise, torch.as_tensor(stored["xT"])).numpy()
        errors.append(np.sqrt(np.mean((found - stored["x_exact"]) ** 2)))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(solver.weak_order, abs=0.15)


# Orders

FLOWS: list[tuple[str, Options]] = [
    ("dpmpp", {"order": 1}),
    ("dpmpp", {"order": 2}),
    ("dpmpp", {"order": 2, "variant": "taylor"}),
    ("dpmpp", {"order": 3, "third": "released"}),
    ("dpmpp", {"order": 3}),
    *[("unipc", {"order": p, "basis": b, "final_order": "off"}) for p, b in ((1, "bh1"), (1, "bh2"), (2, "bh2"))],
    ("unipc", {"order": 3, "final_order": "off"}),
    ("unipc", {"order": 2, "interpolates": "eps", "final_order": "off"}),
    *[("deis", {"order": p, "final_order": "off"}) for p in (1, 2, 3)],
    *[("deis", {"order": p, "variable": "rho", "final_order": "off"}) for p in (2, 3)],
    *[("ipndm", {"order": p}) for p in (1, 2, 4)],
]


@cache
def flow(name: str) -> Array:
    """The probability flow of the mixture from `points` at `begin` to END, d(x/sigma)/dlambda = e^lambda x0."""
    process, start = WORLDS[name], points(WORLDS[name])

    def velocity(half_log_snr: float, state: Array) -> Array:
        t = float(np.clip(process.time_of(2.0 * half_log_snr), END, begin(process)))
        x = torch.as_tensor(state * float(process.sigma(t))).reshape(start.shape)
        return math.exp(half_log_snr) * bimodal(process)(x, t).x0.flatten().numpy()

    span = 0.5 * process.log_snr(np.array([begin(process), END]))
    first = start.flatten().numpy() / float(process.sigma(begin(process)))
    last = solve_ivp(velocity, span, first, method="DOP853", rtol=1e-12, atol=1e-14).y[:, -1]
    return last * float(process.sigma(END))


ODES = [
    (name, member, options)
    for name in NAMES
    for member, options in FLOWS
    if not ("interpolates" in options and WORLDS[name].pure_noise)  # a corrector of eps, which is refused there
]


@pytest.mark.parametrize(("name", "member", "options"), ODES)
def test_order_on_a_mixture(name: str, member: str, options: Options) -> None:
    process = WORLDS[name]

    def error(steps: int) -> tuple[float, float]:
        solver = made(member, process, even_in_log_snr(process, steps, END), options)
        found = ends_at(solver, bimodal(process), points(process)).flatten().numpy()
        return float(np.abs(found - flow(name)).mean()), solver.weak_order

    few = 320 if options["order"] > 2 else 160  # the higher the order, the later does an error become a power
    (long, order), (short, _) = error(few), error(2 * few)
    assert np.log2(long / short) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("name", "member", "options"), [ode for ode in ODES if ode[2]["order"] < 3])
def test_order_on_a_gaussian(name: str, member: str, options: Options) -> None:
    """Where the flow is known: (x_t - mean_t)/deviation_t stays as it is."""
    process = WORLDS[name]
    start, end = marginal(process, begin(process)), marginal(process, END)
    truth = end.mean + (points(process) - start.mean) * math.sqrt(end.variance / start.variance)

    def error(steps: int) -> tuple[float, float]:
        solver = made(member, process, even_in_log_snr(process, steps, END), options)
        found = ends_at(solver, gaussian_denoiser(process), points(process))
        return float((found - truth).abs().mean()), solver.weak_order

    (long, order), (short, _) = error(160), error(320)
    assert np.log2(long / short) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_is_adams_in_sigma_over_alpha(name: str, order: int) -> None:
    """On a path even in it, where both have the same weights."""
    process = WORLDS[name]
    ratio = np.exp(-0.5 * process.log_snr(np.array([END, begin(process)])))
    times = process.time_of(-2.0 * np.log(np.linspace(ratio[0], ratio[1], 13)))
    times[-1] = begin(process)
    a = ends_at(ipndm(process, times, order), bimodal(process), points(process))
    rho = {"order": order, "variable": "rho", "final_order": "off"}
    b = ends_at(made("deis", process, times, rho), bimodal(process), points(process))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
