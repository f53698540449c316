"""The README's table of samplers in continuous time, on the shipped digits models.

    python -m benchmarks.digits_sde [--workdir=runs/digits_sde_tables] [--models=vp,ve] [--samples=1000] [--seeds=3]

Frechet distances (see cells.py), beside them the floor: as many real digits, drawn with replacement. Then bits/dim of
the test split by the variational bound and by the probability flow. Models run side by side, one thread each.
"""

from __future__ import annotations

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from adpm.run.modes.likelihood import bound
from adpm.run.pool import keep_memory
from benchmarks.cells import BUDGETS, Method, Trunk, distances
from benchmarks.protocol import describe
from sde.mode import flow
from sde.process import SDE


def kernel(rule: str, eta: float) -> dict[str, Any]:
    return {"rule.name": rule, "sampling.eta": eta}


def methods(variant: str) -> list[Method]:
    """The rows of a model. Reverse diffusion and ancestral sampling are the same kernel on VP."""
    ancestral = {"vp": "large", "ve": "small"}[variant]
    return [
        Method("Euler-Maruyama", fields={"sampling.solver": "euler_maruyama"}),
        Method("reverse diffusion", fields=kernel("large", 1.0)),
        Method("ancestral", fields=kernel(ancestral, 1.0)),
        Method("predictor-corrector (2K calls)", fields={**kernel("large", 1.0), "sampling.corrector": "langevin"}),
        Method("probability flow, Euler", fields={"sampling.solver": "probability_flow_euler"}),
        Method("analytic, eta = 0", fields=kernel("analytic", 0.0)),
        Method("analytic, eta = 1", fields=kernel("analytic", 1.0)),
        Method("analytic, eta = 1", "least-cost", fields=kernel("analytic", 1.0)),
    ]


def bits(trunk: Trunk) -> list[str]:
    """The rows of a model's table of bits/dim."""
    moments = trunk.moments()
    session = trunk.session(0, moments, "", {})
    assert isinstance(session.process, SDE)
    # where the flow starts when it ends in the bound's decoder: noise of half a level's distance
    late = round(float(session.process.time_of(-2.0 * math.log(session.levels.width / 2.0))), 3)
    common = {"likelihood.decoder": "optimal", "trajectory.data_term": True, "trajectory.name": "least_cost"}
    sessions = (trunk.session(0, moments, "", {**common, "trajectory.steps": k}) for k in trunk.budgets)
    rows = [f"| bound, analytic, least-cost | {' | '.join(str(bound(session)()) for session in sessions)} |"]
    for name, t_min in {"uniform": 1e-5, "diffusion": late}.items():
        fields = {
            **common,
            "likelihood.dequantisation": name,
            "likelihood.t_min": t_min,
            "likelihood.rtol": 1e-4,
            "likelihood.atol": 1e-4,
        }
        found = flow(trunk.session(0, moments, "", fields))()
        rows.append(f"| flow from t = {t_min:g}, {name} dequantisation | {found} |" + " |" * (len(trunk.budgets) - 1))
    return rows


def work(trunk: Trunk) -> tuple[list[str], list[str]]:
    torch.set_num_threads(1)
    return distances(trunk, methods(trunk.variant)), bits(trunk)


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
    trunks = [
        Trunk(
            "configs/digits_sde.py",
            name,
            options.workdir / name,
            options.samples,
            options.seeds,
            options.images,
            budgets,
        )
        for name in options.models.split(",")
    ]
    keep_memory()
    with ProcessPoolExecutor(len(trunks), mp_context=get_context("spawn")) as pool:
        for trunk, (first, second) in zip(trunks, pool.map(work, trunks), strict=True):
            print(f"\n### {trunk.variant}: Frechet distance ± standard deviation over seeds\n")
            print(trunk.head("sampler", "steps"), *first, sep="\n")
            print(f"\n### {trunk.variant}: bits/dim ± standard error over test images\n")
            print(trunk.head("test split"), *second, sep="\n", flush=True)


if __name__ == "__main__":
    main()
