"""The two figures of merit of a comparison, how they are told, and which differences between methods can be told.

Less is better in both. `tied` is the one place that says whether a method differs from the best; tables and verdict
ask it. The limit is twice the standard error of the difference,

    Frechet distance   of differences taken seed by seed, because all methods share the noise of a seed. A few seeds say
                       little about one pair, so the variance is pooled over all pairs among the best and the NEAREST
                       that follow: error^2 = mean_pairs Var_seeds[d_m - d_n] / seeds. One seed: nothing is tied.
    bits/dim           of differences taken image by image, because all methods share the images (and the noise of
                       (image, t)): error^2 = Var_images[b_m - b_best] / images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from adpm.run.compare.results import Bound, Results, Row

NEAREST = 10
"""Methods next to the best that lend it the variance of their differences over seeds."""


@dataclass(frozen=True)
class Merit:
    """A figure of merit.

    Attributes:
        title: its name.
        value: of a row; None where the method has none.
        error: what the ± of a table is; None where there is none.
        errors: (best, others in rising order) -> standard error of each difference to the best, None where unknown.
        rule: which methods are not told apart from the best, in words.
    """

    title: str
    value: Callable[[Row], float | None]
    error: Callable[[Row], float | None]
    errors: Callable[[Row, Sequence[Row]], list[float | None]]
    rule: Callable[[Results], str]

    def text(self, row: Row, sign: str = " ± ") -> str:
        """The figure with its ±; "–" where there is none."""
        value = self.value(row)
        return "–" if value is None else plus_minus(value, self.error(row), sign)


def ranked(rows: Iterable[Row], merit: Merit) -> list[Row]:
    """The rows that have the figure, best first."""
    having = [(value, row) for row in rows if (value := merit.value(row)) is not None and math.isfinite(value)]
    return [row for _, row in sorted(having, key=lambda pair: pair[0])]


def tied(rows: Iterable[Row], merit: Merit) -> list[Row]:
    """The best row and those that are not told apart from it; empty when no row has the figure."""
    order = ranked(rows, merit)
    if not order:
        return []
    best, others = order[0], order[1:]
    return [best] + [
        row
        for row, error in zip(others, merit.errors(best, others), strict=True)
        if error is not None and (merit.value(row) or 0.0) - (merit.value(best) or 0.0) <= 2.0 * error
    ]


def plus_minus(mean: float, error: float | None, sign: str = " ± ") -> str:
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


def _distance_errors(best: Row, others: Sequence[Row]) -> list[float | None]:
    seeds = len(best.distances)
    if seeds < 2:
        return [None] * len(others)
    distances = np.array([row.distances for row in (best, *others[:NEAREST])])
    own = distances - distances.mean(1, keepdims=True)
    rest = own - own.mean(0)  # neither the method's nor the seed's: half the variance of a difference
    variance = 2.0 * np.square(rest).sum() / (max(len(rest) - 1, 1) * (seeds - 1))
    return [float(np.sqrt(variance / seeds))] * len(others)


def _distance_rule(results: Results) -> str:
    if len(results.seeds) < 2:
        return "With one seed there is no spread to judge differences by."
    return (
        "Two methods are not told apart if they differ by less than twice the standard error of their difference, "
        "taken seed by seed because methods share their noise, its variance pooled over all pairs among the best and "
        f"the {NEAREST} next to it."
    )


def _bits(row: Row) -> float | None:
    return None if row.bound is None else row.bound.total.mean


def _bits_error(row: Row) -> float | None:
    return None if row.bound is None else row.bound.total.error


def _bits_errors(best: Row, others: Sequence[Row]) -> list[float | None]:
    return [_paired_error(best.bound, row.bound) for row in others]


def _paired_error(one: Bound | None, other: Bound | None) -> float | None:
    if one is None or other is None or one.images != other.images or one.images < 2:
        return None
    difference = one.per_image - other.per_image
    return float(difference.std(ddof=1) / math.sqrt(one.images))


def _bits_rule(results: Results) -> str:
    return (
        "Two methods are not told apart if they differ by less than twice the standard error of their difference, "
        "taken image by image."
    )


DISTANCE = Merit("Frechet distance", lambda row: row.distance, lambda row: row.spread, _distance_errors, _distance_rule)
BITS = Merit("bits/dim", _bits, _bits_error, _bits_errors, _bits_rule)
