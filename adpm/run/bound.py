"""The variational bound of a session: kept as one file, evaluated where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as File
from typing import Any

import numpy as np

from adpm.bound import Bound, Terms, bound_of
from adpm.errors import UserError
from adpm.paths import Path
from adpm.progress import Arrays, Keep
from adpm.run.assembly import Session
from adpm.run.classes import of_images
from adpm.run.measure import variance_for
from adpm.run.naming import naming
from adpm.run.paths import bound_key, kernel_name, path_for
from adpm.run.store import digest, record, write_json

PUBLISHED = "published"
"""The decoder whose figure stands beside the config's own."""


class NoBoundError(UserError):
    """A sampler that has no finite variational bound."""


def check_bound(session: Session) -> None:
    """Refuse a config whose bound is known to be infinite.

    Raises:
        NoBoundError: naming the field.
    """
    if session.config.sampling.eta == 0.0:
        raise NoBoundError("the bound is infinite at config.sampling.eta = 0 (DDIM); use a value in (0, 1].")


def counted(session: Session) -> int:
    """How many images of config.likelihood.split are evaluated."""
    section, there = session.config.likelihood, len(session.data.split(session.config.likelihood.split))
    return min(section.images or there, there)


def _terms(session: Session, path: Path) -> Terms:
    """What the bound along a path is made of; the published decoder's data term goes along where there is one."""
    variance = variance_for(session)
    return Terms(
        of_images(session, session.model.denoise, session.config.likelihood.split),
        session.process,
        session.rule(variance, path.times),
        session.decoder(variance),
        session.levels,
        path.times,
        session.config.sampling.eta,
        session.decoder(variance, PUBLISHED) if session.process.steps > 1 else None,
    )


def bound_for(session: Session, path: Path | None = None) -> tuple[Bound, File]:
    """The bound of config.likelihood.split and the folder of its files; moments and path as needed.

    Args:
        session: says what to evaluate.
        path: the config's own, if it is known already.

    Raises:
        NoBoundError: if there is none, because of eta or the path.
    """
    check_bound(session)
    section, model, images = session.config.likelihood, session.model, counted(session)
    path = path or path_for(session)
    if path.indices[-1] != session.process.steps:
        raise NoBoundError(
            f"config.trajectory.name = '{session.config.trajectory.name}' starts at t = {path.times[-1]:g}; a bound "
            f"needs a path from t = {session.process.times[-1]:g}, such as 'even' or 'least_cost'."
        )
    key = bound_key(session, path)
    name = f"{kernel_name(session)}-{section.decoder}-{section.split}-{digest(key)}"
    folder = session.workdir / "likelihood" / name

    def make(keep: Keep) -> Mapping[str, Any]:
        found = bound_of(
            _terms(session, path),
            session.images(section.split),
            images,
            seed=session.config.seed,
            batch_size=section.batch_size,
            keep=keep,
        )
        other = {} if found.other is None else {"other": found.other}
        return {"bits": found.bits, "times": found.times, "clipped": found.clipped, **other}

    def check(arrays: Arrays) -> None:
        if arrays["bits"].shape != (path.steps + 1, images) or arrays["clipped"].shape != (path.steps,):
            raise ValueError(f"terms {arrays['bits'].shape}")

    with naming(session.house.table):
        arrays = record(folder / f"{images}-images.npz", make, check)
    write_json(folder / "protocol.json", {**key, "weights_from": model.source, "images": images})
    floats = {name: value.astype(np.float64) for name, value in arrays.items()}
    return Bound(floats["bits"], path.times, floats["clipped"], floats.get("other")), folder
