"""What the sampling loop costs beyond its network calls, on the shipped digits model.

    python -m benchmarks.overhead

Interleaved repeats of (a) K bare calls of the network and (b) a whole sampling run of K steps with the analytic rule,
kernel, keyed noise and all; the ratio of each pair, and their median.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from adpm.noise import KeyedNoise
from adpm.run.assembly import Session
from adpm.run.config import load_config
from adpm.run.families import house
from adpm.sampler import keyed, sample
from adpm.solver import ReverseGaussian
from adpm.trajectory import Request, trajectory
from adpm.variance import Analytic
from benchmarks.protocol import describe, interleaved


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    describe(f"sampling overhead: batch {options.batch}, K = {options.steps}, {options.repeats} interleaved pairs")
    with tempfile.TemporaryDirectory() as folder:
        session = Session.make(load_config("configs/digits.py")[0], Path(folder), house())
        process, denoise = session.process, session.model.denoise
        times = process.times[trajectory("even", Request(process, options.steps))]
        rule = Analytic(lambda t: 0.1 / (1.0 + process.alpha(t) ** 2))
        solver = ReverseGaussian(process, rule)
        noise = keyed(KeyedNoise(0, "benchmark"), torch.arange(options.batch), session.data.shape)
        x, label = noise(0), torch.full((options.batch,), 500.0)

        def bare() -> None:
            for _ in range(options.steps):
                denoise.network(x, label)  # type: ignore[attr-defined]

        def loop() -> None:
            for _ in sample(denoise, solver, process, times, noise):
                pass

        ratios, seconds = interleaved(bare, loop, options.repeats)
        print(f"one bare call: {1e3 * statistics.median(seconds) / options.steps:.1f} ms (median)")
        print(f"loop / bare:   {statistics.median(ratios):.4f} median, {min(ratios):.4f} to {max(ratios):.4f}")


if __name__ == "__main__":
    main()
