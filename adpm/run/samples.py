"""Samples of a session: those on disk read, the others drawn."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path as File
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adpm.drawing import draw
from adpm.paths import Path
from adpm.progress import Arrays
from adpm.run.assembly import Session
from adpm.run.classes import of_samples
from adpm.run.measure import variance_for
from adpm.run.naming import naming
from adpm.run.paths import path_after_start, path_for, sampler_key, sampler_name
from adpm.run.store import Parts, digest, parts_of, read_arrays, save_arrays, write_json


@dataclass(frozen=True)
class Samples:
    """Samples of a session.

    Attributes:
        kept: [n, C, H, W] as they are kept: uint8 levels 0..255 of the data's range, float32 for continuous data.
        first: of the first batch, see `adpm.drawing.Drawn`.
        path: that they were drawn along, after a start's jump.
        folder: where they lie, with their protocol.
        file: of the samples.
        seconds: that this call took.
        drawing: seconds that drawing took, whenever that was.
        decode: kept images -> images in the data's range.
    """

    kept: NDArray[Any]
    first: Arrays
    path: Path
    folder: File
    file: File
    seconds: float
    drawing: float
    decode: Any

    def images(self, part: slice = slice(None)) -> Tensor:
        """Images in the data's range, float32."""
        return self.decode(self.kept[part])


def samples_for(session: Session, path: Path | None = None) -> Samples:
    """config.sampling.samples samples: those on disk read, the others drawn; moments and path made when missing.

    Args:
        session: says what to draw.
        path: instead of the config's own, which is planned on images that config.seed chooses.
    """
    section = session.config.sampling
    model = session.sampler_model  # missing weights are told before anything else
    path = path_after_start(session, path or path_for(session))
    key = sampler_key(session, path)
    folder = session.workdir / "samples" / f"{sampler_name(session)}-{digest(key)}"
    file = folder / "samples.npz"
    started = time.perf_counter()
    found = read_arrays(file, partial(_check, session, path))
    if found is not None and int(found["batch_size"]) != section.batch_size:
        found = None  # images are bitwise equal at the same batching only
    if found is None or len(found["samples"]) < section.samples:
        with naming(session.house.table, "sampling"):
            solver = session.solver(variance_for(session), path.times)
            session.learn()  # what is missing is measured before anything is drawn
            drawn = draw(
                of_samples(session, model.denoise),
                solver,
                session.process,
                path.times,
                session.data.shape,
                section.samples,
                seed=session.config.seed,
                batch_size=section.batch_size,
                device=session.device,
                start=session.start,
                keep=Parts(parts_of(file) / f"batches-of-{section.batch_size}", partial(_earlier, found)),
                encode=session.data.encode,
            )
        facts = {"drawing": np.array(drawn.seconds), "batch_size": np.array(section.batch_size)}
        found = {**drawn.first, "samples": drawn.images, **facts}
        save_arrays(file, found)
        shutil.rmtree(parts_of(file), ignore_errors=True)
    kept = found.pop("samples")[: section.samples]
    write_json(folder / "protocol.json", {**key, "weights_from": model.source, "samples": len(kept)})
    seconds, drawing = time.perf_counter() - started, float(found.pop("drawing"))
    return Samples(kept, found, path, folder, file, seconds, drawing, session.data.decode)


def _check(session: Session, path: Path, arrays: Arrays) -> None:
    """What a file of samples has to be."""
    per_step = [arrays[name].shape for name in ("t", "variance", "clipped")]
    if arrays["samples"].shape[1:] != session.data.shape or per_step != [(path.steps,)] * 3:
        raise ValueError(f"samples {arrays['samples'].shape}, {per_step} steps")
    _ = arrays["strip"], arrays["deviation"], arrays["shown"], arrays["nfe"], arrays["drawing"], arrays["batch_size"]


def _earlier(found: Arrays | None, items: range) -> Arrays | None:
    """A range of an earlier, shorter run of the same samples."""
    if found is None or items.stop > len(found["samples"]):
        return None
    rest = {name: value for name, value in found.items() if name not in ("samples", "drawing", "batch_size")}
    return {**rest, "samples": found["samples"][items.start : items.stop], "seconds": np.array(0.0)}
