"""--mode=sample: moments and path if they are missing, then samples, a grid and the figures of the run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adpm.denoiser import Counted
from adpm.errors import UserError
from adpm.noise import KeyedNoise
from adpm.process import Array
from adpm.run.assembly import Session
from adpm.run.files import digest, write_json
from adpm.run.paths import method_name, method_protocol, path_for
from adpm.run.prepare import variance_for
from adpm.run.report import Report, image_grid, save_png, say
from adpm.run.shards import Arrays, save_arrays, sharded
from adpm.sampler import keyed
from adpm.sampler import sample as sample_path
from adpm.solver import Solver

_STRIP_ROWS, _STRIP_COLUMNS = 8, 10


def sample(session: Session) -> None:
    """Draw config.sampling.samples images and report how."""
    section = session.config.sampling
    _ = session.model  # missing weights are told before anything else
    path = path_for(session)
    solver = session.solver(session.rule(variance_for(session), path.times))
    protocol = method_protocol(session, path)
    folder = session.workdir / "samples" / f"{method_name(session)}-{digest(protocol)}"
    # batches of another size are other files, because images are bitwise equal at the same batching only
    parts = folder / f"batches-of-{section.batch_size}"
    started = time.perf_counter()

    def work(items: range) -> Arrays:
        return draw(session, solver, path.times, items)

    results = list(sharded(parts, section.samples, section.batch_size, work, "sampling"))
    samples = np.concatenate([result["samples"] for result in results])
    write_json(folder / "protocol.json", {**protocol, "samples": len(samples), "batch_size": section.batch_size})
    save_arrays(folder / "samples.npz", {"samples": samples})
    _report(session, folder, samples, results[0], time.perf_counter() - started)


@torch.inference_mode()
def draw(session: Session, solver: Solver, times: Array, items: range) -> Arrays:
    """Samples with these numbers, and what each step was like.

    Raises:
        UserError: if a state is not finite.
    """
    denoise = Counted(session.model.denoise)
    numbers = torch.arange(items.start, items.stop, device=session.device)
    noise = keyed(KeyedNoise(session.config.seed, "sample"), numbers, session.data.shape)
    started = time.perf_counter()
    variances, clipped, strip = [], [], []
    shown = set(np.linspace(0, len(times) - 2, min(_STRIP_COLUMNS, len(times) - 1)).round().astype(int).tolist())
    for k, step in enumerate(sample_path(denoise, solver, session.process, times, noise)):
        if not torch.isfinite(step.x).all():
            raise UserError(f"the state is not finite after the step {step.t:g} -> {step.s:g}; check weights and rule.")
        variances.append(float(torch.as_tensor(step.covariance.values, dtype=torch.float64).mean()))
        clipped.append(float(step.covariance.clipped))
        if k in shown:
            strip.append(step.prediction.x0[:_STRIP_ROWS].cpu().numpy())
    return {
        "samples": step.x.cpu().numpy(),
        "strip": np.stack(strip, 1),
        "t": times[:0:-1],
        "variance": np.array(variances),
        "clipped": np.array(clipped),
        "nfe": np.array(denoise.calls),
        "seconds": np.array(time.perf_counter() - started),
    }


def _report(session: Session, folder: Path, samples: NDArray[Any], first: Arrays, seconds: float) -> None:
    """Pictures, TensorBoard and a few lines; `first` is the first batch with its steps."""
    data = session.data
    grid = image_grid(data.to_unit(torch.as_tensor(samples[: session.config.sampling.grid])))
    strip = torch.as_tensor(first["strip"])
    strip_grid = image_grid(data.to_unit(strip.reshape(-1, *data.shape)), columns=strip.shape[1])
    save_png(folder / "grid.png", grid)
    save_png(folder / "strip.png", strip_grid)
    report = Report(session.workdir / "tensorboard" / "sample" / folder.name)
    report.picture("sample/grid", grid, 0)
    report.picture("sample/x0_along_the_path", strip_grid, 0)
    report.text("sample/protocol", f"```\n{(folder / 'protocol.json').read_text()}\n```")
    for t, v, c in zip(first["t"], first["variance"], first["clipped"], strict=True):
        index = int(np.searchsorted(session.process.times, t))
        report.scalars({"reverse/variance": float(v), "reverse/clipped_share": float(c)}, index)
        report.scalars({"reverse/log_snr": float(session.process.log_snr(t))}, index)
    report.close()
    say(f"{len(samples)} samples, {int(first['nfe'])} network calls each, {seconds:.1f} s ({session.model.source}).")
    clipped = first["clipped"].astype(float)
    if clipped.any():
        share = f", on {clipped.max():.0%} of the values at most" if clipped.max() < 1.0 else ""
        say(f"bounds acted in {np.count_nonzero(clipped)} of {len(clipped)} steps{share}.")
    say(f"samples:     {folder / 'samples.npz'}")
    say(f"grid:        {folder / 'grid.png'}")
    say(f"TensorBoard: tensorboard --logdir {session.workdir / 'tensorboard'}")
