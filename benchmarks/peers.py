"""Samplers in few steps, ours and diffusers', with the same network and the same noise: which is best, at its best?

For every number of network calls K each sampler is first screened: all of its time grids, orders and both ways of
clipping x0, with --screen samples of one seed, judged by the Frechet distance to the test images. The best setting is
then measured with --samples samples of --seeds other seeds. Differences to the best sampler of a K are taken seed by
seed, because all share their noise; their error is that of the mean over seeds.

    python -m benchmarks.peers --workdir=runs/peers [--workers=2] [--steps 5 10] [--only DDIM UniPC]

wants the extra `diffusers`. Finished cells are kept in `workdir` and not drawn again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor

import adpm
from adpm.ems import EMS
from adpm.measured import Plan
from adpm.noise import KeyedNoise
from adpm.paths import Path as Times
from adpm.run.metrics import FEATURES, FrechetDistance, energy_distance
from adpm.sampler import keyed
from benchmarks.protocol import describe

CONFIG = "configs/digits.py"
BUDGETS = (3, 5, 7, 10, 15, 25)
TRAJECTORIES = ("even", "power2", "log_snr", "karras", "least_cost")
SCREEN_SEED = 1000
DRAWS, TIMES = 300, 100  # of the moments, as config.moments has them
NODES, STATISTICS_DRAWS = 60, 1000  # of the statistics of DPM-Solver-v3
FIGURES = ("features, test", "features, train", "pixels, test", "pixels, train", "energy, test")

V3 = "adpm DPM-Solver-v3"
OURS: dict[str, tuple[dict[str, Any], tuple[dict[str, Any], ...]]] = {
    "adpm DDIM": ({"rule": "small", "eta": 0.0}, ({},)),
    "adpm analytic, eta 1": ({"rule": "analytic", "eta": 1.0}, ({},)),
    "adpm DPM-Solver++": ({"solver": "dpmpp"}, ({"order": 2}, {"order": 3})),
    "adpm DPM-Solver++ SDE": ({"solver": "dpmpp_sde", "eta": 1.0}, ({"order": 2},)),
    "adpm UniPC": ({"solver": "unipc"}, ({"order": 2}, {"order": 3})),
    "adpm DEIS": ({"solver": "deis"}, ({"order": 2}, {"order": 3})),
    "adpm iPNDM": ({"solver": "ipndm"}, ({"order": 2}, {"order": 3})),
    "adpm SA-Solver, eta 0.5": ({"solver": "sa", "eta": 0.5}, ({"order": 2},)),
    V3: ({"solver": "dpm_solver_v3"}, ({"order": 2}, {"order": 3})),
}
"""Name -> what is given to Model.sample, and the options that are tried."""


@dataclass(frozen=True)
class Cell:
    """Samples to be judged: a sampler, one of its settings in words, whether x0 is clipped, K, seed and number."""

    name: str
    setting: str
    clip: bool
    steps: int
    seed: int
    samples: int


def settings(name: str, steps: int) -> Iterator[str]:
    """The settings of a sampler, in words."""
    if name not in OURS:
        from benchmarks.diffusers_peers import settings as of_peer

        yield from (told for told, _ in of_peer(name))
        return
    for trajectory in TRAJECTORIES:
        for options in OURS[name][1]:
            if options.get("order", 1) <= steps:
                yield trajectory + "".join(f", {key} {value}" for key, value in options.items())


@cache
def model_of(clip: bool, workdir: Path) -> adpm.Model:
    return adpm.load(CONFIG, workdir=workdir / f"model-{_called(clip)}", denoiser__clip=clip)


def _called(clip: bool) -> str:
    return "clipped" if clip else "free"


@cache
def judges(workdir: Path) -> dict[str, Any]:
    """Figure -> images in [-1, 1] -> distance."""
    images = {split: model_of(True, workdir).images[split] for split in ("test", "train")}
    shape = tuple(images["test"].shape[1:])
    spaces = {"features": "digits", "pixels": "pixels"}
    out: dict[str, Any] = {
        f"{title}, {split}": FrechetDistance(FEATURES[kind].build(shape), images[split])
        for title, kind in spaces.items()
        for split in images
    }
    return {**out, "energy, test": lambda drawn: energy_distance(drawn, images["test"])}


def figures(images: Tensor, workdir: Path) -> dict[str, float]:
    limited = images.clamp(-1.0, 1.0)
    return {name: float(judges(workdir)[name](limited)) for name in FIGURES}


@torch.inference_mode()
def measured(cell: Cell, workdir: Path) -> tuple[Cell, dict[str, Any]]:
    """A cell with its figures, or with what went wrong."""
    torch.set_num_threads(1)
    try:
        drawn = _ours(cell, workdir) if cell.name in OURS else _peer(cell, workdir)
        if not bool(torch.isfinite(drawn).all()):
            return cell, {"failed": "not finite"}
        return cell, figures(drawn, workdir)
    except (adpm.UserError, ValueError, IndexError, AssertionError, RuntimeError, NotImplementedError) as error:
        return cell, {"failed": str(error).split("\n")[0][:200]}


def _ours(cell: Cell, workdir: Path) -> Tensor:
    model, (given, tried) = model_of(cell.clip, workdir), OURS[cell.name]
    trajectory, *_ = cell.setting.split(", ")
    options = next(o for o in tried if cell.setting == ", ".join([trajectory, *(f"{k} {v}" for k, v in o.items())]))
    path = np.load(plan_file(workdir, cell.clip, trajectory, cell.steps))
    moments = adpm.Moments.load(moments_file(workdir, cell.clip), model.process)
    plan = Plan(Times(path, model.process.times[path], None), moments)
    file = statistics_file(workdir)
    known = {"statistics": EMS.load(file)} if file.is_file() else {}
    return model.sample(plan, n=cell.samples, seed=cell.seed, batch_size=500, **given, **options, **known)


def _peer(cell: Cell, workdir: Path) -> Tensor:
    from benchmarks.diffusers_peers import draw
    from benchmarks.diffusers_peers import settings as of_peer

    model = model_of(cell.clip, workdir)
    options = dict(of_peer(cell.name))[cell.setting]
    shape, parts = tuple(model.images["test"].shape[1:]), []
    for numbers in torch.arange(cell.samples).split(500):
        noise = keyed(KeyedNoise(cell.seed, "sample"), numbers, shape)
        parts.append(draw(cell.name, options, model.denoise, model.process, cell.steps, noise))
    return torch.cat(parts)


# What our samplers need first


def moments_file(workdir: Path, clip: bool) -> Path:
    return workdir / f"moments-{_called(clip)}.npz"


def plan_file(workdir: Path, clip: bool, trajectory: str, steps: int) -> Path:
    return workdir / "plans" / f"{trajectory}-{_called(clip)}-K{steps}.npy"


def statistics_file(workdir: Path) -> Path:
    return workdir / "statistics.npz"


def prepare(workdir: Path, budgets: Iterable[int], statistics: bool) -> None:
    """Moments, paths and DPM-Solver-v3's statistics, each measured once."""
    (workdir / "plans").mkdir(parents=True, exist_ok=True)
    if statistics and not statistics_file(workdir).is_file():
        model_of(False, workdir).measure_statistics(nodes=NODES, draws=STATISTICS_DRAWS).save(statistics_file(workdir))
    for clip in (True, False):
        model, file = model_of(clip, workdir), moments_file(workdir, clip)
        if not file.is_file():
            model.measure(draws=DRAWS, times=TIMES).save(file)
        moments = adpm.Moments.load(file, model.process)
        for steps in budgets:
            for trajectory in TRAJECTORIES:
                made = plan_file(workdir, clip, trajectory, steps)
                if not made.is_file():
                    np.save(made, model.plan(moments, steps, trajectory).path.indices)


