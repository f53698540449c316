"""VP, sub-VP, VE against the published processes, their own SDEs, and the discrete schedule that VP is the limit of."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from adpm.denoiser import index_label
from adpm.errors import UserError
from adpm.gaussian import Diagonal
from adpm.kernel import reverse_kernel
from adpm.process import DiscreteProcess, linear_betas, vp_integral_betas
from sde.grids import GRIDS
from sde.process import PROCESSES, SDE, VE, VP, RectifiedFlow, SubVP
from sde.score import LABELS
from tests.goldens import RTOL, golden, rel
from tests.sde_worlds import FIRST, NAMES, PUBLISHED, WORLDS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what diffusers imports is not ours
    import diffusers

TIMES = np.concatenate([[1e-5, 1e-4, 1e-3], np.linspace(0.01, 1.0, 34)])


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def sde(name: str) -> SDE:
    return WORLDS[name]


def column(values) -> np.ndarray:
    return np.asarray(values)[:, None, None, None]


# --- published values: score_sde.npz (SSDE), sde_vp_ext.npz (EXT) ---


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_marginals_and_coefficients(name: str) -> None:
    stored, sde = golden("score_sde"), WORLDS[name]
    parameters = {"vp": ("beta_min", "beta_max"), "subvp": ("beta_min", "beta_max"), "ve": ("sigma_min", "sigma_max")}
    assert [getattr(sde, key) for key in parameters[name]] == stored[f"{name}__params"][:2].tolist()
    t, x = stored["t"], stored["x"]
    assert rel(column(sde.alpha(t)) * x, stored[f"{name}__marginal_mean"]) < RTOL
    assert rel(sde.sigma(t), stored[f"{name}__marginal_std"]) < RTOL
    assert rel(column(sde.drift(t)) * x, stored[f"{name}__drift"]) < RTOL
    assert rel(sde.diffusion(t), stored[f"{name}__diffusion"]) < RTOL
    prior = Diagonal(sde.prior_std**2).log_density(torch.as_tensor(x), torch.zeros(x.shape, dtype=torch.float64))
    assert rel(prior, stored[f"{name}__prior_logp"]) < RTOL


def test_published_vp_transitions() -> None:
    stored, vp = golden("sde_vp_ext"), WORLDS["vp"]
    assert isinstance(vp, VP) and [vp.beta_min, vp.beta_max] == stored["vp_beta_min_max"].tolist()
    t, s, x = stored["t"], stored["s"], stored["x"]
    assert rel(column(vp.drift(t)) * x, stored["vp_drift"]) < RTOL
    assert rel(vp.diffusion(t), stored["vp_diffusion"]) < RTOL
    assert rel(vp.alpha(t) ** 2, stored["vp_cum_alpha"]) < RTOL
    assert rel(vp.sigma(t) ** 2, stored["vp_cum_beta"]) < RTOL
    assert rel(column(vp.alpha(t)) * x, stored["vp_marginal_mean"]) < RTOL
    assert rel(vp.sigma(t), stored["vp_marginal_std"]) < RTOL
    assert rel((vp.alpha(t) / vp.alpha(s)) ** 2, stored["vp_skip_alpha"]) < RTOL
    step = s < t
    assert step.sum() == 6 and stored["vp_skip_beta"][~step].tolist() == [0.0]  # one entry has s = t: no step
    assert rel(reverse_kernel(vp, t[step], s[step]).forward_variance, stored["vp_skip_beta"][step]) < RTOL


def test_published_discretisation_of_vp_is_the_linear_schedule() -> None:
    """score_sde's discrete_betas, and one step of it: f = (alpha_n/alpha_{n-1} - 1) x, G^2 = Var[x_n | x_{n-1}]."""
    stored = golden("score_sde")
    steps = int(stored["vp__params"][2])
    linear = DiscreteProcess(linear_betas(steps))
    assert rel(linear.betas, stored["vp__discrete_betas"]) < RTOL
    n = np.floor(stored["t"] * (steps - 1)) + 1
    kernel = reverse_kernel(linear, n, n - 1)
    assert rel(column(kernel.alpha_t / kernel.alpha_s - 1.0) * stored["x"], stored["vp__disc_f"]) < RTOL
    assert rel(np.sqrt(kernel.forward_variance), stored["vp__disc_G"]) < RTOL


