"""The networks of Song et al. 2021 (score_sde), state-dict compatible with their published checkpoints.

DDPM++ is the variant "vp": it predicts the noise, and its conditioning argument is 999 s for a time s in [0, 1] (the
caller multiplies). NCSN++ is "ve": its argument is sigma itself, images are in [0, 1], and the output is a score,
i.e. already divided by sigma. Extended-Analytic-DPM adds a second head to the first (`head = "simple"`); the others
(`"complex"`, and both on "ve", where the head is not divided by sigma) are ours and have no published layout.

All layers lie in one list, `all_modules`, numbered in the order in which they are called; which there are depends on
the image size, so a network works for one size only. On the way up there is one attention per level.
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

from adpm.errors import lookup
from adpm.nn.coordinate_head import completed
from adpm.nn.fir import FirDown, FirUp
from adpm.nn.heads import HEADS, Headed
from adpm.nn.score_sde_layers import (
    NOTHING,
    Attention,
    FourierFeatures,
    PyramidDown,
    ResidualBlock,
    conv,
    group_norm,
    linear,
    timestep_embedding,
)
from adpm.nn.sizes import require_images, require_levels, require_side, require_sizes, square


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
        head: "none", "simple" or "complex": a second output of `in_channels` channels on the last hidden layer; with
            "coordinates" `build` adds it.

    Shapes: x [B, C, H, H], t [B] -> [B, C, H, H], with a head [B, 2C, H, H].

    Raises:
        UserError: for unknown names, for numbers that no network has, if the side is not divisible by 2^(levels - 1),
            and for attention at no level.
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
        self.variant = lookup(VARIANTS, variant, "`variant`")
        has_readout, has_block = lookup(HEADS, head, "`head`")
        require_sizes(model_channels, channel_mult, num_res_blocks, dropout, least=4)
        require_side(image_size, channel_mult)
        self.in_channels, self.image_size, self.model_channels = in_channels, image_size, model_channels
        self.num_res_blocks = num_res_blocks
        sides = [image_size // 2**level for level in range(len(channel_mult))]
        require_levels("attention_resolutions", attention_resolutions, sides)
        self.attends = [side in attention_resolutions for side in sides]
        # unused; published state dicts have it
        self.register_buffer("sigmas", torch.linspace(math.log(50.0), math.log(0.01), 1000, dtype=torch.float64).exp())
        self._block = partial(ResidualBlock, c_emb=4 * model_channels, dropout=dropout)
        widths = [mult * model_channels for mult in channel_mult]
        self.all_modules = nn.ModuleList(self._layers(widths))
        width = widths[0]
        if has_block:
            self.before_out2 = self._block(width, width)
        if has_readout:
            self.gn_out2 = group_norm(width)
            self.conv_out2 = conv(width, in_channels, NOTHING)

    def _layers(self, widths: list[int]) -> list[nn.Module]:
        """All layers but the head's, in the order in which they are called."""
        facts, width, block = self.variant, self.model_channels, self._block
        c_emb = 4 * width
        layers: list[nn.Module] = [FourierFeatures(width)] if facts.fourier else []
        layers += [linear(2 * width if facts.fourier else width, c_emb), linear(c_emb, c_emb)]
        layers += [conv(self.in_channels, width)]
        skips, pyramid = [width], self.in_channels
        for level, target in enumerate(widths):
            for _ in range(self.num_res_blocks):
                layers += [block(width, target)]
                width = target
                layers += [Attention(width)] if self.attends[level] else []
                skips.append(width)
            if level < len(widths) - 1:
                layers += [block(width, width, resample=facts.down)]
                layers += [PyramidDown(pyramid, width)] if facts.pyramid else []
                pyramid = width
                skips.append(width)
        layers += [block(width, width), Attention(width), block(width, width)]
        for level, target in reversed(list(enumerate(widths))):
            for _ in range(self.num_res_blocks + 1):
                layers += [block(width + skips.pop(), target)]
                width = target
            layers += [Attention(width)] if self.attends[level] else []
            layers += [block(width, width, resample=facts.up)] if level else []
        return [*layers, group_norm(width), conv(width, self.in_channels, NOTHING)]

    def features(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        require_images(x, self.in_channels, self.image_size)
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
    head_block: int = 0,
) -> Headed:
    """The network for images of `shape` (C, H, W), H = W; the other arguments are NCSNpp's.

    Raises:
        UserError: if the images are not square, and what NCSNpp raises.
    """
    channels, side = square(shape, "score_sde")
    network = NCSNpp(
        in_channels=channels,
        image_size=side,
        model_channels=model_channels,
        channel_mult=channel_mult,
        num_res_blocks=num_res_blocks,
        attention_resolutions=attention_resolutions,
        variant=variant,
        dropout=dropout,
        head=head,
    )
    return completed(network, head, model_channels, 4 * model_channels, shape, head_block)
