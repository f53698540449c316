"""Forward processes against the published schedules, exact arithmetic, and their own laws."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adpm.errors import UserError
from adpm.kernel import reverse_kernel
from adpm.process import (
    PROCESSES,
    DiscreteProcess,
    Process,
    cosine_betas,
    linear_betas,
    read_betas,
    vp_integral_betas,
)
from tests.goldens import RTOL, Golden, process, rel

SCHEDULES = ("linear_1000", "cosine_1000", "linear_100", "vpsde_1000")
BUILT_IN = sorted(PROCESSES.keys() - {"custom"})


def test_every_stored_schedule_is_tested(schedules: Golden) -> None:
    assert tuple(schedules["names"]) == SCHEDULES


@pytest.mark.parametrize("name", SCHEDULES)
def test_published_tables(schedules: Golden, name: str) -> None:
    p = process(name)
    assert isinstance(p, DiscreteProcess)
    assert rel(p.betas, schedules[f"{name}__betas"][1:]) < RTOL
    assert rel(p.alpha(p.times) ** 2, schedules[f"{name}__cum_alphas"]) < RTOL
    assert rel(p.sigma(p.times) ** 2, schedules[f"{name}__cum_betas"]) < RTOL


@pytest.mark.parametrize("name", SCHEDULES)
def test_published_transitions(schedules: Golden, name: str) -> None:
    pairs = schedules[f"{name}__pairs"]
    forward = pairs[:, 0] < pairs[:, 1]
    assert forward.sum() == 13 and len(pairs) == 15  # the other two have s >= t: no step
    s, t = pairs[forward].T
    kernel = reverse_kernel(process(name), t, s)
    assert rel(kernel.forward_variance, schedules[f"{name}__skip_betas"][forward]) < RTOL
    assert rel((kernel.alpha_t / kernel.alpha_s) ** 2, schedules[f"{name}__skip_alphas"][forward]) < RTOL
    assert rel(kernel.lambda2, schedules[f"{name}__tilde_beta"][forward]) < RTOL


@pytest.mark.parametrize("steps", [1000, 4000])
@pytest.mark.parametrize("betas", [linear_betas, cosine_betas, vp_integral_betas])
def test_first_sigmas_are_exact(betas, steps: int) -> None:
    """sigma_n^2 = 1 - prod(1 - beta), in rational arithmetic; 1 - cumprod in float64 would lose up to 1e-12 of it."""
    values = betas(steps)
    p = DiscreteProcess(values)
    kept = Fraction(1)
    for n in range(1, 13):
        kept *= 1 - Fraction(values[n - 1])
        sigma2 = 1 - kept
        assert abs(Fraction(float(p.sigma(n))) ** 2 / sigma2 - 1) < 1e-15
        assert abs(Fraction(float(p.alpha(n))) ** 2 / kept - 1) < 1e-15


@pytest.mark.parametrize("steps", [1000, 4000])
def test_vp_integral_betas_are_exact(steps: int) -> None:
    """beta_n = 1 - exp(-integral): at N = 4000 the first integral is 2.6e-5, where 1 - exp would keep 11 digits."""
    betas = vp_integral_betas(steps)
    with mpmath.workdps(40):
        for n in (1, 2, 3, steps // 2, steps):
            u0, u1 = mpmath.mpf(n - 1) / steps, mpmath.mpf(n) / steps
            integral = mpmath.mpf("0.1") * (u1 - u0) + mpmath.mpf("19.9") / 2 * (u1**2 - u0**2)
            exact = -mpmath.expm1(-integral)
            assert abs(betas[n - 1] / exact - 1) < 1e-11  # the float64 grid differences leave 4e-13


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("steps", [21, 100, 1000, 4000])
def test_laws_of_a_variance_preserving_process(name: str, steps: int) -> None:
    p = PROCESSES[name].build(steps)
    assert p.steps == steps and p.prior_std == 1.0
    assert p.alpha(0) == 1.0 and p.sigma(0) == 0.0 and p.log_snr(0) == np.inf
    log_snr = p.log_snr(p.times)
    assert (np.diff(log_snr[1:]) < 0).all() and (np.diff(p.sigma(p.times)) >= 0).all()
    alpha, sigma = p.alpha(p.times[1:]), p.sigma(p.times[1:])
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=4e-16)
    np.testing.assert_allclose(2 * np.log(alpha / sigma), log_snr[1:], rtol=1e-13, atol=1e-13)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(1e-6, 0.999), min_size=1, max_size=60))
def test_any_betas_make_a_process(betas: list[float]) -> None:
    """alpha_n^2 = prod (1 - beta), and noising by one more step multiplies it by 1 - beta_n."""
    p = DiscreteProcess(betas)
    alpha2 = p.alpha(p.times) ** 2
    np.testing.assert_allclose(alpha2[1:] / alpha2[:-1], 1 - np.array(betas), rtol=1e-12)
    sigma2 = p.sigma(p.times) ** 2
    np.testing.assert_allclose(sigma2[1:], (1 - np.array(betas)) * sigma2[:-1] + betas, rtol=1e-12)
    assert (np.diff(p.log_snr(p.times)[1:]) < 0).all()


@pytest.mark.parametrize("suffix", [".npy", ".txt"])
def test_custom_betas_from_a_file(tmp_path: Path, suffix: str) -> None:
    betas = linear_betas(50)
    path = tmp_path / f"betas{suffix}"
    np.save(path, betas) if suffix == ".npy" else np.savetxt(path, betas, fmt="%.17g")
    for steps in (0, 50):
        p = PROCESSES["custom"].build(steps, str(path))
        np.testing.assert_array_equal(p.sigma(p.times), PROCESSES["linear"].build(50).sigma(p.times))
    with pytest.raises(UserError, match=r"`steps` = 40.*holds 50 betas; set it to 0 or 50"):
        PROCESSES["custom"].build(40, str(path))


@pytest.mark.parametrize(
    ("content", "suffix"), [(b"0.1\nmany\n", ".txt"), (b"not numpy at all", ".npy"), (b"", ".npy"), (b"", ".txt")]
)
def test_unreadable_betas_are_refused_by_name(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"`betas_file` '.*bad\{suffix}'"):
        read_betas(str(path))


def test_missing_betas_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`betas_file` '.*nowhere\.npy' does not exist"):
        PROCESSES["custom"].build(0, str(tmp_path / "nowhere.npy"))


@pytest.mark.parametrize(
    ("betas", "told"),
    [
        ([], "be a list of N >= 1 numbers, got shape"),
        ([[0.1, 0.2]], r"be a list of N >= 1 numbers, got shape \(1, 2\)"),
        ([0.1, 0.0, 0.2], r"lie in \(0, 1\), but beta_2 of 3 is 0"),
        ([0.1, 1.0], r"lie in .* beta_2 of 2 is 1"),
        ([-0.25], r"lie in .* beta_1 of 1 is -0\.25"),
        ([0.1, 0.2, float("nan")], r"lie in .* beta_3 of 3 is nan"),
    ],
)
def test_bad_betas_are_refused_in_words(betas: list, told: str) -> None:
    with pytest.raises(UserError, match=r"the betas of a process must " + told):
        DiscreteProcess(betas)


def test_bad_requests_are_refused_in_words() -> None:
    for name in BUILT_IN:
        with pytest.raises(UserError, match=r"`steps` = 0 must be at least 1"):
            PROCESSES[name].build(0)
    with pytest.raises(UserError, match=r"beta_20 of 20 is 1"):  # 20/N: the linear schedule needs N > 20
        PROCESSES["linear"].build(20)
    with pytest.raises(UserError, match=r"custom process needs `betas_file`"):
        PROCESSES["custom"].build(100)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize("t", [0.5, -1, 101, [3, 100.25], float("nan")])
def test_times_off_the_grid_are_refused(t: float | list[float]) -> None:
    with pytest.raises(UserError, match=r"not one of the integers 0\.\.100"):
        process("linear_100").log_snr(t)


@pytest.mark.parametrize("name", ["linear_1000", "cosine_1000", "linear_100"])
def test_nearest_index(name: str) -> None:
    """Against brute force: for the grid itself, between and beyond."""
    p = process(name)
    grid = p.log_snr(p.times[1:])
    np.testing.assert_array_equal(p.nearest_index(grid), np.arange(1, p.steps + 1))
    wanted = np.concatenate([np.random.default_rng(0).uniform(grid[-1] - 3, grid[0] + 3, 500), [np.inf, -np.inf]])
    gap = np.abs(grid[None] - wanted[:-2, None])
    found = p.nearest_index(wanted)
    np.testing.assert_allclose(gap[np.arange(500), found[:-2] - 1], gap.min(1), rtol=1e-12)
    assert found[-2] == 1 and found[-1] == p.steps


@pytest.mark.parametrize("wanted", [-50.0, 0.0, 50.0, np.inf])
def test_nearest_index_of_a_single_step(wanted: float) -> None:
    p: Process = DiscreteProcess([0.5])
    assert p.nearest_index(wanted) == 1


# --- what is no process ---

BETAS = linear_betas(1000)


@pytest.mark.parametrize(
    ("betas", "told"),
    [
        (
            [0.5, 1e-20, 0.5],
            r"must fall strictly, but is 0 at t = 1 and 0 at t = 2; beta_2 = 1e-20 is too small",
        ),
        ([1e-20, 0.5], r"log-SNR is 46\.0517 at t = 1, .*\(-708 to 33\); beta_1 = 1e-20 is too small or too large"),
        ([0.5] + [0.999] * 200, r"log-SNR is -712\.\d* at t = 104, .*; beta_104 = 0\.999 is too small or too large"),
        (
            np.cumprod(1 - BETAS),
            r"sigma_1 = 0\.9999 at .*look like cumulative products .*1 - a_n / a_\(n-1\)",
        ),
        (np.cumprod(1 - BETAS) ** 0.5, r"alpha_1 = 0\.007071, .*look like cumulative products"),
        (1 - BETAS, r"alpha_1 = 0\.01, .* these betas look like alphas: give 1 - alpha_n"),
        ([0.9] + [0.02] * 999, r"sigma_1 = 0\.9487 .*a beta is the variance that a step adds"),
        (BETAS / 100, r"alpha_N = 0\.951, sigma_N = 0\.3092 at its last; the betas sum to 0\.1005, where 10 is usual"),
    ],
)
def test_betas_that_make_no_process_are_told_what_they_may_be(betas: list[float], told: str) -> None:
    with pytest.raises(UserError, match=told):
        DiscreteProcess(betas)


@pytest.mark.parametrize("build", [linear_betas, cosine_betas, vp_integral_betas])
def test_what_was_meant_is_accepted(build) -> None:
    """The advice, followed: betas from cumulative products, and from alphas."""
    betas = build(200)
    kept = np.cumprod(1 - betas)
    for again in (1 - kept / np.concatenate([[1.0], kept[:-1]]), 1 - (1 - betas)):
        np.testing.assert_allclose(DiscreteProcess(again).log_snr(200), DiscreteProcess(betas).log_snr(200), rtol=1e-10)


@pytest.mark.parametrize("steps", range(1, 12))
def test_toys_may_be_coarse(steps: int) -> None:
    """One step of vp_integral adds all the noise there is, and four steps of 0.1 leave most of the signal."""
    for betas in (vp_integral_betas(steps), np.full(steps, 0.1), np.full(steps, 0.999)):
        assert DiscreteProcess(betas).steps == steps


@pytest.mark.parametrize("rates", [(0.0, 20.0), (1.0, 0.5), (0.1, float("inf")), (float("nan"), 1.0)])
def test_rates_out_of_range_are_refused(rates: tuple[float, float]) -> None:
    told = rf"`beta_min` = {rates[0]} and `beta_max` = {rates[1]} must satisfy 0 < min <= max, and be finite"
    with pytest.raises(UserError, match=told):
        vp_integral_betas(100, *rates)


@pytest.mark.parametrize("name", ["linear_100", "cosine_1000"])
def test_training_times_are_uniform_over_all_steps_and_never_the_data(name: str) -> None:
    """Four numbers in the middle of each of N cells: every time but 0 comes four times, the last one too."""
    p = process(name)
    u = (np.arange(4 * p.steps) + 0.5) / (4 * p.steps)
    np.testing.assert_array_equal(p.uniform_times(u), np.repeat(p.times[1:], 4))
    assert p.uniform_times(0.0) == 1.0 and p.uniform_times(np.nextafter(1.0, 0.0)) == p.steps


@pytest.mark.parametrize("name", ["linear_100", "cosine_1000"])
def test_training_times_even_in_log_snr_go_from_the_first_to_the_last(name: str) -> None:
    """Each is the reference time nearest to its own place on the way down, the ends included."""
    p = process(name)
    grid, u = p.log_snr(p.times[1:]), np.linspace(0.0, 1.0, 41)
    wanted = grid[0] + (grid[-1] - grid[0]) * u
    nearest = np.abs(grid[None] - wanted[:, None]).argmin(1) + 1
    found = p.log_snr_times(u)
    np.testing.assert_array_equal(found, nearest)
    assert found[0] == 1.0 and found[-1] == p.steps
