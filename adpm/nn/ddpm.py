"""The U-Net of DDPM (Ho et al. 2020) as its PyTorch ports name it, state-dict compatible with their checkpoints.

CelebA 64 and LSUN models of DDIM, Analytic-DPM and Extended-Analytic-DPM use this layout, the latter with a second head
`conv_out2` on the last hidden layer (`head = "simple" | "complex"`; Bao et al. 2022b), and so do ported CIFAR10 models.

Conventions that differ from its relatives: sines before cosines with frequencies 10000^(-i/(half - 1)), GroupNorm eps
1e-6, time added before the second norm, stride-2 convolutions padded right and below only, one attention head. The
levels on the way up are numbered as those on the way down: `up.0` is the finest, and the last to be called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpm.errors import lookup
from adpm.nn.coordinate_head import completed
from adpm.nn.heads import HEADS, Headed
from adpm.nn.score_sde_layers import timestep_embedding
from adpm.nn.sizes import require_images, require_levels, require_side, require_sizes, square

GROUPS = 32


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups, or the most that divide both where that does not divide the channels."""
    return nn.GroupNorm(math.gcd(channels, GROUPS), channels, eps=1e-6)


def conv(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1)


class TimeEmbedding(nn.Module):
    """dense_1(silu(dense_0([sin(t f), cos(t f)]))): [B] -> [B, 4M]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.dense = nn.ModuleList([nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, 4 * dim)])

    def forward(self, t: Tensor) -> Tensor:
        return self.dense[1](F.silu(self.dense[0](timestep_embedding(t, self.dim))))


class ResidualBlock(nn.Module):
    """skip(x) + conv2(dropout(silu(norm2(conv1(silu(norm1(x))) + temb_proj(silu(emb))))))."""

    def __init__(self, c_in: int, c_out: int, c_emb: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(c_in)
        self.conv1 = conv(c_in, c_out)
        self.temb_proj = nn.Linear(c_emb, c_out)
        self.norm2 = group_norm(c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(c_out, c_out)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(F.silu(emb))[:, :, None, None]
        return self.nin_shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class Attention(nn.Module):
    """x + self-attention over pixels, one head, logits scaled by 1/sqrt(channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        # [B, one head, H W, C]
        q, k, v = (layer(h).flatten(2).mT[:, None] for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj_out(attended.mT.reshape(x.shape))


class Downsample(nn.Module):
    """Halve the sides: a row and a column of zeros right and below, then a convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the sides: every pixel four times, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where the level has it.

    Attributes:
        block, attn: as they are called, one after the other; `attn` is empty where there is none.
    """

    def __init__(self, blocks: Sequence[ResidualBlock], width: int, attends: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList([Attention(width) for _ in blocks] if attends else [])

    def stage(self, i: int, h: Tensor, emb: Tensor) -> Tensor:
        """The i-th block and its attention."""
        h = self.block[i](h, emb)
        return self.attn[i](h) if len(self.attn) else h


class DownLevel(Level):
    """On the way down every output is a skip; all levels but the coarsest halve the sides at their end."""

    def __init__(self, blocks: Sequence[ResidualBlock], width: int, attends: bool, resample: bool) -> None:
        super().__init__(blocks, width, attends)
        self.downsample = Downsample(width) if resample else None

    def forward(self, skips: list[Tensor], emb: Tensor) -> None:
        """Append this level's outputs to the skips, of which the last is its input."""
        for i in range(len(self.block)):
            skips.append(self.stage(i, skips[-1], emb))
        if self.downsample is not None:
            skips.append(self.downsample(skips[-1]))


class UpLevel(Level):
    """On the way up every block takes a skip along; all levels but the finest double the sides at their end."""

    def __init__(self, blocks: Sequence[ResidualBlock], width: int, attends: bool, resample: bool) -> None:
        super().__init__(blocks, width, attends)
        self.upsample = Upsample(width) if resample else None

    def forward(self, h: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        """This level's output; the skips that it used are taken off the list."""
        for i in range(len(self.block)):
            h = self.stage(i, torch.cat([h, skips.pop()], dim=1), emb)
        return h if self.upsample is None else self.upsample(h)


class Middle(nn.Module):
    def __init__(self, block: nn.Module, attention: Attention, last: nn.Module) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = block, attention, last

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(h, emb)), emb)


class UNet(Headed):
    """eps (and head) from (x, t).

    Args:
        in_channels: channels of the image.
        image_size: its side; no other is accepted, because attention stands at resolutions.
        model_channels: width M of the finest level.
        channel_mult: width of level l is M * channel_mult[l].
        num_res_blocks: residual blocks per level on the way down (one more on the way up).
        attention_resolutions: sides (not down-sampling factors) of the levels with attention.
        dropout: before the last convolution of each residual block.
        head: "none", "simple" or "complex": a second output of `in_channels` channels on the last hidden layer; with
            "coordinates" `build` adds it.

    Shapes: x [B, C, H, H], t [B] -> [B, C, H, H], with a head [B, 2C, H, H].

    Raises:
        UserError: for unknown names, for numbers that no network has, if the side is not divisible by 2^(levels - 1),
            and for attention at no level.
    """

    HEAD: ClassVar[tuple[str, ...]] = ("before_out", "norm_out2", "conv_out2")

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        model_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        attention_resolutions: Sequence[int] = (),
        dropout: float = 0.0,
        head: str = "none",
    ) -> None:
        super().__init__()
        has_readout, has_block = lookup(HEADS, head, "`head`")
        require_sizes(model_channels, channel_mult, num_res_blocks, dropout, least=4)
        require_side(image_size, channel_mult)
        self.in_channels, self.image_size = in_channels, image_size
        sides = [image_size // 2**level for level in range(len(channel_mult))]
        require_levels("attention_resolutions", attention_resolutions, sides)
        attends = [side in attention_resolutions for side in sides]
        widths = [mult * model_channels for mult in channel_mult]
        block = partial(ResidualBlock, c_emb=4 * model_channels, dropout=dropout)
        self.temb = TimeEmbedding(model_channels)
        self.conv_in = conv(in_channels, model_channels)
        self.down, skips = _down(block, widths, attends, model_channels, num_res_blocks)
        width = widths[-1]
        self.mid = Middle(block(width, width), Attention(width), block(width, width))
        self.up = _up(block, widths, attends, skips, num_res_blocks)
        self.norm_out = group_norm(widths[0])
        self.conv_out = conv(widths[0], in_channels)
        if has_block:
            self.before_out = block(widths[0], widths[0])
        if has_readout:
            self.norm_out2 = group_norm(widths[0])
            self.conv_out2 = conv(widths[0], in_channels)
            nn.init.zeros_(self.conv_out2.weight)  # all else begins as torch has it; a fresh head says nothing
            nn.init.zeros_(self.conv_out2.bias)  # type: ignore[arg-type]

    def features(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        require_images(x, self.in_channels, self.image_size)
        emb = self.temb(t)
        skips = [self.conv_in(x)]
        for level in self.down:
            level(skips, emb)
        h = self.mid(skips[-1], emb)
        for level in reversed(self.up):
            h = level(h, skips, emb)
        return h, emb

    def mean_output(self, h: Tensor, t: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.norm_out(h)))

    def head_output(self, h: Tensor, emb: Tensor, modules: Mapping[str, nn.Module] | nn.ModuleDict) -> Tensor:
        if "before_out" in modules:
            h = modules["before_out"](h, emb)
        return modules["conv_out2"](F.silu(modules["norm_out2"](h)))


def _down(
    block: partial[ResidualBlock], widths: list[int], attends: list[bool], width: int, blocks: int
) -> tuple[nn.ModuleList, list[int]]:
    """The way down, and the widths of the skips that it and the first convolution leave."""
    levels, skips, coarsest = nn.ModuleList(), [width], len(widths) - 1
    for number, (target, attend) in enumerate(zip(widths, attends, strict=True)):
        made = [block(width if i == 0 else target, target) for i in range(blocks)]
        levels.append(DownLevel(made, target, attend, resample=number < coarsest))
        skips += (blocks + (number < coarsest)) * [target]
        width = target
    return levels, skips


def _up(
    block: partial[ResidualBlock], widths: list[int], attends: list[bool], skips: list[int], blocks: int
) -> nn.ModuleList:
    """The way up, finest level first; it is called from the last, and takes the skips from the last to the first."""
    levels, width = [], widths[-1]
    for number, target in reversed(list(enumerate(widths))):
        made = []
        for _ in range(blocks + 1):
            made.append(block(width + skips.pop(), target))
            width = target
        levels.append(UpLevel(made, target, attends[number], resample=number > 0))
    return nn.ModuleList(reversed(levels))


def build(
    shape: Sequence[int],
    *,
    model_channels: int,
    channel_mult: Sequence[int],
    num_res_blocks: int,
    attention_resolutions: Sequence[int] = (),
    dropout: float = 0.0,
    head: str = "none",
    head_block: int = 0,
) -> Headed:
    """The network for images of `shape` (C, H, W), H = W; the other arguments are UNet's.

    Raises:
        UserError: if the images are not square, and what UNet raises.
    """
    channels, side = square(shape, "ddpm")
    network = UNet(
        in_channels=channels,
        image_size=side,
        model_channels=model_channels,
        channel_mult=channel_mult,
        num_res_blocks=num_res_blocks,
        attention_resolutions=attention_resolutions,
        dropout=dropout,
        head=head,
    )
    return completed(network, head, model_channels, 4 * model_channels, shape, head_block)
