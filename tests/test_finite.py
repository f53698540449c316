"""A network that returns numbers that are not finite is told so by the name of the time, clipped or not, in every use.

Clipping to the data range would hide it: x0 = (x - sigma inf)/alpha is -inf, and clipped it is an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from adpm import denoiser, ideal
from adpm.cost_table import measure_column
from adpm.denoiser import Denoise, Denoiser, Prediction, Watched, require_finite
from adpm.draws import Source, measure
from adpm.errors import UserError
from adpm.likelihood import Levels, measure_statistics, path_terms
from adpm.nn import iddpm
from adpm.objective import eps_matching, losses
from adpm.process import PROCESSES, Process
from adpm.sampler import sample, walk
from adpm.solver import ReverseGaussian
from adpm.variance import Small, Unit
from covariance.objective import relative
from sde.dequantise import diffusion
from sde.likelihood import flow_likelihood
from sde.process import VP
from sde.solver import ProbabilityFlowAdaptive, ProbabilityFlowHeun

SHAPE = (1, 4, 4)
LEVELS = Levels(17, -1.0, 1.0)
DISCRETE, CONTINUOUS = PROCESSES["linear"].build(1000), VP()
PATH = DISCRETE.times[[0, 1, 200, 500, 1000]]
SDE_PATH = np.array([0.0, 1e-3, 0.3, 0.7, 1.0])


def broken(process: Process, head: bool = False) -> Denoiser:
    """A U-Net whose last bias is infinite, clipped to [-1, 1]."""
    network = iddpm.build(
        SHAPE, model_channels=8, channel_mult=(1,), num_res_blocks=1, num_heads=1, head="simple" if head else "none"
    )
    last = network.out2[-1] if head else network.out[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    with torch.no_grad():
        last.bias[0] = torch.inf
    network.eval().requires_grad_(False)
    return Denoiser(lambda x, t: network(x.float(), t.float()), process, clip=(-1.0, 1.0))


def x0(n: int = 3) -> Tensor:
    return torch.linspace(-1.0, 1.0, n * 16).reshape(n, *SHAPE)


def noise(k: float) -> Tensor:
    return torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(round(1000 * k)))


def walked(denoise: Denoise) -> Iterator[object]:
    return sample(denoise, ReverseGaussian(DISCRETE, Unit()), DISCRETE, PATH, noise)


def flowed(denoise: Denoise) -> Iterator[object]:
    return sample(denoise, ProbabilityFlowHeun(CONTINUOUS), CONTINUOUS, SDE_PATH, noise)


def bounded(denoise: Denoise) -> Iterator[object]:
    return path_terms(denoise, DISCRETE, Small(), lambda t: 0.1, LEVELS, PATH, x0(), noise)


def measured(denoise: Denoise) -> Iterator[object]:
    source = Source(3, lambda index: x0()[index], torch.zeros(SHAPE), 0.3)
    return measure(denoise, DISCRETE, source, [500.0, 900.0], 6, 0, 3)


def trained(loss: Callable[..., Tensor]) -> Callable[[Denoise], Iterator[object]]:
    return lambda denoise: iter([losses(loss, denoise, DISCRETE, x0(), noise(0), np.array([500.0, 700.0, 900.0]))])


def integrated(denoise: Denoise) -> Iterator[object]:
    probes = torch.ones(1, 3, *SHAPE)
    return iter([flow_likelihood(denoise, CONTINUOUS, x0(), probes, t_min=0.5)])


USES: dict[str, tuple[Process, float, Callable[[Denoise], Iterator[object]]]] = {
    "sampling": (DISCRETE, 1000, walked),
    "sampling an SDE": (CONTINUOUS, 1, flowed),
    "the bound": (DISCRETE, 1000, bounded),
    "the statistics of the bound": (
        DISCRETE,
        500,
        lambda d: measure_statistics(d, DISCRETE, lambda t: 0.1, LEVELS, np.array([500.0, 700.0]), x0(), noise),
    ),
    "a cost table": (
        DISCRETE,
        500,
        lambda d: iter([measure_column(d, DISCRETE, Unit(), lambda t: 0.1, LEVELS, 500, [(x0(), noise)])]),
    ),
    "moments": (DISCRETE, 500, measured),
    "the loss": (DISCRETE, 500, trained(eps_matching)),
    "the loss of a clipped x0": (DISCRETE, 500, trained(relative(lambda t: np.ones_like(t)))),
    "the flow's likelihood": (CONTINUOUS, 0.5, integrated),
    "dequantisation": (
        CONTINUOUS,
        0.5,
        lambda d: iter([diffusion(d, CONTINUOUS, lambda t: 0.1, LEVELS)(x0(), noise(0), 0.5)]),
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("head", [False, True])
def test_an_infinite_bias_is_told(use: str, head: bool) -> None:
    process, t, run = USES[use]
    with pytest.raises(UserError, match=rf"^the network returned numbers that are not finite at t = {t:g}; check its"):
        list(run(broken(process, head)))


@pytest.mark.parametrize("use", ["sampling", "the bound"])
def test_what_cannot_be_read_at_once_is_read_before_the_last_step(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: three of four steps are taken, and then the first time that went wrong is named."""
    monkeypatch.setattr(denoiser, "AT_ONCE", frozenset())
    _, t, run = USES[use]
    steps = run(broken(DISCRETE))
    for _ in range(3):
        next(steps)
    with pytest.raises(UserError, match=rf"not finite at t = {t:g};"):
        next(steps)


