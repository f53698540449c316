"""How far may sampling jump along the data's Gaussian, and what does it save?  On the shipped VP network of digits.

From the same noise, samples with and without a jump (adpm/start.py), in front of Heun, DPM-Solver++ and UniPC: the
steps saved are left out, or spent on the rest of the way ("again"). Told are the Frechet distance to the test images
(digits' features) and its difference to no jump, taken seed by seed; a jump is free if it adds less than twice its
standard error.

    python -m benchmarks.jumps [--samples=500] [--seeds=4] [--steps 5 10 25] [--trajectories even log_snr]
                               [--solvers UniPC-3]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import adpm
from adpm.process import Array
from adpm.run.metrics import FEATURES, FrechetDistance
from adpm.start import Start
from benchmarks.protocol import describe

CONFIG = "configs/digits_sde.py:vp"
SOLVERS: dict[str, tuple[dict[str, Any], int]] = {
    "Heun": ({"solver": "probability_flow_heun"}, 2),
    "DPM-Solver++(2M)": ({"solver": "dpmpp"}, 1),
    "UniPC-3": ({"solver": "unipc"}, 1),
}
"""Name -> what is given to Model.sample, and network calls a step (but for the last step, which has one)."""
LANDINGS = (-6.0, -4.0, -2.0, -1.0, 0.0, 1.0)
HEAD = ("path", "solver", "K", "jump to log-SNR", "steps", "calls", "distance", "more than without")


@dataclass(frozen=True)
class Bench:
    """The network, how samples are judged, and how many there are."""

    model: adpm.Model
    distance: FrechetDistance
    samples: int
    seeds: int

    def distances(self, plan: adpm.Plan, given: dict[str, Any], start: str | Start) -> Array:
        """Of the samples of every seed."""
        common = {"n": self.samples, "batch_size": 500, "start": start, **given}
        drawn = (self.model.sample(plan, seed=seed, **common) for seed in range(self.seeds))
        return np.array([self.distance(images.clamp(-1.0, 1.0)) for images in drawn])

    def jumps(self, plan: adpm.Plan) -> Iterator[tuple[Start, Array, bool]]:
        """(start, the times that it leaves, whether all steps are spent on them), each different jump once."""
        seen = set()
        for respend in (False, True):
            for log_snr in LANDINGS:
                start = self.model.start("gaussian", start_log_snr=log_snr, start_respend=respend)
                try:
                    left = plan.after(start, self.model.process)
                except adpm.UserError:  # it would go past the last time before the data
                    continue
                key = (tuple(left), respend)
                if key not in seen and (respend or len(left) < len(plan.times)):
                    seen.add(key)
                    yield start, left, respend


def rows(bench: Bench, trajectory: str, name: str, steps: int) -> Iterator[tuple[str, ...]]:
    """The lines of a solver's table: without a jump first."""
    given, calls = SOLVERS[name]
    plan = bench.model.plan(steps=steps, trajectory=trajectory)
    base = bench.distances(plan, given, "noise")
    same = (trajectory, name, str(steps))
    yield (*same, "none", str(steps), str(calls * (steps - 1) + 1), f"{base.mean():.2f}", "")
    for start, left, respend in bench.jumps(plan):
        try:
            found = bench.distances(plan, given, start)
        except adpm.UserError:  # fewer steps are left than the solver's order
            continue
        more, taken = found - base, len(left) - 1
        error = more.std(ddof=1) / np.sqrt(bench.seeds)
        landed = float(bench.model.process.log_snr(left[-1]))
        told = f"{more.mean():+.2f} ± {error:.2f}{', free' if more.mean() <= 2.0 * error else ''}"
        spent = f"{taken}{' again' if respend else ''}"
        yield (*same, f"{landed:.2f}", spent, str(calls * (taken - 1) + 1), f"{found.mean():.2f}", told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 25])
    parser.add_argument("--trajectories", nargs="+", default=["even", "log_snr"])
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS), choices=SOLVERS)
    parser.add_argument("--workdir", type=Path, default=Path("runs/jumps"))
    options = parser.parse_args()
    describe("Jumps along the data's Gaussian")
    model = adpm.load(CONFIG, workdir=options.workdir)
    images = torch.as_tensor(model.images["test"])
    judge = FrechetDistance(FEATURES["digits"].build(tuple(images.shape[1:])), images)
    bench = Bench(model, judge, options.samples, options.seeds)
    print(
        f"{options.samples} samples x {options.seeds} seeds; as many real images: {judge.floor(options.samples, 0):.2f}"
    )
    print(f"unless said, a jump goes to log-SNR {model.start('gaussian').log_snr:.2f}\n")
    print(f"| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|")
    for trajectory in options.trajectories:
        for name in options.solvers:
            for steps in options.steps:
                for row in rows(bench, trajectory, name, steps):
                    print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
