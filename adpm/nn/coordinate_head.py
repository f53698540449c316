"""A head about the coordinates of a basis, which are those of a block of pixels and of no pixel.

Of the last hidden layer h [B, M, H, W], for blocks of b_H x b_W pixels (the whole image unless said):

    silu(norm(h)), averaged over cells, at most 8 x 8 a block -> M/4 channels -> all cells of a block: 1 position, F
    silu(norm(.) (1 + scale) + shift), scale and shift from the time embedding -> C b_H b_W numbers, those of the block

laid out as the block's coordinates are in adpm/transforms.py: those of a block stand where its pixels do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from adpm.errors import UserError
from adpm.nn.heads import COORDINATES, Headed
from adpm.nn.iddpm_layers import group_norm, zeroed

_CELLS, _HIDDEN = 8, 64


class CoordinateHead(nn.Module):
    """(h [B, M, H, W], time embedding [B, E]) -> [B, C, H, W]; a fresh head says nothing.

    Args:
        width: M.
        c_emb: E.
        shape: of an image (C, H, W).
        block: side of the blocks; 0: the whole image is one.

    Raises:
        UserError: if the blocks do not fill the image.
    """

    def __init__(self, width: int, c_emb: int, shape: Sequence[int], block: int = 0) -> None:
        super().__init__()
        channels, *sides = shape
        if block and any(side % block for side in sides):
            raise UserError(f"`head_block` = {block} must divide the sides of images of shape {tuple(shape)}.")
        self.shape = (channels, *(block or side for side in sides))
        cells = [next(n for n in range(min(_CELLS, side), 0, -1) if side % n == 0) for side in self.shape[1:]]
        self.cell = tuple(side // n for side, n in zip(self.shape[1:], cells, strict=True))
        self.norm = group_norm(width)
        self.fewer = nn.Conv2d(width, max(4, width // 4), 1)
        self.gather = nn.Conv2d(max(4, width // 4), _HIDDEN, tuple(cells), stride=tuple(cells))  # type: ignore[arg-type]
        self.hidden_norm = nn.LayerNorm(_HIDDEN, elementwise_affine=False)
        self.modulation = nn.Linear(c_emb, 2 * _HIDDEN)
        self.out = zeroed(nn.Conv2d(_HIDDEN, channels * self.shape[1] * self.shape[2], 1))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        # contiguous: see adpm/nn/diffusers_unet.py
        cells = F.avg_pool2d(F.silu(self.norm(h.contiguous())), self.cell)
        hidden = self.hidden_norm(self.gather(self.fewer(cells)).movedim(1, -1)).movedim(-1, 1)
        scale, shift = self.modulation(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        out = self.out(F.silu(hidden * (1 + scale) + shift)).unflatten(1, self.shape)  # [B, C, b_H, b_W, h, w]
        return out.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)


_KINDS = {"coordinates": CoordinateHead}


def completed(network: Headed, head: str, width: int, c_emb: int, shape: Sequence[int], block: int) -> Headed:
    """The network with a head about coordinates, if that is the kind of its `head`.

    Args:
        network: with its trunk, and its head if that is another.
        head: the kind.
        width, c_emb, shape, block: see `CoordinateHead`.

    Raises:
        UserError: for blocks of another head, which has none.
    """
    kind = _KINDS.get(head)
    if kind is not None:
        network.add_module(COORDINATES, kind(width, c_emb, shape, block))
    elif block:
        raise UserError(f"`head_block` = {block} goes with `head` = {' or '.join(_KINDS)}, not with '{head}'.")
    return network
