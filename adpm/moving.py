"""Numbers on their way to where a network runs, which must not be waited for inside a loop."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

WAITING = frozenset({"cuda"})
"""Types of devices that a plain copy from the host waits for."""


def moved(values: ArrayLike | Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """`values` as a tensor on a device; the host does not wait for it.

    A single number is filled in there, as part of the command that is sent. Arrays go through memory that the device
    reads by itself ("pinned"), while the host goes on.
    """
    target = torch.device(device)
    if not isinstance(values, Tensor) and np.ndim(values) == 0:
        kind = dtype or torch.as_tensor(values).dtype
        return torch.full((), np.asarray(values).item(), dtype=kind, device=target)
    here = torch.as_tensor(values, dtype=dtype) if not isinstance(values, Tensor) else values
    if here.is_cpu and target.type in WAITING:
        here = here.pin_memory()
    return here.to(device=target, dtype=dtype or here.dtype, non_blocking=True)
