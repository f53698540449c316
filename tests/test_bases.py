"""Every basis by its laws, by scipy, by hand and in worlds whose covariance is known; files and refusals in words."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from adpm.bases import BASES, STORED, BasisNeeds, basis_arrays, basis_from, check_basis
from adpm.basis import Basis, Colour, Composed, Matrix, Pixels, Reflectors, Shape
from adpm.draws import Source
from adpm.errors import UserError
from adpm.families import built
from adpm.gaussian import Diagonal, InBasis
from adpm.kernel import reverse_kernel
from adpm.process import linear
from adpm.transforms import BlockCosine, Cosine, Haar
from tests.teleport_worlds import source_of

GREY, COLOURED, VECTOR, LARGE = (1, 8, 8), (3, 8, 8), (24,), (3, 32, 32)
HUGE = (3, 40, 40)  # more than a covariance is made of as a whole
IDENTITY = torch.eye(2, dtype=torch.float64)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def correlated(shape: Shape, count: int = 300) -> Tensor:
    """Data [count, *shape] with correlated entries of unequal variance, and a mean."""
    d = int(np.prod(shape))
    if d <= 200:
        mixing = normal(1, d, d) * torch.linspace(0.1, 1.5, d).double()
        return (normal(2, count, d) @ mixing + normal(3, d)).reshape(count, *shape)
    return (normal(2, count, 12) @ normal(1, 12, d) + 0.1 * normal(4, count, d)).reshape(count, *shape)


def needs(shape: Shape, data: Tensor | None = None) -> BasisNeeds:
    return BasisNeeds(shape, lambda: source_of(correlated(shape) if data is None else data))


def unasked() -> Source:
    raise AssertionError("the data were asked for")


def make(name: str, shape: Shape, data: Tensor | None = None, **options) -> Basis:
    return built(BASES, name, "`basis`", needs(shape, data), **options)


CASES: dict[str, tuple[str, Shape, dict[str, Any]]] = {
    f"{name} {shape} {options}": (name, shape, options)
    for name, shape, options in (
        ("identity", COLOURED, {}),
        ("pca", GREY, {}),
        ("pca", COLOURED, {}),
        ("pca", VECTOR, {}),
        ("pca", COLOURED, {"rank": 7}),
        ("pca", VECTOR, {"rank": 1}),
        ("pca", VECTOR, {"rank": 23}),
        ("pca", HUGE, {"rank": 9}),
        ("dct", GREY, {}),
        ("dct", (2, 3, 5), {}),
        ("dct", LARGE, {}),
        ("dct", VECTOR, {}),
        ("block_dct", GREY, {}),
        ("block_dct", (3, 8, 12), {"block": 4, "colour": False}),
        ("block_dct", LARGE, {}),
        ("block_dct", VECTOR, {}),
        ("haar", GREY, {}),
        ("haar", (3, 12, 20), {}),
        ("haar", LARGE, {"colour": False}),
        ("haar", VECTOR, {}),
        ("colour", COLOURED, {}),
        ("colour", (2, 3, 5), {}),
    )
}
DENSE = [case for case, (_, shape, _) in CASES.items() if np.prod(shape) <= 200]


@cache
def built_case(case: str) -> tuple[Shape, Basis]:
    name, shape, options = CASES[case]
    return shape, make(name, shape, **options)


@pytest.fixture(params=CASES)
def case(request) -> tuple[Shape, Basis]:
    return built_case(request.param)


def dense(basis: Basis, shape: Shape) -> Tensor:
    """Q [d, d], an axis in each column: the coordinates of the unit vectors, row by row."""
    d = int(np.prod(shape))
    return basis.forward(torch.eye(d, dtype=torch.float64).reshape(d, *shape)).flatten(1)


# -- laws of all ------------------------------------------------------------------------------------------------------


def test_coordinates_keep_what_is_there_and_all_inner_products(case):
    shape, basis = case
    x, y = normal(10, 4, *shape), normal(11, 4, *shape)
    torch.testing.assert_close(basis.inverse(basis.forward(x)), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(basis.forward(basis.inverse(x)), x, rtol=0, atol=1e-12)
    inner = (basis.forward(x) * basis.forward(y)).flatten(1).sum(1)
    torch.testing.assert_close(inner, (x * y).flatten(1).sum(1), rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(basis.forward(2.0 * x - y), 2.0 * basis.forward(x) - basis.forward(y))


def test_float32_comes_back_as_float32_with_the_same_coordinates(case):
    shape, basis = case
    x = normal(12, 3, *shape)
    for change in (basis.forward, basis.inverse):
        half = change(x.float())
        assert half.dtype == torch.float32 and half.shape == x.shape
        torch.testing.assert_close(half.double(), change(x), rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(basis.forward(x.bfloat16()).double(), basis.forward(x), rtol=0.1, atol=0.3)


def test_derivatives_pass_after_a_use_without_them(case):
    """Tables made while inference ran must not stay closed to autograd. Nothing else here asks for float16."""
    shape, basis = case[0], basis_from(basis_arrays(case[1]))
    x = normal(13, 1, *shape).half()
    with torch.inference_mode():
        basis.forward(x)
    x.requires_grad_()
    (slope,) = torch.autograd.grad((0.5 * basis.forward(x).square()).sum(), x)
    torch.testing.assert_close(slope, x.detach(), rtol=0, atol=0.1)


def test_a_stored_basis_is_the_same_to_the_last_bit(case, tmp_path):
    shape, basis = case
    arrays = basis_arrays(basis)
    assert all(name.startswith("basis") for name in arrays)
    np.savez(tmp_path / "moments.npz", residual=np.zeros(3), **arrays)
    with np.load(tmp_path / "moments.npz") as file:
        found = basis_from(dict(file))
    assert repr(found) == repr(basis)
    x = normal(14, 3, *shape)
    assert torch.equal(found.forward(x), basis.forward(x)) and torch.equal(found.inverse(x), basis.inverse(x))
    for name, array in basis_arrays(found).items():
        np.testing.assert_array_equal(array, arrays[name])


def test_fixed_bases_are_stored_as_a_name_and_whole_numbers():
    assert {k: v.tolist() for k, v in basis_arrays(BlockCosine(4)).items()} == {
        "basis": ["block_dct"],
        "basis_0_block": 4,
    }
    assert {k: v.tolist() for k, v in basis_arrays(Cosine()).items()} == {"basis": ["dct"]}
    parts = Composed(Colour(IDENTITY), Composed(Haar(), Pixels()))
    assert basis_arrays(parts)["basis"].tolist() == ["colour", "haar", "pixels"]


def test_every_basis_that_is_built_can_be_stored():
    kinds = {type(built_case(case)[1]) for case in CASES}
    assert kinds - {Composed} == set(STORED.values())
    assert BASES.keys() - {"matrix", "auto"} == {name for name, *_ in CASES.values()}


# -- each by what it is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 10), (2, 1, 7)])
def test_cosines_are_those_of_scipy(shape):
    x = normal(20, 5, *shape)
    expected = dctn(x.numpy(), axes=(2, 3), norm="ortho")
    np.testing.assert_allclose(Cosine().forward(x).numpy(), expected, rtol=0, atol=1e-13)
    v = normal(21, 5, 300)
    np.testing.assert_allclose(
        Cosine().forward(v).numpy(), dctn(v.numpy(), axes=(1,), norm="ortho"), rtol=0, atol=2e-13
    )


def test_cosines_of_blocks_are_those_of_scipy_block_by_block():
    x = normal(22, 2, 3, 8, 12)
    expected = np.empty(x.shape)
    for top in (0, 4):
        for left in (0, 4, 8):
            block = (..., slice(top, top + 4), slice(left, left + 4))
            expected[block] = dctn(x.numpy()[block], axes=(2, 3), norm="ortho")
    np.testing.assert_allclose(BlockCosine(4).forward(x).numpy(), expected, rtol=0, atol=1e-13)
    v = normal(23, 2, 24)
    by_eights = dctn(v.numpy().reshape(2, 3, 8), axes=(2,), norm="ortho").reshape(2, 24)
    np.testing.assert_allclose(BlockCosine().forward(v).numpy(), by_eights, rtol=0, atol=1e-13)


def test_haar_by_hand():
    a, b, c, d = 1.0, 2.0, 5.0, -3.0
    x = torch.tensor([[[[a, b], [c, d]]]]).double()
    by_hand = torch.tensor([[[[a + b + c + d, a - b + c - d], [a + b - c - d, a - b - c + d]]]]).double() / 2
    torch.testing.assert_close(Haar().forward(x), by_hand, rtol=0, atol=1e-14)
    ramp, root = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).double(), 0.5**0.5
    walked = torch.tensor([[3.0, -2.0, -root, -root]], dtype=torch.float64)  # (0+1+2+3)/2, (0+1-2-3)/2, (0-1)/sqrt(2)
    torch.testing.assert_close(Haar().forward(ramp), walked, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("shape", "left"), [((2, 8, 8), (1, 1)), ((1, 12, 20), (3, 5)), ((1, 2, 8), (1, 4))])
def test_haar_of_a_constant_image_is_its_coarsest_corner(shape, left):
    """The corner keeps the sum over sqrt(pixels per coordinate): halved while both sides are even, no further."""
    coordinates = Haar().forward(torch.full((1, *shape), 0.7, dtype=torch.float64))
    expected = torch.zeros(1, *shape).double()
    share = shape[1] * shape[2] / (left[0] * left[1])
    expected[..., : left[0], : left[1]] = 0.7 * share**0.5
    torch.testing.assert_close(coordinates, expected, rtol=0, atol=1e-13)


def test_pca_coordinates_are_uncorrelated_with_falling_variances():
    for shape in (GREY, COLOURED, VECTOR):
        data = correlated(shape)
        coordinates = make("pca", shape).forward(data).flatten(1)
        covariance = torch.cov(coordinates.T, correction=0)
        variances = covariance.diagonal()
        torch.testing.assert_close(covariance, torch.diag(variances), rtol=0, atol=1e-9 * float(variances.max()))
        assert (variances.diff() <= 1e-9).all() and variances[0] > 3 * variances[len(variances) // 2]


@pytest.mark.parametrize("rank", [1, 5, 191])
def test_low_rank_begins_with_the_principal_directions(rank):
    whole, low = (dense(make("pca", COLOURED, rank=r), COLOURED) for r in (0, rank))
    assert isinstance(make("pca", COLOURED, rank=rank), Reflectors)
    agreement = (whole * low).sum(0)[:rank]
    torch.testing.assert_close(agreement.abs(), torch.ones(rank).double(), rtol=0, atol=1e-9)
    outside = whole[:, :rank].T @ low[:, rank:]
    torch.testing.assert_close(outside, torch.zeros_like(outside), rtol=0, atol=1e-9)


def test_all_directions_need_no_reflectors():
    assert isinstance(make("pca", VECTOR, rank=24), Matrix)
    assert torch.equal(dense(make("pca", VECTOR, rank=24), VECTOR), dense(make("pca", VECTOR), VECTOR))


def test_low_rank_in_many_dimensions_finds_the_directions_that_vary():
    """4800 dimensions, of which 12 directions carry all but 0.01 each: the first coordinates have their variance."""
    data = correlated(HUGE)
    centred = data - data.mean(0)
    spectrum = torch.linalg.svdvals(centred.flatten(1)).square() / len(data)
    coordinates = make("pca", HUGE, rank=9).forward(centred).flatten(1)
    torch.testing.assert_close(coordinates.square().mean(0)[:9], spectrum[:9], rtol=1e-6, atol=0)


def test_reflectors_of_unit_vectors_are_a_permutation_at_most():
    """Directions that are axes already: LAPACK's tau is 0 there."""
    basis = Reflectors.of(torch.eye(6).double()[:, :3])
    assert (basis.taus == 0.0).any()
    torch.testing.assert_close(dense(basis, (6,)).abs(), torch.eye(6).double(), rtol=0, atol=1e-14)


