"""Moments in exact worlds: sums, regression, the three estimators, their intervals, interpolation, files, refusals."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor

from adpm import ideal
from adpm.denoiser import Denoiser, Prediction
from adpm.draws import COLUMNS, CONTROLS, GAMMA, POWER, RESIDUAL, Draws, Estimate, Source, draw_moments, measure
from adpm.errors import UserError
from adpm.moments import ESTIMATORS, MomentTable, implausible, spread_times
from adpm.ms_eps import read_ms_eps, table_of_gamma, write_ms_eps
from adpm.noise import KeyedNoise
from adpm.parametrisation import PREDICTIONS, eps_from_x0
from adpm.prices import project_variance
from adpm.process import PROCESSES, Array, Process
from adpm.run.data import digits

WIDTH = len(COLUMNS)
LINEAR = PROCESSES["linear"].build(1000)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Products of 64 x 64 matrices lose more to threads than they win."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- worlds -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """The class-wise Gaussian mixture of the digits, its exact denoiser and N = 1000 linear steps."""

    mixture: ideal.Mixture
    denoise: ideal.IdealDenoiser

    def source(self, size: int, seed: int) -> Source:
        """`size` draws of the mixture, with the mixture's own mean and variance."""
        pool = self.mixture.sample(size, seed)
        mean = self.mixture.mean().reshape(self.mixture.shape)
        return Source(size, lambda index: pool[index], mean, self.mixture.variance())

    def rows(self, t: float, x0: Tensor, eps: Tensor) -> tuple[Array, Array]:
        """The statistics of each draw and, beside them, tr Cov[x_0 | x_t] / d of its state."""
        alpha, sigma = float(LINEAR.alpha(t)), float(LINEAR.sigma(t))
        mean = self.mixture.mean().reshape(self.mixture.shape)
        out, inner = [], []
        for x, e in zip(x0.split(250), eps.split(250), strict=True):
            state = alpha * x + sigma * e
            x0_hat, variance = self.mixture.posterior(state, alpha, sigma)
            out.append(
                draw_moments(x, e, x0_hat, eps_from_x0(state, x0_hat, alpha, sigma), mean, self.mixture.variance())
            )
            inner.append(variance.flatten(1).mean(1).numpy())
        return np.concatenate(out), np.concatenate(inner)


@pytest.fixture(scope="module")
def world() -> World:
    data = digits()
    images = torch.cat([data.scaled(data.splits[name]) for name in ("train", "test")])
    mixture = ideal.classwise(images, torch.cat([data.labels[name] for name in ("train", "test")]))
    return World(mixture, ideal.IdealDenoiser(mixture, LINEAR))


@pytest.fixture(scope="module")
def times() -> Array:
    log_snr = (9.2, 7.0, 5.2, 3.5, 2.2, 1.0, -0.4, -1.5, -2.5, -5.0, -8.2)
    return LINEAR.times[LINEAR.nearest_index(log_snr)]


@pytest.fixture(scope="module")
def truth(world, times) -> Estimate:
    """Var[x_0 | x_t] per dimension from 20,000 draws of its own, to a few parts in 10^5 or better.

    tr Cov[x_0 | x_t] / d of a state is known exactly; its mean is regressed on everything whose mean is exactly zero
    for an exact denoiser: the controls, and the differences between the estimators and it.
    """
    n, values, errors = 20_000, [], []
    x0 = world.mixture.sample(n, 12345)
    for t in times:
        noise_to_signal = np.exp(-LINEAR.log_snr(t))
        eps = KeyedNoise(12345, "truth")(torch.arange(n), int(t), world.mixture.shape).double()
        z, inner = world.rows(t, x0, eps)
        estimators = [z[:, RESIDUAL], noise_to_signal * (1 - z[:, GAMMA]), world.mixture.variance() - z[:, POWER]]
        controls = np.stack([e - inner for e in estimators], 1)
        controls = np.concatenate([controls, z[:, CONTROLS]], 1)
        value, error = least_squares_intercept(inner, controls)
        values.append(value)
        errors.append(error)
    return Estimate(np.array(values), np.array(errors), np.full(len(times), float(n)))


