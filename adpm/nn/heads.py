"""A network in two parts: a trunk that ends in the last hidden layer, and a second output, the head, that reads it.

Every network of the project is written this way, so that heads can be trained and stored apart from their trunk:

    h, emb = features(x, t)                     the last hidden layer and the time embedding
    y = [mean_output(h, t), second_output(h, emb, modules)]

The first output is the network's prediction, at most `in_channels` channels of it where there is a head; the head is
the raw output of its last convolution, `in_channels` channels: a number for each pixel, or for each coordinate of a
basis (coordinate_head.py), which is another module for all networks alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from adpm.families import Field

UNET_FIELDS = {
    "model_channels": Field(32, "width M of the finest level", low=1),
    "channel_mult": Field((1, 2), "width of each level in units of M"),
    "num_res_blocks": Field(1, "residual blocks per level", low=1),
    "dropout": Field(0.1, "before the last convolution of each block", low=0, below=1, of=("training", "head")),
    "head": Field(
        "none",
        "none | simple | complex | coordinates: a second output on the last hidden layer, trained by itself",
        of=("head",),
    ),
    "head_block": Field(
        0, "coordinates: side of the blocks that the basis has; 0 = the whole image is one", low=0, of=("head",)
    ),
}
"""What the project's U-Nets have in common. A head is no part of what its trunk is."""

HEADS = {"none": (False, False), "simple": (True, False), "complex": (True, True), "coordinates": (False, False)}
"""Of the U-Nets -> whether there is a readout per pixel, and whether a residual block comes before it."""

COORDINATES = "coordinate_head"
"""The name of a head about coordinates among a network's modules."""


@dataclass(frozen=True)
class NetworkFacts:
    """What may be asked of a network family without building a network.

    Attributes:
        classes: a network's options -> how many classes it is told, and whether it knows what no class is.
    """

    classes: Callable[..., tuple[int, bool]] = lambda **options: (0, False)


class Headed(nn.Module, ABC):
    """A network that may have a head.

    Attributes:
        HEAD: names that the modules of heads about pixels have among the network's own.
        in_channels: channels of the image and of each output.
        num_classes: classes that the network is told; 0: none.
        null_class: whether no class (None) is known to it, too.
    """

    HEAD: ClassVar[tuple[str, ...]]
    in_channels: int
    num_classes: int = 0
    null_class: bool = False

    @abstractmethod
    def features(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The last hidden layer [B, M, H, W] and the time embedding [B, 4M]: what every readout reads.

        Networks with classes take those of the images as a third argument, [B], or None for no class.
        """

    @abstractmethod
    def mean_output(self, h: Tensor, t: Tensor) -> Tensor:
        """The first output, from the last hidden layer and the conditioning argument."""

    @abstractmethod
    def head_output(self, h: Tensor, emb: Tensor, modules: Mapping[str, nn.Module] | nn.ModuleDict) -> Tensor:
        """A pixel head's output [B, C, H, W] by `modules`."""

    def second_output(self, h: Tensor, emb: Tensor, modules: Mapping[str, nn.Module] | nn.ModuleDict) -> Tensor:
        """The head's output [B, C, H, W] by `modules`: the network's own, or others in their place (an average)."""
        if COORDINATES in modules:
            return modules[COORDINATES](h, emb)
        return self.head_output(h, emb, modules)

    @property
    def has_head(self) -> bool:
        return any(self.in_head(name) for name in self._modules)

    @property
    def in_basis(self) -> bool | None:
        """Whether the head is about the coordinates of a basis, not about pixels; None: about either."""
        return COORDINATES in self._modules

    def head(self) -> nn.ModuleDict:
        """The head's modules, shared with the network; their state dict has the network's own names."""
        return nn.ModuleDict({name: module for name, module in self.named_children() if self.in_head(name)})

    def in_head(self, name: str) -> bool:
        """Whether an entry of a state dict belongs to a head."""
        return name.partition(".")[0] in (*self.HEAD, COORDINATES)

    def trunk_state(self) -> dict[str, Tensor]:
        """The state dict without the head."""
        return {name: tensor for name, tensor in self.state_dict().items() if not self.in_head(name)}

    def forward(self, x: Tensor, t: Tensor, *classes: Tensor | None) -> Tensor:
        h, emb = self.features(x, t, *classes)
        y = self.mean_output(h, t)
        if not self.has_head:
            return y
        return torch.cat([y[:, : self.in_channels], self.second_output(h, emb, self._modules)], dim=1)  # type: ignore[arg-type]