def test_published_discretisation_of_ve_is_the_sde_at_times_k() -> None:
    """discrete_sigmas are sigma(k/(N-1)), our uniform grid; G^2 = sigma_k^2 - sigma_{k-1}^2 with sigma_{-1} = 0."""
    stored, ve = golden("score_sde"), WORLDS["ve"]
    steps = int(stored["ve__params"][2])
    times = np.linspace(0.0, 1.0, steps)
    times[0] = FIRST
    assert rel(ve.sigma(times), stored["ve__discrete_sigmas"]) < RTOL
    assert rel(ve.sigma(VE(steps, t_min=1e-12).times[1:]), stored["ve__discrete_sigmas"]) < 1e-10
    k = np.floor(stored["t"] * (steps - 1)).astype(int)
    kernel = reverse_kernel(ve, times[k], np.where(k > 0, times[k - 1], 0.0))
    assert rel(np.sqrt(kernel.forward_variance), stored["ve__disc_G"]) < RTOL
    assert not stored["ve__disc_f"].any()


def test_published_discretisation_of_subvp_is_euler() -> None:
    """score_sde has none of its own: f = drift / N and G = diffusion / sqrt(N)."""
    stored, subvp = golden("score_sde"), WORLDS["subvp"]
    t, steps = stored["t"], stored["subvp__params"][2]
    assert rel(column(subvp.drift(t)) * stored["x"] / steps, stored["subvp__disc_f"]) < RTOL
    assert rel(subvp.diffusion(t) / np.sqrt(steps), stored["subvp__disc_G"]) < RTOL


def test_published_time_labels() -> None:
    """Rows (kind, N, n, rescale, shift, value): kinds 0 and 1 are discrete models, kind 2 a continuous one at t = n."""
    rows = golden("sde_vp_ext")["time_rows"]
    assert [int((rows[:, 0] == kind).sum()) for kind in range(3)] == [60, 15, 3]
    for kind, steps, n, rescale, shift, value in rows:
        label = {
            0: index_label(int(shift), 1000.0 / steps if rescale == 1 else 1.0),
            1: index_label(0, 999.0 / steps),
            2: LABELS["time_999"].build(WORLDS["vp"]),
        }[int(kind)]
        assert label(np.asarray(n)) == pytest.approx(value, rel=1e-12)


# --- the closed forms are those of the SDE ---


