"""Samplers in few steps, ours and diffusers', with the same network and the same noise: which is best, at its best?

For every number of network calls K each sampler is first screened: all of its time grids, orders and both ways of
clipping x0, with --screen samples of one seed, judged by the Frechet distance to the training images, of digits in the
features of a classifier (which knows these images best, so that they score 26 against the test images), else of
pixels. Its best setting is then measured with --samples samples of --seeds other seeds. The screening tells settings of
a sampler apart, not samplers: one seed may be hard on all that add no noise. Differences to the best sampler of a K are
taken seed by seed, because all share their noise; their error is that of the mean over seeds.

    python -m benchmarks.peers [--workdir=runs/peers] [--workers=2] [--steps 5 10] [--only DDIM UniPC] [--figure=FILE]
    python -m benchmarks.peers --config=configs/mnist.py --data=mnist.npz --workdir=runs/peers_mnist

wants the extra `diffusers`. Finished cells are kept in `workdir` and not drawn again.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from matplotlib.figure import Figure

from adpm.process import Array
from adpm.run.figures import save_figure
from benchmarks.diffusers_peers import PEERS
from benchmarks.peer_cells import (
    FITTED,
    OURS,
    PATHS,
    V3,
    Cell,
    Place,
    called,
    figures,
    judges,
    measured,
    model_of,
    prepare,
    settings,
)
from benchmarks.protocol import describe

BUDGETS = (3, 5, 7, 10, 15, 25)
SCREEN_SEED = 1000


class Kept:
    """Figures by cell, one JSON line each."""

    def __init__(self, place: Place) -> None:
        self.place, self._path, self._known = place, place.workdir / "cells.jsonl", dict[Cell, dict[str, Any]]()
        if self._path.is_file():
            for line in self._path.read_text().splitlines():
                entry = json.loads(line)
                self._known[Cell(**{**entry["cell"], "figures": tuple(entry["cell"]["figures"])})] = entry["figures"]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all figures; the first one chooses."""
        return tuple(judges(self.place))

    def all_of(self, cells: Sequence[Cell], workers: int) -> dict[Cell, dict[str, Any]]:
        todo = [cell for cell in cells if cell not in self._known]
        work = (delayed(measured)(cell, self.place) for cell in todo)
        for done, (cell, found) in enumerate(Parallel(n_jobs=workers, return_as="generator_unordered")(work), start=1):
            self._known[cell] = found
            with self._path.open("a") as file:
                file.write(json.dumps({"cell": asdict(cell), "figures": found}) + "\n")
            if not done % 50:
                print(f"  {done} of {len(todo)} cells", flush=True)
        return {cell: self._known[cell] for cell in cells}

    def of_seeds(self, cell: Cell, seeds: int, samples: int, workers: int) -> dict[str, Array]:
        """Every figure of a screened cell's setting, by seed; empty if one failed."""
        cells = [replace(cell, seed=seed, samples=samples, figures=self.names) for seed in range(seeds)]
        found = self.all_of(cells, workers).values()
        if any("failed" in values for values in found):
            return {}
        return {name: np.array([values[name] for values in found]) for name in self.names}


def chosen(
    kept: Kept, names: Sequence[str], budgets: Sequence[int], trajectories: Sequence[str], samples: int, workers: int
) -> dict[Cell, float]:
    """The best setting of every sampler at every K, by screening, with its distance."""
    first = kept.names[0]
    cells = [
        Cell(name, setting, clip, steps, SCREEN_SEED, samples, (first,))
        for steps in budgets
        for name in names
        for setting in settings(name, steps, trajectories)
        for clip in (True, False)
    ]
    found = kept.all_of(cells, workers)
    best: dict[tuple[str, int], Cell] = {}
    for cell, values in found.items():
        key, value = (cell.name, cell.steps), values.get(first, np.inf)
        if value < (found[best[key]].get(first, np.inf) if key in best else np.inf):
            best[key] = cell
    failed = Counter(str(values["failed"]) for values in found.values() if "failed" in values)
    print(f"screened {len(cells)} settings with {samples} samples each; {failed.total()} could not be run")
    for why, count in failed.most_common():
        print(f"  {count}: {why}")
    return {cell: float(found[cell][first]) for cell in best.values()}


def screening(best: Mapping[Cell, float], steps: Sequence[int]) -> str:
    """Every sampler's best setting at every K with its distance, the samplers in the order of the first K."""
    found = {(cell.name, cell.steps): (cell, value) for cell, value in best.items()}
    names = sorted({cell.name for cell in best}, key=lambda n: found[n, steps[0]][1] if (n, steps[0]) in found else 1e9)
    lines = [f"| screening | {' | '.join(f'K = {k}' for k in steps)} |", "|---" * (1 + len(steps)) + "|"]
    for name in names:
        row = []
        for k in steps:
            cell, value = found.get((name, k), (None, np.nan))
            row.append("" if cell is None else f"{value:.1f} ({cell.setting}, {called(cell.clip)})")
        lines.append(f"| {name} | {' | '.join(row)} |")
    return "\n".join(lines)


