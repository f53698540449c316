"""--mode=evaluate: distances of a run's samples, or of any folder of images, to the data or to published statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import FrozenConfigDict
from torch import Tensor, nn

from adpm.errors import UserError, lookup
from adpm.formats import read
from adpm.nn.checkpoint import read_header, state_hash
from adpm.progress import say
from adpm.reading import plain_file
from adpm.run.assembly import Session
from adpm.run.config import Job
from adpm.run.distances import FeatureStatistics, Sides
from adpm.run.featured import ImageSet, published_statistics, statistics_of
from adpm.run.folders import files
from adpm.run.listing import spread
from adpm.run.metrics import NORMALISATION, FeatureFacts
from adpm.run.naming import naming
from adpm.run.problem import Problem, cache_of
from adpm.run.report import Report, markdown
from adpm.run.samples import samples_for
from adpm.run.store import check_writable, digest, write_json
from adpm.run.stored import joined
from adpm.run.table import Table

_OF_DATA = ("splits", "images", "floor")
"""Fields that say which of the data's images are the reference, and what as many of them score."""

_OF_IMAGES, _NUMBERS = 5000, 2**26
"""Images that the energy distance is taken of, and numbers in them, at most: it looks at all pairs."""


def evaluate(job: Job) -> None:
    """Measure config.evaluate.measures and report them with their protocol.

    Raises:
        UserError: for anything that is wrong with the config and can be known before work.
    """
    found = Evaluation(job)
    found.check()
    found.report(*found.measure())


