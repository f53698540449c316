"""The U-Net of Improved DDPM (Nichol & Dhariwal 2021), state-dict compatible with its published checkpoints.

CIFAR10 and ImageNet64 models of Analytic-DPM and Extended-Analytic-DPM use this layout, the latter with a second
head `out2` on the last hidden layer (`head = "simple" | "complex"`; Bao et al. 2022b). Any width works; the image
size must be divisible by 2^(levels - 1).

Conventions that differ from its relatives: cosines before sines with frequencies 10000^(-i/half), GroupNorm eps 1e-5,
stride-2 convolutions padded on both sides, attention with head-major q/k/v rows in a 1-D convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpm.errors import UserError, lookup
from adpm.nn.heads import Headed
from adpm.nn.sizes import require_heads, require_levels, require_sizes

GROUPS = 32


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """[cos(t f_i), sin(t f_i)], f_i = 10000^(-i / half), half = dim / 2; t is [B], float32, any real values."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS if channels % GROUPS == 0 else math.gcd(channels, GROUPS), channels, eps=1e-5)


def _zero(module: nn.Conv1d | nn.Conv2d) -> nn.Module:
    """Zero the weights: residual branches and outputs start as nothing."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


class ResidualBlock(nn.Module):
    """skip(x) + conv(dropout(silu(modulate(norm(conv(silu(norm(x)))), emb)))).

    With scale-shift, modulate(h) = norm(h) (1 + scale) + shift; without, norm(h + shift).
    """

    def __init__(self, c_in: int, c_out: int, c_emb: int, scale_shift: bool, dropout: float) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(group_norm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(c_emb, 2 * c_out if scale_shift else c_out))
        self.out_layers = nn.Sequential(
            group_norm(c_out), nn.SiLU(), nn.Dropout(dropout), _zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        )
        self.skip_connection = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)
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
        self.proj_out = _zero(nn.Conv1d(channels, channels, 1))

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


def _readout(channels: int, out: int) -> list[nn.Module]:
    return [group_norm(channels), nn.SiLU(), _zero(nn.Conv2d(channels, out, 3, padding=1))]


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


class UNet(Headed):
    """eps (and head) from (x, t).

    Args:
        in_channels: channels of the image.
        out_channels: channels of `out`; beyond `in_channels` they are a second prediction (learned variances).
        model_channels: width M of the finest level.
        channel_mult: width of level l is M * channel_mult[l].
        num_res_blocks: residual blocks per level on the way down (one more on the way up).
        attention_downsample: down-sampling factors (not resolutions) at which attention follows each block.
        num_heads: attention heads.
        scale_shift: FiLM-like time conditioning instead of an added bias.
        dropout: before the last convolution of each residual block.
        head: "none", "simple" or "complex": a second output of `in_channels` channels on the last hidden layer.

    Shapes: x [B, C, H, W], t [B] -> [B, out, H, W], with a head [B, 2C, H, W].

    Raises:
        UserError: for numbers that no network has, heads that do not divide their width, and attention at no level.
    """

    HEAD: ClassVar[tuple[str, ...]] = ("out2",)

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        attention_downsample: Sequence[int] = (),
        num_heads: int = 4,
        scale_shift: bool = True,
        dropout: float = 0.0,
        head: str = "none",
    ) -> None:
        super().__init__()
        require_sizes(model_channels, channel_mult, num_res_blocks, dropout)
        self.in_channels, self.model_channels = in_channels, model_channels
        self.size_multiple = 2 ** (len(channel_mult) - 1)
        c_emb = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, c_emb), nn.SiLU(), nn.Linear(c_emb, c_emb))
        widths = [mult * model_channels for mult in channel_mult]
        factors = [2**level for level in range(len(widths))]
        require_levels("attention_downsample", attention_downsample, factors)
        attends = [factor in attention_downsample for factor in factors]
        require_heads(num_heads, [width for width, attend in zip(widths, attends, strict=True) if attend] + widths[-1:])

        def block(c_in: int, c_out: int) -> ResidualBlock:
            return ResidualBlock(c_in, c_out, c_emb, scale_shift, dropout)

        def stage(c_in: int, level: int) -> Stage:
            c_out = widths[level]
            return Stage([block(c_in, c_out), *([Attention(c_out, num_heads)] if attends[level] else [])])

        self.input_blocks = nn.ModuleList([Stage([Stem(in_channels, model_channels, 3, padding=1)])])
        skips = [model_channels, *_down(self.input_blocks, stage, widths, model_channels, num_res_blocks)]
        width = widths[-1]
        self.middle_block = Stage([block(width, width), Attention(width, num_heads), block(width, width)])
        self.output_blocks = nn.ModuleList()
        _up(self.output_blocks, stage, widths, skips, num_res_blocks)
        self.out = nn.Sequential(*_readout(widths[0], out_channels))
        build_head = lookup(HEADS, head, "`head`")
        if build_head is not None:
            self.out2 = build_head(widths[0], in_channels, block)

    def features(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[1] != self.in_channels or x.shape[2] % self.size_multiple or x.shape[3] % self.size_multiple:
            raise UserError(
                f"the network wants {self.in_channels} channels and sides divisible by {self.size_multiple}, "
                f"got images of shape {tuple(x.shape[1:])}."
            )
        emb = self.time_embed(timestep_embedding(t, self.model_channels))
        h, skips = x, []
        for entry in self.input_blocks:
            h = entry(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for entry in self.output_blocks:
            h = entry(torch.cat([h, skips.pop()], dim=1), emb)
        return h, emb

    def mean_output(self, h: Tensor, t: Tensor) -> Tensor:
        return self.out(h)

    def head_output(self, h: Tensor, emb: Tensor, modules: Mapping[str, nn.Module] | nn.ModuleDict) -> Tensor:
        return modules["out2"](h, emb)


def _down(
    entries: nn.ModuleList, stage: Callable[[int, int], Stage], widths: list[int], width: int, blocks: int
) -> list[int]:
    """Append the way down, `stage(c_in, level)` by stage; returns the widths of the skips that it leaves."""
    skips = []
    for level, target in enumerate(widths):
        for _ in range(blocks):
            entries.append(stage(width, level))
            width = target
            skips.append(width)
        if level < len(widths) - 1:
            entries.append(Stage([Downsample(width)]))
            skips.append(width)
    return skips


def _up(
    entries: nn.ModuleList, stage: Callable[[int, int], Stage], widths: list[int], skips: list[int], blocks: int
) -> None:
    """Append the way up, which takes the skips from the last to the first."""
    width = widths[-1]
    for level, target in reversed(list(enumerate(widths))):
        for i in range(blocks + 1):
            entry = stage(width + skips.pop(), level)
            width = target
            if level and i == blocks:
                entry.append(Upsample(width))
            entries.append(entry)


def _simple(width: int, channels: int, block: object) -> nn.Module:
    return SimpleHead(*_readout(width, channels))


def _complex(width: int, channels: int, block: object) -> nn.Module:
    return ComplexHead([block(width, width), *_readout(width, channels)])  # type: ignore[operator]


HEADS = {"none": None, "simple": _simple, "complex": _complex}


def build(
    shape: Sequence[int],
    *,
    model_channels: int,
    channel_mult: Sequence[int],
    num_res_blocks: int,
    attention_downsample: Sequence[int] = (),
    num_heads: int = 4,
    scale_shift: bool = True,
    dropout: float = 0.0,
    learned_variance: bool = False,
    head: str = "none",
) -> UNet:
    """The network for images of `shape` (C, H, W); `learned_variance` doubles the outputs, the rest is UNet's.

    Raises:
        UserError: if the sides are not divisible by 2^(levels - 1).
    """
    channels = shape[0]
    network = UNet(
        in_channels=channels,
        out_channels=channels * (1 + learned_variance),
        model_channels=model_channels,
        channel_mult=channel_mult,
        num_res_blocks=num_res_blocks,
        attention_downsample=attention_downsample,
        num_heads=num_heads,
        scale_shift=scale_shift,
        dropout=dropout,
        head=head,
    )
    if shape[1] % network.size_multiple or shape[2] % network.size_multiple:
        raise UserError(
            f"`channel_mult` has levels for sides divisible by {network.size_multiple}, "
            f"but the data are {shape[1]}x{shape[2]}; use fewer levels."
        )
    return network
