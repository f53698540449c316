"""What the tables of digits share: a method as config fields, its samples' Frechet distance, its bits/dim.

Frechet distances are to all 1797 digits in the feature space of the shipped classifier (99.2 % of its test split);
images are limited to the data range, not rounded to its levels. Finished samples are kept in the workdir.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adpm.run.assembly import Session
from adpm.run.cli import load_config
from adpm.run.core import CORE
from adpm.run.metrics import FEATURES, FrechetDistance
from adpm.run.prepare import moments_for, moments_path
from adpm.run.samples import samples_for
from covariance.tables import COVARIANCE_TABLES
from sde.tables import SDE_TABLES

BUDGETS = (5, 10, 25, 50, 100)
PATHS = {"even": "even", "least-cost": "least_cost"}
TABLES = CORE.merged(SDE_TABLES).merged(COVARIANCE_TABLES)


@dataclass(frozen=True)
class Method:
    """A row: its name, the steps it takes, a config variant in the place of the trunk's, and fields it sets."""

    name: str
    steps: str = "even"
    variant: str = ""
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trunk:
    """A model with its workdir, and the size of the tables."""

    config: str
    variant: str
    workdir: Path
    samples: int
    seeds: int
    images: int
    budgets: tuple[int, ...]

    def session(self, seed: int, moments: str, variant: str, fields: dict[str, Any]) -> Session:
        """A session with its own noise; moments and so the paths are the model's, measured once."""
        config = load_config(self.config, variant or self.variant)
        config.sampling.samples, config.sampling.batch_size = self.samples, 250
        config.likelihood.images = self.images
        config.update_from_flattened_dict({"seed": seed, "moments.file": moments, **fields})
        return Session(config, self.workdir, TABLES)

    def moments(self) -> str:
        """The file of the model's moments, measured when missing."""
        session = self.session(0, "", "", {})
        moments_for(session)
        return str(moments_path(session))

    def head(self, *columns: str) -> str:
        """The table's first two lines."""
        names = [*columns, *(f"K = {k}" for k in self.budgets)]
        return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def distances(trunk: Trunk, methods: list[Method]) -> list[str]:
    """Rows of a table of Frechet distances in Markdown: mean ± standard deviation over seeds; first the real floor."""
    moments = trunk.moments()
    first = trunk.session(0, moments, "", {})
    data = first.data
    real = torch.cat([data.split(name) for name in ("train", "test")])
    real = 2.0 * data.to_unit(data.scaled(real)) - 1.0
    distance = FrechetDistance(FEATURES["digits"](data.shape), real, device=first.device)
    perfect = [distance.floor(trunk.samples, seed) for seed in range(trunk.seeds)]
    rows = [f"| real digits | | {shown(perfect)} |" + " |" * (len(trunk.budgets) - 1)]
    for method in methods:
        cells = []
        for steps in trunk.budgets:
            fields = {**method.fields, "trajectory.name": PATHS[method.steps], "trajectory.steps": steps}
            sessions = (trunk.session(seed, moments, method.variant, fields) for seed in range(trunk.seeds))
            cells.append(shown([distance(_samples(session)) for session in sessions]))
        rows.append(f"| {method.name} | {method.steps} | {' | '.join(cells)} |")
    return rows


def _samples(session: Session) -> Tensor:
    """The session's samples in [-1, 1]."""
    return 2.0 * session.data.to_unit(torch.as_tensor(samples_for(session).images)) - 1.0


def shown(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"