@dataclass(frozen=True)
class Evaluation:
    """One command's two sets of images."""

    job: Job

    @cached_property
    def problem(self) -> Problem:
        """A session where samples of a model are wanted; else no more than data and device."""
        if not self.job.config.evaluate.folder:
            return Session.make(self.job.config, self.job.workdir, self.job.house)
        table, config = self.job.house.table, self.job.config
        table.complete(config)
        table.check(config)
        problem = Problem(FrozenConfigDict(config), self.job.house)
        told = problem.kind("data.name").facts.missing(**table.options(config, "data.name"))
        if told and not config.evaluate.reference:
            raise UserError(told)
        return problem

    @property
    def section(self) -> Any:
        return self.problem.config.evaluate

    @property
    def cache(self) -> Path:
        return cache_of(self.problem.config, self.job.workdir)

    @cached_property
    def measures(self) -> dict[str, Any]:
        """The chosen members by name."""
        family = self.job.house.families["measure"]
        return {name: lookup(family, name, "config.evaluate.measures") for name in self.section.measures.split("+")}

    def check(self) -> None:
        """Refuse what cannot be measured, before any work."""
        section = self.section
        _check_read(section, self.job.house.table)
        more = [name for name, kind in self.measures.items() if not kind.facts.of_moments]
        if section.reference and more:
            raise UserError(
                f"config.evaluate.measures = '{section.measures}': {' and '.join(more)} need the reference's images, "
                f"and config.evaluate.reference = '{section.reference}' has means and covariances only."
            )
        if section.reference:
            plain_file(Path(section.reference), "reference")
            _ = self.real_statistics
        elif self.folder is not None and self.folder.shape != self.problem.data.shape:
            raise UserError(
                f"config.evaluate.folder = '{section.folder}' has images of shape {self.folder.shape}, and the data "
                f"are {self.problem.data.shape}; resize one of them (config.data.size)."
            )
        else:
            _ = [lookup(self.problem.data.splits, name, "config.evaluate.splits") for name in section.splits]
        _ = self.network
        check_writable(self.job.workdir)

    # The two sides

    @cached_property
    def folder(self) -> ImageSet | None:
        """The images of config.evaluate.folder, all of one size; None where samples of the model are meant."""
        section = self.section
        if not section.folder:
            return None
        channels = 0 if section.reference else self.problem.data.shape[0]
        found = files(Path(section.folder), channels=channels, workers=section.workers)
        told = {"images": f"{section.folder}, {len(found):,} files", "quantised": "as the files are"}
        of = f"{len(found)} files, {found.found.digest()}, {found.reading}"
        return ImageSet(found, torch.arange(len(found)), _of_levels, {"folder": of}, told)

    @cached_property
    def ours(self) -> ImageSet:
        """The images that are judged."""
        if self.folder is not None:
            return self.folder
        session = self.problem
        assert isinstance(session, Session)
        drawn = samples_for(session)
        protocol = json.loads((drawn.folder / "protocol.json").read_text())
        told = {
            "images": f"{len(drawn.kept):,} samples, {int(drawn.first['nfe'])} network calls each: {drawn.file}",
            "quantised": "to 256 levels" if session.data.levels else "not at all",
            "weights": _weights(session),
            "path": protocol["path"],
        }
        return ImageSet(
            drawn.kept,
            torch.arange(len(drawn.kept)),
            lambda kept: 2.0 * session.data.to_unit(session.data.decode(kept.numpy())) - 1.0,
            {"samples": protocol, "batches": session.config.sampling.batch_size},
            told,
        )

    @cached_property
    def real(self) -> ImageSet:
        """The reference's images."""
        data, section = self.problem.data, self.section
        stored = joined([data.split(name) for name in section.splits])
        count = min(section.images or len(stored), len(stored))
        chosen = spread(len(stored), count)
        told = {"reference": f"{count:,} of {len(stored):,} images of {data.name} ({', '.join(section.splits)})"}
        return ImageSet(
            stored,
            torch.from_numpy(np.flatnonzero(chosen)),
            lambda levels: 2.0 * data.to_unit(data.scaled(levels)) - 1.0,
            {"data": [self.problem.images_key(name) for name in section.splits], "count": count},
            told,
        )

    @cached_property
    def network(self) -> nn.Module:
        """The network whose features are compared."""
        shape = self.problem.data.shape if self.folder is None else self.folder.shape
        with naming(self.job.house.table, "evaluate"):
            return self.job.house.families["features"][self.section.features].build(shape)

    def statistics(self, images: ImageSet) -> FeatureStatistics:
        """Features of a set, taken once and kept in the cache."""
        of = {"features": self.section.features, "weights": state_hash(self.network.state_dict())}
        return statistics_of(images, self.network, of, self.section.batch_size, self.problem.device, self.cache)

    @cached_property
    def real_statistics(self) -> FeatureStatistics:
        if self.section.reference:
            return published_statistics(Path(self.section.reference), int(self.network.num_features))  # type: ignore[arg-type]
        return self.statistics(self.real)

    def floors(self, count: int) -> dict[str, float]:
        """What as many real images score, drawn with replacement, where that is not 0 on average."""
        biased = [kind for kind in self.measures.values() if kind.facts.biased]
        if self.section.reference or not self.section.floor or not biased:
            return {}
        draw = torch.Generator().manual_seed(self.problem.config.seed)
        index = torch.randint(len(self.real), (count,), generator=draw)
        key = {**self.real.key, "drawn": count, "seed": self.problem.config.seed}
        drawn = ImageSet(self.real.stored, self.real.numbers[index], self.real.scale, key, {})
        sides = Sides(self.statistics(drawn), self.real_statistics, self.images, self.problem.config.seed)
        return {f"{name}_floor": value for kind in biased for name, value in kind.build(sides).items()}

    def images(self) -> tuple[Tensor, Tensor]:
        """As many of both sides as all pairs can be looked at of."""
        count = min(_OF_IMAGES, max(2, _NUMBERS // int(np.prod(self.ours.shape))))
        return self.ours.some(count), self.real.some(count)

    # Figures

    def measure(self) -> tuple[dict[str, float], dict[str, Any]]:
        """Figures by name, and their protocol."""
        ours = self.statistics(self.ours)
        sides = Sides(ours, self.real_statistics, self.images, self.problem.config.seed)
        figures: dict[str, float] = {}
        for kind in self.measures.values():
            figures |= kind.build(sides)
        return {**figures, **self.floors(ours.count)}, self.protocol(ours.count)

    def protocol(self, count: int) -> dict[str, Any]:
        facts: FeatureFacts = self.job.house.families["features"][self.section.features].facts
        weights = state_hash(self.network.state_dict())[:12]
        reference = {"reference": self.section.reference} if self.section.reference else self.real.told
        return {
            **self.ours.told,
            **reference,
            "count": count,
            "seed": self.problem.config.seed,
            "features": f"{facts.of} ({self.section.features}, {self.network.num_features} numbers, weights {weights})",
            "resize": facts.resize,
            "normalisation": NORMALISATION,
            "measures": {name: kind.facts.protocol for name, kind in self.measures.items()},
        }

    def report(self, figures: Mapping[str, float], protocol: Mapping[str, Any]) -> None:
        """A file, TensorBoard and a few lines."""
        name = f"{self.section.features}-{digest(dict(protocol))}"
        folder = self.job.workdir / "evaluate" / name
        write_json(folder / "result.json", {"figures": dict(figures), "protocol": dict(protocol)})
        with Report(self.job.workdir / "tensorboard" / "evaluate" / name) as report:
            report.text("evaluate/protocol", markdown(protocol))
            report.scalars({f"evaluate/{key}": value for key, value in figures.items()}, 0)
        for measure, kind in self.measures.items():
            spread_of, floor = figures.get(f"{measure}_deviation"), figures.get(f"{measure}_floor")
            more = "" if spread_of is None else f" (+- {spread_of:.3g} over subsets)"
            more += "" if floor is None else f" (as many real images: {floor:.6g})"
            say(f"{kind.facts.title}: {figures[measure]:.6g}{more}; {kind.facts.protocol}")
        for key in (key for key in protocol if key not in ("measures", "path")):
            say(f"  {key}: {protocol[key]}")
        say(f"result:      {folder / 'result.json'}")


def _of_levels(levels: Tensor) -> Tensor:
    return levels.float() / 127.5 - 1.0


def _weights(session: Session) -> str:
    """Where the samples' weights came from, the head's among them, and which of those in the trunk's file they are."""
    source, trunk = session.sampler_model.source, session.trunk
    if trunk.network is None:
        return source
    file = Path(trunk.source)
    chosen = read_header(file).get("weights") or read(file)[1].chosen
    return f"{trunk.source} ({chosen}){source.removeprefix(trunk.source)}"


def _check_read(section: Any, table: Table) -> None:
    """Refuse fields about the data's images where published statistics take their place.

    Raises:
        UserError: naming the field.
    """
    if not section.reference:
        return
    for name in _OF_DATA:
        if section[name] != table.default(f"evaluate.{name}"):
            raise UserError(
                f"config.evaluate.{name} = {section[name]!r} is about the data's images, and "
                f"config.evaluate.reference = '{section.reference}' takes their place; unset one of them."
            )
