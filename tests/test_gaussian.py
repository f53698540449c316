"""The covariance shapes against dense linear algebra: one dense matrix per example says what each shape means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from adpm.basis import Matrix
from adpm.errors import UserError
from adpm.gaussian import ZERO, Covariance, Diagonal, InBasis

BATCH, SHAPE, D = 5, (2, 2, 3), 12


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def positive(seed: int, *shape: int) -> Tensor:
    return 0.05 + torch.rand(*shape, dtype=torch.float64, generator=generator(seed))


AXES = torch.linalg.qr(normal(0, D, D))[0]
BASIS = Matrix(AXES)
SHAPES: dict[str, Callable[[], Covariance]] = {
    "number": lambda: Diagonal(0.37),
    "per state": lambda: Diagonal(positive(1, BATCH, 1, 1, 1)),
    "per pixel": lambda: Diagonal(positive(2, *SHAPE)),
    "per state and pixel": lambda: Diagonal(positive(3, BATCH, *SHAPE)),
    "number in a basis": lambda: InBasis(0.37, basis=BASIS),
    "in a basis": lambda: InBasis(positive(4, *SHAPE), basis=BASIS),
    "per state in a basis": lambda: InBasis(positive(5, BATCH, *SHAPE), basis=BASIS),
}


@pytest.fixture(params=SHAPES)
def covariance(request) -> Covariance:
    return SHAPES[request.param]()


def dense(covariance: Covariance) -> Tensor:
    """[B, D, D]: U diag(values) U^T, written without the class's methods."""
    values = torch.as_tensor(covariance.values, dtype=torch.float64).expand(BATCH, *SHAPE).reshape(BATCH, D)
    axes = AXES if isinstance(covariance, InBasis) else torch.eye(D).double()
    return axes @ torch.diag_embed(values) @ axes.T


def reference(covariance: Covariance, mean: Tensor) -> MultivariateNormal:
    return MultivariateNormal(mean.flatten(1), dense(covariance))


def test_log_density(covariance):
    x, mean = normal(10, BATCH, *SHAPE), normal(11, BATCH, *SHAPE)
    torch.testing.assert_close(
        covariance.log_density(x, mean), reference(covariance, mean).log_prob(x.flatten(1)), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("variance", [0.02, 0.37, 5.0])
def test_kl_from_isotropic(covariance, variance):
    delta = normal(12, BATCH, *SHAPE)
    isotropic = MultivariateNormal(delta.flatten(1), variance * torch.eye(D).double())
    expected = kl_divergence(isotropic, reference(covariance, torch.zeros_like(delta)))
    torch.testing.assert_close(covariance.kl_from_isotropic(variance, delta), expected, rtol=1e-11, atol=1e-11)


def test_a_draw_is_the_mean_plus_a_root_of_the_covariance_times_the_noise(covariance):
    """Draws are linear in the noise: probing with unit vectors gives the factor A, and A A^T is the covariance."""
    mean = normal(13, BATCH, *SHAPE)
    columns = []
    for i in range(D):
        unit = torch.zeros(BATCH, D, dtype=torch.float64)
        unit[:, i] = 1.0
        columns.append((covariance.draw(mean, unit.reshape(mean.shape)) - mean).flatten(1))
    factor = torch.stack(columns, dim=2)
    torch.testing.assert_close(factor @ factor.mT, dense(covariance), rtol=1e-11, atol=1e-12)
    noise = normal(14, BATCH, *SHAPE)
    expected = mean.flatten(1) + torch.einsum("bij,bj->bi", factor, noise.flatten(1))
    torch.testing.assert_close(covariance.draw(mean, noise).flatten(1), expected, rtol=1e-11, atol=1e-12)


def affine(covariance, scale, shift):
    """What a rule makes of a model of Cov[x_0 | x_t]: scale C + shift I, on the values alone."""
    return replace(covariance, values=covariance.values * scale + shift)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(sorted(SHAPES)),
    *[st.floats(1e-6, 1e3)] * 4,
)
def test_shapes_are_closed_under_affine_maps(name, scale, shift, again, more):
    covariance = SHAPES[name]()
    moved = affine(covariance, scale, shift)
    assert type(moved) is type(covariance)
    eye = torch.eye(D).double()
    rounding = 1e-14 * (2 * scale + shift)
    torch.testing.assert_close(dense(moved), scale * dense(covariance) + shift * eye, rtol=1e-12, atol=rounding)
    twice, once = affine(moved, again, more), affine(covariance, scale * again, shift * again + more)
    torch.testing.assert_close(dense(twice), dense(once), rtol=1e-12, atol=again * rounding + 1e-14 * more)


def test_affine_takes_a_number_per_state():
    scale, shift = positive(20, BATCH, 1, 1, 1), positive(21, BATCH, 1, 1, 1)
    for name in SHAPES:
        covariance = SHAPES[name]()
        expected = scale[..., 0] * dense(covariance) + shift[..., 0] * torch.eye(D).double()
        torch.testing.assert_close(dense(affine(covariance, scale, shift)), expected, rtol=1e-11, atol=1e-12)


