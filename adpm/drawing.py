"""Samples in batches, with what every step was like."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adpm.classes import at
from adpm.denoiser import Counted, Denoise
from adpm.errors import UserError
from adpm.noise import KeyedNoise
from adpm.process import Array, Process
from adpm.progress import Arrays, Keep, in_memory
from adpm.sampler import keyed, sample
from adpm.solver import Solver, Step
from adpm.start import Start

STRIP_ROWS, STRIP_COLUMNS = 8, 10
STREAM = "sample"
"""Of the noise of samples."""


@dataclass(frozen=True)
class Sampler:
    """Draws the samples of a range of numbers: sample i is a function of (seed, i), whatever the batches.

    Attributes:
        denoise, solver, process, times: the sampler and its path [K+1], increasing from 0, after a start's jump.
        shape: of a sample.
        seed: of the noise.
        device: where the states lie.
        start: what is made of the first noise; see `adpm.sampler.sample`.
        encode: images as they are to be kept.
    """

    denoise: Denoise
    solver: Solver
    process: Process
    times: Array
    shape: tuple[int, ...]
    seed: int
    device: torch.device | str = "cpu"
    start: Start | None = None
    encode: Callable[[NDArray[Any]], NDArray[Any]] = lambda images: images

    def __call__(self, items: range) -> Arrays:
        """`samples` of a range; "seconds" that it took; "t", "variance", "clipped" [K], of every step; "nfe".

        With sample 0 also "strip" and "deviation" [rows, columns, ...], x0 and standard deviations along the path, and
        "shown" [columns], their times.

        Raises:
            UserError: if a state is not finite.
        """
        numbers = torch.arange(items.start, items.stop, device=self.device)
        given = (self.denoise, self.solver, self.process, self.times, numbers, self.shape, self.seed, self.start)
        arrays = draw_batch(*given)
        return {**arrays, "samples": self.encode(arrays["samples"])}


def draw(sampler: Sampler, count: int, batch_size: int, keep: Keep = in_memory) -> NDArray[Any]:
    """`count` samples [count, ...], `batch_size` in a network call."""
    return np.concatenate([part["samples"] for part in keep(count, batch_size, sampler, "sampling")])


@torch.inference_mode()
def draw_batch(
    denoise: Denoise,
    solver: Solver,
    process: Process,
    times: Array,
    numbers: torch.Tensor,
    shape: tuple[int, ...],
    seed: int,
    start: Start | None = None,
    stream: str = STREAM,
) -> Arrays:
    """The samples with these numbers, and what each step was like; pictures along the path with number 0 only.

    Args:
        denoise, solver, process, times, shape, seed, start: see `draw`.
        numbers: [B].
        stream: of the noise, see `KeyedNoise`.
    """
    counted, shows = Counted(at(denoise, numbers)), int(numbers[0]) == 0
    noise = keyed(KeyedNoise(seed, stream), numbers, shape)
    started = time.perf_counter()
    variances, clipped, strip, spread = [], [], [], []
    last = len(times) - 2
    shown = sorted(set(np.linspace(0, last, min(STRIP_COLUMNS, last + 1)).round().astype(int).tolist()))
    for k, step in enumerate(sample(counted, solver, process, times, noise, start)):
        _require_finite(step)
        variances.append(torch.as_tensor(step.covariance.values, dtype=torch.float64).mean())
        clipped.append(step.covariance.clipped)
        if shows and k in shown:
            strip.append(step.prediction.x0[:STRIP_ROWS].cpu().numpy())
            spread.append(step.covariance.deviation(step.x)[:STRIP_ROWS].cpu().numpy())
    down = times[:0:-1]
    pictures = {"strip": np.stack(strip, 1), "deviation": np.stack(spread, 1), "shown": down[shown]} if shows else {}
    return {
        **pictures,
        "samples": step.x.cpu().numpy(),
        "t": down,
        "variance": np.array([float(v) for v in variances]),
        "clipped": np.array([float(c) for c in clipped]),
        "nfe": np.array(counted.calls),
        "seconds": np.array(time.perf_counter() - started),
    }


def _require_finite(step: Step) -> None:
    """Refuse a state that is not finite; looked at once, at the end, where the device would have to be waited for."""
    if (step.x.is_cuda and step.s > 0.0) or bool(torch.isfinite(step.x).all()):
        return
    told = f"the state is not finite after the step {step.t:g} -> {step.s:g}; "
    least = float(torch.as_tensor(step.covariance.values).min())
    if least < 0.0:
        raise UserError(f"{told}the variance rule gives values down to {least:.3g} there: set `rule.bounds` = True.")
    raise UserError(f"{told}check weights and rule.")