def table(found: Mapping[Cell, Mapping[str, Array]], names: Sequence[str], steps: int) -> str:
    """The samplers of one K, best first: every figure, and the paired difference of the first to the best."""
    rows = [(cell, values) for cell, values in found.items() if cell.steps == steps]
    rows.sort(key=lambda row: row[1][names[0]].mean())
    head = [f"K = {steps}", "setting", *names, "behind the best"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for cell, values in rows:
        behind = values[names[0]] - rows[0][1][names[0]]
        means = " | ".join(f"{values[name].mean():.3g}" for name in names)
        told = f"{cell.setting}, {called(cell.clip)}"
        lines.append(f"| {cell.name} | {told} | {means} | {behind.mean():.2f} ± {error_of(behind):.2f} |")
    return "\n".join(lines)


def error_of(values: Array) -> float:
    """Of the mean over seeds."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan


def floor(samples: int, kept: Kept) -> str:
    """What real images score: training images against test images, and as many test images drawn again."""
    images, names = model_of(True, kept.place).images, kept.names
    train = figures(images["train"], names, kept.place)
    again = torch.randint(len(images["test"]), (samples,), generator=torch.Generator().manual_seed(0))
    drawn = figures(images["test"][again], names, kept.place)
    return "\n".join(
        [
            f"| real images | {' | '.join(names)} |",
            "|---" * (1 + len(names)) + "|",
            f"| all {len(images['train'])} training images | {' | '.join(f'{train[name]:.3g}' for name in names)} |",
            f"| {samples} test images drawn again | {' | '.join(f'{drawn[name]:.3g}' for name in names)} |",
        ]
    )


def picture(found: Mapping[Cell, Mapping[str, Array]], name: str) -> Figure:
    """A distance against K for every sampler, each at the best of its settings, with errors over seeds."""
    made = Figure(figsize=(7, 4), layout="constrained")
    axes = made.subplots()
    for number, sampler in enumerate(dict.fromkeys(cell.name for cell in found)):
        cells = sorted((cell for cell in found if cell.name == sampler), key=lambda cell: cell.steps)
        means, errors = zip(*((found[c][name].mean(), error_of(found[c][name])) for c in cells), strict=True)
        style: dict[str, Any] = {"linestyle": "-" if sampler in OURS else "--", "color": f"C{number % 10}"}
        width = 2.5 if sampler == FITTED else 1.2
        axes.errorbar([c.steps for c in cells], means, errors, marker=".", label=sampler, linewidth=width, **style)
    budgets = sorted({cell.steps for cell in found})
    axes.set(xscale="log", yscale="log", xlabel="K, network calls", ylabel=f"Frechet distance ({name})")
    axes.set_xticks(budgets, [str(k) for k in budgets])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--config", default=Place.config, help="of the model")
    parser.add_argument("--data", default="", help="file of its images, where the config wants one")
    parser.add_argument("--workdir", type=Path, default=Path("runs/peers"))
    parser.add_argument("--steps", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--only", nargs="+", default=None, help="names of samplers")
    parser.add_argument("--trajectories", nargs="+", default=list(PATHS), choices=PATHS, help="of ours")
    parser.add_argument("--draws", type=int, default=300, help="of moments and data term, which some of ours need")
    parser.add_argument("--times", type=int, default=100, help="of the moments")
    parser.add_argument("--screen", type=int, default=500)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--figure", type=Path, help="draw the distances into this file")
    options = parser.parse_args()
    names = options.only or [*PEERS, *OURS]
    if unknown := set(names) - {*PEERS, *OURS}:
        parser.error(f"{sorted(unknown)} unknown; known: {', '.join([*PEERS, *OURS])}")
    describe("Samplers in few steps, ours and diffusers'")
    place = Place(options.workdir, options.config, options.data)
    prepare(place, options.steps, options.trajectories, options.draws, options.times, V3 in names)
    kept = Kept(place)
    screened = chosen(kept, names, options.steps, options.trajectories, options.screen, options.workers)
    print("\n" + screening(screened, options.steps), flush=True)
    whole = {cell: kept.of_seeds(cell, options.seeds, options.samples, options.workers) for cell in screened}
    found = {cell: values for cell, values in whole.items() if values}
    print(f"\n{options.samples} samples x {options.seeds} seeds; Frechet distances, energy distance\n")
    print(floor(options.samples, kept))
    for steps in options.steps:
        print("\n" + table(found, kept.names, steps))
    if options.figure:
        save_figure(options.figure, picture(found, kept.names[0]))


if __name__ == "__main__":
    main()