def test_pixels_have_the_deviations_of_the_dense_diagonal(covariance, monkeypatch):
    """Exactly; and of large images by draws, to 3 %."""
    x = normal(9, BATCH, *SHAPE)
    wanted = torch.stack([c.diagonal() for c in dense(covariance)]).sqrt().reshape(BATCH, *SHAPE)
    torch.testing.assert_close(covariance.pixel_deviation(x), wanted)
    monkeypatch.setattr("adpm.gaussian.EXACTLY", 3)
    torch.testing.assert_close(covariance.pixel_deviation(x), wanted, rtol=4 * 0.03, atol=0)


def test_average_keeps_the_trace_and_no_direction():
    for name in ("per state", "per state and pixel", "per state in a basis", "number"):
        covariance = SHAPES[name]()
        expected = dense(covariance).diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(D).double()
        torch.testing.assert_close(dense(covariance.average()), expected, rtol=1e-11, atol=1e-12)


def test_a_basis_of_unit_vectors_changes_nothing():
    values, x = positive(22, *SHAPE), normal(23, BATCH, *SHAPE)
    plain, framed = Diagonal(values), InBasis(values, basis=Matrix(torch.eye(D).double()))
    assert torch.equal(plain.kl_from_isotropic(0.3, x), framed.kl_from_isotropic(0.3, x))
    assert torch.equal(plain.draw(x, x), framed.draw(x, x))


@settings(max_examples=60, deadline=None)
@given(st.floats(-12, -2), st.sampled_from([-1, 1]), st.floats(1e-8, 1e2))
def test_kl_keeps_its_precision_when_the_variances_almost_agree(exponent, sign, variance):
    """r = 1 + e: KL = d/2 (e - log(1 + e)) = d (e^2/4 - e^3/6 + ...), which r - 1 - log r loses below e = 1e-8."""
    v = variance / (1 + sign * 10.0**exponent)
    e = (variance - v) / v  # exact up to one rounding, by Sterbenz
    kl = Diagonal(v).kl_from_isotropic(variance, torch.zeros(1, *SHAPE, dtype=torch.float64)).item()
    series = D * (e**2 / 4 - e**3 / 6 + e**4 / 8 - e**5 / 10 + e**6 / 12)
    assert kl == pytest.approx(series, rel=2e-3, abs=0)


def test_kl_at_one_part_in_1e12():
    for v in (1.0, 0.37, 3.3):
        kl = Diagonal(v).kl_from_isotropic(v * (1 + 1e-12), torch.zeros(1, 1, 1, 1, dtype=torch.float64)).item()
        assert kl == pytest.approx(2.5e-25, rel=2e-3, abs=0)
    assert Diagonal(0.3).kl_from_isotropic(0.3, torch.zeros(1, *SHAPE, dtype=torch.float64)).item() == 0.0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=20), st.floats(-1, 0), st.floats(0.1, 1))
def test_clamp_says_how_often_it_acted(values, low, high):
    share = sum(not low <= v <= high for v in values) / len(values)
    inside = np.clip(values, low, high)
    for container in (np.array(values), torch.tensor(values, dtype=torch.float64)):
        clamped = Diagonal(container).clamp(low, high)
        np.testing.assert_array_equal(np.asarray(clamped.values), inside)
        assert float(clamped.clipped) == pytest.approx(share)
        assert float(affine(clamped, 2.0, 1.0).clipped) == pytest.approx(share)
    number = Diagonal(values[0]).clamp(low, high)
    assert isinstance(number.values, float) and number.clipped == float(not low <= values[0] <= high)


def test_a_second_clamp_keeps_the_larger_share():
    """Bounds within bounds: what the inner ones have changed is told, whichever change more."""
    for values, outer in (([-1.0, 2.0, 3.0, 0.5], 0.75), ([-1.0, 0.2, 0.3, 0.5], 0.5)):
        for container in (np.array(values), torch.tensor(values)):
            inner = Diagonal(container).clamp(0.0, 9.0)
            assert float(inner.clipped) == 0.25
            assert float(inner.clamp(0.0, 99.0).clipped) == 0.25
            assert float(inner.clamp(0.25, 1.0).clipped) == pytest.approx(outer)
    number = Diagonal(-1.0).clamp(0.0, 9.0)
    assert number.clamp(0.0, 99.0).clipped == 1.0


def test_zero_adds_nothing_and_negative_variance_is_no_gaussian():
    x = normal(30, BATCH, *SHAPE)
    assert torch.equal(ZERO.draw(x, x), x)
    with pytest.raises(UserError, match="gives -0.1, which is negative"):
        Diagonal(-0.1).draw(x, x)
    assert Diagonal(torch.tensor(-0.1)).draw(x, x).isnan().all()
    with pytest.raises(TypeError, match="basis"):
        InBasis(torch.ones(SHAPE))
