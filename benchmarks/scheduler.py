"""`AnalyticScheduler` beside diffusers' DDIMScheduler: one network, one loop, the same noise, as in the peers' table.

The shipped network of digits as a network of diffusers, in a loop as pipelines have it. Our schedulers are made as a
user makes them, by `from_pipeline` on the training digits; DDIM has the setting that `benchmarks.peers` found to be its
best in 10 calls. Judged by the peers' figures; differences to DDIM are taken seed by seed.

    python -m benchmarks.scheduler [--steps=10] [--samples=2000] [--seeds=5] [--draws=300] [--times=100]

wants the extra `diffusers`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from adpm.diffusers import AnalyticScheduler, Effort
from adpm.noise import KeyedNoise
from adpm.sampler import keyed
from benchmarks.models import DIGITS, shipped
from benchmarks.peer_cells import Place, figures, judges, model_of
from benchmarks.peers import error_of
from benchmarks.protocol import describe

BEST_DDIM: dict[str, Any] = {"timestep_spacing": "leading", "clip_sample": False}
OURS: dict[str, dict[str, Any]] = {
    "scalar, least-cost, eta 1": {"rule": "analytic", "eta": 1.0},
    "spectral, least-cost, eta 1": {"rule": "spectral", "eta": 1.0},
    "spectral, least-cost, eta 0.5": {"rule": "spectral", "eta": 0.5},
    "spectral, fitted, eta 1": {"rule": "spectral", "trajectory": "fitted", "eta": 1.0},
    "spectral, fitted, eta 0.5": {"rule": "spectral", "trajectory": "fitted", "eta": 0.5},
}
"""In words -> the fields of the config that differ."""


class Digits(nn.Module):
    """The shipped network of digits in the form of a UNet2DModel, which counts steps from 0."""

    def __init__(self) -> None:
        super().__init__()
        self.network = shipped("digits").network

    def forward(self, sample: Tensor, timestep: Tensor | float) -> SimpleNamespace:
        label = torch.as_tensor(timestep, dtype=sample.dtype).expand(len(sample)) + 1.0
        return SimpleNamespace(sample=self.network(sample, label))


@torch.inference_mode()
def drawn(unet: nn.Module, scheduler: Any, steps: int, samples: int, seed: int) -> Tensor:
    """Samples by the loop of a pipeline, their noise a function of (seed, sample, step)."""
    scheduler.set_timesteps(steps)
    parts = []
    for numbers in torch.arange(samples).split(500):
        noise = keyed(KeyedNoise(seed, "sample"), numbers, DIGITS)
        x = noise(0) * scheduler.init_noise_sigma
        for k, t in enumerate(scheduler.timesteps, start=1):
            output = unet(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(output, t, x, variance_noise=noise(k)).prev_sample
        parts.append(x)
    return torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workdir", type=Path, default=Path("runs/scheduler"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=300, help="of moments")
    parser.add_argument("--times", type=int, default=100, help="of the moments")
    parser.add_argument("--only", nargs="+", default=list(OURS), choices=OURS)
    options = parser.parse_args()
    describe("AnalyticScheduler beside DDIMScheduler")
    place = Place(options.workdir)
    images, names = model_of(True, place).images["train"], tuple(judges(place))
    unet = Digits()
    pipe = SimpleNamespace(unet=unet, scheduler=DDIMScheduler())
    effort = Effort(draws=options.draws, times=options.times, batch_size=256)
    rows: dict[str, Any] = {"DDIMScheduler": DDIMScheduler(**BEST_DDIM)}
    for told in options.only:
        rows[told] = AnalyticScheduler.from_pipeline(pipe, images, options.steps, effort=effort, **OURS[told])
    print(f"| K = {options.steps} | {' | '.join(names)} | less DDIM's |\n" + "|---" * (len(names) + 2) + "|")
    first: np.ndarray | None = None
    for told, scheduler in rows.items():
        runs = [drawn(unet, scheduler, options.steps, options.samples, seed) for seed in range(options.seeds)]
        found = np.array([list(figures(run, names, place).values()) for run in runs])
        first = found[:, 0] if first is None else first
        less = found[:, 0] - first
        means = " | ".join(f"{value:.3g}" for value in found.mean(0))
        print(f"| {told} | {means} | {less.mean():+.2f} ± {error_of(less):.2f} |", flush=True)


if __name__ == "__main__":
    main()
