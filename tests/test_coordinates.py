"""Moments per coordinate in exact worlds: r_f and its error bars, smoothing, rule, costs, files, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adpm import ideal
from adpm.bases import BASES, BasisNeeds
from adpm.basis import Matrix, Pixels
from adpm.coordinate_draws import LEAST_DRAWS, Sums
from adpm.coordinates import FOLDS, Spectrum
from adpm.costs import axes_costs, kl_costs
from adpm.denoiser import Prediction
from adpm.draws import Source
from adpm.errors import UserError
from adpm.gaussian import InBasis
from adpm.kernel import reverse_kernel
from adpm.measured import Moments
from adpm.model import Model
from adpm.process import PROCESSES, Array
from adpm.shrinkage import Shrinkage, chosen, held_out, scored, shrunk, steps_ahead
from adpm.solver import reverse_mean
from adpm.variance import Spectral

PROCESS = PROCESSES["linear"].build(200)
SHAPE, DIM = (1, 3, 3), 9


def covariance(seed: int) -> Array:
    """Variances over three decades along random axes."""
    axes = np.linalg.qr(np.random.default_rng(seed).standard_normal((DIM, DIM)))[0]
    return axes * np.geomspace(1.0, 1e-3, DIM) @ axes.T


GAUSS = ideal.full_mixture([1.0], np.full((1, DIM), 0.2), covariance(1)[None], SHAPE)
MIXED = ideal.full_mixture(
    [0.4, 0.6], np.stack([np.full(DIM, -0.5), np.full(DIM, 0.3)]), np.stack([covariance(2), covariance(3)]), SHAPE
)


def model_of(mixture: ideal.Mixture, **settings: Any) -> Model:
    return Model.of(ideal.IdealDenoiser(mixture, PROCESS), PROCESS, **settings)


def source_of(mixture: ideal.Mixture, size: int = 4000) -> Source:
    pool = mixture.sample(size, 0)
    return Source.of(lambda index: pool[index], size)


def measured(mixture: ideal.Mixture, draws: int, times: int = 20, **options: Any) -> Spectrum:
    found = model_of(mixture).measure(source_of(mixture), draws, times, **{"basis": "pca", **options}).spectrum
    assert found is not None
    return found


# -- r_f --------------------------------------------------------------------------------------------------------------


def test_residuals_of_a_gaussian_are_its_posterior_variances_within_their_error_bars() -> None:
    """Q^T R Q's diagonal, R = (I - G) S (I - G)^T + rho^2 G G^T with G = C (C + rho^2 I)^-1 and the images' own S."""
    source, spectrum = source_of(GAUSS), measured(GAUSS, 400)
    assert isinstance(spectrum.basis, Matrix)
    columns, about = spectrum.basis.columns.numpy(), source.images(torch.arange(source.size)).flatten(1).numpy() - 0.2
    own = about.T.astype(np.float64) @ about / len(about)
    for values, errors in ((spectrum.residual, spectrum.error), (spectrum.raw, spectrum.raw_error)):
        z = []
        for i, noise in enumerate(np.exp(-PROCESS.log_snr(spectrum.times))):
            gain = covariance(1) @ np.linalg.inv(covariance(1) + noise * np.eye(DIM))
            left = np.eye(DIM) - gain
            exact = left @ own @ left.T + noise * gain @ gain.T
            z.append((values[i] - np.diag(columns.T @ exact @ columns)) / errors[i])
        assert 0.8 < np.std(z) < 1.2 and abs(np.mean(z)) < 0.6 and np.abs(z).max() < 5.0


def test_mean_over_coordinates_is_the_scalar_residual_in_every_basis() -> None:
    moments = model_of(MIXED).measure(source_of(MIXED), 100, 10, basis="pca")
    again = model_of(MIXED).measure(source_of(MIXED), 100, 10, basis="dct")
    assert moments.spectrum is not None and again.spectrum is not None
    assert np.array_equal(moments.table.draws[0].scatter, again.table.draws[0].scatter), "the moments are the same"
    scalar, error = moments.estimate().values, moments.estimate().errors
    for spectrum in (moments.spectrum, again.spectrum):
        assert (np.abs(spectrum.residual.mean(1) - scalar) < 4.0 * error).all()


def test_x0_before_limits_has_residuals_of_its_own() -> None:
    """A denoiser that answers 0 after limits and x/alpha before: E y^2 and rho^2."""

    def denoise(x: torch.Tensor, t: Any) -> Prediction:
        zero = torch.zeros_like(x)
        return Prediction(zero, x / float(PROCESS.sigma(t)), zero)

    source = source_of(GAUSS)
    found = Model.of(denoise, PROCESS).measure(source, 400, 10, basis="identity").spectrum
    assert found is not None
    second = source.images(torch.arange(source.size)).double().square().mean(0).flatten().numpy()
    rho2 = np.exp(-PROCESS.log_snr(found.times))[:, None]
    assert (np.abs(found.residual - second) < 5.0 * found.error + 1e-9).all()
    np.testing.assert_allclose(found.raw, np.broadcast_to(rho2, found.raw.shape), rtol=1e-6)  # a control's very value
    np.testing.assert_array_equal(found.smoothed(), shrunk(found.residual, found.error, found.order, found.how))
    assert (np.diff(found.variance[found.order]) <= 0.0).all() and (np.diff(found.variance) > 0.0).any()


def test_batches_change_nothing_and_folds_average_to_the_whole() -> None:
    whole, parts = (measured(MIXED, 90, 8, batch_size=size) for size in (90, 7))
    for name in ("residual", "error", "raw", "folds"):
        np.testing.assert_allclose(getattr(whole, name), getattr(parts, name), rtol=1e-4)
    shares = np.bincount(np.arange(90) % FOLDS) / 90
    np.testing.assert_allclose(np.tensordot(shares, whole.folds, 1), whole.residual, rtol=1e-9)


def test_values_and_errors_are_those_of_the_regression() -> None:
    """Intercept and its standard error by the normal equations, n - 4 degrees of freedom, along two coordinates."""
    columns = np.random.default_rng(4).standard_normal((13, 5, 2)) ** 2
    sums = Sums(2, 13)
    sums.add(0, torch.from_numpy(columns))
    found = sums.arrays()
    for f in range(2):
        for row, names in enumerate((("residual", "error"), ("raw", "raw_error"))):
            x = np.concatenate([np.ones((13, 1)), columns[:, 2:, f]], 1)
            weights, left = np.linalg.lstsq(x, columns[:, row, f], rcond=None)[:2]
            error = np.sqrt(left[0] / (13 - 4) * np.linalg.inv(x.T @ x)[0, 0])
            np.testing.assert_allclose([found[name][f] for name in names], [weights[0], error], rtol=1e-8)


def test_draws_of_one_image_are_in_one_fold() -> None:
    sums = Sums(1, 5)
    sums.add(0, torch.ones(13, 5, 1, dtype=torch.float64))
    assert sums.count.tolist() == [5, 3, 3, 2], "images 0 and 4 of five in fold 0: draws 0 4 5 9 10 and no other"


def test_named_basis_and_the_basis_itself_agree_and_auto_takes_the_least_bound() -> None:
    source = source_of(MIXED)
    basis = BASES["dct"].build(BasisNeeds(SHAPE, lambda: source))
    by_name, given = measured(MIXED, 60, 8, basis="dct"), measured(MIXED, 60, 8, basis=basis)
    np.testing.assert_array_equal(by_name.residual, given.residual)
    auto = measured(GAUSS, 60, 8, basis="auto")
    assert auto.name == "pca" == min(auto.bounds, key=lambda name: auto.bounds[name])
    assert set(auto.bounds) == {"identity", "pca", "dct"}, "3 is no multiple of 8, not even, and has one channel"


# -- smoothing --------------------------------------------------------------------------------------------------------


def test_shrinkage_in_its_limits() -> None:
    rng = np.random.default_rng(0)
    values, order = rng.uniform(1.0, 2.0, (6, 5)), rng.permutation(5)
    errors = 0.01 * values
    np.testing.assert_array_equal(shrunk(values, errors, order, Shrinkage()), values)
    scalar = np.broadcast_to(values.mean(1, keepdims=True), values.shape)
    np.testing.assert_allclose(shrunk(values, errors, order, Shrinkage(5, 0, 0.0)), scalar)
    same = np.outer(np.arange(1.0, 7.0), values[0])
    np.testing.assert_allclose(shrunk(same, 0 * same, order, Shrinkage(5, 3, np.inf)), same, rtol=1e-12)


def test_shrinkage_weighs_by_error_bars_and_keeps_to_them() -> None:
    """c = 2, q = (0.5, 1.5), v = (e/c)^2 = 0.04: w = 0.01/0.05; and a value of 0 becomes its standard error."""
    values, errors, order = np.array([[1.0, 3.0]]), np.array([[0.4, 0.4]]), np.arange(2)
    weight = 0.01 / (0.01 + 0.04)
    got = shrunk(values, errors, order, Shrinkage(2, 0, 0.1))
    np.testing.assert_allclose(got, 2.0 * (1.0 + weight * np.array([[-0.5, 0.5]])))
    np.testing.assert_allclose(shrunk(np.array([[0.0, 3.0]]), errors, order, Shrinkage(2)), [[0.4, 3.0]])


def test_averages_over_times_have_smaller_errors() -> None:
    """Three rows of errors e and values 1, 3: v = (e/2)^2 / 3 in the middle, / 2 at the ends."""
    values, errors = np.tile([[1.0, 3.0]], (3, 1)), np.full((3, 2), 0.4)
    got = shrunk(values, errors, np.arange(2), Shrinkage(2, 1, 0.1))
    for row, count in ((0, 2), (1, 3), (2, 2)):
        weight = 0.01 / (0.01 + 0.04 / count)
        np.testing.assert_allclose(got[row], 2.0 + weight * np.array([-1.0, 1.0]))


def test_folds_that_are_left_in_have_larger_errors() -> None:
    rng = np.random.default_rng(3)
    folds, errors, order = rng.uniform(0.5, 2.0, (4, 2, 3)), rng.uniform(0.1, 0.3, (2, 3)), np.arange(3)
    drop, how = np.array([1.0, 5.0]), Shrinkage(3, 1, 0.2)
    wanted = [
        held_out(shrunk(np.delete(folds, i, 0).mean(0), errors * np.sqrt(4 / 3), order, how), folds[i], drop)
        for i in range(4)
    ]
    assert scored(folds, errors, order, drop, how) == pytest.approx(np.mean(wanted))


def test_neighbours_are_those_in_order_and_in_time() -> None:
    values, order = np.array([[1.0, 9.0, 2.0, 4.0]]), np.array([0, 2, 3, 1])  # in order: 1 2 4 9
    got = shrunk(values, 0 * values, order, Shrinkage(1, 0, 0.0))
    np.testing.assert_allclose(got[0, order], [1.5, 7 / 3, 5.0, 6.5])
    rows = np.array([[1.0, 3.0], [2.0, 2.0], [1.0, 7.0]])
    got = shrunk(rows, 0 * rows, np.arange(2), Shrinkage(2, 1, np.inf))
    ratio = np.array([[0.5, 1.5], [1.0, 1.0], [0.25, 1.75]])
    np.testing.assert_allclose(got[0], 2.0 * ratio[:2].mean(0))
    np.testing.assert_allclose(got[1], 2.0 * ratio.mean(0))


def test_held_out_bound_is_that_of_a_step_and_least_at_the_truth() -> None:
    squared, drop = np.array([[0.5, 2.0]]), np.array([3.0])
    kernel_bound = 0.5 * (np.log1p(3.0 * squared)).mean() * 10
    assert held_out(squared, squared, drop) == pytest.approx(kernel_bound)
    assert all(held_out(squared * f, squared, drop) > kernel_bound for f in (0.8, 1.2))
    log_snr = np.array([-4.0, 0.0, 6.0])
    np.testing.assert_allclose(steps_ahead(log_snr), np.exp(log_snr + 1.0) - np.exp(log_snr))


def test_noise_is_smoothed_away_and_structure_is_kept() -> None:
    """Equal r_f call for the scalar, wide-spread ones with small errors for themselves."""
    rng, times, dim = np.random.default_rng(5), 12, 30
    drop, order = steps_ahead(np.linspace(-6.0, 6.0, times)), np.arange(dim)
    for truth, noise in ((np.ones((times, dim)), 0.5), (np.geomspace(1.0, 1e-3, dim) * np.ones((times, 1)), 0.02)):
        folds = truth * (1.0 + noise * rng.standard_normal((FOLDS, times, dim)))
        errors = truth * noise / np.sqrt(FOLDS)
        how, bound = chosen(folds, errors, order, drop)
        assert bound <= scored(folds, errors, order, drop, Shrinkage())
        off = np.abs(np.log(shrunk(folds.mean(0), errors, order, how) / truth)).mean()
        raw = np.abs(np.log(folds.mean(0) / truth)).mean()
        assert off < (0.4 if noise == 0.5 else 1.01) * raw


# -- rule and costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_gaussian_data_are_drawn_exactly_in_any_steps(eta: float) -> None:
    """Mean and covariance of the state, carried through three steps in closed form, are the data's own in the end.

    r_f is exact here; at eta = 0, too, the covariance makes up for what DDIM's mean loses.
    """
    exact = np.linalg.eigh(covariance(1))
    curve = lambda t: 1.0 / (1.0 / exact[0] + np.exp(PROCESS.log_snr(t))[..., None])  # noqa: E731
    spectrum = measured(GAUSS, LEAST_DRAWS, 5)
    spectrum = replace(spectrum, basis=Matrix(torch.from_numpy(exact[1].copy())))
    rule = Spectral(lambda: spectrum, PROCESS)
    rule._axes.__dict__["residual"] = curve  # as exact as it can be measured
    denoise, units = ideal.IdealDenoiser(GAUSS, PROCESS), torch.eye(DIM, dtype=torch.float64).reshape(DIM, *SHAPE)
    alpha, sigma = float(PROCESS.alpha(200)), float(PROCESS.sigma(200))
    mean, cov = alpha * np.full(DIM, 0.2), alpha**2 * covariance(1) + sigma**2 * np.eye(DIM)
    for t, s in ((200.0, 120.0), (120.0, 40.0), (40.0, 3.0)):
        kernel = reverse_kernel(PROCESS, t, s, eta)
        at = torch.cat([torch.zeros(1, *SHAPE, dtype=torch.float64), units])
        out = reverse_mean(kernel, denoise(at, t)).flatten(1).numpy()
        linear = (out[1:] - out[0]).T
        step = rule(kernel, None)
        added = step.draw(torch.zeros_like(units), units).flatten(1).numpy()  # C^(1/2), symmetric
        mean, cov = out[0] + linear @ mean, linear @ cov @ linear.T + added @ added.T
        alpha, sigma = float(PROCESS.alpha(s)), float(PROCESS.sigma(s))
        np.testing.assert_allclose(mean, alpha * np.full(DIM, 0.2), atol=1e-9)
        np.testing.assert_allclose(cov, alpha**2 * covariance(1) + sigma**2 * np.eye(DIM), atol=1e-9)


def test_rule_says_what_was_measured() -> None:
    spectrum = measured(MIXED, 60, 8)
    rule, t = Spectral(lambda: spectrum, PROCESS), float(spectrum.times[4])
    kernel = reverse_kernel(PROCESS, t, 1.0, 0.7)
    found = rule(kernel, None)
    assert isinstance(found, InBasis) and found.basis is spectrum.basis and not rule.state_dependent
    assert np.shape(found.values) == (1, *SHAPE)
    wanted = float(kernel.lambda2) + float(kernel.gain) ** 2 * spectrum.smoothed()[4]
    np.testing.assert_allclose(np.asarray(found.values).ravel(), wanted, rtol=1e-10)


def test_few_draws_beat_the_scalar_at_every_number_of_steps() -> None:
    """Bits of the exact mixture's own bound: 50 draws a time per coordinate, and as many for the scalar."""
    model, source = model_of(MIXED), source_of(MIXED)
    moments = model.measure(source, 50, 40, basis="auto")
    test = MIXED.sample(400, 9)
    for steps in (3, 10, 50):
        bits = {
            rule: model.bits_per_dim(test, model.plan(moments, steps, cost=cost, data_term=False), rule=rule).total.mean
            for rule, cost in (("analytic", "kl"), ("spectral", "axes"))
        }
        assert bits["spectral"] < bits["analytic"] - 0.005, (steps, bits)


