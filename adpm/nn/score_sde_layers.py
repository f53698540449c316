"""The layers of Song et al. 2021's networks (score_sde), named as their published state dicts name them.

Conventions that differ from their relatives: sines before cosines with frequencies 10000^(-i/(half - 1)), GroupNorm eps
1e-6 with min(channels/4, 32) groups, up- and down-sampling inside residual blocks, sums divided by sqrt(2), attention
weights stored (in, out).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpm.nn.fir import FirBlur

NOTHING = 1e-10  # initial scale of the layers that end a residual branch or the network


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """[sin(t f_i), cos(t f_i)], f_i = 10000^(-i / (half - 1)), half = dim / 2; t is [B], float32, any real values."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000.0) / (half - 1) * torch.arange(half, dtype=torch.float32, device=t.device))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class FourierFeatures(nn.Module):
    """[sin(2 pi W ln sigma), cos(2 pi W ln sigma)] with fixed frequencies W ~ N(0, 16^2): [B] -> [B, 2 dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.W = nn.Parameter(16.0 * torch.randn(dim), requires_grad=False)

    def forward(self, sigma: Tensor) -> Tensor:
        angles = sigma.float().log()[:, None] * self.W * (2 * math.pi)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


def group_norm(channels: int) -> nn.GroupNorm:
    """min(channels/4, 32) groups, or the most that divide both where that does not divide the channels."""
    return nn.GroupNorm(math.gcd(channels, min(channels // 4, 32)), channels, eps=1e-6)


def _scaled(layer: nn.Conv2d | nn.Linear, scale: float) -> nn.Module:
    """Weights uniform with variance scale / mean(fan-in, fan-out), biases zero."""
    nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(scale))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv(c_in: int, c_out: int, scale: float = 1.0) -> nn.Module:
    return _scaled(nn.Conv2d(c_in, c_out, 3, padding=1), scale)


def linear(c_in: int, c_out: int) -> nn.Module:
    return _scaled(nn.Linear(c_in, c_out), 1.0)


class PyramidDown(nn.Module):
    """One step of the input pyramid: low-pass filter (H -> H + 1), then a strided convolution (-> H/2)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.blur = FirBlur()
        self.Conv2d_0 = _scaled(nn.Conv2d(c_in, c_out, 3, stride=2), 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.Conv2d_0(self.blur(x))


class ResidualBlock(nn.Module):
    """(skip(x) + conv(dropout(silu(norm(conv(silu(norm(x))) + dense(silu(emb))))))) / sqrt(2).

    With `resample`, x and silu(norm(x)) are both resampled, and the skip is a convolution even at equal width.
    """

    def __init__(
        self, c_in: int, c_out: int, c_emb: int, dropout: float, resample: Callable[[], nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.GroupNorm_0 = group_norm(c_in)
        self.Conv_0 = conv(c_in, c_out)
        self.Dense_0 = linear(c_emb, c_out)
        self.GroupNorm_1 = group_norm(c_out)
        self.Dropout_0 = nn.Dropout(dropout)
        self.Conv_1 = conv(c_out, c_out, NOTHING)
        self.resample = resample() if resample else nn.Identity()
        self.Conv_2 = _scaled(nn.Conv2d(c_in, c_out, 1), 1.0) if resample or c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.Conv_0(self.resample(F.silu(self.GroupNorm_0(x))))
        h = h + self.Dense_0(F.silu(emb))[:, :, None, None]
        h = self.Conv_1(self.Dropout_0(F.silu(self.GroupNorm_1(h))))
        return (self.Conv_2(self.resample(x)) + h) / math.sqrt(2.0)


class PixelLinear(nn.Module):
    """x W + b over the last dimension, W stored (in, out): the `NIN` of the published state dicts."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.W = nn.Parameter(nn.init.xavier_uniform_(torch.empty(channels, channels), gain=math.sqrt(scale)))
        self.b = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.W.mT, self.b)


class Attention(nn.Module):
    """(x + self-attention over pixels) / sqrt(2), one head, logits scaled by 1/sqrt(channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = group_norm(channels)
        self.NIN_0, self.NIN_1, self.NIN_2 = (PixelLinear(channels, 0.1) for _ in range(3))
        self.NIN_3 = PixelLinear(channels, NOTHING)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.GroupNorm_0(x).flatten(2).mT[:, None]  # [B, one head, H W, C]
        attended = F.scaled_dot_product_attention(self.NIN_0(pixels), self.NIN_1(pixels), self.NIN_2(pixels))
        return (x + self.NIN_3(attended)[:, 0].mT.reshape(x.shape)) / math.sqrt(2.0)
