"""What a comparison found, as plain numbers and pictures; tables, figures and TensorBoard know nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from adpm.bound import BitsPerDim
from adpm.moments import MomentTable
from adpm.process import Array, Process
from adpm.run.compare.method import Method

Images = NDArray[np.floating]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation; None for the latter of one value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True)
class Bound:
    """The variational bound of a method, in bits per dimension over the split's images.

    Attributes:
        total: with its standard error over images.
        terms: [K+1]: the data term of the last step from times[0], the terms of the steps from times[1:], the prior.
        per_image: [images], their means are the total; images are the same for all methods.
    """

    total: BitsPerDim
    terms: Array
    per_image: Array

    @property
    def images(self) -> int:
        return len(self.per_image)

    @property
    def parts(self) -> tuple[float, float, float]:
        """The data term, all steps and the prior."""
        return float(self.terms[0]), float(self.terms[1:-1].sum()), float(self.terms[-1])


@dataclass(frozen=True)
class Row:
    """A method at a number of steps.

    Attributes:
        method: which.
        steps: K.
        nfe: network calls per sample.
        distances: of the samples of every seed.
        times, log_snr: [K], increasing in t, where the network was called.
        variance: [K], mean reverse variance of the steps from these times (first seed, first batch).
        clipped: [K], share of it that the rule's bounds changed.
        images: [n, C, H, W] in [0, 1], samples of the first seed from the noise that all methods share.
        strip: [rows, columns, C, H, W] in [0, 1], x0 predictions along the path, from noise to data; columns are
            evenly spaced over the K calls.
        bound: None where there is none: eta = 0, solvers without a rule, paths that do not begin at the prior.
        seconds: clock time of the samples of all seeds.
    """

    method: Method
    steps: int
    nfe: int
    distances: tuple[float, ...]
    times: Array
    log_snr: Array
    variance: Array
    clipped: Array
    images: Images
    strip: Images
    bound: Bound | None
    seconds: float

    @property
    def distance(self) -> float:
        """Mean over seeds."""
        return mean_and_spread(self.distances)[0]

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for one."""
        return mean_and_spread(self.distances)[1]

    @property
    def strip_log_snr(self) -> Array:
        """Of the strip's columns."""
        return self.log_snr[::-1][np.linspace(0, len(self.log_snr) - 1, self.strip.shape[1]).round().astype(int)]


@dataclass(frozen=True)
class Formulation:
    """What the figures need of a model.

    Attributes:
        process: its forward process.
        moments: its moment table, with error bars.
        bound: (b - a)^2/4 for data in [a, b], no variance of a state is larger.
    """

    process: Process
    moments: MomentTable
    bound: float


@dataclass(frozen=True)
class Results:
    """A comparison.

    Attributes:
        rows: every finished row, methods in the order of the grid, K rising.
        formulations: by name.
        floor: the distance of as many real images, once per seed.
        shown: the K of summaries.
        samples, seeds: of a cell.
        features: of the distances.
        split, decoder: of the bits/dim.
        data: name, shape, levels and number of images, for people.
        levels: of the data; 0 for continuous values.
        about: name of a formulation, rule, trajectory or solver -> what it is, in a sentence.
    """

    rows: tuple[Row, ...]
    formulations: dict[str, Formulation]
    floor: tuple[float, ...]
    shown: int
    samples: int
    seeds: tuple[int, ...]
    features: str
    split: str
    decoder: str
    data: str
    levels: int
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def methods(self) -> tuple[Method, ...]:
        return tuple(dict.fromkeys(row.method for row in self.rows))

    @property
    def budgets(self) -> tuple[int, ...]:
        return tuple(sorted({row.steps for row in self.rows}))

    def at(self, steps: int) -> list[Row]:
        return [row for row in self.rows if row.steps == steps]
