"""What the figures of the methods next to the best one go with, in sentences.

Every sentence is about a group of methods that differ from the best one in the same choice. Of samples it names what
all of them have, and neither the best nor a method that is tied with it; that is no proof of a cause. Bounds are sums,
so there the parts are the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from adpm.run.compare.markdown import bits, listed, short, span
from adpm.run.compare.merit import BITS, DISTANCE
from adpm.run.compare.results import Results, Row
from adpm.run.compare.verdict.neighbours import AXES, Neighbour, Neighbourhood, differing
from adpm.run.compare.verdict.why import BANDS, Anatomy, Bits

MOST = 6
"""Sentences."""
ELSEWHERE = ("trajectory", "eta")
"""Axes for which the rules are compared once more: on the other value's side a rule may do otherwise."""
NOTHING = 0.01
"""Bits/dim; a smaller difference is not worth a sentence."""
UNEXPLAINED = "These figures do not explain the differences in samples."
SPLIT = 2.0
"""Methods further apart than that are told of one by one."""
_PARTS = ("path", "size", "rest")
_LEAST = 1e-12
_GOES = "; goes with "


def sentences(around: Neighbourhood, results: Results, rows: Sequence[Row]) -> list[str]:
    """At most MOST of them, and one more if none has a reason for samples; other networks and solvers come last.

    Args:
        around: the best row and its neighbours.
        results, rows: where they come from.
    """
    alike = [f"{other.axis} {other.value}" for other in around.others if not other.apart]
    out = [f"Tied with the best: {listed(alike, 8)}."] if alike else []
    for axis in AXES:
        out += [f"{axis.capitalize()} {told}." for told in _groups(around, axis)]
        there = [other for other in around.others if other.axis == axis and axis in ELSEWHERE]
        out += [told for other in there if (told := _elsewhere(around, other, results, rows))]
    silent = around.merit is DISTANCE and not any(_GOES in line for line in out[:MOST])
    losing = any(other.apart for other in around.others)
    return out[:MOST] + ([UNEXPLAINED] if silent and losing else [])


def _elsewhere(around: Neighbourhood, other: Neighbour, results: Results, rows: Sequence[Row]) -> str:
    """The rules compared where one other choice is changed, too; "" where there is one rule only."""
    there = [row for row in rows if differing(other.row.method, row.method) in ([], ["rule"])]
    found = Neighbourhood.of(results, there, around.merit)
    if not found.others:
        return ""
    best = f"`{found.best.method.sampler}` is best with {around.merit.text(found.best)}"
    alike = [item.value for item in found.others if not item.apart]
    parts = [best, *([f"tied with it: {listed(alike)}"] if alike else []), *_groups(found, "rule")]
    return f"Rules with {other.axis} {other.value}: {'; '.join(parts)}."


def _groups(around: Neighbourhood, axis: str) -> list[str]:
    """A clause for every group of neighbours on an axis."""
    group = [other for other in around.others if other.axis == axis and other.apart]
    return {DISTANCE: _of_distances, BITS: _of_bits}[around.merit](around, group)


# Samples: facts of which all members of a group are off to the same side, and farther than all that is tied.


@dataclass(frozen=True)
class _Fact:
    """A number of an anatomy.

    Attributes:
        value: > 0, or None where there is none; 0, of steps that add no noise by construction, is none.
        told: the fact of a group with these values, next to the best's.
        factor: from which on a value is off.
        text: of a value.
    """

    value: Callable[[Anatomy], float | None]
    told: str
    factor: float = 1.2
    text: Callable[[float], str] = short


def _ratio(index: int) -> _Fact:
    told = f"variances of {{}} times the measured ones at log-SNR {BANDS[index].name} (best: {{}})"
    return _Fact(lambda found: found.ratios[index], told)


_FACTS = (
    *(_ratio(index) for index in range(len(BANDS))),
    _Fact(lambda found: found.last_noise, "a last noise of {} sigma (best: {})"),
    _Fact(
        lambda found: math.exp(found.end),
        "a last call at log-SNR {} (best: {})",
        math.e,
        lambda snr: f"{math.log(snr):.1f}",
    ),
)


def _off(fact: _Fact, best: Anatomy, other: Anatomy) -> float:
    """log(other/best) where it is off, else 0."""
    mine, theirs = fact.value(best), fact.value(other)
    if not mine or not theirs:
        return 0.0
    off = math.log(theirs / mine)
    return off if abs(off) >= math.log(fact.factor) else 0.0


def _separating(fact: _Fact, around: Neighbourhood, members: Sequence[Anatomy]) -> float:
    """By how much all members are off to the same side, at least; 0 if a method tied with the best is as far off."""
    offs = [_off(fact, around.anatomy, member) for member in members]
    side = math.copysign(1.0, offs[0])
    least = min(side * off for off in offs)
    known = max((side * _off(fact, around.anatomy, equal) for equal in around.tied), default=0.0)
    return side * least if least > max(known, 0.0) + 1e-6 else 0.0  # a difference of rounding is none


def _of_distances(around: Neighbourhood, group: Sequence[Neighbour]) -> list[str]:
    grouped: dict[tuple[int, bool] | None, list[Neighbour]] = {}
    for other in group:
        offs = [_separating(fact, around, [other.anatomy]) for fact in _FACTS]
        largest = max(range(len(offs)), key=lambda index: abs(offs[index]))
        grouped.setdefault((largest, offs[largest] > 0) if offs[largest] else None, []).append(other)
    return [_distances(around, near) for members in grouped.values() for near in _near(around, members)]


