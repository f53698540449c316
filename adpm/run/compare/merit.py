"""The two figures of merit of a comparison, how they are told, and which differences between methods can be told.

Less is better in both. `tied` is the one place that says whether a method differs from the best; tables and verdict
ask it. The limit is twice the standard error of the difference, or Student's t times it where seeds are few,

    Frechet distance   of differences taken seed by seed, because all methods share the noise of a seed. A few seeds say
                       little about one pair, so the variance is pooled over all pairs among the best and those that
                       follow, up to NEAREST, while they are tied by it: error^2 = mean_pairs Var_seeds[d_m - d_n] /
                       seeds. One seed: nothing is tied.
    bits/dim           of differences taken image by image, because all methods share the images (and the noise of
                       (image, t)): error^2 = Var_images[b_m - b_best] / images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

from adpm.run.compare.results import Bound, Row

NEAREST = 10
"""Methods next to the best that lend it the variance of their differences over seeds."""


@dataclass(frozen=True)
class Chance:
    """Of a difference between two methods.

    Attributes:
        error: its standard error.
        limit: what it may be by chance in 95 % of cases.
    """

    error: float
    limit: float


@dataclass(frozen=True)
class Merit:
    """A figure of merit.

    Attributes:
        title: its name.
        phrase: with a place for the figure.
        value: of a row; None where the method has none.
        error: what the ± of a table is; None where there is none.
        chance: (best, others in rising order) -> what chance has to do with each difference to the best, None where
            that is unknown.
        rule: which methods are tied with the best, in words.
    """

    title: str
    phrase: str
    value: Callable[[Row], float | None]
    error: Callable[[Row], float | None]
    chance: Callable[[Row, Sequence[Row]], list[Chance | None]]
    rule: str

    def of(self, row: Row) -> float:
        """The figure of a row that has it."""
        value = self.value(row)
        assert value is not None
        return value

    def text(self, row: Row, sign: str = " ± ") -> str:
        """The figure with its ±."""
        return plus_minus(self.of(row), self.error(row), sign)


def ranked(rows: Iterable[Row], merit: Merit) -> list[Row]:
    """The rows that have the figure, best first."""
    having = [(value, row) for row in rows if (value := merit.value(row)) is not None and math.isfinite(value)]
    return [row for _, row in sorted(having, key=lambda pair: pair[0])]


def tied(rows: Iterable[Row], merit: Merit) -> list[Row]:
    """The best row and those that are tied with it; empty when no row has the figure."""
    order = ranked(rows, merit)
    if not order:
        return []
    best, others = order[0], order[1:]
    return [best] + [
        row
        for row, chance in zip(others, merit.chance(best, others), strict=True)
        if chance is not None and merit.of(row) - merit.of(best) <= chance.limit
    ]


def plus_minus(mean: float, error: float | None = None, sign: str = " ± ") -> str:
    """Figures for people: at most two significant digits of the error, and at most three of a mean after its point.

    334 ± 5, 13.4 ± 3.0, 2.35 ± 0.02, 20110 ± 900.
    """
    size = abs(mean) if mean and math.isfinite(mean) else 1.0
    places = max(0, 2 - math.floor(math.log10(size)))
    if error is None or not math.isfinite(error):
        return _rounded(mean, places)
    if error > 0.0:
        places = min(places, 1 - math.floor(math.log10(error)))
    return f"{_rounded(mean, places)}{sign}{_rounded(error, places)}"


def _rounded(value: float, places: int) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{round(value, places) + 0.0:.{max(places, 0)}f}"  # + 0.0: no minus before zero


def _of_distances(best: Row, others: Sequence[Row]) -> list[Chance | None]:
    if len(best.distances) < 2:
        return [None] * len(others)
    near = [best, *others[:1]]
    for row in others[1:NEAREST]:
        if row.distance - best.distance > _pooled(near).limit:
            break  # what is far off, and perhaps noisy, says nothing about those that are near
        near.append(row)
    return [_pooled(near)] * len(others)


def _pooled(rows: Sequence[Row]) -> Chance:
    """Of the difference of any two of the rows."""
    distances = np.array([row.distances for row in rows])
    methods, seeds = distances.shape
    own = distances - distances.mean(1, keepdims=True)
    rest = own - own.mean(0)  # neither the method's nor the seed's: half the variance of a difference
    freedom = max(methods - 1, 1) * (seeds - 1)
    error = float(np.sqrt(2.0 * np.square(rest).sum() / freedom / seeds))
    return Chance(error, float(student_t.ppf(0.975, freedom)) * error)


def _paired(one: Bound | None, other: Bound | None) -> Chance | None:
    if one is None or other is None or one.images != other.images or one.images < 2:
        return None
    difference = one.per_image - other.per_image
    error = float(difference.std(ddof=1) / math.sqrt(one.images))
    return Chance(error, 2.0 * error)


DISTANCE = Merit(
    "Frechet distance",
    "Frechet distance {}",
    lambda row: row.distance,
    lambda row: row.spread,
    _of_distances,
    "Two methods are tied if they differ by less than chance allows in 95 % of cases (Student's t times the standard "
    "error of their difference), taken seed by seed (paired) because methods share their noise, its variance pooled "
    f"over all pairs among the best and those tied with it ({NEAREST} at most).",
)
BITS = Merit(
    "bits/dim",
    "{} bits/dim",
    lambda row: None if row.bound is None else row.bound.total.mean,
    lambda row: None if row.bound is None else row.bound.total.error,
    lambda best, others: [_paired(best.bound, row.bound) for row in others],
    "Two methods are tied if they differ by less than twice the standard error of their difference, taken image by "
    "image (paired).",
)