def test_colours_are_uncorrelated_within_pixels():
    """Summed over pixels, about the mean of each pixel; the largest variance first."""
    mixing = torch.tensor([[1.0, 0.8, 0.9], [0.0, 0.4, 0.1], [0.0, 0.0, 0.2]]).double()
    data = torch.einsum("bchw,cf->bfhw", normal(30, 500, *COLOURED), mixing) + 2.0 * normal(31, *COLOURED)
    basis = make("colour", COLOURED, data)
    delta = basis.forward(data - data.mean(0)).transpose(0, 1).flatten(1)
    covariance = delta @ delta.T / delta.shape[1]
    torch.testing.assert_close(covariance, torch.diag(covariance.diagonal()), rtol=0, atol=1e-9)
    expected = torch.linalg.eigvalsh(mixing.T @ mixing).flip(0)
    torch.testing.assert_close(covariance.diagonal(), expected, rtol=0.03, atol=0.01)


@pytest.mark.parametrize(("name", "spatial"), [("dct", Cosine()), ("block_dct", BlockCosine()), ("haar", Haar())])
def test_transforms_follow_colours_where_there_are_several(name, spatial):
    data, x = correlated(COLOURED), normal(32, 2, *COLOURED)
    after_colours = spatial.forward(make("colour", COLOURED, data).forward(x))
    torch.testing.assert_close(make(name, COLOURED, data).forward(x), after_colours, rtol=0, atol=1e-13)
    for shape, options in ((COLOURED, {"colour": False}), (GREY, {}), (VECTOR, {})):
        alone = built(BASES, name, "`basis`", BasisNeeds(shape, unasked), **options)
        assert alone == spatial, "no data are asked for"


