"""The integrators of benchmarks/integrators.py are what they say: exact on a Gaussian's flow, DDIM, and of order 2."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from adpm import ideal
from adpm.basis import Pixels
from adpm.coordinates import FOLDS, Spectrum
from adpm.process import PROCESSES, Array, Process
from adpm.sampler import walk
from adpm.shrinkage import Shrinkage
from adpm.solver import ReverseGaussian, Solver
from adpm.variance import Small
from benchmarks.integrators import Exponential, Known, Linear, solvers
from sde.process import VP
from tests.test_fitted import GAUSS, MIXED, SHAPE, SPREAD
from tests.test_fitted import exact as gaussian_flow

PROCESS = PROCESSES["linear"].build(200)
NONE = Shrinkage(0, 0, 0)


def known(process: Process = PROCESS, mean: float = 0.3) -> Known:
    """What is true of the Gaussian."""
    times = process.times[1:]
    rho2 = np.exp(-process.log_snr(times))[:, None]
    r = SPREAD * rho2 / (SPREAD + rho2)
    kept = Spectrum(times, Pixels(), "identity", r, 0 * r, r, 0 * r, np.stack([r] * FOLDS), SPREAD, 1, NONE, {}, SHAPE)
    return Known(process, kept, torch.full((4,), mean, dtype=torch.float64))


def ends(mixture: ideal.Mixture, build: Callable[[Array], Solver], path: Array, x: Tensor) -> Tensor:
    *_, last = walk(ideal.IdealDenoiser(mixture, PROCESS), build(path), path, x, lambda _: torch.zeros_like(x))
    return last.x


@pytest.mark.parametrize(
    ("name", "within"), [("data's variance", 1e-12), ("measured slope", 2e-3), ("DDIM, E z_f^2 kept", 1e-9)]
)
@pytest.mark.parametrize("path", [[0.0, 1.0, 200.0], [0.0, 1.0, 30.0, 90.0, 200.0]])
def test_flow_of_a_gaussian_is_followed_exactly(name: str, within: float, path: list[float]) -> None:
    """Up to the last step, which returns D; the slope's integral is by quadrature."""
    z = torch.randn(50, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rho2 = np.exp(-PROCESS.log_snr(np.array([1.0, 200.0])))
    start, end = (0.3 + z * torch.as_tensor(np.sqrt(SPREAD + rho)).reshape(SHAPE) for rho in rho2[::-1])
    wanted = 0.3 + torch.as_tensor(SPREAD / (SPREAD + rho2[0])).reshape(SHAPE) * (end - 0.3)
    made = solvers(known(), gaussian_flow(60))[name]
    got = ends(GAUSS, made, np.array(path), float(PROCESS.alpha(200.0)) * start)
    np.testing.assert_allclose(got, wanted, atol=within)


def test_no_linear_part_is_ddim() -> None:
    x, path = torch.randn(9, *SHAPE, dtype=torch.float64), np.array([0.0, 1.0, 20.0, 90.0, 200.0])
    got = ends(MIXED, solvers(known(), gaussian_flow(60))["DDIM"], path, x)
    wanted = ends(MIXED, lambda _: ReverseGaussian(PROCESS, Small(), 0.0), path, x)
    np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("extrapolated", "order"), [(0.0, 1.0), (0.5, 1.0), (1.0, 2.0)])
@pytest.mark.parametrize("form", ["variance", "slope"])
def test_orders_on_a_mixture(form: str, extrapolated: float, order: float) -> None:
    """With all of the extrapolation it is 2, with none or half of it 1."""
    process = VP(steps=200)
    own, denoise = known(process, 0.0), ideal.IdealDenoiser(MIXED, process)

    def share(t: float) -> Array:
        rho2 = np.exp(2.0 * own.log_rho(t))
        held: Array = SPREAD / (SPREAD + rho2) if form == "variance" else own.residual(own.log_rho(t)[0]) / rho2
        return held

    x = torch.randn(20, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logs = np.linspace(*process.log_snr(np.array([0.1, 0.9])), 641)

    def end(steps: int, part: float) -> Tensor:
        path = np.concatenate([[0.0], process.time_of(logs[:: 640 // steps])])
        solver = Exponential(own, getattr(Linear(own), form), share, part)
        *_, before, _ = walk(denoise, solver, path, x, lambda _: pytest.fail("noise"))
        return before.x

    truth = end(640, 1.0)
    long, short = (float((end(steps, extrapolated) - truth).abs().mean()) for steps in (40, 80))
    assert np.log2(long / short) == pytest.approx(order, abs=0.15)
