"""The cells of the peers' table: samples of one sampler in one of its settings, and their distances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import adpm
from adpm.ems import EMS
from adpm.fitting import Flow
from adpm.measured import Plan
from adpm.noise import KeyedNoise
from adpm.paths import Path as Times
from adpm.reference import Reference
from adpm.run.metrics import FEATURES, FrechetDistance, energy_distance
from adpm.sampler import keyed
from benchmarks import diffusers_peers

PATHS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("even", "stride", "power2", "log_snr", "karras", "least_cost", "fitted")},
    "log_snr to 4": ("log_snr", {"log_snr_max": 4.0}),
    "karras to 4": ("karras", {"log_snr_max": 4.0}),
}
"""Name -> trajectory and its options; to log-SNR 4 is as early as diffusers' leading times end for K = 10."""

NODES, STATISTICS_DRAWS = 60, 1000  # of the statistics of DPM-Solver-v3
BATCH = 1000  # images at a time; samples do not depend on it
LEADING, MANY = 256, 1024  # images of more pixels than MANY are compared along their LEADING principal axes

V3, FITTED, HEAD = "adpm DPM-Solver-v3", "adpm fitted", "adpm spectral head"
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
    "adpm aDDIM": ({"solver": "addim"}, ({},)),
    "adpm CNS, eta 1": ({"rule": "cns", "eta": 1.0}, ({},)),
    "adpm spectral, eta 1": ({"rule": "spectral", "eta": 1.0}, ({},)),
    "adpm spectral, eta 0": ({"rule": "spectral", "eta": 0.0}, ({},)),
    f"{HEAD}, eta 1": ({"rule": "spectral_head", "eta": 1.0}, ({},)),
    f"{HEAD}, eta 0": ({"rule": "spectral_head", "eta": 0.0}, ({},)),
    FITTED: ({"solver": "fitted"}, ({"bands": 1}, {"bands": 8})),
}
"""Name -> what is given to Model.sample, and the options that are tried."""


@dataclass(frozen=True)
class Place:
    """Whose samplers are compared, and where the work is kept.

    Attributes:
        workdir: the folder.
        config: of the model.
        file: of its images, where the config wants one.
    """

    workdir: Path
    config: str = "configs/digits.py"
    file: str = ""


@dataclass(frozen=True)
class Cell:
    """Samples to be judged: a sampler, its setting in words, whether x0 is clipped, K, seed, how many, by what."""

    name: str
    setting: str
    clip: bool
    steps: int
    seed: int
    samples: int
    figures: tuple[str, ...]


def settings(name: str, steps: int, trajectories: Sequence[str]) -> Iterator[str]:
    """The settings of a sampler, in words."""
    if name not in OURS:
        yield from (told for told, _ in diffusers_peers.settings(name))
        return
    for trajectory in trajectories:
        for options in OURS[name][1]:
            if options.get("order", 1) <= steps:
                yield trajectory + "".join(f", {key} {value}" for key, value in options.items())


@cache
def model_of(clip: bool, place: Place, head: bool = False) -> adpm.Model:
    """With its spectral head, which is of one way of clipping: the config's variant of that name."""
    given = {"data__file": place.file} if place.file else {}
    file, _, variant = place.config.partition(":")
    config = f"{file}:{f'{variant}_' if variant else ''}spectral" if head else place.config
    folder = place.workdir / f"model-{called(clip)}{'-head' if head else ''}"
    return adpm.load(config, workdir=folder, denoiser__clip=clip, **given)


def called(clip: bool) -> str:
    return "clipped" if clip else "free"


@cache
def judges(place: Place) -> dict[str, Any]:
    """Figure -> images in [-1, 1] -> distance; the first one chooses."""
    model = model_of(True, place)
    images = {split: model.images[split].cpu() for split in ("test", "train")}
    shape = tuple(images["test"].shape[1:])
    spaces = {"pixels": FEATURES["pixels"].build(shape)}
    if shape == (1, 8, 8):
        spaces = {"features": FEATURES["digits"].build(shape), **spaces}
    elif images["train"][0].numel() > MANY:
        spaces = {f"{LEADING} axes": leading(images["train"].flatten(1), model.device)}
    out: dict[str, Any] = {
        f"{title}, {split}": FrechetDistance(features, images[split])
        for title, features in spaces.items()
        for split in ("train", "test")
    }
    truth = images["test"].to(model.device)
    return {**out, "energy, test": lambda drawn: energy_distance(drawn.to(model.device), truth)}


def leading(images: Tensor, device: torch.device) -> nn.Module:
    """Coordinates along the principal axes of images [n, d] with the largest variances, found on a device.

    Covariances of few numbers are known from few samples: those of all d = 3,072 pixels are not, from 2,000.
    """
    axes = torch.linalg.eigh(torch.cov(images.T.to(device, torch.float64))).eigenvectors[:, -LEADING:].T.float().cpu()
    features = nn.Linear(*axes.shape[::-1], bias=False)
    features.weight = nn.Parameter(axes.contiguous(), requires_grad=False)
    return nn.Sequential(nn.Flatten(), features)


