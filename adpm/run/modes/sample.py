"""--mode=sample: moments and path if they are missing, then samples, a grid and the figures of the run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adpm.denoiser import Counted
from adpm.errors import UserError
from adpm.noise import KeyedNoise
from adpm.process import Array
from adpm.run.assembly import Session
from adpm.run.files import digest, write_json
from adpm.run.paths import path_for, sampler_name, sampler_protocol
from adpm.run.prepare import variance_for
from adpm.run.report import Report, image_grid, save_png, say
from adpm.run.shards import Arrays, save_arrays, sharded
from adpm.sampler import keyed
from adpm.sampler import sample as sample_path
from adpm.solver import Solver, Step

_STRIP_ROWS, _STRIP_COLUMNS = 8, 10


def sample(session: Session) -> None:
    """Draw config.sampling.samples images and report how."""
    if told := _unused(session):
        say(told)
    drawn = samples_for(session)
    save_arrays(drawn.folder / "samples.npz", {"samples": drawn.images})
    _report(session, drawn)


def _unused(session: Session) -> str:
    """What the solver makes no use of, in words; empty when it uses all."""
    kind, name = session.solver_kind, session.config.sampling.solver
    parts = {"config.rule": kind.uses_rule, "config.sampling.eta": kind.uses_eta}
    fields = [field for field, used in parts.items() if not used]
    return f"solver '{name}' brings its own noise: its steps make no use of {' and '.join(fields)}." if fields else ""


@dataclass(frozen=True)
class Drawn:
    """Samples of a session.

    Attributes:
        images: [n, C, H, W] in the data's range.
        first: the first batch with its steps, see `draw`.
        folder: where they lie, with their protocol.
        seconds: that this call took; finished batches are read, not drawn again.
    """

    images: NDArray[Any]
    first: Arrays
    folder: Path
    seconds: float


def samples_for(session: Session) -> Drawn:
    """config.sampling.samples samples: those on disk read, the others drawn; moments and path made when missing."""
    section = session.config.sampling
    _ = session.sampler_model  # missing weights are told before anything else
    session.used_moments = False
    path = path_for(session)
    solver = session.solver(variance_for(session), path.times)
    protocol = sampler_protocol(session, path)
    folder = session.workdir / "samples" / f"{sampler_name(session)}-{digest(protocol)}"
    # batches of another size are other files, because images are bitwise equal at the same batching only
    parts = folder / f"batches-of-{section.batch_size}"
    started = time.perf_counter()

    def work(items: range) -> Arrays:
        return draw(session, solver, path.times, items)

    results = list(sharded(parts, section.samples, section.batch_size, work, "sampling"))
    images = np.concatenate([result["samples"] for result in results])
    write_json(folder / "protocol.json", {**protocol, "samples": len(images), "batch_size": section.batch_size})
    return Drawn(images, results[0], folder, time.perf_counter() - started)


@torch.inference_mode()
def draw(session: Session, solver: Solver, times: Array, items: range) -> Arrays:
    """Samples with these numbers, and what each step was like.

    Raises:
        UserError: if a state is not finite.
    """
    denoise = Counted(session.sampler_model.denoise)
    numbers = torch.arange(items.start, items.stop, device=session.device)
    noise = keyed(KeyedNoise(session.config.seed, "sample"), numbers, session.data.shape)
    started = time.perf_counter()
    variances, clipped, strip, spread = [], [], [], []
    shown = set(np.linspace(0, len(times) - 2, min(_STRIP_COLUMNS, len(times) - 1)).round().astype(int).tolist())
    for k, step in enumerate(sample_path(denoise, solver, session.process, times, noise)):
        if not torch.isfinite(step.x).all():
            raise UserError(_not_finite(step))
        variances.append(float(torch.as_tensor(step.covariance.values, dtype=torch.float64).mean()))
        clipped.append(float(step.covariance.clipped))
        if k in shown and items.start == 0:
            strip.append(step.prediction.x0[:_STRIP_ROWS].cpu().numpy())
            spread.append(step.covariance.deviation(step.x)[:_STRIP_ROWS].cpu().numpy())
    pictures = {"strip": np.stack(strip, 1), "deviation": np.stack(spread, 1)} if items.start == 0 else {}
    return {
        **pictures,
        "samples": step.x.cpu().numpy(),
        "t": times[:0:-1],
        "variance": np.array(variances),
        "clipped": np.array(clipped),
        "nfe": np.array(denoise.calls),
        "seconds": np.array(time.perf_counter() - started),
    }


def _not_finite(step: Step) -> str:
    """Why the state may not be finite; asked only then, because looking at the variances waits for the device."""
    told = f"the state is not finite after the step {step.t:g} -> {step.s:g}; "
    least = float(torch.as_tensor(step.covariance.values).min())
    if least < 0.0:
        return told + f"the variance rule gives values down to {least:.3g} there: set config.rule.bounds = True."
    return told + "check weights and rule."


def stretched(deviation: Tensor) -> Tensor:
    """Standard deviations [rows, steps, ...] as brightness in [0, 1]: each step from its least to its largest value."""
    steps = deviation.transpose(0, 1).flatten(1)
    shape = (1, -1, *[1] * (deviation.ndim - 2))
    low, high = steps.min(1).values.reshape(shape), steps.max(1).values.reshape(shape)
    return (deviation - low) / (high - low).clamp_min(torch.finfo(deviation.dtype).tiny)


def _report(session: Session, drawn: Drawn) -> None:
    """Pictures, TensorBoard and a few lines."""
    data, folder, first = session.data, drawn.folder, drawn.first
    grid = image_grid(data.to_unit(torch.as_tensor(drawn.images[: session.config.sampling.grid])))
    strip = torch.as_tensor(first["strip"])
    strip_grid = image_grid(data.to_unit(strip.reshape(-1, *data.shape)), columns=strip.shape[1])
    save_png(folder / "grid.png", grid)
    save_png(folder / "strip.png", strip_grid)
    report = Report(session.workdir / "tensorboard" / "sample" / folder.name)
    report.picture("sample/grid", grid, 0)
    report.picture("sample/x0_along_the_path", strip_grid, 0)
    if session.solver_kind.uses_rule and session.state_dependent:
        deviation = torch.as_tensor(first["deviation"])
        unsure = image_grid(stretched(deviation).reshape(-1, *data.shape), columns=deviation.shape[1])
        save_png(folder / "deviation.png", unsure)
        report.picture("sample/standard_deviation_along_the_path", unsure, 0)
    report.text("sample/protocol", f"```\n{(folder / 'protocol.json').read_text()}\n```")
    for t, v, c in zip(first["t"], first["variance"], first["clipped"], strict=True):
        index = int(np.searchsorted(session.process.times, t))
        report.scalars({"reverse/variance": float(v), "reverse/clipped_share": float(c)}, index)
        report.scalars({"reverse/log_snr": float(session.process.log_snr(t))}, index)
    report.close()
    calls, source = int(first["nfe"]), session.sampler_model.source
    say(f"{len(drawn.images)} samples, {calls} network calls each, {drawn.seconds:.1f} s ({source}).")
    clipped = first["clipped"].astype(float)
    if clipped.any():
        share = f", on {clipped.max():.0%} of the values at most" if clipped.max() < 1.0 else ""
        say(f"bounds acted in {np.count_nonzero(clipped)} of {len(clipped)} steps{share} (of the first batch).")
    say(f"samples:     {folder / 'samples.npz'}")
    say(f"grid:        {folder / 'grid.png'}")
    say(f"TensorBoard: tensorboard --logdir {session.workdir / 'tensorboard'}")
