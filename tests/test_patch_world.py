"""The patch worlds' figures where they are known: even times, Gaussian moments, the planner's own costs, a cap."""

from __future__ import annotations

import numpy as np
import pytest

from adpm import ideal
from adpm.costs import kl_costs
from adpm.planning import planner
from adpm.process import linear
from benchmarks.patch_world import SIDE, bits, curves, diagonals, even_process, grey_patches, second_moments

PROCESS = even_process(30)
LOG_SNR = PROCESS.log_snr(PROCESS.times[1:])


def test_times_are_even_between_the_ends_of_the_linear_schedule():
    whole = linear(1000)
    np.testing.assert_allclose(LOG_SNR, np.linspace(*whole.log_snr(whole.times[[1, -1]]), 30), rtol=1e-9)


def test_patches_are_grey_crops_in_range_and_depend_on_the_seed():
    patches = grey_patches(50, 0)
    assert patches.shape == (50, 1, SIDE, SIDE) and patches.abs().max() <= 1.0
    assert not patches.equal(grey_patches(50, 1))


def test_moments_of_gaussian_data_are_those_in_closed_form():
    variances = np.geomspace(0.01, 1.0, SIDE * SIDE)
    moments = second_moments(ideal.gaussian(0.1, variances, (1, SIDE, SIDE)), PROCESS, 1000, 0)
    pixel = diagonals(moments, np.eye(SIDE * SIDE))["pixel"]
    rho2 = np.exp(-LOG_SNR)[:, None]
    assert np.abs(pixel / (variances * rho2 / (variances + rho2)) - 1.0).max() < 5.0 * (2.0 / 1000) ** 0.5


def test_the_scalar_is_planned_and_priced_as_the_package_does():
    variance = 1.0 / (3.0 + np.exp(LOG_SNR))
    costs = planner(kl_costs(PROCESS, np.concatenate([[0.0], variance])), 10)
    expected = [costs.plan(k).raw / np.log(2.0) for k in (3, 10)]
    np.testing.assert_allclose(bits(PROCESS, (variance[:, None], variance[:, None]), (3, 10)), expected, rtol=1e-10)


def test_scalar_basis_matrix_and_a_cap():
    """With the same draws the order holds exactly; an error of the mean costs, and a cap under it costs more."""
    pca, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(SIDE * SIDE, SIDE * SIDE)))
    data = np.geomspace(1e-3, 1.0, SIDE * SIDE)
    rho2 = np.exp(-LOG_SNR)[:, None, None]
    moments = np.einsum("if,tf,jf->tij", pca, data * rho2[:, 0] / (data + rho2[:, 0]), pca)
    exact, imperfect = curves(moments, pca, data)
    told = {name: bits(PROCESS, curve, (3, 5, 10)) for name, curve in exact.items()}
    for name in ("pixel", "DCT", "PCA"):
        assert (told["scalar"] > told[name]).all() and (told[name] > told["best matrix"] - 1e-12).all()
    np.testing.assert_allclose(told["PCA"], told["best matrix"], rtol=1e-9)
    off = {name: bits(PROCESS, curve, (3, 5, 10)) for name, curve in imperfect.items()}
    assert (off["PCA"] > told["PCA"]).all() and (off["PCA, at most the data's variance"] > off["PCA"]).all()


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_any_other_variance_costs_more(share):
    r = 1.0 / (np.geomspace(1.0, 100.0, 4) + np.exp(LOG_SNR)[:, None])
    assert (bits(PROCESS, (r, share * r), (3, 10)) > bits(PROCESS, (r, r), (3, 10))).all()
