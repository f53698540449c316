"""The relative head: Var[x_0 | x_t] = Var_t q(x_t) per pixel, q = 1 where the head says nothing.

q is a floored softplus of the head, shifted so that a head of zeros, as it starts, is the analytic scalar Var_t:

    q(h) = f + (1 - f) log(1 + (e - 1) e^h),   q(0) = 1,   f = 1e-4

The floor is needed, not a convenience: a pixel that is the same in all images has residuals of exactly zero once x_0
is clipped, and the loss log q + r^2/(Var_t q) would fall without end.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

FLOOR = 1e-4
_SHIFT = math.log(math.e - 1.0)


def relative_factor(head: Tensor) -> Tensor:
    """q = Var[x_0 | x_t] / Var_t in [1e-4, inf) from the head's output, elementwise; q(0) = 1."""
    return FLOOR + (1.0 - FLOOR) * F.softplus(head + _SHIFT)