def _near(around: Neighbourhood, members: Sequence[Neighbour]) -> list[list[Neighbour]]:
    """Members, best first, in groups: one that is more than SPLIT times as far from the best as the one before starts
    another."""
    out: list[list[Neighbour]] = []
    for other in members:
        far = around.figure(other.row) - around.value
        if not out or far > SPLIT * (around.figure(out[-1][-1].row) - around.value):
            out.append([])
        out[-1].append(other)
    return out


def _distances(around: Neighbourhood, members: Sequence[Neighbour]) -> str:
    times = [other.row.distance / max(around.value, _LEAST) for other in members]
    facts = _shared_facts(around, [other.anatomy for other in members])
    told = f"{_names(members)}: {_span(times)} times the distance"
    return f"{told}{_GOES}{' and '.join(facts[:2])}" if facts else told


def _shared_facts(around: Neighbourhood, members: Sequence[Anatomy]) -> list[str]:
    """What separates all members from the best and its equals, largest first."""
    found = []
    for fact in _FACTS:
        off = _separating(fact, around, members)
        if off:
            values = [value for member in members if (value := fact.value(member)) is not None]
            best = fact.text(fact.value(around.anatomy) or 0.0)
            found.append((abs(off), fact.told.format(span(values, list(map(fact.text, values))), best)))
    return [told for _, told in sorted(found, key=lambda item: -round(item[0], 6))]


# Bounds: the parts that are most above the best's.


def _of_bits(around: Neighbourhood, group: Sequence[Neighbour]) -> list[str]:
    if around.anatomy.bits is None:
        return []
    grouped: dict[tuple[tuple[str, ...], bool], list[Neighbour]] = {}
    for other in group:
        if other.anatomy.bits is not None and around.figure(other.row) - around.value >= NOTHING:
            causes = _causes(around.anatomy.bits, other.anatomy.bits)
            side = "size" in causes and _farthest(other.anatomy)[0] < 1.0  # too small and too large are two stories
            grouped.setdefault((causes, side), []).append(other)
    groups = [(causes, near) for (causes, _), members in grouped.items() for near in _near(around, members)]
    return [_bounds(around, around.anatomy.bits, causes, near) for causes, near in groups]


def _causes(best: Bits, other: Bits) -> tuple[str, ...]:
    """The part that is most above the best's, and those that are at least half as much above."""
    more = {part: getattr(other, part) - getattr(best, part) for part in _PARTS}
    return tuple(part for part in _PARTS if more[part] > 0.0 and more[part] >= 0.5 * max(more.values()))


def _farthest(found: Anatomy) -> tuple[float, str]:
    """(ratio to the measured variance, band) where it is farthest from 1; there is such a band if the size is not 0."""
    known = [(ratio, band.name) for ratio, band in zip(found.ratios, BANDS, strict=True) if ratio is not None]
    return max(known, key=lambda item: abs(math.log(max(item[0], _LEAST))))


def _bounds(around: Neighbourhood, best: Bits, causes: Sequence[str], others: Sequence[Neighbour]) -> str:
    more = _bits_span([around.figure(other.row) - around.value for other in others])
    parts = []
    for part in causes:
        values = _bits_span([getattr(other.anatomy.bits, part) for other in others])
        detail = f"{part}: {values} instead of {bits(getattr(best, part))}{_DETAIL[part](around, others)}"
        parts.append(f"{_CAUSE[part]} ({detail})")
    return f"{_names(others)}: {more} more" + (f", because of {' and of '.join(parts)}" if parts else "")


_CAUSE = {
    "path": "where the steps lie",
    "size": "the mean variance",
    "rest": "differences between pixels, states and images",
}


def _path_detail(around: Neighbourhood, others: Sequence[Neighbour]) -> str:
    """Where the last call is, if that is elsewhere."""
    ends = [other.anatomy.end for other in others]
    if all(abs(end - around.anatomy.end) < 0.5 for end in ends):
        return ""
    told = span(ends, [f"{end:.1f}" for end in ends])
    return f"; last call at log-SNR {told} instead of {around.anatomy.end:.1f}"


def _size_detail(around: Neighbourhood, others: Sequence[Neighbour]) -> str:
    """How far off the variances are in the band where they are most."""
    told = []
    for other in others:
        ratio, band = _farthest(other.anatomy)
        times, side = (1.0 / max(ratio, _LEAST), "smaller") if ratio < 1.0 else (ratio, "larger")
        told.append(f"variances {short(times)} times {side} than measured at log-SNR {band}")
    return "; " + ", ".join(dict.fromkeys(told))


def _rest_detail(around: Neighbourhood, others: Sequence[Neighbour]) -> str:
    """The band that two thirds of the difference lie in, if it is the same for all."""
    base, found = around.anatomy.bits, set()
    for other in others:
        if base is not None and other.anatomy.bits is not None:
            more = [a - b for a, b in zip(other.anatomy.bits.rests, base.rests, strict=True)]
            most = max(range(len(more)), key=lambda index: more[index])
            found.add(most if more[most] > 2.0 / 3.0 * sum(more) else None)
    (band,) = found if len(found) == 1 else (None,)
    return "" if band is None else f"; mostly at log-SNR {BANDS[band].name}"


_DETAIL: dict[str, Callable[[Neighbourhood, Sequence[Neighbour]], str]] = {
    "path": _path_detail,
    "size": _size_detail,
    "rest": _rest_detail,
}


def _names(group: Iterable[Neighbour]) -> str:
    return listed([other.value for other in group], 6)


def _span(values: Sequence[float]) -> str:
    return span(values, [short(value) for value in values])


def _bits_span(values: Sequence[float]) -> str:
    return span(values, [bits(value) for value in values])
