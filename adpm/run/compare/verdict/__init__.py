"""Which formulation and rule win at the K that a comparison shows, and why; in Markdown, from its results alone."""

from __future__ import annotations

from collections.abc import Sequence

from adpm.run.compare.glossary import glossary
from adpm.run.compare.markdown import NONE, bits, bold, bullets, short, table
from adpm.run.compare.merit import BITS, DISTANCE, ranked, tied
from adpm.run.compare.results import Results, Row
from adpm.run.compare.verdict.answer import answer, headline
from adpm.run.compare.verdict.neighbours import Neighbourhood
from adpm.run.compare.verdict.notes import notes
from adpm.run.compare.verdict.reasons import sentences
from adpm.run.compare.verdict.why import BANDS, Anatomy

__all__ = ["headline", "sections", "verdict"]


def verdict(results: Results) -> str:
    """The text in one piece."""
    return "\n\n".join(sections(results).values()) + "\n"


def sections(results: Results) -> dict[str, str]:
    """The text by sections, each under its heading and with a short name.

    The answer, what names mean, one choice changed at a time for samples and for bits/dim, and how to read it.
    """
    rows = results.at(results.shown)
    found = {
        "answer": [f"## Who wins at K = {results.shown}", answer(results)],
        "names": ["## What the names mean", glossary(results)],
    }
    if ranked(rows, DISTANCE):
        around = Neighbourhood.of(results, rows, DISTANCE)
        told = [*_trajectories(around, rows), *sentences(around, results, rows)]
        found["samples"] = [*_samples(around), bullets(told)]
    if ranked(rows, BITS):
        around = Neighbourhood.of(results, rows, BITS)
        found["bits per dim"] = [*_likelihood(around), bullets(sentences(around, results, rows))]
    found["how to read it"] = ["## How to read this", bullets(notes(results))]
    return {name: "\n\n".join(block for block in blocks if block) for name, blocks in found.items()}


def _trajectories(around: Neighbourhood, rows: Sequence[Row]) -> list[str]:
    """The best method on every trajectory that is not the best's, of all formulations."""
    merit, alike, bests = around.merit, tied(rows, around.merit), dict[str, Row]()
    for row in ranked(rows, merit):
        bests.setdefault(row.method.trajectory, row)
    return [
        f"Best on `{name}`: {row.method.title} with {merit.told(row)}"
        + (", tied with the best." if any(row is other for other in alike) else ".")
        for name, row in bests.items()
        if row is not around.best
    ]


def _changes(around: Neighbourhood) -> list[tuple[str, Row, Anatomy, str]]:
    """(what was changed, row, anatomy, mark) of the best and its neighbours."""
    first = (bold(around.best.method.title), around.best, around.anatomy, "")
    rest = [(f"{o.axis} {o.value}", o.row, o.anatomy, "" if o.apart else " (tied)") for o in around.others]
    return [first, *rest]


def _per_band(what: str) -> list[str]:
    return [f"{what} log-SNR {BANDS[0].name}", *(band.name for band in BANDS[1:])]


def _samples(around: Neighbourhood) -> list[str]:
    head = ["one choice changed", DISTANCE.title, "÷ best", *_per_band("variance ÷ measured at")]
    lines = []
    for name, row, found, mark in _changes(around):
        times = short(row.distance / around.value if around.value else None) + mark
        shape = [*(short(ratio) for ratio in found.ratios), short(found.last_noise), f"{found.clipped:.0%}"]
        lines.append([name, DISTANCE.text(row), times, *shape])
    return ["## Samples: which choice matters", table([*head, "last noise ÷ sigma", "clipped"], lines)]


def _likelihood(around: Neighbourhood) -> list[str]:
    """Where the bits go, and for rules what their variances have to do with it."""
    where, why = [], []
    for name, row, found, mark in _changes(around):
        more = bits(around.figure(row) - around.value) + mark
        parts = found.bits
        split = [NONE] * 5 if parts is None else list(map(bits, (parts.data, *parts.bands, parts.prior)))
        where.append([name, BITS.text(row), more, *split])
        reasons = [NONE] * 3 if parts is None else list(map(bits, (parts.path, parts.size, parts.rest)))
        why.append([name, *reasons, *(short(ratio) for ratio in found.ratios)])
    rules = [around.best, *(other.row for other in around.others if other.axis in ("rule", "trajectory"))]
    kept = [line for line, (_, row, _, _) in zip(why, _changes(around), strict=True) if any(row is r for r in rules)]
    heads = ["one choice changed", BITS.title, "more", "data term", *_per_band("steps to"), "prior"]
    return [
        "## Bits/dim: which choice matters",
        table(heads, where),
        table(["the same bits", "path", "size", "rest", *_per_band("variance ÷ measured at")], kept),
    ]