# The run


class Kept:
    """Figures by cell, one JSON line each."""

    def __init__(self, path: Path) -> None:
        self._path, self._known = path, dict[Cell, dict[str, Any]]()
        if path.is_file():
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                self._known[Cell(**entry["cell"])] = entry["figures"]

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


def chosen(kept: Kept, names: Sequence[str], budgets: Sequence[int], samples: int, workers: int) -> list[Cell]:
    """The best setting of every sampler at every K, by screening."""
    cells = [
        Cell(name, setting, clip, steps, SCREEN_SEED, samples)
        for steps in budgets
        for name in names
        for setting in settings(name, steps)
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
    return list(best.values())


def table(cells: Sequence[Cell], found: dict[Cell, dict[str, Any]], seeds: int, samples: int) -> str:
    """The samplers of one K, best first: every figure, and the paired difference of the first to the best."""
    rows = []
    for cell in cells:
        own = [found[Cell(**{**asdict(cell), "seed": s, "samples": samples})] for s in range(seeds)]
        if all(FIGURES[0] in values for values in own):
            rows.append((cell, {name: np.array([values[name] for values in own]) for name in FIGURES}))
    rows.sort(key=lambda row: row[1][FIGURES[0]].mean())
    lines = [f"| K = {cells[0].steps} | setting | {' | '.join(FIGURES)} | behind the best |", "|---" * 8 + "|"]
    for cell, values in rows:
        behind = values[FIGURES[0]] - rows[0][1][FIGURES[0]]
        error = behind.std(ddof=1) / np.sqrt(seeds) if seeds > 1 else np.nan
        told = f"{cell.setting}, {_called(cell.clip)}"
        means = " | ".join(f"{values[name].mean():.3g}" for name in FIGURES)
        lines.append(f"| {cell.name} | {told} | {means} | {behind.mean():.2f} ± {error:.2f} |")
    return "\n".join(lines)


def floor(samples: int, workdir: Path) -> str:
    """What real images score: training images against test images, and as many test images drawn again."""
    images = model_of(True, workdir).images
    train = figures(images["train"], workdir)
    again = torch.randint(len(images["test"]), (samples,), generator=torch.Generator().manual_seed(0))
    drawn = figures(images["test"][again], workdir)
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
    parser.add_argument("--screen", type=int, default=500)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    from benchmarks.diffusers_peers import PEERS

    names = options.only or [*PEERS, *OURS]
    if unknown := set(names) - {*PEERS, *OURS}:
        parser.error(f"{sorted(unknown)} unknown; known: {', '.join([*PEERS, *OURS])}")
    describe("Samplers in few steps, ours and diffusers'")
    prepare(options.workdir, options.steps, V3 in names)
    kept = Kept(options.workdir / "cells.jsonl")
    best = chosen(kept, names, options.steps, options.screen, options.workers)
    wanted = [Cell(**{**asdict(c), "seed": s, "samples": options.samples}) for c in best for s in range(options.seeds)]
    found = kept.all_of(wanted, options.workers)
    print(f"\n{options.samples} samples x {options.seeds} seeds; Frechet distances, energy distance\n")
    print(floor(options.samples, options.workdir))
    for steps in options.steps:
        cells = [cell for cell in best if cell.steps == steps]
        print("\n" + table(cells, found, options.seeds, options.samples))


if __name__ == "__main__":
    main()
