"""Samples of a session: those on disk read, the others drawn."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path as File
from typing import Any

from torch import Tensor

from adpm.drawing import Sampler
from adpm.paths import Path
from adpm.progress import Arrays
from adpm.run.assembly import Session
from adpm.run.classes import of_samples
from adpm.run.growing import grown
from adpm.run.measure import variance_for
from adpm.run.naming import naming
from adpm.run.paths import path_after_start, path_for, sampler_key, sampler_name
from adpm.run.store import digest, write_json
from adpm.run.stored import Mapped


@dataclass(frozen=True)
class Samples:
    """Samples of a session.

    Attributes:
        kept: [n, C, H, W] on disk: uint8 levels 0..255 of the data's range, float32 for continuous data.
        first: of the first batch, see `adpm.drawing.Sampler`.
        path: that they were drawn along, after a start's jump.
        folder: where they lie, with their protocol.
        file: of the samples.
        seconds: that this call took.
        drawing: seconds that drawing took, whenever that was.
        decode: kept images -> images in the data's range.
    """

    kept: Mapped
    first: Arrays
    path: Path
    folder: File
    file: File
    seconds: float
    drawing: float
    decode: Any

    def images(self, part: slice = slice(None)) -> Tensor:
        """Images in the data's range, float32."""
        return self.decode(self.kept[part].numpy())


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
    started = time.perf_counter()
    with naming(session.house.table, "sampling"):
        found = grown(
            folder / "samples.npy",
            session.data.shape,
            session.data.kept_as,
            section.batch_size,
            section.samples,
            partial(_sampler, session, path),
            partial(_check, path),
        )
    write_json(folder / "protocol.json", {**key, "weights_from": model.source, "samples": len(found.images)})
    seconds = time.perf_counter() - started
    return Samples(found.images, found.first, path, folder, found.file, seconds, found.seconds, session.data.decode)


def _sampler(session: Session, path: Path) -> Sampler:
    """What is missing is measured before anything is drawn."""
    solver = session.solver(variance_for(session), path.times)
    session.learn()
    return Sampler(
        of_samples(session, session.sampler_model.denoise),
        solver,
        session.process,
        path.times,
        session.data.shape,
        session.config.seed,
        session.device,
        session.start,
        session.data.encode,
    )


def _check(path: Path, arrays: Arrays) -> None:
    """What is known of the first batch has to be of this path."""
    per_step = [arrays[name].shape for name in ("t", "variance", "clipped")]
    if per_step != [(path.steps,)] * 3:
        raise ValueError(f"{per_step} steps")
    _ = arrays["strip"], arrays["deviation"], arrays["shown"], arrays["nfe"]