def figures(images: Tensor, names: Sequence[str], place: Place) -> dict[str, float]:
    """The named distances of samples."""
    limited = images.clamp(-1.0, 1.0).cpu()
    return {name: float(judges(place)[name](limited)) for name in names}


@torch.inference_mode()
def measured(cell: Cell, place: Place) -> tuple[Cell, dict[str, Any]]:
    """A cell with its figures, or with what went wrong."""
    torch.set_num_threads(1)
    try:
        drawn = _ours(cell, place) if cell.name in OURS else _peer(cell, place)
        if not bool(torch.isfinite(drawn).all()):
            return cell, {"failed": "not finite"}
        return cell, figures(drawn, cell.figures, place)
    except (adpm.UserError, ValueError, IndexError, AssertionError, RuntimeError, NotImplementedError) as error:
        return cell, {"failed": str(error).split("\n")[0][:200]}


def _ours(cell: Cell, place: Place) -> Tensor:
    model, (given, tried) = model_of(cell.clip, place, cell.name.startswith(HEAD)), OURS[cell.name]
    trajectory, *_ = cell.setting.split(", ")
    options = next(o for o in tried if cell.setting == ", ".join([trajectory, *(f"{k} {v}" for k, v in o.items())]))
    file = plan_file(place, cell.clip, trajectory, cell.steps)
    if not file.is_file():
        raise adpm.UserError(f"'{trajectory}' has no path of {cell.steps} steps")
    path = np.load(file)
    plan = Plan(Times(path, model.process.times[path], None), moments_of(place, cell.clip))
    known = {V3: lambda: EMS.load(statistics_file(place)), FITTED: lambda: flow_of(place)}.get(cell.name)
    return model.sample(
        plan,
        n=cell.samples,
        seed=cell.seed,
        batch_size=BATCH,
        statistics=known() if known else None,
        **given,
        **options,
    )


def _peer(cell: Cell, place: Place) -> Tensor:
    model = model_of(cell.clip, place)
    options = dict(diffusers_peers.settings(cell.name))[cell.setting]
    shape, parts = tuple(model.images["test"].shape[1:]), []
    for numbers in torch.arange(cell.samples, device=model.device).split(BATCH):
        noise = keyed(KeyedNoise(cell.seed, "sample"), numbers, shape)
        parts.append(diffusers_peers.draw(cell.name, options, model.denoise, model.process, cell.steps, noise))
    return torch.cat(parts)


# What our samplers need first


def moments_file(place: Place, clip: bool) -> Path:
    return place.workdir / f"coordinates-{called(clip)}.npz"


def plan_file(place: Place, clip: bool, trajectory: str, steps: int) -> Path:
    return place.workdir / "plans" / f"{trajectory}-{called(clip)}-K{steps}.npy"


def statistics_file(place: Place) -> Path:
    return place.workdir / "statistics.npz"


def moments_of(place: Place, clip: bool) -> adpm.Moments:
    return adpm.Moments.load(moments_file(place, clip), model_of(clip, place).process)


@cache
def flow_of(place: Place) -> Flow:
    """The trajectories that fitted steps and times are fitted to."""
    model, file = model_of(False, place), place.workdir / "trajectories.npz"
    if not file.is_file():
        model.measure_trajectories().reference.save(file)
    return Flow(Reference.load(file), model.denoise, model.process)


def _indices(place: Place, clip: bool, steps: int, name: str, draws: int) -> np.ndarray:
    trajectory, options = PATHS[name]
    flow = flow_of(place) if trajectory == "fitted" else None
    given = (moments_of(place, clip), steps, trajectory)
    return model_of(clip, place).plan(*given, draws=draws, statistics=flow, **options).path.indices


def prepare(
    place: Place, budgets: Sequence[int], trajectories: Sequence[str], draws: int, times: int, statistics: bool
) -> None:
    """Moments, paths and what solvers need to know of the network, each measured once."""
    (place.workdir / "plans").mkdir(parents=True, exist_ok=True)
    if statistics and not statistics_file(place).is_file():
        model_of(False, place).measure_statistics(nodes=NODES, draws=STATISTICS_DRAWS).save(statistics_file(place))
    for clip in (True, False):
        model, file = model_of(clip, place), moments_file(place, clip)
        if not file.is_file():
            model.measure(draws=draws, times=times, basis="auto").save(file)
        for steps in budgets:
            for trajectory in trajectories:
                made = plan_file(place, clip, trajectory, steps)
                if not made.is_file():
                    with suppress(adpm.UserError):  # some have no path of so many steps
                        np.save(made, _indices(place, clip, steps, trajectory, draws))
