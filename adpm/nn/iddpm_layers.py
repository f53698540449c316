"""The layers of Improved DDPM's U-Net, named as its published state dicts name them.

Conventions that differ from their relatives: cosines before sines with frequencies 10000^(-i/half), GroupNorm eps 1e-5,
stride-2 convolutions padded on both sides, attention with head-major q/k/v rows in a 1-D convolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """[cos(t f_i), sin(t f_i)], f_i = 10000^(-i / half), half = dim / 2; t is [B], float32, any real values."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS if channels % GROUPS == 0 else math.gcd(channels, GROUPS), channels, eps=1e-5)


def zeroed(module: nn.Conv1d | nn.Conv2d) -> nn.Module:
    """Zero the weights: residual branches and outputs start as nothing."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


class ResidualBlock(nn.Module):
    """skip(x) + conv(dropout(silu(modulate(norm(conv(silu(norm(x)))), emb)))).

    With scale-shift, modulate(h) = norm(h) (1 + scale) + shift; without, norm(h + shift). With `resize` both x and what
    enters the first convolution are resized (guided-diffusion's `resblock_updown`).
    """

    def __init__(
        self, c_in: int, c_out: int, c_emb: int, scale_shift: bool, dropout: float, resize: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.scale_shift, self.resize = scale_shift, resize
        self.in_layers = nn.Sequential(group_norm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(c_emb, 2 * c_out if scale_shift else c_out))
        self.out_layers = nn.Sequential(
            group_norm(c_out), nn.SiLU(), nn.Dropout(dropout), zeroed(nn.Conv2d(c_out, c_out, 3, padding=1))
        )
        self.skip_connection = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[:2](x)
        if self.resize is not None:
            x, h = self.resize(x), self.resize(h)
        h = self.in_layers[2](h)
        modulation = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = modulation.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + modulation)
        return self.skip_connection(x) + h


class Attention(nn.Module):
    """Multi-head self-attention over pixels with a residual connection; logits scaled by 1/sqrt(channels per head)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        b, c, h, w = x.shape
        flat = x.reshape(b, c, h * w)
        # rows are head-major: head j owns 3 c/heads consecutive rows, its q, then k, then v
        q, k, v = self.qkv(self.norm(flat)).reshape(b, self.heads, 3, c // self.heads, h * w).unbind(2)
        attended = F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT
        return (flat + self.proj_out(attended.reshape(b, c, h * w))).reshape(b, c, h, w)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Stem(nn.Conv2d):
    """The first convolution, with the call shape of every other entry."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class Stage(nn.ModuleList):
    """Layers called one after another with (x, emb)."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb)
        return x


@dataclass(frozen=True)
class Parts:
    """What the stages of a network are made of.

    Attributes:
        c_emb: width of the time embedding.
        scale_shift, dropout: see `ResidualBlock`.
        num_heads: of attention; used unless there are `head_channels`.
        head_channels: channels of each head; 0: as many as `num_heads` leave.
        updown: whether residual blocks change the sides, instead of convolutions.
    """

    c_emb: int
    scale_shift: bool
    dropout: float
    num_heads: int = 1
    head_channels: int = 0
    updown: bool = False

    def block(self, c_in: int, c_out: int, resize: nn.Module | None = None) -> ResidualBlock:
        return ResidualBlock(c_in, c_out, self.c_emb, self.scale_shift, self.dropout, resize)

    def attention(self, width: int) -> Attention:
        return Attention(width, width // self.head_channels if self.head_channels else self.num_heads)

    def stage(self, c_in: int, c_out: int, attends: bool) -> Stage:
        return Stage([self.block(c_in, c_out), *([self.attention(c_out)] if attends else [])])

    def middle(self, width: int) -> Stage:
        return Stage([self.block(width, width), self.attention(width), self.block(width, width)])

    def halved(self, width: int) -> nn.Module:
        return self.block(width, width, nn.AvgPool2d(2)) if self.updown else Downsample(width)

    def doubled(self, width: int) -> nn.Module:
        twice = nn.Upsample(scale_factor=2, mode="nearest")
        return self.block(width, width, twice) if self.updown else Upsample(width)


def readout(channels: int, out: int) -> list[nn.Module]:
    return [group_norm(channels), nn.SiLU(), zeroed(nn.Conv2d(channels, out, 3, padding=1))]


class ComplexHead(nn.ModuleList):
    """A residual block before the readout; indices follow the published state dicts (out2.0, out2.1, out2.3)."""

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        h = self[0](h, emb)
        for layer in list(self)[1:]:
            h = layer(h)
        return h


class SimpleHead(nn.Sequential):
    def forward(self, h: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(h)
