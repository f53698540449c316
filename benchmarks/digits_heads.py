"""The README's tables of variance rules on digits: Frechet distances, and bits/dim with their own least-cost steps.

    python -m benchmarks.digits_heads [--workdir=runs/digits_heads_tables] [--samples=1000] [--seeds=3] [--draws=150]

Frechet distances (see cells.py) are of even steps, as published. Bits/dim are of the test split, with the optimal
decoder variance; "least-cost" is planned on the rule's own measured table (`draws` training images at all 1000 times),
data term included. Two processes, one thread each.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from adpm.run.modes.likelihood import bound
from adpm.run.pool import keep_memory
from benchmarks.cells import BUDGETS, Method, Trunk, distances
from benchmarks.protocol import describe

HEADS = ("sn", "npr", "relative")


def sampled() -> list[Method]:
    """The rows of Frechet distances."""

    def method(name: str, rule: str, eta: float, variant: str = "") -> Method:
        return Method(name, "even", variant, {"rule.name": rule, "sampling.eta": eta})

    rows = [method("DDPM, large", "large", 1.0), method("DDPM, small", "small", 1.0), method("DDIM", "small", 0.0)]
    for kind, eta in (("DDPM", 1.0), ("DDIM", 0.0)):
        rows.append(method(f"Analytic-{kind}", "analytic", eta))
        rows += [method(f"{name.upper() if name != 'relative' else name}-{kind}", name, eta, name) for name in HEADS]
    return rows


def evaluated() -> list[Method]:
    """The rules of the bits/dim."""
    scalars = [Method(name, fields={"rule.name": name}) for name in ("small", "large", "analytic")]
    return scalars + [Method(name, variant=name) for name in ("learned", *HEADS)]


EVEN = {"trajectory.name": "even"}
OWN = {"trajectory.name": "least_cost", "trajectory.cost": "measured", "trajectory.data_term": True}


def bits(trunk: Trunk, method: Method, draws: int) -> list[str]:
    """A rule's rows of the table of bits/dim, in Markdown."""
    if method.variant == "learned":  # another network
        trunk = replace(trunk, variant="learned", workdir=trunk.workdir / "learned")
    moments, rows = trunk.moments(), []
    for steps, path in (("even", EVEN), ("least-cost", {**OWN, "moments.draws": draws})):
        fields: dict[str, Any] = {**method.fields, "likelihood.decoder": "optimal", **path}
        sessions = (trunk.session(0, moments, method.variant, {**fields, "trajectory.steps": k}) for k in trunk.budgets)
        rows.append(f"| {method.name} | {steps} | {' | '.join(str(bound(session)()) for session in sessions)} |")
    return rows


def work(job: tuple[Trunk, Method, int]) -> list[str]:
    """The rows of one method: of bits/dim if `draws` says how many images to plan on, else of Frechet distances."""
    trunk, method, draws = job
    torch.set_num_threads(1)
    return bits(trunk, method, draws) if draws else distances(trunk, [method])


def main() -> None:
    parser = argparse.ArgumentParser(description="variance rules on digits")
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits_heads_tables"))
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=0, help="test images of bits/dim; 0 = all 359")
    parser.add_argument("--draws", type=int, default=150, help="training images that the tables are measured on")
    parser.add_argument(
        "--rules", default="", help="a comma list, of small, large, analytic, learned, sn, npr, relative"
    )
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    options = parser.parse_args()
    budgets = tuple(int(k) for k in options.budgets.split(","))
    describe(
        f"variance rules on digits: {options.samples} samples a cell, {options.seeds} seeds; tables from "
        f"{options.draws} images; two processes of one thread"
    )
    trunk = Trunk("configs/digits.py", "", options.workdir, options.samples, options.seeds, options.images, budgets)
    trunk.moments()
    keep_memory()
    rules = set(filter(None, options.rules.split(",")))
    samplers = [method for method in sampled() if not rules or method.fields["rule.name"] in rules]
    likely = [method for method in evaluated() if not rules or (method.variant or method.name) in rules]
    jobs = [(trunk, method, 0) for method in samplers] + [(trunk, method, options.draws) for method in likely]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(work, jobs))
    first, second = found[: len(samplers)], found[len(samplers) :]
    if first:  # a learned variance has no row
        print("\n### Frechet distance ± standard deviation over seeds, even steps\n")
        print(trunk.head("sampler", "steps"), first[0][0], *(rows[1] for rows in first), sep="\n")
    print("\n### bits/dim ± standard error over test images\n")
    print(trunk.head("rule", "steps"), *(row for rows in second for row in rows), sep="\n")


if __name__ == "__main__":
    main()