def test_composed_bases_act_in_their_order():
    first, second = (torch.linalg.qr(normal(seed, 5, 5))[0] for seed in (33, 34))
    found = dense(Composed(Matrix(first), Matrix(second)), (5,))
    torch.testing.assert_close(found, first @ second, rtol=0, atol=1e-14)


# -- Gaussians in them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", ["one for each axis", "for each state too", "a number"])
@pytest.mark.parametrize("case", DENSE, indirect=True)
def test_gaussians_are_the_dense_ones(case, values):
    shape, basis = case
    d = int(np.prod(shape))
    v = {"one for each axis": normal(40, *shape), "for each state too": normal(40, 3, *shape)}.get(values)
    variances = 0.3 if v is None else v.square() + 0.1
    covariance = InBasis(variances, basis=basis)
    q = dense(basis, shape)
    full = q @ torch.diag_embed(torch.as_tensor(variances, dtype=torch.float64).expand(3, *shape).reshape(3, d)) @ q.T
    x, mean = normal(41, 3, *shape), normal(42, 3, *shape)
    reference = MultivariateNormal(mean.flatten(1), full)
    expected = reference.log_prob(x.flatten(1))
    torch.testing.assert_close(covariance.log_density(x, mean), expected, rtol=1e-9, atol=1e-9)
    isotropic = MultivariateNormal(x.flatten(1), 0.2 * torch.eye(d).double())
    kl = covariance.kl_from_isotropic(0.2, x - mean)
    torch.testing.assert_close(kl, kl_divergence(isotropic, reference), rtol=1e-9, atol=1e-9)


