"""What a comparison found, as plain numbers and pictures; tables, figures and TensorBoard know nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adpm.moments import MomentTable
from adpm.process import Array, Process
from adpm.run.compare.cells import Cells, Record
from adpm.run.compare.method import Method
from adpm.run.data import DataSet
from adpm.run.prepare import moments_path
from adpm.run.shards import Arrays, read_arrays
from adpm.run.tables import BitsPerDim

Images = NDArray[np.floating]


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
        strip: [rows, columns, C, H, W] in [0, 1], x0 predictions along the path, from noise to data.
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
        return float(np.mean(self.distances))

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for one."""
        return float(np.std(self.distances, ddof=1)) if len(self.distances) > 1 else None


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

    @property
    def methods(self) -> tuple[Method, ...]:
        return tuple(dict.fromkeys(row.method for row in self.rows))

    @property
    def budgets(self) -> tuple[int, ...]:
        return tuple(sorted({row.steps for row in self.rows}))

    def of(self, method: Method) -> Iterator[Row]:
        return (row for row in self.rows if row.method == method)

    def at(self, steps: int) -> list[Row]:
        return [row for row in self.rows if row.steps == steps]

    def row(self, method: Method, steps: int) -> Row | None:
        return next((row for row in self.of(method) if row.steps == steps), None)


def collect(cells: Cells) -> Results:
    """The results on disk; rows with a missing record are left out."""
    grid = cells.grid
    config = grid.config
    methods, _ = grid.plan
    rows = [row for method in methods for row in rows_of(cells, method)]
    formulations = {}
    for name in dict.fromkeys(row.method.formulation for row in rows):
        root = grid.root(name, None)
        limit = ((root.data.high - root.data.low) / 2.0) ** 2
        formulations[name] = Formulation(root.process, MomentTable.load(moments_path(root)), limit)
    return Results(
        tuple(rows),
        formulations,
        tuple(cells.floor()),
        config.shown,
        config.sampling.samples,
        grid.seeds,
        config.distance.features,
        config.likelihood.split,
        config.likelihood.decoder,
        described(grid.any_root.data),
        grid.any_root.data.levels,
    )


def described(data: DataSet) -> str:
    """A data set in a line: "digits, 1 x 8 x 8, 17 levels, 1,438 train and 359 test images"."""
    levels = f"{data.levels} levels" if data.levels else "continuous values"
    images = " and ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    return f"{data.name}, {' x '.join(map(str, data.shape))}, {levels}, {images} images"


def rows_of(cells: Cells, method: Method) -> list[Row]:
    """The finished rows of a method, K rising."""
    records: dict[int, list[Record]] = {}
    for record in cells.of(method):
        records.setdefault(record.steps, []).append(record)
    return [row for k in sorted(records) if (row := _row(records[k])) is not None]


def _row(records: list[Record]) -> Row | None:
    found = [(record, read_arrays(record.file)) for record in records]
    drawn = [arrays for record, arrays in found if record.seed is not None]
    bounds = [arrays for record, arrays in found if record.seed is None]
    samples = [arrays for arrays in drawn if arrays is not None]
    if len(samples) < len(drawn) or any(arrays is None for arrays in bounds):
        return None
    first, record = samples[0], records[0]
    return Row(
        record.method,
        record.steps,
        int(first["nfe"]),
        tuple(float(arrays["distance"]) for arrays in samples),
        _floats(first["t"]),
        _floats(first["log_snr"]),
        _floats(first["variance"]),
        _floats(first["clipped"]),
        _floats(first["images"]),
        _floats(first["strip"]),
        next((_bound(arrays) for arrays in bounds if arrays is not None), None),
        sum(float(arrays["seconds"]) for arrays in samples),
    )


def _floats(array: NDArray[np.generic]) -> Array:
    return array.astype(np.float64)


def _bound(arrays: Arrays) -> Bound | None:
    if "none" in arrays:
        return None
    error = float(arrays["standard_error"])
    total = BitsPerDim(float(arrays["bits_per_dim"]), None if np.isnan(error) else error)
    return Bound(total, _floats(arrays["terms"]), _floats(arrays["per_image"]))
