"""What a comparison has on disk, as results."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from adpm.bound import BitsPerDim
from adpm.moments import MomentTable
from adpm.process import Array
from adpm.progress import Arrays
from adpm.run.compare.cells import Cells, Record
from adpm.run.compare.method import Method
from adpm.run.compare.results import Bound, Formulation, Results, Row
from adpm.run.dataset import DataSet
from adpm.run.measure import moments_path
from adpm.run.store import read_arrays


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
        about(cells, [row.method for row in rows]),
    )


def about(cells: Cells, methods: Iterable[Method]) -> dict[str, str]:
    """What the names in a comparison mean, by their families."""
    families, out = cells.grid.house.families, dict[str, str]()
    for method in methods:
        out.setdefault(method.formulation, cells.grid.root(method.formulation, None).kind("process.name").about)
        if method.rule is not None:
            out[method.rule] = families["rule"][method.rule].about
        out[method.trajectory] = families["trajectory"][method.trajectory].about
        out[method.solver] = families["solver"][method.solver].about
    return out


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
