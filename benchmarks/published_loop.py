"""The eager sampling loop that is published, beside ours: images a second, and samples that are as far from the data.

What it does is what released code does: one call of a float32 network a step, a label made for it, x0 limited to the
data range, and normal numbers of torch's own; the variance is that of N(0, I) data, so that nothing is measured first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from adpm.kernel import reverse_kernel
from adpm.noise import KeyedNoise
from adpm.process import Array
from adpm.run.data import digits
from adpm.run.metrics import frechet
from adpm.sampler import StepNoise, keyed
from benchmarks.gpu_bench import PLAIN, Bench, Case, median_seconds, samples
from benchmarks.models import Model

RESAMPLED = 20


def published_loop(
    model: Model, network: Callable[[Tensor, Tensor], Tensor], times: Array, shape: tuple[int, ...], noise: StepNoise
) -> Tensor:
    """Samples of a network that predicts eps; `noise(k)` is that of step k, from 0 for the start."""
    x = noise(0)
    for k, (t, s) in enumerate(zip(times[:0:-1], times[-2::-1], strict=True), start=1):
        kernel = reverse_kernel(model.process, t, s)
        alpha, sigma = float(kernel.alpha_t), float(kernel.sigma_t)
        label = torch.tensor(float(model.label(np.asarray(t))), device=x.device).repeat(shape[0])
        eps = network(x, label)[:, : shape[1]]
        x0 = ((x - sigma * eps) / alpha).clamp(*model.range)
        eps = (x - alpha * x0) / sigma
        x = float(kernel.alpha_s) * x0 + float(kernel.eps_scale) * eps
        if s > 0:
            variance = float(kernel.lambda2 + kernel.gain**2 * sigma**2 / (alpha**2 + sigma**2))
            x = x + math.sqrt(variance) * noise(k)
    return x


def fresh(shape: tuple[int, ...], device: torch.device) -> StepNoise:
    """Normal numbers of the device's own generator."""
    return lambda k: torch.randn(shape, device=device)


def _distance(images: np.ndarray, data: np.ndarray) -> float:
    return frechet(images.mean(0), np.cov(images.T), data.mean(0), np.cov(data.T))


def to_digits(samples: Tensor) -> tuple[float, float]:
    """Frechet distance of samples [n, 1, 8, 8] to the digits in pixels, with its bootstrap error over samples."""
    train = digits()
    data = train.scaled(train.split("train")[torch.arange(len(train.split("train")))]).flatten(1).double().numpy()
    images = samples.flatten(1).double().cpu().numpy()
    generator = np.random.default_rng(0)
    again = [_distance(images[generator.integers(0, len(images), len(images))], data) for _ in range(RESAMPLED)]
    return _distance(images, data), float(np.std(again, ddof=1))


def measure_published(bench: Bench, model: Model) -> None:
    """Images a second of the published eager loop, in float32 and in TF32, torch's default on a GPU."""
    shape, times = (bench.sizes.batch, *model.shape), model.times(bench.sizes.steps)
    for case in (PLAIN, Case("tf32")) if bench.device.type == "cuda" else (PLAIN,):
        network, noise = bench.denoiser(model, case).network, fresh(shape, bench.device)

        def loop(network: Callable[..., Tensor] = network, noise: Callable[[int], Tensor] = noise) -> Tensor:
            return published_loop(model, network, times, shape, noise)

        seconds = median_seconds(loop, bench.sizes.repeats, bench.synchronise)
        bench.published[case.precision] = shape[0] / seconds
        what = f"{model.name}: published eager loop, K = {bench.sizes.steps}, batch {shape[0]}"
        bench.report.figure(what, shape[0] / seconds, "images/s", case)


class Distances:
    """How far samples of the digits' network are from the data, drawn by the published loop and by ours."""

    def __init__(self, bench: Bench, model: Model) -> None:
        self.bench, self.model, self.count = bench, model, bench.sizes.drawn
        numbers = torch.arange(self.count, device=bench.device)
        noise = keyed(KeyedNoise(0, "benchmark"), numbers, model.shape)
        network, times = bench.denoiser(model, PLAIN).network, model.times(bench.sizes.steps)
        drawn = published_loop(model, network, times, (self.count, *model.shape), noise)
        self.published, self.error = to_digits(drawn)
        self.name = f"{model.name}: Frechet distance of {self.count} samples, K = {bench.sizes.steps}"
        bench.report.figure(f"{self.name}, published loop", self.published, "pixels", PLAIN)

    def take(self, case: Case) -> None:
        """Ours may differ by the error of a difference."""
        drawn = samples(self.bench, self.model, self.bench.denoiser(self.model, case), self.count)
        found, error = to_digits(drawn)
        limit = math.hypot(error, self.error)
        values = (torch.tensor(v, dtype=torch.float64) for v in (found, self.published))
        self.bench.report.check(f"{self.name}, less the published loop's", *values, limit, case)
