"""A classifier of noisy images, the way down of a U-Net: what guides by classes, and whose features EGSDE compares.

The layout of guided-diffusion's classifier (Dhariwal & Nichol 2021): `time_embed`, `input_blocks`, `middle_block`,
then `out`, a pooling by attention with logits at its end. EGSDE's released extractors are this network with `I2Iout` in
place of `out`, which is renamed on loading; their features are the last map before the pooling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adpm.errors import UserError
from adpm.families import Field, Kind
from adpm.nn.iddpm import down
from adpm.nn.iddpm_layers import Parts, Stage, Stem, group_norm, timestep_embedding
from adpm.nn.sizes import require_head_channels, require_images, require_levels, require_side, require_sizes, square

_EGSDE = "I2Iout."


class AttentionPool(nn.Module):
    """Attention over pixels and their mean, read off at the mean (guided-diffusion's, after CLIP).

    Args:
        side: of the square map.
        channels: of it.
        heads: that they are divided into.
        out: numbers that come of it.
    """

    def __init__(self, side: int, channels: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(channels, side**2 + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        tokens = torch.cat([flat.mean(2, keepdim=True), flat], dim=2) + self.positional_embedding
        # q, k and v first, each of them all heads one after the other
        q, k, v = self.qkv_proj(tokens).unflatten(1, (3, self.heads, -1)).unbind(1)
        attended = F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT.flatten(1, 2)
        return self.c_proj(attended)[:, :, 0]


class Encoder(nn.Module):
    """Class logits and features of noisy images.

    Args:
        shape: (C, H, H) of the images.
        classes: K.
        width: M of the finest level; even.
        channel_mult: width of each level in units of M.
        num_res_blocks: residual blocks per level.
        attention_downsample: down-sampling factors at which attention follows each block.
        head_channels: channels of each head of attention.
        dropout: before the last convolution of each block.

    Shapes: x [B, C, H, H], t [B] -> logits [B, K]; `features` gives [B, F, h, h] of the coarsest level.

    Raises:
        UserError: for numbers that no network has.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        width: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        attention_downsample: Sequence[int] = (),
        head_channels: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_sizes(width, channel_mult, num_res_blocks, dropout, name="width")
        channels, side = square(shape, "encoder")
        require_side(side, channel_mult)
        self.channels, self.side, self.width, self.classes = channels, side, width, classes
        widths, factors = [mult * width for mult in channel_mult], [2**level for level in range(len(channel_mult))]
        require_levels("attention_downsample", attention_downsample, factors)
        attends = [factor in attention_downsample for factor in factors]
        require_head_channels(head_channels, [w for w, a in zip(widths, attends, strict=True) if a] + widths[-1:])
        c_emb, last = 4 * width, widths[-1]
        self.time_embed = nn.Sequential(nn.Linear(width, c_emb), nn.SiLU(), nn.Linear(c_emb, c_emb))
        parts = Parts(c_emb, True, dropout, head_channels=head_channels, updown=True)
        self.input_blocks = nn.ModuleList([Stage([Stem(channels, width, 3, padding=1)])])
        down(self.input_blocks, parts, list(zip(widths, attends, strict=True)), width, num_res_blocks)
        self.middle_block = parts.middle(last)
        pool = AttentionPool(side // factors[-1], last, last // head_channels, classes)
        self.out = nn.Sequential(group_norm(last), nn.SiLU(), pool)

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """The last map before the pooling."""
        require_images(x, self.channels, self.side)
        emb, h = self.time_embed(timestep_embedding(t, self.width)), x
        for entry in self.input_blocks:
            h = entry(h, emb)
        return self.middle_block(h, emb)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.out(self.features(x, t))


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under this network's names, EGSDE's among them."""
    return {("out." + n.removeprefix(_EGSDE) if n.startswith(_EGSDE) else n): value for n, value in state.items()}


def classes_in(state: Mapping[str, Tensor]) -> int:
    """How many classes a network of these weights, under this network's names, tells apart.

    Raises:
        UserError: if they are of no such network.
    """
    last = state.get("out.2.c_proj.weight")
    if last is None:
        raise UserError("these are no weights of a classifier of noisy images: 'out.2.c_proj.weight' is missing.")
    return len(last)


CLASSIFIERS: dict[str, Kind] = {
    "encoder": Kind(
        Encoder,
        "the way down of a U-Net with residual blocks that halve, and a pooling by attention: guided-diffusion's",
        fields={
            "width": Field(32, "M of the finest level, even", low=2),
            "channel_mult": Field((1, 2), "width of each level in units of M"),
            "num_res_blocks": Field(1, "residual blocks per level", low=1),
            "attention_downsample": Field(None, "down-sampling factors with attention; unset: none", type=tuple),
            "head_channels": Field(16, "channels of each head of attention", low=1),
            "dropout": Field(0.1, "before the last convolution of each block", low=0, below=1),
        },
    )
}
"""Builders take (shape of the images, number of classes, own options)."""
