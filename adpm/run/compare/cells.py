"""The cells of a comparison: measured once, kept on disk under what they depend on, and read from there ever after.

A cell is the samples of one method, number of steps and seed, with their distance; or the variational bound of one
method and number of steps. What a record needs besides (moments, cost tables, batches of samples and of the bound) lies
in the formulation's folder under names of its own, so that a killed comparison loses seconds.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adpm.errors import UserError
from adpm.nn.checkpoint import state_hash
from adpm.paths import Path as Steps
from adpm.progress import Arrays
from adpm.run.assembly import Session
from adpm.run.bound import NoBoundError, bound_for
from adpm.run.compare.grid import Grid
from adpm.run.compare.method import Method
from adpm.run.measure import moments_for, moments_key, moments_path
from adpm.run.metrics import FrechetDistance
from adpm.run.paths import path_for
from adpm.run.samples import samples_for
from adpm.run.store import digest, read_arrays, record, save_arrays
from adpm.run.stored import in_batches

IMAGES = 24
"""Samples that a record shows."""

LAYOUT = 3
"""Of the arrays in a record; records of another layout are made again."""


@dataclass(frozen=True)
class Record:
    """Where a cell's figures lie, and what they are of.

    Attributes:
        method, steps: the cell.
        seed: of the samples; None for the bound.
        file: named by everything that the figures depend on.
    """

    method: Method
    steps: int
    seed: int | None
    file: Path


class Cells:
    """The records of a grid."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def of(self, method: Method) -> Iterator[Record]:
        """All records of a method, made or not: samples first, then the bound of every number of steps."""
        methods, _ = self.grid.plan
        for steps in methods[method]:
            for seed in self.grid.seeds:
                yield self._record(method, steps, seed)
            if self.grid.has_bound(method):
                yield self._record(method, steps, None)

    def missing(self, method: Method) -> list[Record]:
        return [record for record in self.of(method) if read_arrays(record.file) is None]

    def _record(self, method: Method, steps: int, seed: int | None) -> Record:
        own = self._of_bound() if seed is None else self._of_samples()
        kind = "bound" if seed is None else f"seed{seed}"
        file = f"K{steps}-{kind}-{digest([self._of_method(method), steps, own])}.npz"
        return Record(method, steps, seed, self.grid.workdir / "cells" / method.name / file)

    @cache  # noqa: B019  (a grid lives as long as the command)
    def _of_method(self, method: Method) -> dict[str, Any]:
        session = self.grid.session(method, self.grid.plan[0][method][0])
        table, families = session.house.table, session.house.families
        bound = [("likelihood", families["likelihood"]["bound"])] if self.grid.has_bound(method) else []
        fields: dict[str, Any] = {}
        for product in ("samples", "cell", "costs"):
            fields |= table.part(session.config, product, *bound)
        for name in ("seed", "trajectory.steps"):
            fields.pop(name, None)
        return {
            "layout": LAYOUT,
            **session.identity,
            "head": session.sampler_model.head,
            "moments": moments_key(self.grid.root(method.formulation, None)),  # of the first seed, as plans are
            "own": fields,
        }

    def _of_bound(self) -> dict[str, Any]:
        section = self.grid.config.likelihood
        return {"split": section.split, "images": section.images}

    def _of_samples(self) -> dict[str, Any]:
        section = self.grid.config.sampling
        amounts = {"samples": section.samples, "batch_size": section.batch_size}
        return {**amounts, "distance": self._distance_identity}

    @cached_property
    def _distance_identity(self) -> list[Any]:
        """What distances depend on besides the samples."""
        section = self.grid.config.distance
        return [
            self.grid.data_identity,
            section.features,
            list(section.splits),
            state_hash(self.grid.features().state_dict()),
        ]

    @cached_property
    def distance(self) -> FrechetDistance:
        """Frechet distance to the real images; the features are those of images in [-1, 1]."""
        session = self.grid.any_root
        data = session.data
        splits = [data.split(name) for name in self.grid.config.distance.splits]
        stored = (part for images in splits for part in in_batches(images, torch.arange(len(images)).split(4096)))
        real = (2.0 * data.to_unit(data.scaled(part)) - 1.0 for part in stored)
        return FrechetDistance(self.grid.features(), real, device=session.device)

    def floor(self) -> list[float]:
        """What as many real images score, drawn with replacement once per seed; measured once."""
        size = self.grid.config.sampling.samples
        key = digest([self._distance_identity, size, list(self.grid.seeds)])
        file = self.grid.workdir / "cells" / f"floor-{key}.npz"
        made = record(file, lambda keep: {"distance": [self.distance.floor(size, seed) for seed in self.grid.seeds]})
        return made["distance"].tolist()

    def measure(self, method: Method) -> list[str]:
        """Make the missing records of a method; returns what went wrong, in words."""
        failed: list[str] = []
        paths: dict[int, Steps] = {}
        for item in self.missing(method):
            try:
                moments = self.moments(method)
                if item.steps not in paths:
                    paths[item.steps] = path_for(self.grid.session(method, item.steps, moments=moments))
                session = self.grid.session(method, item.steps, item.seed, moments)
                if item.seed is None:
                    save_arrays(item.file, self._bounded(session, paths[item.steps]))
                else:
                    self._drawn(session, paths[item.steps], item.file)
            except Exception as error:  # whatever one cell runs into, the others go on
                what = "bound" if item.seed is None else f"seed {item.seed}"
                failed.append(f"{method.name}, K = {item.steps}, {what}: {in_words(error)}")
        return failed

    def moments(self, method: Method) -> str:
        """The file of the formulation's moments, measured with the first seed when missing."""
        session = self.grid.root(method.formulation, None)
        moments_for(session)
        return str(moments_path(session))

    def has_moments(self, method: Method) -> bool:
        return moments_path(self.grid.root(method.formulation, None)).exists()

    def _drawn(self, session: Session, path: Steps, file: Path) -> None:
        """Samples of a cell: their distance, what every step was like, and some of them in [0, 1].

        The samples themselves go when the record is there.
        """
        drawn = samples_for(session, path)
        data, first = session.data, drawn.first
        images = (2.0 * data.to_unit(drawn.images(slice(i, i + 4096))) - 1.0 for i in range(0, len(drawn.kept), 4096))
        arrays = {
            "distance": np.array(self.distance(images)),
            "nfe": first["nfe"],
            "seconds": np.array(drawn.drawing),
            "images": data.to_unit(drawn.images(slice(IMAGES))).numpy(),
            "strip": data.to_unit(torch.as_tensor(first["strip"])).numpy(),
            "t": drawn.path.times[1:],
            "log_snr": session.process.log_snr(drawn.path.times[1:]),
            "variance": first["variance"][::-1],
            "clipped": first["clipped"].astype(np.float64)[::-1],
        }
        save_arrays(file, arrays)
        shutil.rmtree(drawn.folder, ignore_errors=True)

    def _bounded(self, session: Session, path: Steps) -> Arrays:
        """The bound of a cell in bits per dimension; none where its path does not begin at the prior."""
        try:
            found, _ = bound_for(session, path)
        except NoBoundError as error:
            return {"none": np.array(str(error))}
        total = found.total
        return {
            "bits_per_dim": np.array(total.mean),
            "standard_error": np.array(np.nan if total.error is None else total.error),
            "terms": found.bits.mean(1),
            "per_image": found.bits.sum(0),
        }


def in_words(error: Exception) -> str:
    """A user's mistake as it is told; anything else with its kind, and in full in the log."""
    if isinstance(error, UserError):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"
