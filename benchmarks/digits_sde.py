"""The README's table of samplers in continuous time, on the shipped digits models.

    python -m benchmarks.digits_sde [--workdir=runs/digits_sde_tables] [--models=vp,ve] [--samples=1000] [--seeds=3]

Frechet distance to all 1797 digits in the feature space of the shipped classifier (99.2 % of its test split),
`samples` samples a cell, mean and standard deviation over seeds; images are limited to the data range, not rounded to
its levels. Beside it the floor: as many real digits, drawn with replacement. Then bits/dim of the test split by the
variational bound and by the probability flow. Models run side by side, one thread each; finished samples are kept in
`workdir`.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adpm.run.assembly import Session
from adpm.run.cli import load_config
from adpm.run.core import CORE
from adpm.run.metrics import digit_features, floor, frechet_distance
from adpm.run.modes.likelihood import bound
from adpm.run.modes.sample import samples_for
from adpm.run.prepare import moments_for, moments_path
from benchmarks.protocol import describe
from sde.mode import flow
from sde.tables import SDE_TABLES

BUDGETS = (5, 10, 25, 50, 100)


@dataclass(frozen=True)
class Method:
    """A row: its name, the steps it takes, and what it sets in the config."""

    name: str
    steps: str = "even"
    fields: dict[str, Any] = field(default_factory=dict)


def solver(name: str, **more: Any) -> dict[str, Any]:
    return {"sampling.solver": name, **more}


def kernel(rule: str, eta: float) -> dict[str, Any]:
    return {"rule.name": rule, "sampling.eta": eta}


def methods(variant: str) -> list[Method]:
    """The rows of a model. Reverse diffusion and ancestral sampling are the same kernel on VP."""
    ancestral = {"vp": "large", "ve": "small"}[variant]
    corrected = {**kernel("large", 1.0), "sampling.corrector": "langevin"}
    return [
        Method("Euler-Maruyama", fields=solver("euler_maruyama")),
        Method("reverse diffusion", fields=kernel("large", 1.0)),
        Method("ancestral", fields=kernel(ancestral, 1.0)),
        Method("predictor-corrector (2K calls)", fields=corrected),
        Method("probability flow, Euler", fields=solver("probability_flow_euler")),
        Method("analytic, eta = 0", fields=kernel("analytic", 0.0)),
        Method("analytic, eta = 1", fields=kernel("analytic", 1.0)),
        Method("analytic, eta = 1", "least-cost", kernel("analytic", 1.0)),
    ]


PATHS = {"even": "even", "least-cost": "least_cost"}


@dataclass(frozen=True)
class Job:
    """What one process works on: a model and the size of the tables."""

    variant: str
    workdir: Path
    samples: int
    seeds: int
    images: int
    budgets: tuple[int, ...]

    def session(self, seed: int, moments: str, fields: dict[str, Any]) -> Session:
        """A session with its own noise; moments and so the paths are the model's, measured once."""
        config = load_config("configs/digits_sde.py", self.variant)
        config.sampling.samples, config.sampling.batch_size = self.samples, 250
        config.likelihood.images = self.images
        config.update_from_flattened_dict({"seed": seed, "moments.file": moments, **fields})
        return Session(config, self.workdir / self.variant, CORE.merged(SDE_TABLES))

    def moments(self) -> str:
        session = self.session(0, "", {})
        moments_for(session)
        return str(moments_path(session))


def distances(job: Job) -> list[str]:
    """The rows of a model's table of Frechet distances, in Markdown."""
    torch.set_num_threads(1)
    moments, features = job.moments(), digit_features()
    data = job.session(0, moments, {}).data
    real = torch.cat([data.split(name) for name in ("train", "test")])
    real = 2.0 * data.to_unit(data.scaled(real)) - 1.0
    perfect = [floor(features, real, job.samples, seed) for seed in range(job.seeds)]
    rows = [f"| real digits | | {shown(perfect)} |" + " |" * (len(job.budgets) - 1)]
    for method in methods(job.variant):
        cells = []
        for steps in job.budgets:
            fields = {**method.fields, "trajectory.name": PATHS[method.steps], "trajectory.steps": steps}
            cells.append(shown([distance(job.session(s, moments, fields), features, real) for s in range(job.seeds)]))
        rows.append(f"| {method.name} | {method.steps} | " + " | ".join(cells) + " |")
    return rows


def distance(session: Session, features: nn.Module, real: Tensor) -> float:
    images = torch.as_tensor(samples_for(session).images)
    return frechet_distance(features, real, 2.0 * session.data.to_unit(images) - 1.0)


def shown(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


# where each model's flow starts when it ends in the bound's decoder: sigma of about a third of a level's distance
T_MIN = {"vp": 0.02, "ve": 0.1}


def bits(job: Job) -> list[str]:
    """The rows of a model's table of bits/dim."""
    torch.set_num_threads(1)
    moments = job.moments()
    common = {"likelihood.decoder": "optimal", "trajectory.data_term": True, "trajectory.name": "least_cost"}
    cells = [str(bound(job.session(0, moments, {**common, "trajectory.steps": k}))()) for k in job.budgets]
    rows = ["| bound, analytic, least-cost | " + " | ".join(cells) + " |"]
    starts = {"uniform": 1e-5, "diffusion": T_MIN[job.variant]}
    for name, t_min in starts.items():
        fields = {**common, "likelihood.dequantisation": name, "likelihood.t_min": t_min}
        found = flow(job.session(0, moments, fields))()
        rows.append(f"| flow from t = {t_min:g}, {name} dequantisation | {found} |" + " |" * (len(job.budgets) - 1))
    return rows


def work(job: Job) -> tuple[list[str], list[str]]:
    return distances(job), bits(job)


def main() -> None:
    parser = argparse.ArgumentParser(description="samplers in continuous time on digits")
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits_sde_tables"))
    parser.add_argument("--models", default="vp,ve", help="of vp, ve")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=0, help="test images of bits/dim; 0 = all 359")
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    options = parser.parse_args()
    budgets = tuple(int(k) for k in options.budgets.split(","))
    describe(f"digits in continuous time: {options.samples} samples a cell, {options.seeds} seeds, one thread a model")
    jobs = [
        Job(name, options.workdir, options.samples, options.seeds, options.images, budgets)
        for name in options.models.split(",")
    ]
    # for the workers: without this glibc gives every layer's memory back to the system, a fifth of the time
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "4000000000")
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "8000000000")
    head = " | ".join(f"K = {k}" for k in budgets) + " |"
    with ProcessPoolExecutor(len(jobs), mp_context=get_context("spawn")) as pool:
        for job, (first, second) in zip(jobs, pool.map(work, jobs), strict=True):
            print(f"\n### {job.variant}: Frechet distance ± standard deviation over seeds\n")
            print(f"| sampler | steps | {head}\n|---|---|" + "---|" * len(budgets), *first, sep="\n")
            print(f"\n### {job.variant}: bits/dim ± standard error over test images\n")
            print(f"| | {head}\n|---|" + "---|" * len(budgets), *second, sep="\n")


if __name__ == "__main__":
    main()
