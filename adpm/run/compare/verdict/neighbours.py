"""One choice changed at a time: the best method of a comparison and those that differ from it in a single axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adpm.run.compare.merit import Merit, ranked, tied
from adpm.run.compare.method import Method
from adpm.run.compare.results import Results, Row
from adpm.run.compare.verdict.why import Anatomy, anatomy

AXES = ("rule", "trajectory", "eta", "formulation", "solver")
_WHOLE = {"solver"}
"""Axes that bring choices of their own along; of each of their values the best row stands for all."""


@dataclass(frozen=True)
class Neighbour:
    """A row that differs from the best one in a single choice.

    Attributes:
        axis: which.
        value: what it chose, for people.
        row, anatomy: its figures, and what they are made of.
        apart: whether it is not tied with the best; True where that cannot be judged.
    """

    axis: str
    value: str
    row: Row
    anatomy: Anatomy
    apart: bool


@dataclass(frozen=True)
class Neighbourhood:
    """The best row by a figure of merit, and its neighbours: axes in the order of AXES, best first in each.

    Attributes:
        merit: the figure.
        best, anatomy: the best row, and what it is made of.
        tied: anatomies of all rows that are tied with it, neighbours or not.
        others: the neighbours.
    """

    merit: Merit
    best: Row
    anatomy: Anatomy
    tied: tuple[Anatomy, ...]
    others: tuple[Neighbour, ...]

    @classmethod
    def of(cls, results: Results, rows: Sequence[Row], merit: Merit) -> Neighbourhood:
        """Around the best of `rows`, of which at least one has the figure."""
        order, alike = ranked(rows, merit), tied(rows, merit)
        best, others, seen = order[0], [], set()
        for axis in AXES:
            for row in order[1:]:
                key = (axis, row.method.solver if axis in _WHOLE else choice(row.method, axis))
                if differing(best.method, row.method) != [axis] or key in seen:
                    continue
                seen.add(key)
                apart = all(row is not other for other in alike)
                others.append(Neighbour(axis, choice(row.method, axis), row, _anatomy(results, row), apart))
        equals = tuple(_anatomy(results, row) for row in alike[1:])
        return cls(merit, best, _anatomy(results, best), equals, tuple(others))

    @property
    def value(self) -> float:
        """The best's figure."""
        return self.figure(self.best)

    def figure(self, row: Row) -> float:
        """The figure of a row that has it."""
        value = self.merit.value(row)
        assert value is not None
        return value


def differing(one: Method, other: Method) -> list[str]:
    """The axes in which two methods differ; what a solver leaves no choice in is part of the solver."""
    pairs = {axis: (getattr(one, axis), getattr(other, axis)) for axis in AXES}
    return [axis for axis, (a, b) in pairs.items() if a != b and a is not None and b is not None]


def choice(method: Method, axis: str) -> str:
    """What a method chose on an axis, for people."""
    if axis in _WHOLE:
        own = [] if method.rule is None else [method.rule]
        own += [] if method.eta is None else [f"eta {method.eta:g}"]
        return method.solver + (f" ({', '.join(own)})" if own else "")
    value = getattr(method, axis)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _anatomy(results: Results, row: Row) -> Anatomy:
    return anatomy(row, results.formulations[row.method.formulation])