def test_coefficients_are_the_derivatives_of_the_marginals(sde: SDE) -> None:
    """f = d log alpha/dt and g^2 = d sigma^2/dt - 2 f sigma^2, by an 8th-order difference quotient (h = 1e-3).

    Where alpha tends to 0 at t = 1 the quotient needs a distance from there.
    """
    t = np.linspace(0.01, 0.9 if sde.pure_noise else 0.99, 50)
    weights = np.array([1 / 280, -4 / 105, 1 / 5, -4 / 5, 0, 4 / 5, -1 / 5, 4 / 105, -1 / 280]) / 1e-3
    around = t[:, None] + 1e-3 * np.arange(-4, 5)
    f = np.log(sde.alpha(around)) @ weights
    g2 = sde.sigma(around) ** 2 @ weights - 2 * sde.drift(t) * sde.sigma(t) ** 2
    np.testing.assert_allclose(f, sde.drift(t), rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(g2, sde.diffusion(t) ** 2, rtol=1e-9)
    for rate, values in zip(sde.rates(t), (sde.alpha(around), sde.sigma(around)), strict=True):
        np.testing.assert_allclose(values @ weights, rate, rtol=1e-6, atol=1e-11)


def test_log_snr_and_its_inverse(sde: SDE) -> None:
    assert sde.alpha(0) == 1.0 and sde.sigma(0) == 0.0 and sde.log_snr(0) == np.inf
    log_snr = sde.log_snr(TIMES)
    assert (np.diff(log_snr) < 0).all()
    np.testing.assert_allclose(2 * np.log(sde.alpha(TIMES) / sde.sigma(TIMES)), log_snr, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(sde.time_of(log_snr), TIMES, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(sde.log_snr(sde.time_of(np.linspace(-7, 9, 33))), np.linspace(-7, 9, 33), atol=1e-12)


STEPS = [(1.0, 0.999), (1.0, 0.5), (0.37, 0.2), (0.1, 0.05), (0.05, 0.001), (1.0, 1e-5), (2e-5, 1e-5)]


@pytest.mark.parametrize(("t", "s"), STEPS)
def test_transitions_by_moment_recursion(sde: SDE, t: float, s: float) -> None:
    """dm/dr = f m and dV/dr = 2 f V + g^2 from m = 1, V = 0 at s: m = alpha_t/alpha_s and V = forward_variance at t."""

    def moments(r, y):
        f, g = sde.drift(min(r, 1.0)), sde.diffusion(min(r, 1.0))
        return np.array([f * y[0], 2 * f * y[1] + g**2])

    kernel = reverse_kernel(sde, t, s)
    scale = float(kernel.forward_variance)
    solved = solve_ivp(moments, (s, t), [1.0, 0.0], method="DOP853", rtol=1e-13, atol=[1e-15, 1e-14 * scale])
    ratio, variance = solved.y[:, -1]
    assert ratio == pytest.approx(float(kernel.alpha_t / kernel.alpha_s), rel=1e-11)
    assert variance == pytest.approx(scale, rel=2e-11)


def test_transitions_compose(sde: SDE) -> None:
    """Var[x_t | x_s] = Var[x_t | x_r] + (alpha_t/alpha_r)^2 Var[x_r | x_s]."""
    t, r, s = TIMES[9::3], TIMES[6:-3:3], TIMES[3:-6:3]
    whole, late, early = reverse_kernel(sde, t, s), reverse_kernel(sde, t, r), reverse_kernel(sde, r, s)
    joined = late.forward_variance + (late.alpha_t / late.alpha_s) ** 2 * early.forward_variance
    np.testing.assert_allclose(joined, whole.forward_variance, rtol=1e-11)


def test_prior_is_the_end_of_the_process(name: str, sde: SDE) -> None:
    """VP's and sub-VP's sigma(1) is 1 to 4e-5, rectified flow's is 1; VE keeps the data on top of its prior."""
    assert sde.prior_std == {"vp": 1.0, "subvp": 1.0, "ve": 50.0, "rectified_flow": 1.0}[name]
    assert float(sde.sigma(1.0)) == pytest.approx(sde.prior_std, rel=1e-4)


# --- reference times ---


@pytest.mark.parametrize("grid", sorted(GRIDS))
@pytest.mark.parametrize("steps", [2, 3, 100])
def test_grids(name: str, grid: str, steps: int) -> None:
    for t_min in (1e-5, 1e-3):
        times = PROCESSES[name].build(steps=steps, t_min=t_min, grid=grid).times
        assert len(times) == steps + 1 and times[0] == 0.0 and (np.diff(times) > 0).all()
        assert times[-1] == 1.0 and times[1] == pytest.approx(t_min, rel=1e-12)


def test_what_each_grid_is_even_in(name: str) -> None:
    measures = {
        "uniform": lambda sde, t: t,
        "log_snr": lambda sde, t: sde.log_snr(t),
        "quadratic": lambda sde, t: np.sqrt(t),
        "edm": lambda sde, t: (sde.sigma(t) / sde.alpha(t)) ** (1 / 7),
    }
    assert measures.keys() == GRIDS.keys()
    for grid, measure in measures.items():
        sde = PROCESSES[name].build(steps=50, grid=grid)
        even = np.diff(measure(sde, sde.times[1:]))
        np.testing.assert_allclose(even, even.mean(), rtol=1e-8)


def test_training_times_fill_the_interval(sde: SDE) -> None:
    u = np.arange(1000) / 1000
    first = sde.times[1]
    np.testing.assert_allclose(sde.uniform_times(u), first + (1 - first) * u, rtol=1e-14)
    log_snr = sde.log_snr(sde.log_snr_times(u))
    np.testing.assert_allclose(np.diff(log_snr), np.diff(log_snr).mean(), rtol=1e-6)
    assert sde.log_snr_times(u).min() == pytest.approx(first) and sde.log_snr_times(u).max() <= 1.0


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_training_times_never_lie_before_the_first_reference_time(name: str) -> None:
    """The inverse of the log-SNR rounds to either side of t_min; what is below has neither moments nor a network."""
    for t_min in np.geomspace(1e-5, 0.3, 200):
        sde = PROCESSES[name].build(steps=3, t_min=float(t_min))
        assert float(sde.log_snr_times(0.0)) >= sde.times[1] == t_min


def test_a_constant_rate_has_an_inverse_as_precise_as_any() -> None:
    """beta_min = beta_max: B(t) is linear; and at early times nothing cancels, whatever the rates."""
    t = np.array([1e-5, 1e-3, 0.1, 0.7, 1.0])
    for low, high in ((10.0, 10.0), (10.0, 10.0 + 1e-9), (0.1, 20.0)):
        for build in (VP, SubVP):
            sde = build(beta_min=low, beta_max=high)
            np.testing.assert_allclose(sde.time_of(sde.log_snr(t)), t, rtol=1e-12)


# --- rectified flow ---


def test_rectified_flow_is_the_straight_path_to_one_rounding_of_float32() -> None:
    """alpha = 1 - t and sigma = t; at t = 1 nothing of the data is left, and every number is finite."""
    flow, t = WORLDS["rectified_flow"], np.linspace(0.0, 1.0, 1001)
    np.testing.assert_array_equal(flow.sigma(t), t)
    np.testing.assert_allclose(flow.alpha(t), 1.0 - t, rtol=0, atol=2.0**-24)
    assert flow.pure_noise and float(flow.alpha(1.0)) == RectifiedFlow.LEAST
    x0, eps = np.float32(0.9), np.float32(-0.7)
    assert np.float32(flow.alpha(1.0) * x0 + flow.sigma(1.0) * eps) in np.nextafter(eps, np.float32([-1, 0]))
    np.testing.assert_allclose(flow.log_snr(t[1:-1]), 2.0 * np.log((1.0 - t[1:-1]) / t[1:-1]), atol=2e-4)
    for f in (flow.log_snr, flow.drift, flow.diffusion, *(lambda t, i=i: flow.rates(t)[i] for i in (0, 1))):
        assert np.isfinite(f(t[1:])).all()


def test_the_times_of_rectified_flow_are_those_of_flow_matching_schedulers() -> None:
    """diffusers: sigma = n/1000, n = 1..1000, and the network is told 1000 sigma."""
    peer = diffusers.FlowMatchEulerDiscreteScheduler()
    flow = RectifiedFlow()
    assert rel(flow.times[:0:-1], peer.sigmas) < 1e-6
    assert rel(LABELS["time_1000"].build(flow)(flow.times[:0:-1]), peer.timesteps) < 1e-6
    assert LABELS["time"].build(flow)(np.array([0.25, 1.0])).tolist() == [0.25, 1.0]


# --- the discrete schedule in the limit ---


def kernel_difference(steps: int, t: np.ndarray, s: np.ndarray, betas=linear_betas) -> dict[str, float]:
    """Largest relative difference between the kernels of a schedule and of the VP SDE, t -> s on the grid n/N."""
    discrete = reverse_kernel(DiscreteProcess(betas(steps)), np.rint(t * steps), np.rint(s * steps))
    continuous = reverse_kernel(WORLDS["vp"], np.rint(t * steps) / steps, np.rint(s * steps) / steps)
    fields = ("forward_variance", "lambda2", "eps_scale", "gain")
    return {key: float(abs(getattr(discrete, key) / getattr(continuous, key) - 1).max()) for key in fields}


def test_linear_schedule_is_vp_to_first_order() -> None:
    """At N = 1000 the kernels between tenths of [0, 1] differ by 0.3 % in variance, 2.1 % in gain; slope in N: -1."""
    t, s = np.arange(2, 11) / 10, np.arange(1, 10) / 10
    at = {steps: kernel_difference(steps, t, s) for steps in (500, 1000, 2000, 4000)}
    assert at[1000]["forward_variance"] == pytest.approx(3.40e-3, rel=0.01)
    assert at[1000]["lambda2"] == pytest.approx(5.69e-3, rel=0.01)
    assert at[1000]["eps_scale"] == pytest.approx(9.55e-3, rel=0.01)
    assert at[1000]["gain"] == pytest.approx(2.07e-2, rel=0.01)
    for coarse, fine in ((500, 1000), (1000, 2000), (2000, 4000)):
        for key, value in at[fine].items():
            assert np.log2(at[coarse][key] / value) == pytest.approx(1.0, abs=0.02)


def test_neighbouring_steps_agree_to_first_order() -> None:
    """The single steps n -> n-1 with n >= N/10: 1.1 % in variance, 2.3 % in gain at N = 1000, slope -1."""
    at = {n: kernel_difference(n, np.arange(n // 10, n + 1) / n, np.arange(n // 10 - 1, n) / n) for n in (1000, 2000)}
    assert at[1000]["forward_variance"] == pytest.approx(1.05e-2, rel=0.01)
    assert at[1000]["gain"] == pytest.approx(2.30e-2, rel=0.01)
    for key, value in at[2000].items():
        assert np.log2(at[1000][key] / value) == pytest.approx(1.0, abs=0.03)


def test_integrated_betas_are_vp_exactly() -> None:
    n = np.arange(2, 1001) / 1000
    assert max(kernel_difference(1000, n, n - 1e-3, vp_integral_betas).values()) < 1e-12


@pytest.mark.parametrize("beta_max", [1.4, 1400.0])
def test_wide_ranges_are_accepted(beta_max: float) -> None:
    assert float(VP(beta_max=beta_max).log_snr(1.0)) == pytest.approx(-np.log(np.expm1(0.05 + beta_max / 2)), rel=1e-12)


# --- bad input ---


@pytest.mark.parametrize("method", ["alpha", "sigma", "log_snr", "drift", "diffusion"])
@pytest.mark.parametrize("t", [-1e-9, 1.0000001, [0.5, 2.0], float("nan")])
def test_times_outside_are_refused(sde: SDE, method: str, t) -> None:
    with pytest.raises(UserError, match=r"time \S+ lies outside \[0, 1\]"):
        getattr(sde, method)(t)


@pytest.mark.parametrize(("t", "s"), [(1.1, 0.5), (0.5, -0.1)])
def test_steps_outside_are_refused(sde: SDE, t: float, s: float) -> None:
    with pytest.raises(UserError, match=r"time \S+ lies outside \[0, 1\]"):
        reverse_kernel(sde, t, s)


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: VP(steps=0), r"`steps` = 0 must be at least 1"),
        (lambda: VE(t_min=0.0), r"`t_min` = 0\.0 must lie in \(0, 1\)"),
        (lambda: SubVP(t_min=1.0), r"`t_min` = 1\.0 must lie"),
        (lambda: VP(grid="uniforn"), r"`grid` = 'uniforn' is unknown \(did you mean 'uniform'\?\)"),
        (lambda: VP(beta_min=0.0), r"`beta_min` = 0\.0 and `beta_max` = 20\.0 must satisfy"),
        (lambda: SubVP(beta_max=0.01), r"`beta_max` = 0\.01 must satisfy 0 < min <= max"),
        (lambda: VE(sigma_min=50.0), r"`sigma_min` = 50\.0 and `sigma_max` = 50\.0 must satisfy 0 < min < max"),
        (lambda: VE(sigma_max=np.inf), r"`sigma_max` = inf must satisfy 0 < min < max, and be finite"),
        (lambda: VP(beta_max=np.inf), r"`beta_max` = inf must satisfy 0 < min <= max, and be finite"),
        (
            lambda: VP(beta_max=1500.0),
            r"log-SNR is -708\.\d+ at t = 0\.97.*`beta_max` = 1500 is too small",
        ),
        (lambda: VP(beta_max=1e6), r"log-SNR is -inf at t = 0\.038.*one of .*`beta_max` = 1e\+06 is too small or too"),
        (lambda: SubVP(t_min=1e-16), r"log-SNR is 78\.2879 at t = 1e-16.*one of `t_min` = 1e-16, "),
        (lambda: VE(sigma_min=1e-20), r"log-SNR is 92\.1024 at t = 1e-05.*`sigma_min` = 1e-20, "),
        (
            lambda: VP(t_min=1 - 2**-53),
            r"reference times must rise, .*one of `t_min` = 0\.9999999999999999, ",
        ),
        (lambda: VP(t_min=0.9), r"alpha_1 = 0\.017, sigma_1 = 0\.9999 at its first time .*; lower `t_min` = 0\.9"),
        (
            lambda: VP(beta_max=0.2, steps=5),
            r"alpha_N = 0\.9277, sigma_N = 0\.3732 at .*; raise `beta_max` = 0\.2",
        ),
        (
            lambda: RectifiedFlow(t_min=1e-20),
            r"log-SNR is 92\.1034 at t = 1e-20.*`t_min` = 1e-20, `steps` = 1000 is",
        ),
        (
            lambda: RectifiedFlow(t_min=0.6),
            r"alpha_1 = 0\.4, sigma_1 = 0\.6 at .*; lower `t_min` = 0\.6",
        ),
        (lambda: VE(sigma_max=0.5), r"alpha_N = 1, sigma_N = 0\.5 at its last; raise `sigma_max` = 0\.5"),
        (lambda: reverse_kernel(VP(), 0.5, 0.1, 1.1), r"`eta` = 1\.1 must lie in \[0, 1\]"),
        (lambda: reverse_kernel(VE(), 0.5, 0.5), r"an earlier s < t, got t = 0\.5 and s = 0\.5"),
    ],
)
def test_bad_requests_are_refused_in_words(build, told: str) -> None:
    with pytest.raises(UserError, match=told):
        build()
