"""A `UNet2DModel` of the package diffusers as a network of this project: its folder says what it is.

The state dict has the names of the folder's weights. The network is cut before its last norm, so that a head can be put
on it as on the others, in the layout of `ddpm` (`before_out`, `norm_out2`, `conv_out2`); no published file has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from adpm.errors import UserError, lookup
from adpm.nn.coordinate_head import completed
from adpm.nn.ddpm import ResidualBlock, conv, group_norm
from adpm.nn.diffusers_folder import read_config, uncalled
from adpm.nn.heads import HEADS, Headed


class UNet2D(Headed):
    """The prediction (and head) from (x, t), and classes [B] for networks that are told them.

    Args:
        unet: a `diffusers.UNet2DModel`, which is taken over: its last norm and convolution are called from here.
        head: "none", "simple" or "complex": a second output of as many channels on the last hidden layer; with
            "coordinates" `build` adds it.

    Shapes: x [B, C, H, W], t [B] -> [B, out, H, W], with a head [B, 2C, H, W].
    """

    HEAD: ClassVar[tuple[str, ...]] = ("before_out", "norm_out2", "conv_out2")

    def __init__(self, unet: Any, head: str = "none") -> None:
        super().__init__()
        has_readout, has_block = lookup(HEADS, head, "`head`")
        self.in_channels, self.num_classes = unet.config.in_channels, unet.config.num_class_embeds or 0
        for name, child in unet.named_children():
            self.add_module(name, child)
        unet.conv_norm_out, unet.conv_act, unet.conv_out = nn.Identity(), nn.Identity(), nn.Identity()
        self._unet = (unet,)  # in a tuple, where nn.Module does not look: its parts are this network's own
        width = unet.config.block_out_channels[0]
        if has_block:
            self.before_out = ResidualBlock(width, width, _width_of(unet.time_embedding), unet.config.dropout)
        if has_readout:
            self.norm_out2, self.conv_out2 = group_norm(width), conv(width, self.in_channels)
            nn.init.zeros_(self.conv_out2.weight)  # a fresh head says nothing
            nn.init.zeros_(self.conv_out2.bias)  # type: ignore[arg-type]

    def features(self, x: Tensor, t: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.num_classes and classes is None:
            raise UserError(
                f"this network is told which of its {self.num_classes} classes an image is of, and knows no other way: "
                "give a class to each image, as Model.told does."
            )
        (unet,) = self._unet
        emb = unet.time_embedding(unet.time_proj(t).to(x.dtype))
        return unet(x, t, classes if classes is None else classes.to(x.device)).sample, emb

    def mean_output(self, h: Tensor, t: Tensor) -> Tensor:
        return self.conv_out(self.conv_act(self.conv_norm_out(h)))  # type: ignore[operator]

    def head_output(self, h: Tensor, emb: Tensor, modules: Mapping[str, nn.Module] | nn.ModuleDict) -> Tensor:
        # torch 2.13 on a CPU crashes in the backward pass of GroupNorm where channels are last and h has no gradient
        h = h.contiguous()
        if "before_out" in modules:
            h = modules["before_out"](h, emb)
        return modules["conv_out2"](F.silu(modules["norm_out2"](h)))


def _width_of(time_embedding: nn.Module) -> int:
    return time_embedding.linear_2.out_features  # type: ignore[union-attr,return-value]


def build(shape: Sequence[int], *, pretrained: str = "", head: str = "none", head_block: int = 0) -> Headed:
    """The network that a folder describes, for images of `shape` (C, H, W), with fresh weights.

    Args:
        shape: of the data.
        pretrained: the network's folder, or a pipeline's.
        head: see `UNet2D`.
        head_block: see `CoordinateHead`.

    Raises:
        UserError: if there is no such folder, if it is of a network that this project does not call, or for other
            images, and if diffusers is not installed.
    """
    if not pretrained:
        raise UserError("the network 'diffusers' is what its folder says: name one with a config.json in `pretrained`.")
    config = read_config(Path(pretrained))
    _check(config, pretrained, shape)
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise UserError(
            "the network 'diffusers' needs the package of that name, which is not installed: "
            'pip install "diffusers>=0.35", or this project with [diffusers].'
        ) from error
    unet = UNet2DModel.from_config(config)
    width, c_emb = unet.config.block_out_channels[0], _width_of(unet.time_embedding)
    return completed(UNet2D(unet, head), head, width, c_emb, shape, head_block)


def classes(pretrained: str = "", **options: Any) -> tuple[int, bool]:
    """How many classes the network of a folder is told, and whether it knows what no class is: it never does."""
    return (read_config(Path(pretrained)).get("num_class_embeds") or 0 if pretrained else 0), False


def _check(config: Mapping[str, Any], folder: str, shape: Sequence[int]) -> None:
    """Refuse a network that is called otherwise, or for other images.

    Raises:
        UserError: naming what the folder says.
    """
    if told := uncalled(config):
        raise UserError(f"'{folder}' {told}.")
    channels, size = config.get("in_channels", 3), config.get("sample_size")
    sides = (size, size) if isinstance(size, int) else tuple(size or shape[1:])
    if (channels, *sides) != tuple(shape):
        raise UserError(
            f"'{folder}' is a network for images of shape {(channels, *sides)}, but the data are {tuple(shape)}."
        )
