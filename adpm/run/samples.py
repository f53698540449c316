"""Samples of a session: those on disk read, the others drawn."""

from __future__ import annotations

import time
from dataclasses import dataclass
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
from adpm.run.paths import ChosenPath, path_for, sampler_name, sampler_protocol
from adpm.run.prepare import variance_for
from adpm.run.shards import Arrays, sharded
from adpm.sampler import keyed
from adpm.sampler import sample as sample_path
from adpm.solver import Solver, Step

_STRIP_ROWS, _STRIP_COLUMNS = 8, 10


@dataclass(frozen=True)
class Drawn:
    """Samples of a session.

    Attributes:
        images: [n, C, H, W] in the data's range.
        first: the first batch with its steps, see `draw`.
        folder: where they lie, with their protocol.
        seconds: that this call took; finished batches are read, not drawn again.
        drawing: seconds that drawing all batches took, whenever that was.
    """

    images: NDArray[Any]
    first: Arrays
    folder: Path
    seconds: float
    drawing: float


def samples_for(session: Session, path: ChosenPath | None = None) -> Drawn:
    """config.sampling.samples samples: those on disk read, the others drawn; moments and path made when missing.

    Args:
        session: says what to draw.
        path: instead of the config's own, which is planned on images that config.seed chooses.
    """
    section = session.config.sampling
    _ = session.sampler_model  # missing weights are told before anything else
    session.used_moments = False
    path = path or path_for(session)
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
    drawing = sum(float(result["seconds"]) for result in results)
    return Drawn(images, results[0], folder, time.perf_counter() - started, drawing)


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
