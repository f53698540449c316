"""Orthonormal bases that no numbers are needed for: cosines and wavelets along the sides of images [C, H, W].

    Cosine        D_H x D_W^T for each channel, D_kj = sqrt((2 - [k = 0])/n) cos(pi (j + 1/2) k/n) (Ahmed et al. 1974)
    BlockCosine   the same in each block of b x b, as in JPEG
    Haar          (even + odd)/sqrt(2), then (even - odd)/sqrt(2), along both sides; again in the corner of the sums, as
                  long as its sides are even (Mallat 1989)

A vector [d] has one side. All of them are products with small matrices, O(d (H + W)) at most.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import EllipsisType

import torch
from torch import Tensor

from adpm.basis import Basis, Shape
from adpm.gaussian_score import LARGEST


class Separable(Basis):
    """Matrices along the sides of data, one for each side; those smaller than it are used block by block."""

    @abstractmethod
    def _matrices(self, x: Tensor) -> list[Tensor]: ...

    def forward(self, x: Tensor) -> Tensor:
        return _along(x, self._matrices(x))

    def inverse(self, coordinates: Tensor) -> Tensor:
        return _along(coordinates, [matrix.mT for matrix in self._matrices(coordinates)])


@dataclass(frozen=True)
class Cosine(Separable):
    """The cosine transform (DCT-II) of every channel as a whole."""

    def _matrices(self, x: Tensor) -> list[Tensor]:
        return [_dct(side, x.dtype, x.device) for side in _sides(x.shape[1:])]

    def misfit(self, shape: Shape) -> str:
        return _no_sides(shape) or _too_long(shape)


@dataclass(frozen=True)
class BlockCosine(Separable):
    """The cosine transform of every `block` x `block` pixels, each block in its place."""

    block: int = 8
    STATE = {"block": 0}

    def _matrices(self, x: Tensor) -> list[Tensor]:
        return [_dct(self.block, x.dtype, x.device)] * len(_sides(x.shape[1:]))

    def misfit(self, shape: Shape) -> str:
        sides = _sides(shape)
        told = f"`block` = {self.block} must divide the sides of data of shape {shape}, so be a divisor of "
        return _no_sides(shape) or (f"{told}{math.gcd(*sides)}" if any(side % self.block for side in sides) else "")

    def flaw(self) -> str:
        return "" if 1 <= self.block <= LARGEST else f"its blocks are of {self.block}, not of 1..{LARGEST}"


@dataclass(frozen=True)
class Haar(Basis):
    """The orthonormal Haar wavelet transform of every channel; the coarsest coordinates stand in the corner."""

    def forward(self, x: Tensor) -> Tensor:
        out = x.clone()
        for corner, matrices in _halvings(x):
            out[corner] = _along(out[corner], matrices)
        return out

    def inverse(self, coordinates: Tensor) -> Tensor:
        out = coordinates.clone()
        for corner, matrices in [*_halvings(coordinates)][::-1]:
            out[corner] = _along(out[corner], [matrix.mT for matrix in matrices])
        return out

    def misfit(self, shape: Shape) -> str:
        odd = any(side % 2 for side in _sides(shape))
        told = f"Haar's transform halves even sides, and {shape} has an odd one" if odd else ""
        return _no_sides(shape) or told or _too_long(shape)


def _sides(shape: Sequence[int]) -> Shape:
    """Of an image [C, H, W]: H and W; of a vector: its length."""
    return tuple(shape[1:] if len(shape) == 3 else shape)


def _too_long(shape: Shape) -> str:
    longest = max(_sides(shape), default=0)
    told = f"its matrices are made for sides up to {LARGEST}, and data of shape {shape} have one of {longest}"
    return told if longest > LARGEST else ""


def _no_sides(shape: Shape) -> str:
    return "" if len(shape) in (1, 3) else f"it is for images [C, H, W] and vectors [d]; the data have shape {shape}"


def _along(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """A matrix [b, b] for each side, applied to every run of b entries along it."""
    *upper, last = matrices
    x = (x.unflatten(-1, (-1, len(last))) @ last.mT).flatten(-2)
    for matrix in upper:
        x = (matrix @ x.unflatten(-2, (-1, len(matrix)))).flatten(-3, -2)
    return x


@lru_cache(maxsize=32)
def _dct(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal DCT-II, frequencies in rows."""
    with torch.inference_mode(False):
        index = torch.arange(n)
        turns = (index[:, None] * (2 * index + 1)) % (4 * n)  # in 1/(4 n) of one: no rounding of large angles
        rows = (turns.double() * (math.pi / (2 * n))).cos() * math.sqrt(2.0 / n)
        rows[0] = 1.0 / math.sqrt(n)
        return rows.to(device=device, dtype=dtype)


@lru_cache(maxsize=32)
def _haar(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Sums of neighbours in the first n/2 rows, their differences below, over sqrt(2)."""
    with torch.inference_mode(False):
        eye = torch.eye(n // 2, dtype=torch.float64)
        pairs = [torch.kron(eye, torch.tensor([[1.0, sign]]).double()) for sign in (1.0, -1.0)]
        return (torch.cat(pairs) * math.sqrt(0.5)).to(device=device, dtype=dtype)


def _halvings(x: Tensor) -> Iterator[tuple[tuple[EllipsisType | slice, ...], list[Tensor]]]:
    """The corners of x that are halved, one inside the other, with the matrix for each of their sides."""
    sides = _sides(x.shape[1:])
    while not any(side % 2 for side in sides):
        yield (..., *map(slice, sides)), [_haar(side, x.dtype, x.device) for side in sides]
        sides = tuple(side // 2 for side in sides)