def test_the_average_keeps_the_trace_in_any_basis(case):
    shape, basis = case
    values, x = normal(43, 1, *shape).square() + 0.1, normal(44, 3, *shape)
    average = InBasis(values, basis=basis).average()
    isotropic = Diagonal(float(values.mean()))
    zero = torch.zeros_like(x)
    torch.testing.assert_close(average.log_density(x, zero), isotropic.log_density(x, zero), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(average.draw(zero, x), isotropic.draw(zero, x), rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", [(2, 2, 3), (12,)])
@pytest.mark.parametrize("t", [10.0, 300.0, 1000.0])
def test_the_posterior_of_gaussian_data_is_diagonal_in_their_pca(shape, t):
    """Cov[x_0 | x_t] = (C^-1 + gamma_t I)^-1, and a reverse step's lambda2 I + gain^2 Cov, from variances alone."""
    d, data = 12, correlated(shape)
    c = torch.cov(data.flatten(1).T, correction=0)
    basis = make("pca", shape, data)
    kernel = reverse_kernel(linear(1000), t, t // 2)
    gamma = float(kernel.alpha_t**2 / kernel.sigma_t**2)
    variances = basis.forward(data - data.mean(0)).square().mean(0)
    posterior = InBasis(variances / (1.0 + gamma * variances), basis=basis)
    exact = torch.linalg.inv(torch.linalg.inv(c) + gamma * torch.eye(d).double())
    lambda2, gain2 = float(kernel.lambda2), float(kernel.gain**2)
    step = replace(posterior, values=lambda2 + gain2 * posterior.values)
    wanted = lambda2 * torch.eye(d).double() + gain2 * exact
    eye = torch.eye(d, dtype=torch.float64).reshape(d, *shape)
    for covariance, expected in ((posterior, exact), (step, wanted)):
        root = covariance.draw(torch.zeros_like(eye), eye).flatten(1)
        scale = float(expected.diagonal().max())
        torch.testing.assert_close(root @ root.T, expected, rtol=0, atol=1e-10 * scale)


# -- a matrix from a file ---------------------------------------------------------------------------------------------


def written(folder: Path, matrix: np.ndarray, suffix: str = ".npy") -> str:
    path = folder / f"axes{suffix}"
    if suffix == ".npy":
        np.save(path, matrix)
    else:
        np.savez(path, basis=matrix, other=np.zeros(2))
    return str(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_matrix_from_a_file_has_its_axes_in_columns(tmp_path, suffix):
    """Written in float32, and orthonormal to float64's own precision once it is read."""
    q = torch.linalg.qr(normal(50, 12, 12))[0].numpy() * (-1.0) ** np.arange(12)  # not the signs that QR would choose
    basis = make("matrix", (3, 2, 2), basis_file=written(tmp_path, q.astype(np.float32), suffix))
    x = normal(51, 4, 3, 2, 2)
    np.testing.assert_allclose(basis.forward(x).flatten(1).numpy(), x.flatten(1).numpy() @ q, rtol=0, atol=2e-6)
    torch.testing.assert_close(basis.inverse(basis.forward(x)), x, rtol=0, atol=1e-12)


def test_the_tolerance_of_a_matrix_from_a_file(tmp_path):
    for off, passes in ((4e-6, True), (6e-6, False)):
        stretched = np.diag([1.0 + off, 1.0, 1.0])  # |Q^T Q - I| = 2 off
        path = written(tmp_path, stretched)
        if passes:
            np.testing.assert_allclose(dense(make("matrix", (3,), basis_file=path), (3,)), np.eye(3), atol=1e-12)
        else:
            with pytest.raises(UserError, match=r"axes.npy' holds no orthonormal basis: .* is 1.2e-05, above 1e-05"):
                make("matrix", (3,), basis_file=path)


def test_files_that_hold_no_basis_are_refused_in_words(tmp_path):
    nan = np.eye(4)
    nan[1, 2] = np.nan
    for matrix, told in (
        (np.eye(3), r"holds float64 \(3, 3\); data of shape \(4,\) want finite real numbers \(4, 4\)"),
        (np.eye(4)[:, :3], r"holds float64 \(4, 3\)"),
        (nan, "want finite real numbers"),
        (np.eye(4) * 1j, r"holds complex128 \(4, 4\)"),
        (np.ones((4, 4)), r"an entry of \|Q\^T Q - I\| is 4, above 1e-05"),
    ):
        with pytest.raises(UserError, match=told):
            make("matrix", (4,), basis_file=written(tmp_path, matrix))
    page = tmp_path / "page.npy"
    page.write_text("<!doctype html><p>404")
    (tmp_path / "cut.npy").write_bytes(Path(written(tmp_path, np.eye(4))).read_bytes()[:-8])
    np.savez(tmp_path / "other.npz", axes=np.eye(4))
    for name, told in (
        ("none.npy", "`basis_file` '.*none.npy' does not exist"),
        ("page.npy", "cannot be read as a matrix: it is an HTML page"),
        ("cut.npy", "cannot be read as a matrix: it claims an array"),
        ("other.npz", "cannot be read as a matrix: it holds no array 'basis'"),
    ):
        with pytest.raises(UserError, match=told):
            make("matrix", (4,), basis_file=str(tmp_path / name))
    with pytest.raises(UserError, match="needs `basis_file`"):
        make("matrix", (4,))


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "options", "told"),
    [
        ("pca", (5000,), {}, "`rank` = 0 keeps all 5000 directions of the data, more than 4096"),
        ("pca", (4,), {"rank": 5}, r"`rank` = 5 must lie in 1..4"),
        ("dct", (4, 4), {}, r"images \[C, H, W\] and vectors \[d\]; the data have shape \(4, 4\)"),
        ("dct", (5000,), {}, r"sides up to 4096, and data of shape \(5000,\) have one of 5000"),
        ("block_dct", (1, 10, 20), {}, r"`block` = 8 must divide the sides of .* \(1, 10, 20\), so be a divisor of 10"),
        ("block_dct", (4, 4), {"block": 2}, r"images \[C, H, W\]"),
        ("haar", (1, 8, 7), {}, r"halves even sides, and \(1, 8, 7\) has an odd one"),
        ("haar", (4, 4), {}, r"images \[C, H, W\]"),
        ("colour", (1, 8, 8), {}, r"more than one channel, and the data have shape \(1, 8, 8\)"),
        ("colour", (8,), {}, "more than one channel"),
    ],
)
def test_data_that_have_no_such_basis_are_told_before_anything_is_built(name, shape, options, told):
    with pytest.raises(UserError, match=told):
        built(BASES, name, "`basis`", BasisNeeds(shape, unasked), **options)
    with pytest.raises(UserError, match=told):
        raise UserError(BASES[name].facts.misfit(shape, **options))


def test_facts_know_what_fits():
    for case, (name, shape, options) in CASES.items():
        assert BASES[name].facts.misfit(shape, **options) == built_case(case)[1].misfit(shape) == ""
    assert BASES["matrix"].facts.misfit((4,)) and not BASES["matrix"].facts.misfit((4,), basis_file="axes.npy")


def test_a_basis_of_other_data_is_refused():
    for basis, shape, told in (
        (
            make("pca", VECTOR),
            (1, 5, 5),
            r"does not fit the data: it has 24 axes, and data of shape \(1, 5, 5\) have 25",
        ),
        (make("pca", VECTOR, rank=3), (25,), "it has 24 axes"),
        (make("colour", COLOURED), (1, 8, 8), r"images \[C, H, W\] of 3 channels, and the data have shape \(1, 8, 8\)"),
        (make("dct", COLOURED), (2, 8, 8), "of 3 channels"),
        (make("block_dct", COLOURED), (3, 8, 9), "`block` = 8 must divide"),
    ):
        with pytest.raises(UserError, match=told):
            check_basis(basis, shape)
    check_basis(make("dct", COLOURED), (3, 5, 7))


def test_data_that_are_not_finite_have_no_colours():
    data = correlated(COLOURED, 20)
    data[3, 1, 2, 2] = torch.inf
    with pytest.raises(UserError, match="finite images"):
        make("colour", COLOURED, data)


def changed(basis: Basis, **changes: np.ndarray | None) -> dict[str, np.ndarray]:
    arrays = {**basis_arrays(basis), **changes}
    return {name: array for name, array in arrays.items() if array is not None}


def test_damaged_stores_are_refused_in_words():
    matrix, reflectors = Matrix(torch.eye(3).double()), Reflectors.of(torch.linalg.qr(normal(60, 5, 2))[0])
    for arrays, told in (
        ({}, "no array 'basis'"),
        ({"basis": np.array([], dtype=str)}, "has no parts"),
        ({"basis": np.array(["dtc"])}, r"part 0 of the stored basis = 'dtc' is unknown \(did you mean 'dct'\?\)"),
        (changed(matrix, basis_0_columns=None), "no array 'basis_0_columns', which 'matrix' is made of"),
        (changed(matrix, basis_0_columns=np.eye(3)[0]), r"float64 \(3,\), must be finite numbers in 2 dimensions"),
        (changed(matrix, basis_0_columns=np.eye(3) * np.nan), "must be finite numbers"),
        (changed(matrix, basis_0_columns=np.eye(3, dtype=complex)), "complex128"),
        (changed(matrix, basis_0_columns=1.1 * np.eye(3)), r"'matrix' is damaged: .* is 0.21, above 1e-05"),
        (changed(matrix, basis_0_columns=np.eye(3)[:2]), r"a matrix \(2, 3\) is not square"),
        (changed(BlockCosine(), basis_0_block=np.array(2.5)), "must be a whole number"),
        (changed(BlockCosine(), basis_0_block=np.array(0)), "its blocks are of 0, not of 1..4096"),
        (changed(reflectors, basis_0_taus=np.ones(3)), r"3 reflectors do not go with an array \(5, 2\)"),
        (changed(reflectors, basis_0_taus=np.array([1.0, 1.0])), "its reflectors are not orthogonal"),
    ):
        with pytest.raises(UserError, match=told):
            basis_from(arrays)