def test_costs_along_axes_are_the_mean_of_each_and_the_scalars_where_axes_agree() -> None:
    rng = np.random.default_rng(2)
    residual = rng.uniform(0.01, 0.5, (201, 6))
    for eta in (0.4, 1.0):
        costs, t, s = axes_costs(PROCESS, residual, eta), 150, np.array([1, 17, 149])
        kernel = reverse_kernel(PROCESS, PROCESS.times[t], PROCESS.times[s], eta)
        wanted = [
            0.5 * np.log1p(g**2 / v * residual[t]).mean() for g, v in zip(kernel.gain, kernel.lambda2, strict=True)
        ]
        np.testing.assert_allclose(costs.table[s, t], wanted, rtol=1e-10)
    same = np.repeat(residual[:, :1], 6, 1)
    scalar = kl_costs(PROCESS, same[:, 0], project=False)
    np.testing.assert_allclose(axes_costs(PROCESS, same).table, scalar.table, rtol=1e-9)
    smooth = np.geomspace(0.5, 0.01, 600) * np.ones((201, 1))
    uneven = np.array([1.0, 9.0, 1.0, 9.0, 1.0]) * np.ones((201, 1))
    np.testing.assert_allclose(axes_costs(PROCESS, uneven, groups=2).table, axes_costs(PROCESS, uneven).table)
    grouped, each = axes_costs(PROCESS, smooth, groups=100), axes_costs(PROCESS, smooth, groups=600)
    np.testing.assert_allclose(grouped.table, each.table, rtol=1e-4)


