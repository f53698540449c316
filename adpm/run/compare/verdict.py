"""Who wins a comparison at the K that it shows, what is tied, and what one other choice would change; in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from adpm.run.compare.merit import BITS, DISTANCE, Merit, plus_minus, ranked, tied
from adpm.run.compare.method import Method
from adpm.run.compare.results import Results, Row, mean_and_spread
from adpm.run.compare.tables import NONE, names, of_bits, of_distances, table

MERITS = {"samples": DISTANCE, "likelihood": BITS}
CHOICES = ("rule", "trajectory", "eta", "formulation", "solver")
FEW = 5
"""From so many seeds on, a standard deviation over them needs no warning."""
NAMED = 10
"""Tied methods that are told by name."""


def verdict(results: Results) -> str:
    """The text in one piece."""
    return "\n\n".join(sections(results).values()) + "\n"


def headline(results: Results) -> str:
    """Who wins, in plain ASCII: a line for each figure of merit that there is."""
    rows = results.at(results.shown)
    lines = [
        f"{name.capitalize()} at K = {results.shown}: {_answer(rows, merit, ' +- ')}"
        for name, merit in MERITS.items()
        if ranked(rows, merit)
    ]
    return "\n".join(lines) or f"no method has finished at K = {results.shown}."


def sections(results: Results) -> dict[str, str]:
    """The text by sections, each under its heading and with a short name."""
    rows = results.at(results.shown)
    having = {name: merit for name, merit in MERITS.items() if ranked(rows, merit)}
    answers = [f"* **{name.capitalize()}**: {_answer(rows, m)}{_equals(rows, m)}" for name, m in having.items()]
    answer = "\n".join(answers) or f"No method has finished at K = {results.shown}."
    out = {"answer": f"## Who wins at K = {results.shown}\n\n{answer}\n\n{_bests(results)}"}
    for name, merit in having.items():
        out[name] = f"## {name.capitalize()}: one choice changed\n\n{_changes(rows, name, merit)}"
    if meanings := names(results):
        out["names"] = f"## What the names mean\n\n{meanings}"
    out["protocol"] = f"## Protocol\n\n{' '.join(_protocol(results))}"
    return out


def _answer(rows: Sequence[Row], merit: Merit, sign: str = " ± ") -> str:
    """Who wins, or how many are tied."""
    order, alike = ranked(rows, merit), tied(rows, merit)
    best, told = order[0].method.title, merit.phrase.format(merit.text(order[0], sign))
    if not order[1:]:
        return f"{best} is the only method with this figure ({told})."
    chance = merit.chance(order[0], order[1:])[0]
    if chance is None:
        return f"{best} is best ({told}), but without error bars no difference can be judged."
    if alike[1:]:
        return f"no clear winner: {len(alike)} of {len(order)} methods are tied, led by {best} ({told})."
    behind = plus_minus(merit.of(order[1]) - merit.of(order[0]), chance.error, sign)
    return f"{best} wins with {told}; the next, {order[1].method.title}, is behind by {behind} (paired)."


def _equals(rows: Sequence[Row], merit: Merit) -> str:
    """The methods that are tied with the best, by name."""
    alike = [row.method.title for row in tied(rows, merit)[1:]]
    more = f"; {len(alike) - NAMED} more" if len(alike) > NAMED else ""
    return f" Tied with it: {'; '.join(alike[:NAMED])}{more}." if alike else ""


def _bests(results: Results) -> str:
    """The best of all and of each formulation at the shown K, and of all at the others."""
    rows = results.at(results.shown)
    of = {"**all**": rows}
    if len(results.formulations) > 1:
        of |= {name: [row for row in rows if row.method.formulation == name] for name in results.formulations}
    of |= {f"all, K = {k}": results.at(k) for k in results.budgets if k != results.shown}
    lines = [[name, *(_best(found, merit) for merit in MERITS.values())] for name, found in of.items()]
    return table(["best of", *(f"{name}: {merit.title}" for name, merit in MERITS.items())], lines)


def _best(rows: Sequence[Row], merit: Merit) -> str:
    """The best row, and how many are tied with it."""
    if not (alike := tied(rows, merit)):
        return NONE
    more = f" (+ {len(alike) - 1} tied)" if alike[1:] else ""
    return f"{alike[0].method.title}: **{merit.text(alike[0])}**{more}"


def neighbours(rows: Sequence[Row], merit: Merit) -> dict[str, Row]:
    """What was chosen otherwise -> row, for those that differ from the best row in one choice; best first in each.

    A solver brings choices of its own along: the best row of each other solver stands for all of its rows.
    """
    best, *others = ranked(rows, merit)
    out: dict[str, Row] = {}
    for choice in CHOICES:
        for row in others:
            if differing(best.method, row.method) == [choice]:
                value = getattr(row.method, choice)
                out.setdefault(f"{choice} {value:g}" if isinstance(value, float) else f"{choice} {value}", row)
    return out


def differing(one: Method, other: Method) -> list[str]:
    """The choices in which two methods differ; what a solver leaves no choice in is part of the solver."""
    pairs = {choice: (getattr(one, choice), getattr(other, choice)) for choice in CHOICES}
    return [choice for choice, (a, b) in pairs.items() if a != b and a is not None and b is not None]


def _changes(rows: Sequence[Row], name: str, merit: Merit) -> str:
    """The best row and its neighbours, with what the difference is made of."""
    best, *alike = tied(rows, merit)
    head, figures = _COLUMNS[name]
    lines = [
        [choice, merit.text(row), *figures(row, best), "yes" if any(row is other for other in alike) else ""]
        for choice, row in {f"**{best.method.title}**": best, **neighbours(rows, merit)}.items()
    ]
    return table(["choice", merit.title, *head, "tied"], lines)


def _ratio(row: Row, best: Row) -> list[str]:
    return [plus_minus(row.distance / best.distance) if best.distance else NONE]


def _bits(row: Row, best: Row) -> list[str]:
    assert row.bound is not None
    return [bits(BITS.of(row) - BITS.of(best)), *map(bits, row.bound.parts)]


_COLUMNS = {"samples": (["÷ best"], _ratio), "likelihood": (["more", "data term", "steps", "prior"], _bits)}


def bits(value: float) -> str:
    """Bits/dim: two digits after the point, none from 100 on."""
    return f"{round(value, 2) + 0.0:.{2 if abs(value) < 99.995 else 0}f}"


def _protocol(results: Results) -> list[str]:
    """How all of it was measured and how far it can be trusted, in sentences."""
    seeds = len(results.seeds)
    out = [f"{results.data[:1].upper()}{results.data[1:]}; {len(results.methods)} methods.", of_distances(results)]
    if results.floor:
        out.append(f"These score {plus_minus(*mean_and_spread(results.floor))}; less is not better than real.")
    out.append("One seed has no spread to judge differences by." if seeds == 1 else "")
    out.append(f"{seeds} seeds are few: a ± of theirs is itself uncertain." if 1 < seeds < FEW else "")
    if ranked(results.rows, BITS):
        out.append(of_bits(results))
        out.append(f"A uniform code costs {math.log2(results.levels):.2f}." if results.levels else "")
    out += [
        "Tied: not further from the best than chance allows in 95 % of cases, judged by differences seed by seed and "
        "image by image.",
        "The best of many is chosen by the figures that are told, so its own are slightly optimistic.",
    ]
    out.append(
        "Formulations are different networks, and not all have every rule." if len(results.formulations) > 1 else ""
    )
    return [told for told in out if told]
