"""How a network is differentiated in one direction: by forward-mode derivatives, or by a central difference.

A direction is a function of one real number d around 0, such as d -> network(x + d v). Its value and slope at 0 are all
that DPM-Solver-v3's statistics are made of (Zheng et al. 2023); gradients of weights are not needed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from adpm.errors import UserError
from adpm.families import Kind, built

Along = Callable[[Tensor], Tensor]
"""d [1] -> the network's output. Not a scalar: torch loses track of the precision of slopes of scalars."""
Derivative = Callable[[Along, Tensor], tuple[Tensor, Tensor]]
"""(function of d, any tensor of its dtype and device) -> its value and its slope at d = 0."""


def forward_mode(along: Along, like: Tensor) -> tuple[Tensor, Tensor]:
    """By `torch.func.jvp`: exact, one pass of about three times the cost.

    Raises:
        UserError: if a part of the network has no forward derivative.
    """
    zero = torch.zeros(1, dtype=like.dtype, device=like.device)
    try:
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward derivative
            value, slope, *_ = torch.func.jvp(along, (zero,), (torch.ones_like(zero),))
    except (NotImplementedError, RuntimeError) as error:
        told = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"`derivative` = 'jvp' needs a forward derivative, which the network does not have ({told}); use "
            "'difference'."
        ) from error
    return value, slope


def slope(along: Along, like: Tensor) -> Tensor:
    """(f(d) - f(-d)) / 2d at d = precision^(1/3), for which both errors are of the size d^2; 2 passes."""
    d = torch.full((1,), torch.finfo(like.dtype).eps ** (1.0 / 3.0), dtype=like.dtype, device=like.device)
    return (along(d) - along(-d)) / (2.0 * d)


def difference(along: Along, like: Tensor) -> tuple[Tensor, Tensor]:
    """The value, and the slope by a central difference; 3 passes."""
    return along(torch.zeros(1, dtype=like.dtype, device=like.device)), slope(along, like)


def usable(name: str, along: Along, like: Tensor) -> str:
    """The member that `name` stands for with this network: itself, and for "auto" the first one that works.

    Forward mode does not work where it is refused, or where it says that nothing changes: a network that detaches its
    input, or calls something beside torch.

    Raises:
        UserError: for an unknown name, or as the member that is named raises.
    """
    candidates: tuple[str, ...] = built(DERIVATIVES, name, "`derivative`")
    for candidate in candidates[:-1]:
        try:
            if _METHODS[candidate](along, like)[1].any():
                return candidate
        except UserError:
            continue
    return candidates[-1]


def derivative(name: str) -> Derivative:
    """The derivative of a name that `usable` gave."""
    return _METHODS[name]


_METHODS: dict[str, Derivative] = {"jvp": forward_mode, "difference": difference}

DERIVATIVES: dict[str, Kind] = {
    "auto": Kind(lambda: ("jvp", "difference"), "jvp where the network has it, else difference"),
    "jvp": Kind(lambda: ("jvp",), "forward-mode derivatives, exact"),
    "difference": Kind(lambda: ("difference",), "central differences: any network, a relative error of about 1e-4"),
}
"""Builders give the methods to be tried, in this order."""
