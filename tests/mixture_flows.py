"""Golden walks down the probability flow of Gaussian mixtures: `solvers_vp.npz` and `solvers_edm.npz` of tests/data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from adpm.denoiser import Counted, Denoise
from adpm.ems import EMS
from adpm.ideal import IdealDenoiser, full_mixture
from adpm.process import Array
from adpm.sampler import walk
from adpm.solver import Solver
from sde.process import SDE, VE, VP
from tests.goldens import Golden, golden


def no_noise(number: int) -> Tensor:
    """For walks that draw none."""
    raise AssertionError("noise was asked for")


@dataclass(frozen=True)
class Flow:
    """A golden file with its process and exact denoiser."""

    stored: Golden
    process: SDE

    @cached_property
    def denoise(self) -> IdealDenoiser:
        return IdealDenoiser(full_mixture(*(self.stored[k] for k in ("w", "mu", "S")), self.shape), self.process)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored["xT"].shape[1:]

    @property
    def ems(self) -> EMS:
        """The statistics that the walks were made with."""
        return EMS(*(self.stored[k] for k in ("lam_grid", "ems_l", "ems_s", "ems_b")))

    def times(self, steps: int, grid: str = "logSNR") -> Array:
        """The path of a grid, rising."""
        ends = self.stored["lam_grid"][[0, -1]]
        if grid == "time_uniform":
            return np.linspace(*self.process.times[[1, -1]], steps + 1)
        if grid == "edm":
            lam = -7.0 * np.log(np.linspace(*np.exp(-ends / 7.0), steps + 1))
        else:
            lam = np.linspace(*ends, steps + 1)
        return np.clip(self.process.time_of(2.0 * lam), *self.process.times[[1, -1]])[::-1]

    def end(self, solver: Solver, times: Array, dtype: torch.dtype = torch.float64, denoise: Denoise | None = None):
        """(where the walk ends [B, D], network calls)."""
        counted, x = Counted(denoise or self.denoise), torch.as_tensor(self.stored["xT"]).to(dtype)
        for step in walk(counted, solver, times, x, no_noise):
            x = step.x
        return x.numpy(), counted.calls

    def error(self, x: Array) -> float:
        """Root mean square distance from the exact flow."""
        return float(np.sqrt(np.square(x - self.stored["x_exact"]).mean()))


@cache
def flow(name: str) -> Flow:
    """The flow "vp" or "edm"; sigma of the latter falls from 80 to 0.002."""
    if name == "vp":
        return Flow(golden("solvers_vp"), VP(10, 1e-3))
    scales = {"sigma_min": 1e-3, "sigma_max": 80.0}
    first = float(VE(10, **scales).time_of(-2.0 * np.log(0.002)))
    return Flow(golden("solvers_edm"), VE(10, first, **scales))
