"""Between what bounds a learned variance interpolates (Nichol & Dhariwal 2021, eq. 15).

    log variance = low + f width,   low = log lambda2,   width = log(forward_variance / lambda2),   eta = 1

At s = 0 lambda2 is 0, and a stated first variance stands in for it; published: Var[x_1 | x_2, x_0].
"""

from __future__ import annotations

import numpy as np

from adpm.kernel import Kernel
from adpm.process import Array


def log_bounds(kernel: Kernel, first_variance: float) -> tuple[Array, Array]:
    """(low, width) for the kernel of one step or many."""
    low = np.log(np.where(kernel.s > 0.0, kernel.lambda2, first_variance))
    return low, np.log(kernel.forward_variance) - low