@pytest.mark.parametrize(
    ("residual", "eta", "told"),
    [(np.ones((5, 2)), 1.0, "201 rows"), (np.zeros((201, 2)), 1.0, "positive"), (np.ones((201, 2)), 0.0, "`eta` = 0")],
)
def test_costs_along_axes_refuse(residual: Array, eta: float, told: str) -> None:
    with pytest.raises(UserError, match=told):
        axes_costs(PROCESS, residual, eta)


# -- interpolation, files, refusals -----------------------------------------------------------------------------------


def test_between_times_the_logarithm_is_interpolated() -> None:
    spectrum = measured(GAUSS, 400, 30)
    curve = spectrum.curve(PROCESS)
    np.testing.assert_allclose(curve(spectrum.times), spectrum.smoothed(), rtol=1e-10)
    rho2, lam = np.exp(-PROCESS.log_snr(PROCESS.times[1:])), spectrum.variance[:, None]
    np.testing.assert_allclose(curve(PROCESS.times[1:]).T, lam * rho2 / (lam + rho2), rtol=0.35)
    with pytest.raises(UserError, match="measured for times 1 to 200"):
        curve(np.array(0.5))


def test_file_keeps_everything(tmp_path: Path) -> None:
    spectrum = measured(MIXED, 60, 8, provenance={"weights": "abc"}, basis="auto")
    spectrum.save(tmp_path / "s.npz")
    back = Spectrum.load(tmp_path / "s.npz")
    for name in ("times", "residual", "error", "raw", "raw_error", "folds", "variance"):
        np.testing.assert_array_equal(getattr(back, name), getattr(spectrum, name))
    for name in ("name", "draws", "how", "bounds", "shape", "provenance"):
        assert getattr(back, name) == getattr(spectrum, name), name
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    assert torch.equal(back.basis.forward(x), spectrum.basis.forward(x))
    back.require({"weights": "abc"}, tmp_path / "s.npz")
    with pytest.raises(UserError, match="belongs to something else .*weights"):
        back.require({"weights": "xyz"}, tmp_path / "s.npz")


