"""Training a head on a frozen trunk.

The trunk is evaluated once per call, without gradients, and both outputs read the same hidden layer, so a training step
costs one forward pass of the trunk and the head's own two passes. The trunk is no part of the module's parameters and
state: the optimizer, the average and the saved state hold the head alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from adpm.nn.heads import Headed


class FrozenTrunk(nn.Module):
    """(x, t), with classes for networks that are told them -> [first output, head], of which the head alone is trained.

    Args:
        network: the trunk, with a head.
        trunk_dropout: whether the trunk's dropout acts in training mode. The published training (Bao et al. 2022b) left
            it on, which fits the head to a noisier trunk than the one it is used with.
        head: the head's modules; the network's own unless given.
    """

    def __init__(self, network: Headed, trunk_dropout: bool = False, head: nn.ModuleDict | None = None) -> None:
        super().__init__()
        self._trunk = (network,)  # in a tuple, where nn.Module does not look for parameters
        self._trunk_dropout = trunk_dropout
        self.head = (network.head() if head is None else head).requires_grad_(True)

    def forward(self, x: Tensor, t: Tensor, *classes: Tensor | None) -> Tensor:
        (network,) = self._trunk
        with torch.no_grad():
            h, emb = network.features(x, t, *classes)
            y = network.mean_output(h, t)[:, : network.in_channels]
        return torch.cat([y, network.second_output(h, emb, self.head)], dim=1)

    def train(self, mode: bool = True) -> FrozenTrunk:
        """Training mode for the head; the trunk follows only with `trunk_dropout`."""
        self._trunk[0].train(mode and self._trunk_dropout)
        super().train(mode)
        return self

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FrozenTrunk:
        self._trunk[0]._apply(fn, recurse)  # a device is for both parts
        super()._apply(fn, recurse)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTrunk:
        """A copy with a head of its own on the same trunk, which is what an average of the head needs."""
        return FrozenTrunk(self._trunk[0], self._trunk_dropout, copy.deepcopy(self.head, memo))