def least_squares_intercept(y: Array, controls: Array) -> tuple[float, float]:
    """Intercept and its standard error by a QR factorisation of the design matrix [1, controls]."""
    scale = controls.std(0)
    design = np.concatenate([np.ones((len(y), 1)), controls / scale], 1)
    q, r = np.linalg.qr(design)
    coefficients = np.linalg.solve(r, q.T @ y)
    left = y - design @ coefficients
    inverse = np.linalg.inv(r)
    return coefficients[0], np.sqrt(left @ left / (len(y) - design.shape[1]) * (inverse[0] @ inverse[0]))


def exact_table(process: Process, times: Array, variance: Array, data_variance: float) -> MomentTable:
    """A table without Monte-Carlo error: every column has the mean that belongs to Var_t."""
    snr = np.exp(process.log_snr(times))
    means = np.zeros((len(times), WIDTH))
    means[:, RESIDUAL], means[:, GAMMA], means[:, POWER] = variance, 1 - snr * variance, data_variance - variance
    draws = tuple(Draws(10**6, mean, np.eye(WIDTH)) for mean in means)
    return MomentTable(times, draws, data_variance, {})


def gaussian_curve(spectrum: Array, process: Process, times: Array) -> Array:
    return (spectrum / (1 + np.exp(process.log_snr(times))[:, None] * spectrum)).mean(1)


def two_bumps_curve(process: Process, times: Array) -> Array:
    """Var[x_0 | x_t] of 0.3 N(-0.8, 0.02) + 0.7 N(0.6, 0.05), integrated over x_t by the trapezoidal rule."""
    weights, means, variances = np.array((0.3, 0.7)), np.array((-0.8, 0.6)), np.array((0.02, 0.05))
    out = []
    for alpha, sigma in zip(process.alpha(times), process.sigma(times), strict=True):
        x = np.linspace(-3 * alpha - 9 * sigma, 3 * alpha + 9 * sigma, 3001)
        spread = alpha**2 * variances + sigma**2
        joint = weights * np.exp(-0.5 * (x[:, None] - alpha * means) ** 2 / spread) / np.sqrt(2 * np.pi * spread)
        density = joint.sum(1)
        share = joint / np.maximum(density, 1e-300)[:, None]
        mean_k = means + alpha * variances / spread * (x[:, None] - alpha * means)
        mean = (share * mean_k).sum(1, keepdims=True)
        variance = (share * (variances * sigma**2 / spread + (mean_k - mean) ** 2)).sum(1)
        out.append(np.trapezoid(density * variance, x))
    return np.array(out)


TWO_BUMPS_VARIANCE = 0.3 * (0.02 + 0.8**2) + 0.7 * (0.05 + 0.6**2) - (0.7 * 0.6 - 0.3 * 0.8) ** 2


def correlated_rows(n: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, WIDTH)) @ rng.normal(size=(WIDTH, WIDTH)) + rng.normal(size=WIDTH)


def random_table(count: int = 6, n: int = 40) -> MomentTable:
    draws = tuple(Draws.of(correlated_rows(n, seed)) for seed in range(count))
    return MomentTable(np.arange(1.0, count + 1), draws, 0.3, {"weights": "abc", "clip": (-1.0, 1.0), "seed": 0})