def test_moments_keep_their_coordinates(tmp_path: Path) -> None:
    model, source = model_of(MIXED), source_of(MIXED)
    for basis in ("", "dct"):
        moments = model.measure(source, 20, 6, basis=basis)
        moments.save(tmp_path / "m.npz")
        back = Moments.load(tmp_path / "m.npz", PROCESS)
        np.testing.assert_array_equal(back.estimate().values, moments.estimate().values)
        assert (back.spectrum is None) == (moments.spectrum is None)
        if back.spectrum is not None and moments.spectrum is not None:
            np.testing.assert_array_equal(back.spectrum.residual, moments.spectrum.residual)


@pytest.mark.parametrize("damage", ["times", "residual", "folds", "shape", "basis", "other basis"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    spectrum, path = measured(MIXED, 60, 8), tmp_path / "s.npz"
    bad: dict[str, Any] = {
        "times": spectrum.times[::-1].copy(),
        "residual": spectrum.residual * np.nan,
        "folds": spectrum.folds[:2],
        "shape": (1, 3, 4),
        "basis": Matrix(2.0 * torch.eye(DIM, dtype=torch.float64)),
        "other basis": Matrix(torch.eye(4, dtype=torch.float64)),
    }
    replace(spectrum, **{damage.split()[-1]: bad[damage]}).save(path)
    with pytest.raises(UserError, match="is not a coordinates file"):
        Spectrum.load(path)


def test_what_has_no_coordinates_is_refused_in_words() -> None:
    model, source = model_of(MIXED), source_of(MIXED)
    moments = model.measure(source, 20, 6)
    plan = model.plan(moments, 3, data_term=False)
    with pytest.raises(UserError, match="rule 'spectral' needs moments per coordinate"):
        model.sample(plan, rule="spectral", n=2)
    with pytest.raises(UserError, match="needs moments per coordinate"):
        model.plan(moments, 3, cost="axes", data_term=False)
    with pytest.raises(UserError, match=f"`draws` = {LEAST_DRAWS - 1} is too few"):
        model.measure(source, LEAST_DRAWS - 1, 6, basis="pca")
    for options, told in (
        ({"drawz": 7}, "no option `drawz` without a basis"),
        ({"basis": "auto", "block": 3}, "'auto' has no option `block`"),
        ({"basis": Pixels(), "rank": 3}, "`rank` is no option of a basis that is given"),
        ({"basis": "pca", "block": 3}, "'pca' has no option `block`"),
    ):
        with pytest.raises(UserError, match=told):
            model.measure(source, 20, 6, **options)
    with pytest.raises(UserError, match="this rule wants 'axes'"):
        known = model.measure(source, 20, 6, basis="dct")
        model.plan(known, 3, cost="bound", rule="spectral", data_term=False)
    with pytest.raises(UserError, match="does not fit"):
        model.measure(source, 20, 6, basis=Matrix(torch.eye(4, dtype=torch.float64)))
