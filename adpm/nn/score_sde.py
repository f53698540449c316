"""The networks of Song et al. 2021 (score_sde), state-dict compatible with their published checkpoints.

DDPM++ is the variant "vp": it predicts the noise, and its conditioning argument is 999 s for a time s in [0, 1] (the
caller multiplies). NCSN++ is "ve": its argument is sigma itself, images are in [0, 1], and the output is a score,
i.e. already divided by sigma. Extended-Analytic-DPM adds a second head to the first (`head = "simple"`); the others
(`"complex"`, and both on "ve", where the head is not divided by sigma) are ours and have no published layout.

All layers lie in one list, `all_modules`, numbered in the order in which they are called; which there are depends on
the image size, so a network works for one size only.

Conventions that differ from its relatives: sines before cosines with frequencies 10000^(-i/(half - 1)), GroupNorm eps
1e-6 with min(channels/4, 32) groups, up- and down-sampling inside residual blocks, sums divided by sqrt(2), attention
weights stored (in, out), one attention per level on the way up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpm.errors import UserError, lookup
from adpm.nn.fir import FirBlur, FirDown, FirUp
from adpm.nn.heads import Headed

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


@dataclass(frozen=True)
class Variant:
    """What distinguishes the published families.

    Attributes:
        fourier: the conditioning argument is sigma, seen through Fourier features of its logarithm; else sines of t.
        up, down: resampling in residual blocks.
        pyramid: down-sampled copies of the input are added on the way down.
        score: images are in [0, 1], and the output is divided by sigma; else images in [-1, 1], the output as it is.
    """

    fourier: bool
    up: Callable[[], nn.Module]
    down: Callable[[], nn.Module]
    pyramid: bool
    score: bool


VARIANTS = {
    "vp": Variant(
        fourier=False,
        up=partial(nn.Upsample, scale_factor=2, mode="nearest"),
        down=partial(nn.AvgPool2d, 2),
        pyramid=False,
        score=False,
    ),
    "ve": Variant(fourier=True, up=FirUp, down=FirDown, pyramid=True, score=True),
}

# head -> (whether it has a readout, whether a residual block comes before it)
HEADS = {"none": (False, False), "simple": (True, False), "complex": (True, True)}


class NCSNpp(Headed):
    """eps (and head) from (x, 999 s) for "vp"; the score from (x, sigma) for "ve".

    Args:
        in_channels: channels of the image.
        image_size: its side; no other is accepted.
        model_channels: width nf of the finest level.
        channel_mult: width of level l is nf * channel_mult[l].
        num_res_blocks: residual blocks per level on the way down (one more on the way up).
        attention_resolutions: sides (not down-sampling factors) of the levels with attention.
        variant: a key of VARIANTS.
        dropout: before the last convolution of each residual block.
        head: "none", "simple" or "complex": a second output of `in_channels` channels on the last hidden layer.

    Shapes: x [B, C, H, H], t [B] -> [B, C, H, H], with a head [B, 2C, H, H].

    Raises:
        UserError: for unknown names, and if the side is not divisible by 2^(levels - 1).
    """

    HEAD: ClassVar[tuple[str, ...]] = ("before_out2", "gn_out2", "conv_out2")

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        model_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        attention_resolutions: Sequence[int] = (),
        variant: str = "vp",
        dropout: float = 0.0,
        head: str = "none",
    ) -> None:
        super().__init__()
        self.variant = facts = lookup(VARIANTS, variant, "config.network.variant")
        has_readout, has_block = lookup(HEADS, head, "config.network.head")
        if image_size % 2 ** (len(channel_mult) - 1):
            raise UserError(
                f"config.network.channel_mult has levels for sides divisible by {2 ** (len(channel_mult) - 1)}, "
                f"but the data are {image_size}x{image_size}; use fewer levels."
            )
        self.in_channels, self.image_size, self.model_channels = in_channels, image_size, model_channels
        self.num_res_blocks = num_res_blocks
        self.attends = [image_size // 2**level in attention_resolutions for level in range(len(channel_mult))]
        # unused; published state dicts have it
        self.register_buffer("sigmas", torch.linspace(math.log(50.0), math.log(0.01), 1000, dtype=torch.float64).exp())
        c_emb = 4 * model_channels

        def block(c_in: int, c_out: int, resample: Callable[[], nn.Module] | None = None) -> ResidualBlock:
            return ResidualBlock(c_in, c_out, c_emb, dropout, resample)

        width = model_channels
        layers: list[nn.Module] = [FourierFeatures(width)] if facts.fourier else []
        layers += [linear(2 * width if facts.fourier else width, c_emb), linear(c_emb, c_emb)]
        layers += [conv(in_channels, width)]
        skips, pyramid = [width], in_channels
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers += [block(width, mult * model_channels)]
                width = mult * model_channels
                layers += [Attention(width)] if self.attends[level] else []
                skips.append(width)
            if level < len(channel_mult) - 1:
                layers += [block(width, width, facts.down)]
                layers += [PyramidDown(pyramid, width)] if facts.pyramid else []
                pyramid = width
                skips.append(width)
        layers += [block(width, width), Attention(width), block(width, width)]
        for level, mult in reversed(list(enumerate(channel_mult))):
            for _ in range(num_res_blocks + 1):
                layers += [block(width + skips.pop(), mult * model_channels)]
                width = mult * model_channels
            layers += [Attention(width)] if self.attends[level] else []
            layers += [block(width, width, facts.up)] if level else []
        layers += [group_norm(width), conv(width, in_channels, NOTHING)]
        self.all_modules = nn.ModuleList(layers)
        if has_block:
            self.before_out2 = block(width, width)
        if has_readout:
            self.gn_out2 = group_norm(width)
            self.conv_out2 = conv(width, in_channels, NOTHING)

    def features(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        shape = (self.in_channels, self.image_size, self.image_size)
        if x.shape[1:] != shape:
            raise UserError(f"the network is built for images of shape {shape}, got {tuple(x.shape[1:])}.")
        facts, layers = self.variant, iter(self.all_modules)
        emb = next(layers)(t) if facts.fourier else timestep_embedding(t, self.model_channels)
        emb = next(layers)(emb)
        emb = next(layers)(F.silu(emb))
        pyramid = 2.0 * x - 1.0 if facts.score else x
        h = next(layers)(pyramid)
        skips = [h]
        for level, attend in enumerate(self.attends):
            for _ in range(self.num_res_blocks):
                h = next(layers)(h, emb)
                h = next(layers)(h) if attend else h
                skips.append(h)
            if level < len(self.attends) - 1:
                h = next(layers)(h, emb)
                if facts.pyramid:
                    pyramid = h = (next(layers)(pyramid) + h) / math.sqrt(2.0)
                skips.append(h)
        h = next(layers)(h, emb)
        h = next(layers)(h)
        h = next(layers)(h, emb)
        for level, attend in reversed(list(enumerate(self.attends))):
            for _ in range(self.num_res_blocks + 1):
                h = next(layers)(torch.cat([h, skips.pop()], dim=1), emb)
            h = next(layers)(h) if attend else h
            h = next(layers)(h, emb) if level else h
        return h, emb

    def mean_output(self, h: Tensor, t: Tensor) -> Tensor:
        y = self.all_modules[-1](F.silu(self.all_modules[-2](h)))
        return y / t[:, None, None, None] if self.variant.score else y

    def head_output(self, h: Tensor, emb: Tensor, modules: Mapping[str, nn.Module] | nn.ModuleDict) -> Tensor:
        if "before_out2" in modules:
            h = modules["before_out2"](h, emb)
        return modules["conv_out2"](F.silu(modules["gn_out2"](h)))


def build(
    shape: Sequence[int],
    *,
    model_channels: int,
    channel_mult: Sequence[int],
    num_res_blocks: int,
    attention_resolutions: Sequence[int] = (),
    variant: str = "vp",
    dropout: float = 0.0,
    head: str = "none",
) -> NCSNpp:
    """The network for images of `shape` (C, H, W), H = W; the other arguments are NCSNpp's.

    Raises:
        UserError: if the images are not square, and what NCSNpp raises.
    """
    channels, height, width = shape
    if height != width:
        raise UserError(f"config.network.name = 'score_sde' needs square images, but the data are {height}x{width}.")
    return NCSNpp(
        in_channels=channels,
        image_size=height,
        model_channels=model_channels,
        channel_mult=channel_mult,
        num_res_blocks=num_res_blocks,
        attention_resolutions=attention_resolutions,
        variant=variant,
        dropout=dropout,
        head=head,
    )
