"""Samplers in few steps, ours and diffusers', with the same network and the same noise: which is best, at its best?

For every number of network calls K each sampler is first screened: all of its time grids, orders and both ways of
clipping x0, with --screen samples of one seed, judged by the Frechet distance to the training images (the classifier
whose features they are knows these best, so that they score 26 against the test images). The best setting, if
it is no further than --within times the best of its K, is then measured with --samples samples of --seeds other seeds.
Differences to the best sampler of a K are taken seed by seed, because all share their noise; their error is that of the
mean over seeds.

    python -m benchmarks.peers --workdir=runs/peers [--workers=2] [--steps 5 10] [--only DDIM UniPC]

wants the extra `diffusers`. Finished cells are kept in `workdir` and not drawn again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed

from benchmarks.diffusers_peers import PEERS
from benchmarks.peer_cells import FIGURES, OURS, PATHS, V3, Cell, called, figures, measured, model_of, prepare, settings
from benchmarks.protocol import describe

BUDGETS = (3, 5, 7, 10, 15, 25)
SCREEN_SEED = 1000


class Kept:
    """Figures by cell, one JSON line each."""

    def __init__(self, path: Path) -> None:
        self._path, self._known = path, dict[Cell, dict[str, Any]]()
        if path.is_file():
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                self._known[Cell(**{**entry["cell"], "figures": tuple(entry["cell"]["figures"])})] = entry["figures"]

    def all_of(self, cells: Sequence[Cell], workers: int) -> dict[Cell, dict[str, Any]]:
        todo = [cell for cell in cells if cell not in self._known]
        work = (delayed(measured)(cell, self._path.parent) for cell in todo)
        for done, (cell, found) in enumerate(Parallel(n_jobs=workers, return_as="generator_unordered")(work), start=1):
            self._known[cell] = found
            with self._path.open("a") as file:
                file.write(json.dumps({"cell": asdict(cell), "figures": found}) + "\n")
            if not done % 50:
                print(f"  {done} of {len(todo)} cells", flush=True)
        return {cell: self._known[cell] for cell in cells}


def chosen(
    kept: Kept, names: Sequence[str], budgets: Sequence[int], trajectories: Sequence[str], samples: int, workers: int
) -> dict[Cell, float]:
    """The best setting of every sampler at every K, by screening, with its distance."""
    cells = [
        Cell(name, setting, clip, steps, SCREEN_SEED, samples, FIGURES[:1])
        for steps in budgets
        for name in names
        for setting in settings(name, steps, trajectories)
        for clip in (True, False)
    ]
    found = kept.all_of(cells, workers)
    best: dict[tuple[str, int], Cell] = {}
    for cell, values in found.items():
        key, value = (cell.name, cell.steps), values.get(FIGURES[0], np.inf)
        if value < (found[best[key]].get(FIGURES[0], np.inf) if key in best else np.inf):
            best[key] = cell
    failed = {(c.name, c.setting, c.steps, v["failed"]) for c, v in found.items() if "failed" in v}
    print(f"screened {len(cells)} settings with {samples} samples each; {len(failed)} failed")
    for name, setting, steps, why in sorted(failed):
        print(f"  {name}, {setting}, K = {steps}: {why}")
    return {cell: float(found[cell][FIGURES[0]]) for cell in best.values()}


def leading(best: Mapping[Cell, float], within: float) -> list[Cell]:
    """Those no further than `within` times the least of their K; prints the others."""
    least = {k: min(value for cell, value in best.items() if cell.steps == k) for k in {cell.steps for cell in best}}
    for cell, value in sorted(best.items(), key=lambda item: (item[0].steps, item[1])):
        if value > within * least[cell.steps]:
            told = f"{cell.name} ({cell.setting}, {called(cell.clip)})"
            print(f"  out at K = {cell.steps}: {told}: {value:.1f}, the best {least[cell.steps]:.1f}")
    return [cell for cell, value in best.items() if value <= within * least[cell.steps]]


def table(cells: Sequence[Cell], found: dict[Cell, dict[str, Any]], seeds: int, samples: int) -> str:
    """The samplers of one K, best first: every figure, and the paired difference of the first to the best."""
    rows = []
    for cell in cells:
        own = [found[Cell(**{**asdict(cell), "seed": s, "samples": samples, "figures": FIGURES})] for s in range(seeds)]
        if all(FIGURES[0] in values for values in own):
            rows.append((cell, {name: np.array([values[name] for values in own]) for name in FIGURES}))
    rows.sort(key=lambda row: row[1][FIGURES[0]].mean())
    lines = [f"| K = {cells[0].steps} | setting | {' | '.join(FIGURES)} | behind the best |", "|---" * 8 + "|"]
    for cell, values in rows:
        behind = values[FIGURES[0]] - rows[0][1][FIGURES[0]]
        error = behind.std(ddof=1) / np.sqrt(seeds) if seeds > 1 else np.nan
        told = f"{cell.setting}, {called(cell.clip)}"
        means = " | ".join(f"{values[name].mean():.3g}" for name in FIGURES)
        lines.append(f"| {cell.name} | {told} | {means} | {behind.mean():.2f} ± {error:.2f} |")
    return "\n".join(lines)


def floor(samples: int, workdir: Path) -> str:
    """What real images score: training images against test images, and as many test images drawn again."""
    images = model_of(True, workdir).images
    train = figures(images["train"], FIGURES, workdir)
    again = torch.randint(len(images["test"]), (samples,), generator=torch.Generator().manual_seed(0))
    drawn = figures(images["test"][again], FIGURES, workdir)
    return "\n".join(
        [
            f"| real images | {' | '.join(FIGURES)} |",
            "|---" * 6 + "|",
            f"| all {len(images['train'])} training images | {' | '.join(f'{train[name]:.3g}' for name in FIGURES)} |",
            f"| {samples} test images drawn again | {' | '.join(f'{drawn[name]:.3g}' for name in FIGURES)} |",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workdir", type=Path, default=Path("runs/peers"))
    parser.add_argument("--steps", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--only", nargs="+", default=None, help="names of samplers")
    parser.add_argument("--trajectories", nargs="+", default=list(PATHS), choices=PATHS, help="of ours")
    parser.add_argument("--draws", type=int, default=300, help="of moments and data term, which some of ours need")
    parser.add_argument("--times", type=int, default=100, help="of the moments")
    parser.add_argument("--screen", type=int, default=500)
    parser.add_argument("--within", type=float, default=1.5, help="times the least distance: who stays after screening")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    names = options.only or [*PEERS, *OURS]
    if unknown := set(names) - {*PEERS, *OURS}:
        parser.error(f"{sorted(unknown)} unknown; known: {', '.join([*PEERS, *OURS])}")
    describe("Samplers in few steps, ours and diffusers'")
    prepare(options.workdir, options.steps, options.trajectories, options.draws, options.times, V3 in names)
    kept = Kept(options.workdir / "cells.jsonl")
    screened = chosen(kept, names, options.steps, options.trajectories, options.screen, options.workers)
    best = leading(screened, options.within)
    wanted = [
        Cell(**{**asdict(c), "seed": s, "samples": options.samples, "figures": FIGURES})
        for c in best
        for s in range(options.seeds)
    ]
    found = kept.all_of(wanted, options.workers)
    print(f"\n{options.samples} samples x {options.seeds} seeds; Frechet distances, energy distance\n")
    print(floor(options.samples, options.workdir))
    for steps in options.steps:
        cells = [cell for cell in best if cell.steps == steps]
        print("\n" + table(cells, found, options.seeds, options.samples))


if __name__ == "__main__":
    main()