def test_a_solver_that_breaks_down_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adaptive solver finds that its state is not finite before anything is read."""
    monkeypatch.setattr(denoiser, "AT_ONCE", frozenset())
    bad = Denoiser(lambda x, t: x / (t - 999.0).abs()[:, None, None, None], CONTINUOUS, time_label=lambda t: 999.0 * t)
    with pytest.raises(UserError, match="the network returned numbers that are not finite at t = 1;"):
        list(walk(bad, ProbabilityFlowAdaptive(CONTINUOUS), np.array([0.0, 1e-3, 1.0]), noise(0), noise))


def test_the_time_of_the_example_is_named() -> None:
    """One time for each example; only what is below 300 goes wrong."""
    bad = Denoiser(lambda x, t: torch.where(t[:, None, None, None] < 300, torch.nan, x), DISCRETE)
    with pytest.raises(UserError, match="not finite at t = 299;"):
        require_finite(bad(noise(0), np.array([300.0, 299.0, 1.0])), np.array([300.0, 299.0, 1.0]))
    good = bad(noise(0), np.array([300.0, 400.0, 500.0]))
    assert require_finite(good, np.array([300.0, 400.0, 500.0])) is good


@pytest.mark.parametrize("clip", [(1.0, 1.0), (1.0, -1.0), (-1.0, float("inf")), (float("nan"), 1.0)])
def test_a_range_that_is_none_is_refused(clip: tuple[float, float]) -> None:
    with pytest.raises(UserError, match=rf"`clip` = \({clip[0]}, {clip[1]}\) must be a range"):
        Denoiser(lambda x, t: x, DISCRETE, clip=clip)


def test_a_state_that_is_not_finite_is_not_the_networks_fault() -> None:
    """A negative variance gives a state of NaN: the network passes it on and is not blamed."""
    denoise = Denoiser(lambda x, t: x, DISCRETE, clip=(-1.0, 1.0))
    prediction = denoise(noise(0) * torch.tensor([1.0, torch.nan, torch.inf])[:, None, None, None], 500.0)
    assert prediction.finite is not None and prediction.finite.all()
    assert ideal.IdealDenoiser(ideal.gaussian(0.0, 1.0, SHAPE), DISCRETE)(noise(0), 500.0).finite is None


@pytest.mark.parametrize("inference", [False, True])
def test_compiled_and_in_inference_mode(inference: bool) -> None:
    bad = broken(DISCRETE)
    bad.network = torch.compile(bad.network, backend="eager")
    with torch.inference_mode(inference), pytest.raises(UserError, match="not finite at t = 1000;"):
        list(walked(bad))


def test_a_watched_denoiser_forgets_what_it_has_told() -> None:
    def once(x: Tensor, t: ArrayLike) -> Prediction:
        return Prediction(x, x, x, finite=torch.tensor([t != 7.0] * len(x)))

    watched = Watched(once)
    with pytest.raises(UserError, match="at t = 7;"):
        watched(noise(0), 7.0)
    watched.check()
    assert watched(noise(0), 8.0).x0.equal(noise(0))
