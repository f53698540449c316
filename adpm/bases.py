"""The bases by name: fixed ones, those that the data give, and those from files.

A basis of the data is kept with what was measured in it, not fitted again: eigenvectors of close eigenvalues differ
between machines, and the moments would be those of other axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adpm.basis import Basis, Colour, Composed, Matrix, Pixels, Reflectors, Shape
from adpm.draws import AT_ONCE, Source
from adpm.errors import UserError, lookup
from adpm.families import Family, Field, Kind, built
from adpm.gaussian_score import check_rank, fit_gaussian, leading
from adpm.reading import looks_like, plain_file, read_npy, read_npz
from adpm.transforms import BlockCosine, Cosine, Haar


@dataclass(frozen=True)
class BasisNeeds:
    """What a basis's builder may ask for.

    Attributes:
        shape: of an image or a vector of the data.
        source: the data; made when asked.
    """

    shape: Shape
    source: Callable[[], Source]


@dataclass(frozen=True)
class BasisFacts:
    """What may be asked of a basis that is not built.

    Attributes:
        misfit: (shape, own options) -> why there is none for data of this shape; "" if there is one.
        fitted: whether it may depend on the data.
        chooses: whether it stands for all others that fit, of which `bases_of` gives each.
    """

    misfit: Callable[..., str]
    fitted: bool = False
    chooses: bool = False


def check_basis(basis: Basis, shape: Shape) -> None:
    """Refuse a basis of other data.

    Raises:
        UserError: saying why it does not fit.
    """
    if told := basis.misfit(shape):
        raise UserError(f"this basis does not fit the data: {told}.")


# -- kept in files ----------------------------------------------------------------------------------------------------

STORED: dict[str, Callable[..., Basis]] = {
    "pixels": Pixels,
    "matrix": Matrix,
    "reflectors": Reflectors,
    "dct": Cosine,
    "block_dct": BlockCosine,
    "haar": Haar,
    "colour": Colour,
}


def basis_arrays(basis: Basis) -> dict[str, NDArray[Any]]:
    """A basis as arrays, whose names all begin with "basis".

    `basis` holds the names of the parts in the order in which they act, `basis_N_...` what part N is made of.
    """
    parts, names = list(_parts(basis)), {kind: name for name, kind in STORED.items()}
    if unknown := [type(part).__name__ for part in parts if type(part) not in names]:
        raise UserError(
            f"a basis {unknown[0]} cannot be kept; those that can: {', '.join(STORED)}, and their products."
        )
    out: dict[str, NDArray[Any]] = {"basis": np.array([names[type(part)] for part in parts])}
    for number, part in enumerate(parts):
        for entry in part.STATE:
            out[f"basis_{number}_{entry}"] = torch.as_tensor(getattr(part, entry)).cpu().numpy()
    return out


def basis_from(arrays: Mapping[str, NDArray[Any]]) -> Basis:
    """The basis that `basis_arrays` has stored, the same to the last bit; other arrays are not looked at.

    Raises:
        UserError: if an array is missing or of another shape, or the numbers are those of no orthonormal basis.
    """
    if "basis" not in arrays:
        raise UserError("the stored basis has no array 'basis', the names of its parts.")
    names = np.atleast_1d(arrays["basis"])
    if not names.size:
        raise UserError("the stored basis has no parts; the pixels themselves are stored as 'pixels'.")
    return reduce(Composed, [_part(arrays, number, str(name)) for number, name in enumerate(names)])


def _parts(basis: Basis) -> Iterator[Basis]:
    if isinstance(basis, Composed):
        yield from _parts(basis.first)
        yield from _parts(basis.second)
    else:
        yield basis


def _part(arrays: Mapping[str, NDArray[Any]], number: int, name: str) -> Basis:
    kind: Any = lookup(STORED, name, f"part {number} of the stored basis")
    state: dict[str, Tensor | int] = {}
    for entry, ndim in kind.STATE.items():
        key = f"basis_{number}_{entry}"
        if key not in arrays:
            raise UserError(f"the stored basis has no array '{key}', which '{name}' is made of.")
        array = arrays[key]
        if array.ndim != ndim or array.dtype.kind not in ("f" if ndim else "iu") or not np.isfinite(array).all():
            wanted = f"finite numbers in {ndim} dimensions" if ndim else "a whole number"
            raise UserError(f"'{key}' of the stored basis, {array.dtype} {array.shape}, must be {wanted}.")
        state[entry] = torch.from_numpy(array.copy()) if ndim else int(array)
    part: Basis = kind(**state)
    if told := part.flaw():
        raise UserError(f"the stored basis '{name}' is damaged: {told}.")
    return part


# -- made -------------------------------------------------------------------------------------------------------------


def _pca(needs: BasisNeeds, rank: int = 0) -> Basis:
    check_rank(rank, needs.shape)
    columns = fit_gaussian(needs.source(), rank).basis
    assert columns is not None
    d, kept = columns[0].shape
    return Matrix(columns[0]) if kept == d else Reflectors.of(columns[0])


def _no_rank(shape: Shape, rank: int = 0) -> str:
    try:
        check_rank(rank, shape)
    except UserError as error:
        return str(error).rstrip(".")
    return ""


def _colour(needs: BasisNeeds) -> Basis:
    """The eigenvectors of sum over pixels E (x - m)(x - m)^T, with the mean m of each pixel and channel."""
    if told := _no_colours(needs.shape):
        raise UserError(f"this basis does not fit the data: {told}.")
    source = needs.source()
    mean, scatter = source.mean.double(), torch.zeros(1, dtype=torch.float64, device=source.mean.device)
    for part in torch.arange(source.size).split(AT_ONCE):
        delta = (source.images(part).double() - mean).transpose(0, 1).flatten(1)
        scatter = scatter + delta @ delta.mT
    if not bool(torch.isfinite(scatter).all()):
        raise UserError("channels are decorrelated on finite images; some are NaN or infinite.")
    return Colour(leading(scatter / source.size)[1].contiguous())


def _no_colours(shape: Shape) -> str:
    if len(shape) == 3 and shape[0] > 1:
        return ""
    return f"colours are those of images [C, H, W] with more than one channel, and the data have shape {shape}"


def _spatial(needs: BasisNeeds, basis: Basis, colour: bool) -> Basis:
    """A basis of each channel, after decorrelating the channels where there are several."""
    check_basis(basis, needs.shape)
    return Composed(_colour(needs), basis) if colour and not _no_colours(needs.shape) else basis


def _block_dct(needs: BasisNeeds, block: int = 8, colour: bool = True) -> Basis:
    return _spatial(needs, BlockCosine(block), colour)


def _matrix(needs: BasisNeeds, basis_file: str = "") -> Basis:
    if told := _no_file(needs.shape, basis_file):
        raise UserError(f"{told}.")
    path = plain_file(Path(basis_file), "`basis_file`")
    try:
        array = read_npz(path, ["basis"])["basis"] if path.suffix == ".npz" else read_npy(path)
    except Exception as error:  # numpy raises a dozen kinds on damaged files
        kind = looks_like(path)
        told = f"it is {kind}" if kind else str(error).rstrip(".")
        raise UserError(f"`basis_file` '{path}' cannot be read as a matrix: {told}.") from error
    d = int(np.prod(needs.shape))
    if array.shape != (d, d) or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise UserError(
            f"`basis_file` '{path}' holds {array.dtype} {array.shape}; data of shape {needs.shape} want finite real "
            f"numbers ({d}, {d}), an axis in each column."
        )
    basis = Matrix(torch.from_numpy(array.astype(np.float64)))
    if told := basis.flaw():
        raise UserError(f"`basis_file` '{path}' holds no orthonormal basis: {told}.")
    q, r = torch.linalg.qr(basis.columns)  # the axes to float64's own precision, whatever they were written in
    return Matrix((q * r.diagonal().sign()).contiguous())


def _no_file(shape: Shape, basis_file: str = "") -> str:
    return "" if basis_file else "a basis 'matrix' needs `basis_file`, a .npy, or .npz with an array 'basis'"


_COLOUR = {"colour": Field(True, "decorrelate the channels first, where there are several")}


def _undecided(needs: BasisNeeds) -> Basis:
    raise UserError("trajectories are compared in one basis (`flow_basis`), and 'auto' stands for several: name one.")


BASES: dict[str, Kind] = {
    "identity": Kind(lambda needs: Pixels(), "the pixels themselves", BasisFacts(Pixels().misfit)),
    "pca": Kind(
        _pca,
        "eigenvectors of the data's covariance",
        BasisFacts(_no_rank, fitted=True),
        {"rank": Field(0, "directions that are eigenvectors, the rest being any orthogonal ones; 0 = all", low=0)},
    ),
    "dct": Kind(
        lambda needs, colour=True: _spatial(needs, Cosine(), colour),
        "cosine transform (DCT-II) of the whole image",
        BasisFacts(lambda shape, colour=True: Cosine().misfit(shape), fitted=True),
        _COLOUR,
    ),
    "block_dct": Kind(
        _block_dct,
        "cosine transform (DCT-II) of square blocks",
        BasisFacts(lambda shape, block=8, colour=True: BlockCosine(block).misfit(shape), fitted=True),
        {"block": Field(8, "pixels of a block's side", low=1), **_COLOUR},
    ),
    "haar": Kind(
        lambda needs, colour=True: _spatial(needs, Haar(), colour),
        "Haar's wavelets",
        BasisFacts(lambda shape, colour=True: Haar().misfit(shape), fitted=True),
        _COLOUR,
    ),
    "colour": Kind(_colour, "decorrelated channels of each pixel", BasisFacts(_no_colours, fitted=True)),
    "matrix": Kind(
        _matrix,
        "an orthonormal matrix from a file",
        BasisFacts(_no_file),
        {"basis_file": Field(None, "a .npy, or .npz with an array 'basis': [d, d], an axis in each column", type=str)},
    ),
    "auto": Kind(
        _undecided,
        "of all that fit, the one with the lowest held-out bound",
        BasisFacts(Pixels().misfit, fitted=True, chooses=True),
    ),
}
"""Builders take (BasisNeeds, own options); where one chooses, `bases_of` gives what it chooses from."""


def bases_of(family: Family, name: str, needs: BasisNeeds, **options: Any) -> dict[str, Basis]:
    """The basis of a name, or, where that chooses, all others that fit the data without options of their own.

    Raises:
        UserError: as the basis says; for options where there is a choice of bases.
    """
    if not lookup(family, name, "`basis`").facts.chooses:
        return {name: built(family, name, "`basis`", needs, **options)}
    if options:
        raise UserError(f"`basis` '{name}' has no option `{min(options)}`; name the basis that has it.")
    out = {}
    for member, kind in family.items():
        if not kind.facts.chooses and not kind.facts.misfit(needs.shape):
            with suppress(UserError):  # such as PCA of one image
                out[member] = built(family, member, "`basis`", needs)
    return out
