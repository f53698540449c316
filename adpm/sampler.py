"""The only sampling loop. It yields every step; the caller decides what to keep, show or drop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from adpm.denoiser import Denoise, Watched
from adpm.errors import UserError
from adpm.noise import KeyedNoise, Noise
from adpm.process import Array, Process
from adpm.solver import Solver, Step
from adpm.start import FromNoise, Start

StepNoise = Callable[[int], Tensor]
"""k -> standard normal noise for the k-th step (0 is the start); draw j of step k has the number k + j MAX_STEPS."""

MAX_STEPS = 1 << 20
"""Numbers are 32-bit words of a counter: up to 2^20 steps with up to 2^12 draws each."""


def walk(denoise: Denoise, solver: Solver, times: Array, x: Tensor, noise: StepNoise) -> Iterator[Step]:
    """Walk a state down a path of times.

    Args:
        denoise: predicts at each time.
        solver: takes each step.
        times: [K+1], increasing, `times[0] = 0` is the data.
        x: the state at times[-1].
        noise: noise of step k = 1..K, counted from the largest time down.

    Yields:
        K steps, the last with s = times[0].

    Raises:
        UserError: if the network returned numbers that are not finite; before the last step is yielded at the latest,
            so that the loop does not wait for the device.
    """
    carry: Any = None
    watched = Watched(denoise)
    for k, (t, s) in enumerate(zip(times[:0:-1], times[-2::-1], strict=True), start=1):
        try:
            step = solver.step(watched, x, float(t), float(s), _lazy(noise, k), carry)
        except UserError:
            watched.check()  # a solver may have broken down because the network did
            raise
        if k == len(times) - 1:
            watched.check()
        x, carry = step.x, step.carry
        yield step


def _lazy(noise: StepNoise, k: int) -> Noise:
    return lambda draw=0: noise(k + draw * MAX_STEPS)


def keyed(noise: KeyedNoise, samples: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> StepNoise:
    """The noise of samples with these numbers: a function of (seed, sample, step) alone."""
    return lambda k: noise(samples, k, shape).to(dtype)


def sample(
    denoise: Denoise, solver: Solver, process: Process, times: Array, noise: StepNoise, start: Start | None = None
) -> Iterator[Step]:
    """Walk down to the data from what `start` makes at times[-1] of the noise of step 0.

    Unless there is one, the noise itself, with the standard deviation that x has there.
    """
    begin = FromNoise(process) if start is None else start
    return walk(denoise, solver, times, begin(float(times[-1]), noise(0)), noise)
