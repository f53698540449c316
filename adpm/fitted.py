"""The solver whose steps are fitted to the network's own probability flow; adpm/fitting.py says how.

Bespoke and S4S solvers (Shaul et al. 2023, Frankel et al. 2025) fit such numbers by gradients through the sampler; here
they are a least-squares solution, step by step. One network call a step, no noise, eta = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor

from adpm.denoiser import Denoise
from adpm.errors import UserError
from adpm.families import Field, Kind
from adpm.fitting import FittedStep, Flow
from adpm.gaussian import ZERO
from adpm.moving import moved
from adpm.noise import Noise
from adpm.process import Array, Process
from adpm.reference import Unlimited
from adpm.solver import SolverFacts, Step


class Fitted:
    """y_s = c_f + a y_t + b D_t + e D_before along a path.

    Args:
        process: any process.
        times: the path [K+1], increasing from 0.
        statistics: gives the trajectories with the network whose they are; asked for at the first step.
        bands: groups of coordinates with numbers a, b and e of their own.
    """

    def __init__(self, process: Process, times: Array, statistics: Callable[[], Flow], bands: int = 8) -> None:
        self.process, self.times, self._flow, self.bands = process, times, statistics, bands

    @cached_property
    def _steps(self) -> dict[float, FittedStep]:
        return dict(zip(self.times[:0:-1].tolist(), self._flow().steps(self.times, self.bands), strict=True))

    def step(self, denoise: Denoise, x: Tensor, t: float, s: float, noise: Noise, carry: Any = None) -> Step:
        """One step along the path.

        Raises:
            UserError: if t is no time of the path that the solver was made for.
        """
        if t not in self._steps:
            raise UserError(f"the solver was made for another path: t = {t:g} is none of its {len(self.times)} times.")
        basis, alpha_s = self._flow().reference.basis, float(self.process.alpha(s))
        found = Unlimited(denoise, self.process)(x, t)
        d = basis.forward(found.x0).flatten(1)
        y = basis.forward(x / float(self.process.alpha(t))).flatten(1)
        fitted = self._steps[t]
        seen = [y, d, *([] if carry is None else [carry])]
        made = FittedStep(moved(fitted.offset, y.device, y.dtype), moved(fitted.weights, y.device, y.dtype))(seen)
        mean = alpha_s * basis.inverse(made.reshape(x.shape))
        return Step(t, s, mean, found, mean, ZERO, d)


SOLVERS: dict[str, Kind] = {
    "fitted": Kind(
        Fitted,
        "ours: linear steps fitted to the network's own probability flow by least squares; no noise",
        SolverFacts(uses_path=True, statistics="trajectories"),
        {"bands": Field(8, "groups of coordinates with numbers of their own, by variance", low=1)},
        reads=("moments.statistics=trajectories",),
    ),
}
