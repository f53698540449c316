"""Low-pass resampling of images, channel by channel (StyleGAN2; in score_sde's NCSN++).

The filter is outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64; outside an image there are zeros. None of it is in a state dict.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fir(nn.Module):
    """The filter, one copy per channel as the weight [C, 1, 4, 4] of a grouped convolution."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", (torch.outer(taps, taps) / 64.0)[None, None], persistent=False)

    def weight(self, channels: int) -> Tensor:
        return self.kernel.expand(channels, 1, 4, 4)


class FirBlur(Fir):
    """Filter with two zeros around: H -> H + 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight(x.shape[1]), padding=2, groups=x.shape[1])


class FirDown(Fir):
    """Filter with one zero around and keep every second sample: H -> H/2."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight(x.shape[1]), stride=2, padding=1, groups=x.shape[1])


class FirUp(Fir):
    """Put a zero after each sample, two before and one after the image, filter with gain 4: H -> 2 H."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, 4.0 * self.weight(x.shape[1]), stride=2, padding=1, groups=x.shape[1])
