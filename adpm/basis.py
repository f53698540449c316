"""Orthonormal bases of images [C, H, W] and of vectors [d], and those that are made of numbers.

A basis is an orthonormal Q [d, d], d = C H W. Coordinates Q^T x are laid out as x is, so that one number per coordinate
has the shape of an image. A multiple of I is diagonal in every basis, and none changes |x| or a density.

    Matrix        Q itself
    Reflectors    Q = H_1 ... H_k, Householder reflectors whose product begins with k given directions; d x d is never
                  made: Q = I - V T V^T, T = (I + diag(tau) triu(V^T V, 1))^-1 diag(tau) (Schreiber & Van Loan 1989)
    Colour        M^T x for every pixel, M [C, C] orthonormal
    Composed      one after the other
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

TOLERANCE = 1e-5
"""The largest entry of |Q^T Q - I| with which numbers from elsewhere pass as orthonormal."""

Shape = tuple[int, ...]


class Basis(ABC):
    """Orthonormal axes; x has shape [B, *shape of the data], any float dtype, and stays on its device.

    Attributes:
        STATE: what is stored of one, with the number of dimensions of each array; 0: a whole number.
    """

    STATE: ClassVar[Mapping[str, int]] = {}

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Coordinates of x along the axes, of x's shape."""

    @abstractmethod
    def inverse(self, coordinates: Tensor) -> Tensor:
        """What has these coordinates."""

    def misfit(self, shape: Shape) -> str:
        """Why it is no basis of data of a shape; "" if it is."""
        return ""

    def flaw(self) -> str:
        """What is wrong with its numbers, which may come from a file; "" if nothing is."""
        return ""


@dataclass(frozen=True, eq=False)
class Tabled(Basis):
    """A basis with tables of numbers, converted once for each dtype and device that asks."""

    _converted: dict[tuple[torch.dtype, torch.device], list[Tensor]] = field(
        default_factory=dict, init=False, repr=False
    )

    @abstractmethod
    def _tables(self) -> list[Tensor]: ...

    def _as(self, like: Tensor) -> list[Tensor]:
        key = (like.dtype, like.device)
        if key not in self._converted:
            with torch.inference_mode(False):  # they are kept, and who asks next may want derivatives
                self._converted[key] = [table.to(device=like.device, dtype=like.dtype) for table in self._tables()]
        return self._converted[key]


@dataclass(frozen=True)
class Pixels(Basis):
    """The pixels themselves."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def inverse(self, coordinates: Tensor) -> Tensor:
        return coordinates


@dataclass(frozen=True, eq=False)
class Matrix(Tabled):
    """The columns of an orthonormal matrix [d, d]."""

    columns: Tensor
    STATE = {"columns": 2}

    def _tables(self) -> list[Tensor]:
        return [self.columns]

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self._as(x)[0]).reshape(x.shape)

    def inverse(self, coordinates: Tensor) -> Tensor:
        return (coordinates.flatten(1) @ self._as(coordinates)[0].mT).reshape(coordinates.shape)

    def misfit(self, shape: Shape) -> str:
        return _other_size(len(self.columns), shape)

    def flaw(self) -> str:
        return _not_orthonormal(self.columns)


@dataclass(frozen=True, eq=False)
class Reflectors(Tabled):
    """A product of k Householder reflectors I - tau v v^T, in LAPACK's packed form.

    Attributes:
        packed: [d, k]; below its diagonal stand the v, whose entry on the diagonal is 1.
        taus: [k].
    """

    packed: Tensor
    taus: Tensor
    STATE = {"packed": 2, "taus": 1}

    @staticmethod
    def of(directions: Tensor) -> Reflectors:
        """The basis whose first axes are the given orthonormal columns [d, k], up to signs."""
        packed, taus = torch.geqrf(directions)
        return Reflectors(packed.contiguous(), taus)

    def _vectors(self) -> Tensor:
        return self.packed.tril(-1) + torch.eye(*self.packed.shape, dtype=self.packed.dtype, device=self.packed.device)

    def _tables(self) -> list[Tensor]:
        v = self._vectors()
        eye = torch.eye(len(self.taus), dtype=v.dtype, device=v.device)
        upper = eye + self.taus[:, None] * (v.mT @ v).triu(1)
        return [v, torch.linalg.solve_triangular(upper, torch.diag(self.taus), upper=True, unitriangular=True)]

    def forward(self, x: Tensor) -> Tensor:
        v, t = self._as(x)
        flat = x.flatten(1)
        return (flat - flat @ v @ t @ v.mT).reshape(x.shape)

    def inverse(self, coordinates: Tensor) -> Tensor:
        v, t = self._as(coordinates)
        flat = coordinates.flatten(1)
        return (flat - flat @ v @ t.mT @ v.mT).reshape(coordinates.shape)

    def misfit(self, shape: Shape) -> str:
        return _other_size(len(self.packed), shape)

    def flaw(self) -> str:
        d, k = self.packed.shape
        if len(self.taus) != k or not 0 < k <= d:
            return f"{len(self.taus)} reflectors do not go with an array {(d, k)}"
        # (I - tau v v^T)^2 = I asks for tau (tau |v|^2 - 2) = 0
        off = float((self.taus * (self.taus * self._vectors().square().sum(0) - 2.0)).abs().max())
        return "" if off <= TOLERANCE else f"its reflectors are not orthogonal, by {off:.2g}"


@dataclass(frozen=True, eq=False)
class Colour(Matrix):
    """The columns of an orthonormal matrix [C, C], over the channels of every pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return (self._as(x)[0].mT @ x.flatten(2)).reshape(x.shape)

    def inverse(self, coordinates: Tensor) -> Tensor:
        return (self._as(coordinates)[0] @ coordinates.flatten(2)).reshape(coordinates.shape)

    def misfit(self, shape: Shape) -> str:
        made = len(self.columns)
        if len(shape) == 3 and shape[0] == made:
            return ""
        return f"it is made for images [C, H, W] of {made} channels, and the data have shape {shape}"


@dataclass(frozen=True)
class Composed(Basis):
    """The coordinates in `second` of the coordinates in `first`."""

    first: Basis
    second: Basis

    def forward(self, x: Tensor) -> Tensor:
        return self.second.forward(self.first.forward(x))

    def inverse(self, coordinates: Tensor) -> Tensor:
        return self.first.inverse(self.second.inverse(coordinates))

    def misfit(self, shape: Shape) -> str:
        return self.first.misfit(shape) or self.second.misfit(shape)


def _other_size(size: int, shape: Shape) -> str:
    d = math.prod(shape)
    return "" if size == d else f"it has {size} axes, and data of shape {shape} have {d} dimensions"


def _not_orthonormal(columns: Tensor) -> str:
    if columns.shape[0] != columns.shape[1]:
        return f"a matrix {tuple(columns.shape)} is not square"
    off = float((columns.mT @ columns - torch.eye(len(columns)).to(columns)).abs().max())
    told = f"its columns are not orthonormal: an entry of |Q^T Q - I| is {off:.2g}, above {TOLERANCE:g}"
    return "" if off <= TOLERANCE else told