# -- sums and regression ----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=3, max_size=6), st.integers(0, 10**6), st.floats(-1e3, 1e3))
def test_merging_sums_in_any_grouping_equals_numpy(sizes, seed, shift):
    z = correlated_rows(sum(sizes), seed) + shift
    parts = [Draws.of(p) for p in np.split(z, np.cumsum(sizes)[:-1])]
    left = right = parts[0]
    for part in parts[1:]:
        left = left.merge(part)
    right = parts[-1]
    for part in parts[-2::-1]:
        right = part.merge(right)
    swapped = parts[1].merge(parts[0])
    for part in parts[2:]:
        swapped = part.merge(swapped)
    for total in (left, right, swapped):
        assert total.n == len(z)
        np.testing.assert_allclose(total.mean, z.mean(0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(total.scatter, np.cov(z.T, bias=True) * len(z), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [6, 20, 200])
def test_controlled_residual_is_least_squares(n):
    rows = [correlated_rows(n, seed) for seed in range(5)]
    table = MomentTable(np.arange(1.0, 6.0), tuple(Draws.of(z) for z in rows), 1.0, {})
    estimate = table.controlled_residual()
    expected = np.array([least_squares_intercept(z[:, RESIDUAL], z[:, CONTROLS]) for z in rows])
    np.testing.assert_allclose(estimate.values, expected[:, 0], rtol=1e-9)
    np.testing.assert_allclose(estimate.errors, expected[:, 1], rtol=1e-9)
    assert (estimate.freedom == n - 1 - rows[0][:, CONTROLS].shape[1]).all()


def test_a_control_that_never_moves_is_left_out():
    """A data set of one image has eps.(x_0 - m) = 0 always: the regression is then on the others."""
    z = correlated_rows(60, 1)
    z[:, CONTROLS.stop - 1] = 0.0
    estimate = MomentTable(np.ones(1), (Draws.of(z),), 1.0, {}).controlled_residual()
    expected, _ = least_squares_intercept(z[:, RESIDUAL], z[:, CONTROLS.start : CONTROLS.stop - 1])
    assert estimate.values[0] == pytest.approx(expected, rel=1e-9)


def test_plain_columns_have_the_standard_error_of_a_mean():
    z = correlated_rows(30, 4)
    table = MomentTable(np.ones(1), (Draws.of(z),), 1.0, {})
    for index in (RESIDUAL, GAMMA, POWER):
        column = table.column(index)
        assert column.values[0] == pytest.approx(z[:, index].mean(), rel=1e-12)
        assert column.errors[0] == pytest.approx(z[:, index].std(ddof=1) / np.sqrt(30), rel=1e-12)


# -- measuring --------------------------------------------------------------------------------------------------------


def test_measuring_does_not_depend_on_the_batch_size_or_on_other_times(world):
    source = world.source(90, 3)  # fewer images than draws: the permutation starts again
    whole = dict(measure(world.denoise, LINEAR, source, (1.0, 300.0, 900.0), 150, 5, 150))
    for size in (1, 7, 64):
        for t, sums in measure(world.denoise, LINEAR, source, (300.0,), 150, 5, size):
            assert sums.n == whole[t].n == 150
            np.testing.assert_allclose(sums.mean, whole[t].mean, rtol=1e-10, atol=1e-13)
            np.testing.assert_allclose(sums.scatter, whole[t].scatter, rtol=1e-9, atol=1e-12)
    ((_, other),) = measure(world.denoise, LINEAR, source, (300.0,), 150, 6, 150)
    assert abs(other.mean[RESIDUAL] / whole[300.0].mean[RESIDUAL] - 1) > 1e-4


def test_every_image_is_drawn_equally_often():
    """The residual of a denoiser that always says zero is ||x_0||^2 / d: its mean over whole rounds is exact."""
    images = torch.randn(40, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    source = Source(40, lambda index: images[index], images.mean(0), 1.0)
    silent = lambda x, t: Prediction(torch.zeros_like(x), x, x)  # noqa: E731
    for draws in (40, 120):
        ((_, sums),) = measure(silent, LINEAR, source, (500.0,), draws, 1, 16)
        assert sums.mean[RESIDUAL] == pytest.approx(images.square().mean().item(), rel=1e-12)
    ((_, some),) = measure(silent, LINEAR, source, (500.0,), 20, 1, 16)
    assert some.mean[RESIDUAL] != pytest.approx(images.square().mean().item(), rel=1e-6)


def test_controls_have_mean_zero_for_a_network_that_is_wrong(world):
    source = world.source(4000, 8)
    wrong = lambda x, t: Prediction(0.7 * x.roll(1, -1), x.sin(), x.sin())  # noqa: E731
    for _, sums in measure(wrong, LINEAR, source, (50.0, 600.0), 4000, 2, 1000):
        mean, error = sums.mean[CONTROLS], np.sqrt(np.diag(sums.scatter)[CONTROLS]) / sums.n
        assert (abs(mean) < 4 * error).all()


def test_the_three_estimators_agree_with_the_truth(world, times, truth):
    source = world.source(4000, 21)
    rows = list(measure(world.denoise, LINEAR, source, times, 400, 9, 400))
    table = MomentTable(np.array([t for t, _ in rows]), tuple(d for _, d in rows), source.variance, {})
    for name in ESTIMATORS:
        estimate = table.posterior_variance(name, LINEAR)
        assert (abs(estimate.values - truth.values) < 4 * np.hypot(estimate.errors, truth.errors)).all(), name
    assert (table.controlled_residual().errors < 0.025 * truth.values).all()
    assert (table.controlled_residual().errors < table.column(RESIDUAL).errors * 1.01).all()


def test_the_truth_is_true(world, truth, times):
    """Its own error is far below an interval's, it rises with time, and stays below the best linear denoiser's error,
    which is Var[x_0 | x_t] of the Gaussian with the same covariance."""
    assert (truth.errors < 1.5e-3 * truth.values).all()
    mixture = world.mixture
    between = mixture.means - mixture.mean()
    covariance = torch.einsum("k,kij,kj,klj->il", mixture.weights, mixture.basis, mixture.spectrum, mixture.basis)
    covariance += torch.einsum("k,ki,kj->ij", mixture.weights, between, between)
    linear = gaussian_curve(torch.linalg.eigvalsh(covariance).numpy(), LINEAR, times)
    assert (np.diff(truth.values) > 0).all()
    assert (truth.values < linear + 4 * truth.errors).all() and truth.values[5] < 0.9 * linear[5]


@pytest.mark.parametrize("name", ["residual", "plain residual", "gamma", "data"])
def test_intervals_cover_the_truth(world, times, truth, name, coverage):
    """95 % intervals at 50 draws: 92..97 % over all times, and per time what 93..97 % can show in 200 repeats."""
    covered = coverage[name]
    assert covered.shape == (200, len(times))
    assert 0.92 <= covered.mean() <= 0.97
    per_time = covered.sum(0)
    assert per_time.min() >= binom.ppf(5e-4, 200, 0.93)
    assert per_time.max() <= binom.ppf(1 - 5e-4, 200, 0.97)


@pytest.fixture(scope="module")
def coverage(world, times, truth) -> dict[str, Array]:
    """Whether each of 200 repeats' intervals holds the truth, per estimator, [200, T]; fresh images for each time."""
    repeats, n = 200, 50
    columns = []
    for k, t in enumerate(times):
        x0 = world.mixture.sample(repeats * n, 1000 + k)
        eps = KeyedNoise(77, "coverage")(torch.arange(repeats * n), int(t), world.mixture.shape).double()
        columns.append(world.rows(t, x0, eps)[0].reshape(repeats, n, WIDTH))
    inside: dict[str, list[Array]] = {"residual": [], "plain residual": [], "gamma": [], "data": []}
    for r in range(repeats):
        table = MomentTable(times, tuple(Draws.of(z[r]) for z in columns), world.mixture.variance(), {})
        estimates = {name: table.posterior_variance(name, LINEAR) for name in ESTIMATORS}
        estimates["plain residual"] = table.column(RESIDUAL)
        for name, estimate in estimates.items():
            inside[name].append(abs(estimate.values - truth.values) <= estimate.interval(0.95))
    return {name: np.array(rows) for name, rows in inside.items()}


def test_a_wider_level_gives_a_wider_interval_by_students_t():
    estimate = Estimate(np.zeros(1), np.ones(1), np.array([47.0]))
    assert estimate.interval(0.95)[0] == pytest.approx(2.0117405, rel=1e-6)
    assert estimate.interval(0.99)[0] == pytest.approx(2.6845556, rel=1e-6)


# -- excess precision -------------------------------------------------------------------------------------------------


def test_excess_precision_cannot_fall_as_the_snr_rises(truth, times):
    """kappa = 1/Var - SNR: constant 1/v for a Gaussian, rising for mixtures (Blachman-Stam)."""
    grid = LINEAR.times[1::20]
    snr = np.exp(LINEAR.log_snr(grid))
    np.testing.assert_allclose(1 / gaussian_curve(np.array([0.3]), LINEAR, grid) - snr, 1 / 0.3, rtol=1e-8)
    kappa = 1 / two_bumps_curve(LINEAR, grid) - snr
    assert (np.diff(kappa) < 1e-9 * kappa[:-1]).all() and kappa[0] > 10 * kappa[-1]
    kappa = 1 / truth.values - np.exp(LINEAR.log_snr(times))
    error = truth.errors / truth.values**2
    assert (np.diff(kappa) < -5 * np.hypot(error[1:], error[:-1])).all()  # times rise, the SNR falls


# -- interpolation ----------------------------------------------------------------------------------------------------

SPECTRUM = np.geomspace(1e-3, 2.0, 64)  # as wide as the digits'
CURVES: dict[str, tuple[Callable[[Process, Array], Array], float]] = {
    "gaussian": (lambda process, times: gaussian_curve(SPECTRUM, process, times), SPECTRUM.mean()),
    "two bumps": (two_bumps_curve, TWO_BUMPS_VARIANCE),
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    ("curve", "nodes", "worst"),
    [("gaussian", 30, 7e-4), ("gaussian", 100, 8e-5), ("two bumps", 30, 8e-3), ("two bumps", 100, 2e-4)],
)
def test_interpolation_error_over_all_thousand_times(curve, nodes, worst, estimator):
    function, data_variance = CURVES[curve]
    full = function(LINEAR, LINEAR.times[1:])
    at = spread_times(LINEAR, nodes)
    table = exact_table(LINEAR, at, full[at.astype(int) - 1], data_variance)
    error = abs(table.variance(estimator, LINEAR)(LINEAR.times[1:]) / full - 1)
    assert error.max() < worst
    assert error[at.astype(int) - 1].max() < 1e-9
    assert abs(table.interpolation_error(estimator, LINEAR)).max() > error.max()  # leaving one out overstates


@pytest.mark.parametrize("estimator", ["gamma", "data"])
def test_a_negative_estimate_spoils_its_own_neighbourhood_only(estimator):
    function, data_variance = CURVES["gaussian"]
    full = function(LINEAR, LINEAR.times[1:])
    at = spread_times(LINEAR, 30)
    values = full[at.astype(int) - 1]
    values[-1] *= -0.5
    got = exact_table(LINEAR, at, values, data_variance).variance(estimator, LINEAR)(LINEAR.times[1:])
    undisturbed = LINEAR.times[1:] <= at[-3]
    assert abs(got / full - 1)[undisturbed].max() < 4e-3
    assert got[-1] == pytest.approx(values[-1], rel=1e-6)


def test_standard_error_passes_through_the_measured_ones():
    table = random_table(6)
    process = PROCESSES["cosine"].build(6)
    for name in ESTIMATORS:
        errors = table.posterior_variance(name, process).errors
        np.testing.assert_allclose(table.standard_error(name, process)(table.times), errors, rtol=1e-9)


@pytest.mark.parametrize("name", [name for name in PROCESSES if name != "custom"])
def test_spread_times_are_even_in_log_snr(name):
    process = PROCESSES[name].build(1000)
    assert (spread_times(process, 0) == process.times[1:]).all()
    at = spread_times(process, 30)
    assert set(at[:2]) == {1.0, 2.0} and at[-1] == 1000.0
    grid = -process.log_snr(process.times[1:])
    even = (grid[-1] - grid[0]) / 29
    node = -process.log_snr(at)
    coarse = np.diff(grid)[at[:-1].astype(int) - 1] + np.diff(grid)[at[1:].astype(int) - 2]
    assert (np.diff(node) <= even + coarse).all()


# -- files and refusals -----------------------------------------------------------------------------------------------


def test_a_saved_table_comes_back_as_it_was(tmp_path):
    table = random_table()
    path = tmp_path / "moments.any"
    table.save(path)
    back = MomentTable.load(path)
    assert np.array_equal(back.times, table.times) and back.data_variance == table.data_variance
    for a, b in zip(back.draws, table.draws, strict=True):
        assert a.n == b.n and np.array_equal(a.mean, b.mean) and np.array_equal(a.scatter, b.scatter)
    assert dict(back.provenance) == json.loads(json.dumps(table.provenance))
    back.require(table.provenance, path)  # tuples have become lists on the way, which is no difference
    back.require({"weights": "abc"}, path)


def damaged(whole: bytes) -> dict[str, bytes]:
    def npz(**arrays: object) -> bytes:
        file = io.BytesIO()
        np.savez(file, **arrays)
        return file.getvalue()

    array = io.BytesIO()
    np.save(array, np.arange(4.0))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10
    sums = {"n": np.ones(2, int), "mean": np.zeros((2, WIDTH)), "scatter": np.zeros((2, WIDTH, WIDTH))}
    rest = {"data_variance": 1.0, "provenance": np.array("{}")}
    good = {"times": np.arange(1.0, 3), **sums, **rest}
    infinite, torn = np.zeros((2, WIDTH)), np.zeros((2, WIDTH))
    infinite[1, 2], torn[1, 2] = np.inf, np.nan
    wrong = {
        "reversed times": {"times": np.array([2.0, 1.0])},
        "a time twice": {"times": np.array([2.0, 2.0])},
        "the time of the data": {"times": np.array([0.0, 1.0])},
        "a time of NaN": {"times": np.array([1.0, np.nan])},
        "an infinite time": {"times": np.array([1.0, np.inf])},
        "no draws": {"n": np.array([5, 0])},
        "counts that are none": {"n": np.array([5.0, 1.7])},
        "an infinite mean": {"mean": infinite},
        "a mean that is missing at one time": {"mean": torn},
        "an infinite square": {"scatter": np.full((2, WIDTH, WIDTH), np.inf)},
        "a negative square": {"scatter": np.full((2, WIDTH, WIDTH), -1.0)},
        "an infinite variance": {"data_variance": np.inf},
        "a negative variance": {"data_variance": -0.3},
    }
    claim = npz(**good).replace(b"(2, 6)", b"(2, 1099511627776)", 1).replace(b" " * 13, b"", 1)
    squeezed = io.BytesIO()
    np.savez_compressed(squeezed, **{**good, "times": np.linspace(1.0, 2.0, 500)})
    deflated = bytearray(squeezed.getvalue())
    deflated[100:110] = b"\xff" * 10
    return {
        "empty": b"",
        "text": b"not an archive",
        "half": whole[: len(whole) // 2],
        "a byte short": whole[:-1],
        "a flipped bit": bytes(flipped),
        "a pickle": pickle.dumps([1, 2]),
        "an npy": array.getvalue(),
        "another npz": npz(a=np.arange(3)),
        "too few times": npz(times=np.ones(1), **sums, **rest),
        "other columns": npz(times=np.ones(2), **{**sums, "mean": np.zeros((2, 3))}, **rest),
        "provenance of another kind": npz(times=np.arange(1.0, 3), **sums, **{**rest, "provenance": np.array("[1]")}),
        **{what: npz(**{**good, **change}) for what, change in wrong.items()},
        "a claim of 2^40": claim,
        "a broken stream": bytes(deflated),
    }


@pytest.mark.parametrize("what", damaged(b"x" * 100))
def test_a_damaged_file_is_refused_in_words(tmp_path, what):
    path = tmp_path / "moments.npz"
    random_table().save(path)
    path.write_bytes(damaged(path.read_bytes())[what])
    with pytest.raises(UserError, match=r"moments\.npz' is not a moments file of this project: \S"):
        MomentTable.load(path)


def test_the_undamaged_file_is_read(tmp_path):
    """What `damaged` starts from is right, so that each of its changes is what is refused."""
    sums = {"n": np.ones(2, int), "mean": np.zeros((2, WIDTH)), "scatter": np.zeros((2, WIDTH, WIDTH))}
    path = tmp_path / "moments.npz"
    np.savez(path, times=np.arange(1.0, 3), **sums, data_variance=1.0, provenance=np.array("{}"))
    assert MomentTable.load(path).times.tolist() == [1.0, 2.0]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "moments.npz")
    with pytest.raises(UserError, match=r"moments file '.*moments\.npz' is a named pipe, not a plain file"):
        MomentTable.load(tmp_path / "moments.npz")


def test_any_flipped_bit_is_refused_or_harmless(tmp_path):
    path, table = tmp_path / "moments.npz", random_table(4)
    table.save(path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for place in rng.choice(len(whole), 150, replace=False):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            back = MomentTable.load(path)
        except UserError:
            refused += 1
            continue
        assert all(np.array_equal(a.scatter, b.scatter) for a, b in zip(back.draws, table.draws, strict=True))
        assert np.array_equal(back.times, table.times) and back.provenance["weights"] == "abc"
    assert refused > 75


def test_a_missing_file_is_refused_in_words(tmp_path):
    with pytest.raises(UserError, match="moments file '.*nowhere.npz' does not exist"):
        MomentTable.load(tmp_path / "nowhere.npz")


def test_other_provenance_is_refused_by_name():
    with pytest.raises(UserError) as told:
        random_table().require({"weights": "xyz", "clip": (-1.0, 1.0), "split": "train"}, Path("m.npz"))
    message = str(told.value)
    assert "weights: 'abc' there, 'xyz' now" in message and "split: None there, 'train' now" in message
    assert "clip" not in message and "m.npz" in message


def test_a_published_file_has_gamma_and_refuses_the_rest(tmp_path):
    variance = gaussian_curve(np.array([0.3]), LINEAR, LINEAR.times[1:])
    gamma = 1 - np.exp(LINEAR.log_snr(LINEAR.times[1:])) * variance
    table = table_of_gamma(np.concatenate([[0.0], gamma]), LINEAR, "published")
    np.testing.assert_allclose(table.variance("gamma", LINEAR)(LINEAR.times[1:]), variance, rtol=1e-9)
    for estimator in ("residual", "data"):
        with pytest.raises(UserError, match=f"no '{estimator}' statistics.*`estimator` = 'gamma'"):
            table.variance(estimator, LINEAR)
    write_ms_eps(tmp_path / "ms_eps.pth", table, LINEAR)
    again = read_ms_eps(tmp_path / "ms_eps.pth", LINEAR)
    np.testing.assert_allclose(again.column(GAMMA).values, gamma, rtol=1e-7)  # float32, as published


@pytest.mark.parametrize("outside", [2.0, 900.0])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_times_outside_the_measured_range_are_refused(estimator, outside):
    at = np.array([10.0, 50.0, 200.0, 800.0])
    variance = exact_table(LINEAR, at, gaussian_curve(np.array([0.3]), LINEAR, at), 0.3).variance(estimator, LINEAR)
    assert np.isfinite(variance(at)).all()
    with pytest.raises(UserError, match="times 10 to 800"):
        variance(np.array([100.0, outside]))


# -- what no network has, and what no data vary in --------------------------------------------------------------------


def readings(world) -> dict[str, Callable]:
    """What networks that know the truth return, by what it is."""

    def knows(field: Callable) -> Callable:
        def network(x, label):
            t = float(label[0])
            return field(world.denoise(x, t), float(LINEAR.alpha(t)), float(LINEAR.sigma(t)))

        return network

    return {
        "eps": knows(lambda prediction, alpha, sigma: prediction.eps),
        "x0": knows(lambda prediction, alpha, sigma: prediction.x0),
        "score": knows(lambda prediction, alpha, sigma: -prediction.eps / sigma),
        "v": knows(lambda prediction, alpha, sigma: alpha * prediction.eps - sigma * prediction.x0),
        "flow": knows(lambda prediction, alpha, sigma: prediction.eps - prediction.x0),
        "edm": knows(lambda prediction, alpha, sigma: sigma * prediction.x0 - alpha * prediction.eps),
    }


SILENT = {
    None: {"v": {"eps"}},
    (-1.0, 1.0): {
        "eps": {"v", "flow"},
        "score": {"eps", "x0", "v", "edm"},
        "v": {"eps", "flow"},
        "flow": {"eps", "v"},
        "edm": {"x0"},
    },
}
"""clip -> what a network is said to predict -> what it may predict instead without being worse than x_t / alpha_t."""


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
def test_a_network_that_is_read_the_wrong_way_is_told(world, predicts, clip):
    """All that is not SILENT: clipped, much of what a network says wrongly looks like little: not told."""
    at = spread_times(LINEAR, 8)
    for said in PREDICTIONS:
        if predicts in SILENT[clip].get(said, ()):
            continue
        denoise = Denoiser(readings(world)[predicts], LINEAR, predicts=said, clip=clip)
        rows = dict(measure(denoise, LINEAR, world.source(40, 0), at, 40, 0, 40))
        told = implausible(MomentTable(at, tuple(rows.values()), world.mixture.variance(), {}), LINEAR)
        assert bool(told) == (said != predicts), (predicts, said, told)
        assert not told or re.match(r"at t = \d+ the network's mean squared error of x_0 is \d.* above sigma\^2", told)


def test_where_moments_are_implausible():
    """The worst time is named; an error bar or 5 % are granted; what was not measured is not judged."""
    at = np.array([10.0, 300.0, 900.0])
    bound = np.exp(-LINEAR.log_snr(at))

    def judged(share: tuple[float, ...], error: float) -> str:
        table = exact_table(LINEAR, at, bound * share, 0.3)
        n = table.draws[0].n
        scatter = [np.diag([(error * b) ** 2 * n * n, *[1.0] * (WIDTH - 1)]) for b in bound]
        draws = tuple(replace(d, scatter=s) for d, s in zip(table.draws, scatter, strict=True))
        return implausible(replace(table, draws=draws), LINEAR)

    assert judged((1.0, 0.5, 0.1), 1e-4) == judged((1.04, 0.5, 0.1), 1e-4) == judged((1.6, 0.5, 0.1), 0.12) == ""
    assert judged((1.1, 1.2, 0.1), 1e-4).startswith("at t = 300 the")
    assert judged((1.1, 0.5, 0.1), 1e-4).startswith("at t = 10 the")
    assert implausible(table_of_gamma(np.full(1001, 0.9), LINEAR, "published"), LINEAR) == ""


@pytest.mark.parametrize("error", [0.0, 0.1])
def test_data_that_are_all_the_same_have_numbers_throughout(error):
    """One image, by a network that knows it and by one that is off by 0.1: no NaN anywhere, and planning goes on."""
    image = torch.linspace(-1.0, 1.0, 16, dtype=torch.float64).reshape(1, 4, 4)
    source = Source(5, lambda index: image.expand(len(index), 1, 4, 4), image, 0.0)
    network = lambda x, label: image.expand(x.shape) + error  # noqa: E731
    process = PROCESSES["linear"].build(30)
    rows = dict(measure(Denoiser(network, process, predicts="x0"), process, source, process.times[1:], 10, 0, 10))
    table = MomentTable(process.times[1:], tuple(rows.values()), source.variance, {})
    estimate = table.posterior_variance("residual", process)
    np.testing.assert_allclose(estimate.values, error**2, rtol=1e-12, atol=1e-20)
    np.testing.assert_allclose(estimate.relative(), 0.0, atol=1e-9)
    for name in ESTIMATORS:
        found = table.posterior_variance(name, process)
        numbers = [found.values, found.errors, found.interval(), table.variance(name, process)(table.times)]
        numbers += [table.standard_error(name, process)(table.times), table.interpolation_error(name, process)]
        assert all(np.isfinite(n).all() for n in numbers), name
    np.testing.assert_allclose(table.interpolation_error("residual", process), 0.0, atol=1e-9)
    variance = np.concatenate([[0.0], table.variance("residual", process)(table.times)])
    errors = np.concatenate([[0.0], table.standard_error("residual", process)(table.times)])
    projected = project_variance(process, variance, errors)
    np.testing.assert_allclose(projected, project_variance(process, variance), rtol=1e-6)


def test_relative_errors():
    estimate = Estimate(np.array([2.0, -4.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.0, 3.0]), np.ones(4))
    assert estimate.relative().tolist() == [0.5, 0.25, 0.0, np.inf]


def test_other_mistakes_are_refused_in_words(world):
    table = random_table()
    with pytest.raises(UserError, match="`estimator` = 'residuals' is unknown .did you mean 'residual'"):
        table.variance("residuals", PROCESSES["cosine"].build(6))
    few = replace(table, draws=tuple(Draws.of(correlated_rows(4, s)) for s in range(6)))
    with pytest.raises(UserError, match="`draws` = 4 is too few"):
        few.controlled_residual()
    with pytest.raises(UserError, match="`times` = 3 is too few"):
        spread_times(LINEAR, 3)
    broken = lambda x, t: Prediction(x * float("nan"), x, x)  # noqa: E731
    with pytest.raises(UserError, match="not finite at t = 7"):
        next(measure(broken, LINEAR, world.source(10, 0), (7.0,), 10, 0, 10))
