"""The U-Net of Improved DDPM (Nichol & Dhariwal 2021), state-dict compatible with its published checkpoints.

CIFAR10 and ImageNet64 models of Analytic-DPM and Extended-Analytic-DPM use this layout, the latter with a second
head `out2` on the last hidden layer (`head = "simple" | "complex"`; Bao et al. 2022b). Any width works; the image
size must be divisible by 2^(levels - 1).

Class-conditional networks (`num_classes`) add a row of `label_emb` to the time embedding, as guided-diffusion's do
(Dhariwal & Nichol 2021). With `null_class` there is one row more, the last, which stands for no class: what
classifier-free guidance needs (Ho & Salimans 2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from adpm.errors import UserError, lookup
from adpm.nn.coordinate_head import completed
from adpm.nn.heads import Headed
from adpm.nn.iddpm_layers import (
    ComplexHead,
    Parts,
    SimpleHead,
    Stage,
    Stem,
    readout,
    timestep_embedding,
)
from adpm.nn.sizes import require_classes, require_head_channels, require_heads, require_levels, require_sizes

Levels = list[tuple[int, bool]]
"""Width of each level and whether it has attention, finest first."""


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
        head_channels: channels of each head, as many heads as fit instead of `num_heads`; 0: that many heads.
        updown: residual blocks halve and double the sides, instead of a convolution (guided-diffusion's).
        scale_shift: FiLM-like time conditioning instead of an added bias.
        dropout: before the last convolution of each residual block.
        head: "none", "simple" or "complex": a second output of `in_channels` channels on the last hidden layer; with
            "coordinates" `build` adds it.
        num_classes: classes that the network is told; 0: none.
        null_class: whether it knows what no class is, too.

    Shapes: x [B, C, H, W], t [B], classes [B] in 0..num_classes - 1 -> [B, out, H, W], with a head [B, 2C, H, W].

    Raises:
        UserError: for numbers that no network has, heads that do not divide their width, attention at no level, and
            a null class without classes.
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
        head_channels: int = 0,
        updown: bool = False,
        scale_shift: bool = True,
        dropout: float = 0.0,
        head: str = "none",
        num_classes: int = 0,
        null_class: bool = False,
    ) -> None:
        super().__init__()
        require_sizes(model_channels, channel_mult, num_res_blocks, dropout)
        require_classes(num_classes, null_class)
        self.num_classes, self.null_class = num_classes, null_class
        self.in_channels, self.model_channels = in_channels, model_channels
        self.size_multiple = 2 ** (len(channel_mult) - 1)
        c_emb, widths = 4 * model_channels, [mult * model_channels for mult in channel_mult]
        self.time_embed = nn.Sequential(nn.Linear(model_channels, c_emb), nn.SiLU(), nn.Linear(c_emb, c_emb))
        self.label_emb = nn.Embedding(num_classes + null_class, c_emb) if num_classes else None
        attends = _attends(widths, attention_downsample, num_heads, head_channels)

        parts = Parts(c_emb, scale_shift, dropout, num_heads, head_channels, updown)
        levels = list(zip(widths, attends, strict=True))
        self.input_blocks = nn.ModuleList([Stage([Stem(in_channels, model_channels, 3, padding=1)])])
        skips = [model_channels, *down(self.input_blocks, parts, levels, model_channels, num_res_blocks)]
        self.middle_block = parts.middle(widths[-1])
        self.output_blocks = nn.ModuleList()
        _up(self.output_blocks, parts, levels, skips, num_res_blocks)
        self.out = nn.Sequential(*readout(widths[0], out_channels))
        build_head = lookup(HEADS, head, "`head`")
        if build_head is not None:
            self.out2 = build_head(widths[0], in_channels, parts.block)

    def features(self, x: Tensor, t: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if x.shape[1] != self.in_channels or x.shape[2] % self.size_multiple or x.shape[3] % self.size_multiple:
            raise UserError(
                f"the network wants {self.in_channels} channels and sides divisible by {self.size_multiple}, "
                f"got images of shape {tuple(x.shape[1:])}."
            )
        emb = self.time_embed(timestep_embedding(t, self.model_channels))
        if self.label_emb is not None:
            emb = emb + self.label_emb(class_rows(classes, len(x), self.num_classes, self.null_class).to(emb.device))
        elif classes is not None:
            raise UserError("this network is told no classes (`num_classes` = 0).")
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


def _attends(
    widths: list[int], attention_downsample: Sequence[int], num_heads: int, head_channels: int = 0
) -> list[bool]:
    """Which levels have attention, finest first; the heads divide their widths, and that of the middle."""
    factors = [2**level for level in range(len(widths))]
    require_levels("attention_downsample", attention_downsample, factors)
    attends = [factor in attention_downsample for factor in factors]
    concerned = [width for width, attend in zip(widths, attends, strict=True) if attend] + widths[-1:]
    require_heads(num_heads, concerned) if not head_channels else require_head_channels(head_channels, concerned)
    return attends


def class_rows(classes: Tensor | None, batch: int, count: int, null: bool) -> Tensor:
    """Rows of the table of classes for a batch, [B] int64: its classes, or the row after them for None, no class.

    Raises:
        UserError: for no class where the network does not know what that is, and unless there is one for each image.
    """
    if classes is None:
        if not null:
            raise UserError(
                f"this network is told which of its `num_classes` = {count} classes an image is of, and knows no "
                "other way (`null_class` = False): give a class to each image, as Model.told does."
            )
        return torch.full((batch,), count)
    if classes.shape != (batch,):
        raise UserError(f"`classes` of shape {tuple(classes.shape)} must hold one class for each of {batch} images.")
    return classes.long()


def down(entries: nn.ModuleList, parts: Parts, levels: Levels, width: int, blocks: int) -> list[int]:
    """Append the way down, finest level first; returns the widths of the skips that it leaves."""
    skips = []
    for level, (target, attends) in enumerate(levels):
        for _ in range(blocks):
            entries.append(parts.stage(width, target, attends))
            width = target
            skips.append(width)
        if level < len(levels) - 1:
            entries.append(Stage([parts.halved(width)]))
            skips.append(width)
    return skips


def _up(entries: nn.ModuleList, parts: Parts, levels: Levels, skips: list[int], blocks: int) -> None:
    """Append the way up, which takes the skips from the last to the first."""
    width = levels[-1][0]
    for level, (target, attends) in reversed(list(enumerate(levels))):
        for i in range(blocks + 1):
            entry = parts.stage(width + skips.pop(), target, attends)
            width = target
            if level and i == blocks:
                entry.append(parts.doubled(width))
            entries.append(entry)


def _simple(width: int, channels: int, block: object) -> nn.Module:
    return SimpleHead(*readout(width, channels))


def _complex(width: int, channels: int, block: object) -> nn.Module:
    return ComplexHead([block(width, width), *readout(width, channels)])  # type: ignore[operator]


HEADS = {"none": None, "simple": _simple, "complex": _complex, "coordinates": None}


def build(
    shape: Sequence[int],
    *,
    model_channels: int,
    channel_mult: Sequence[int],
    num_res_blocks: int,
    attention_downsample: Sequence[int] = (),
    num_heads: int = 4,
    head_channels: int = 0,
    updown: bool = False,
    scale_shift: bool = True,
    dropout: float = 0.0,
    learned_variance: bool = False,
    head: str = "none",
    head_block: int = 0,
    num_classes: int = 0,
    null_class: bool = False,
) -> Headed:
    """The network for images of `shape` (C, H, W); `learned_variance` doubles the outputs, the rest is UNet's.

    Raises:
        UserError: if the sides are not divisible by 2^(levels - 1), or by `head_block`.
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
        head_channels=head_channels,
        updown=updown,
        scale_shift=scale_shift,
        dropout=dropout,
        head=head,
        num_classes=num_classes,
        null_class=null_class,
    )
    if shape[1] % network.size_multiple or shape[2] % network.size_multiple:
        raise UserError(
            f"`channel_mult` has levels for sides divisible by {network.size_multiple}, "
            f"but the data are {shape[1]}x{shape[2]}; use fewer levels."
        )
    return completed(network, head, model_channels, 4 * model_channels, shape, head_block)
