"""The two measures of quality that figures draw, distances and bits/dim: their errors, floors and axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from adpm.run.compare.results import Results, Row

CUT = 10.0
"""An axis of bits/dim ends at so many times the least; what lies above is marked, because some rules cost thousands."""

Value = tuple[float, float | None]
"""A figure and its error; None where the error is not known."""


@dataclass(frozen=True)
class Measure:
    """A figure of a row, the smaller the better.

    Attributes:
        label: of its axis.
        of: row -> value; None: it has none.
        limit: its axis ends at so many times the least value.
        floor: results -> what perfect samples score, lowest and highest; None: nobody knows.
    """

    label: str
    of: Callable[[Row], Value | None]
    limit: float
    floor: Callable[[Results], tuple[float, float] | None]

    def values(self, rows: Iterable[Row]) -> list[float]:
        return [found[0] for row in rows if (found := self.of(row)) is not None]

    def top(self, rows: Iterable[Row]) -> float:
        """Where an axis for these rows ends; inf where nothing has to be cut."""
        values = self.values(rows)
        cut = self.limit * min(values) if values else np.inf
        return cut if 0.0 < cut < max(values, default=0.0) else np.inf


def _floor(results: Results) -> tuple[float, float] | None:
    """Mean -+ standard deviation over seeds; of one seed, its value with a percent of width."""
    if not results.floor:
        return None
    mean = float(np.mean(results.floor))
    spread = float(np.std(results.floor, ddof=1)) if len(results.floor) > 1 else 0.01 * mean
    return max(mean - spread, 0.01 * mean), mean + spread  # above zero, for logarithmic axes


def _bits(row: Row) -> Value | None:
    return None if row.bound is None else (row.bound.total.mean, row.bound.total.error)


DISTANCE = Measure("Frechet distance", lambda row: (row.distance, row.spread), np.inf, _floor)
BITS = Measure("bits/dim", _bits, CUT, lambda results: None)
