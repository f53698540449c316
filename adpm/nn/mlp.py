"""A residual multilayer perceptron on vectors, for data without neighbourhoods, such as embeddings.

    h_0 = W x + b,    h_{k+1} = h_k + W_2 silu(modulate(W_1 silu(norm(h_k)), emb)),    y = W silu(norm(h_K)) + b

modulate(h) = norm(h) (1 + scale) + shift, scale and shift linear in the time embedding, as in adpm/nn/iddpm.py. Data of
any shape are taken as one vector. Residual branches and outputs begin as nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from adpm.errors import UserError, lookup
from adpm.nn.heads import Headed
from adpm.nn.iddpm import timestep_embedding


class Block(nn.Module):
    """One residual branch of a hidden layer [B, width], modulated by the embedding [B, 4 width]."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.first = nn.LayerNorm(width), nn.Linear(width, width)
        self.modulated, self.modulation = nn.LayerNorm(width), nn.Linear(4 * width, 2 * width)
        self.dropout, self.second = nn.Dropout(dropout), _nothing(nn.Linear(width, width))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.modulation(F.silu(emb)).chunk(2, dim=1)
        inner = self.modulated(self.first(F.silu(self.norm(h)))) * (1 + scale) + shift
        return h + self.second(self.dropout(F.silu(inner)))


class MLP(Headed):
    """The network for data of a shape.

    Args:
        shape: of the data, (C, H, W).
        width: of the hidden layers, even.
        depth: residual blocks.
        dropout: before the last layer of each block.
        head: "none", or "simple": a second readout of the last hidden layer.
    """

    HEAD: ClassVar[tuple[str, ...]] = ("out2",)

    def __init__(self, shape: Sequence[int], width: int, depth: int, dropout: float, head: str) -> None:
        super().__init__()
        size = math.prod(shape)
        self.in_channels, self.width, self._shape = shape[0], width, tuple(shape)
        self.time_embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        self.input = nn.Linear(size, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(depth))
        self.out = _readout(width, size)
        if lookup(HEADS, head, "`head`"):
            self.out2 = _readout(width, size)

    @property
    def in_basis(self) -> bool | None:
        """Its readouts see the whole hidden layer, and know of no pixels."""
        return None

    def features(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The last hidden layer [B, width] and the time embedding [B, 4 width]."""
        emb = self.time_embed(timestep_embedding(t, self.width).to(x.dtype))
        h = self.input(x.flatten(1))
        for block in self.blocks:
            h = block(h, emb)
        return h, emb

    def mean_output(self, h: Tensor, t: Tensor) -> Tensor:
        return self.out(h).unflatten(1, self._shape)

    def head_output(self, h: Tensor, emb: Tensor, modules: Mapping[str, nn.Module] | nn.ModuleDict) -> Tensor:
        return modules["out2"](h).unflatten(1, self._shape)


HEADS = {"none": False, "simple": True}


def build(shape: Sequence[int], *, width: int = 512, depth: int = 4, dropout: float = 0.0, head: str = "none") -> MLP:
    """The network for data of `shape`.

    Raises:
        UserError: for numbers that no network has.
    """
    if width < 2 or width % 2:
        raise UserError(f"`width` = {width} must be an even number of at least 2.")
    if depth < 1:
        raise UserError(f"`depth` = {depth} must be at least 1.")
    return MLP(shape, width, depth, dropout, head)


def _readout(width: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.SiLU(), _nothing(nn.Linear(width, size)))


def _nothing(layer: nn.Linear) -> nn.Linear:
    """The layer with weights of zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
