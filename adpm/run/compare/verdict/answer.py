"""The plain answer: who wins by each figure of merit, what is tied, and the best of every formulation."""

from __future__ import annotations

from collections.abc import Sequence

from adpm.run.compare.markdown import NONE, bold, bullets, short, table
from adpm.run.compare.merit import BITS, DISTANCE, Merit, plus_minus, ranked, tied
from adpm.run.compare.results import Results, Row

MERITS = {"samples": DISTANCE, "likelihood": BITS}
FEW = 5
"""From so many seeds on, a standard deviation over them needs no warning."""
NAMED = 15
"""Tied methods that are told by name."""


def headline(results: Results) -> str:
    """The answers in plain ASCII, a line for each figure of merit that there is."""
    rows = results.at(results.shown)
    lines = [
        f"{name.capitalize()} at K = {results.shown}: {_answer(rows, merit, ' +- ')}"
        for name, merit in MERITS.items()
        if ranked(rows, merit)
    ]
    return "\n".join(lines) or f"no method has finished at K = {results.shown}."


def answer(results: Results) -> str:
    """The answers, the best of all and of each formulation, and the best at other K; in Markdown."""
    rows = results.at(results.shown)
    if not rows:
        blocks = [f"No method has finished at K = {results.shown}."]
    else:
        blocks = [bullets(_lines(results, rows)), _best_of(results, rows), bullets(_more(results, rows))]
    return "\n\n".join(block for block in (*blocks, _other_steps(results)) if block)


def _answer(rows: Sequence[Row], merit: Merit, sign: str = " ± ") -> str:
    """Who wins, or how many are tied."""
    order, alike = ranked(rows, merit), tied(rows, merit)
    best, told = order[0].method.title, merit.told(order[0], sign)
    if not order[1:]:
        return f"{best} is the only method with this figure ({told})."
    chance = merit.chance(order[0], order[1:])[0]
    if chance is None:
        return f"{best} is best ({told}), but without error bars no difference can be judged."
    few = ""
    if merit is DISTANCE and len(order[0].distances) < FEW:
        seeds = len(order[0].distances)
        few = f" There are {seeds} seeds only, and a {sign.strip()} of {seeds} seeds is itself uncertain."
    if alike[1:]:
        return f"no clear winner: {len(alike)} of {len(order)} methods are tied, led by {best} ({told}).{few}"
    behind = plus_minus((merit.value(order[1]) or 0.0) - (merit.value(order[0]) or 0.0), chance.error, sign)
    return f"{best} wins with {told}; the next, {order[1].method.title}, is behind by {behind} (paired).{few}"


def _lines(results: Results, rows: Sequence[Row]) -> list[str]:
    out = []
    for name, merit in MERITS.items():
        if ranked(rows, merit):
            out.append(f"{bold(f'{name.capitalize()} at K = {results.shown}')}: {_answer(rows, merit)}")
            alike = [row.method.title for row in tied(rows, merit)]
            more = f"; {len(alike) - NAMED} more" if len(alike) > NAMED else ""
            out += [f"{bold('Tied')}: {'; '.join(alike[:NAMED])}{more}."] if alike[1:] else []
    seeds = f"{len(results.seeds)} seed{'s' if len(results.seeds) > 1 else ''}"
    about = f"{len(results.methods)} methods, {seeds} of {results.samples:,} samples"
    return [*out, f"{bold('Experiment')}: {results.data}; {about}."]


def _best_of(results: Results, rows: Sequence[Row]) -> str:
    """The best of all, of each formulation, and of each with the rules that all have where it has others, too."""

    def line(name: str, of: Sequence[Row]) -> list[str]:
        return [name, *(_best(of, merit) for merit in MERITS.values())]

    lines, samplers = [line(bold("all"), rows)], _samplers(results)
    common = set.intersection(*map(set, samplers.values()))
    if len(samplers) > 1:
        own = {name: [row for row in rows if row.method.formulation == name] for name in samplers}
        lines += [line(name, own[name]) for name in samplers]
        for name, found in samplers.items():
            if common and set(found) != common:
                shared = [row for row in own[name] if row.method.sampler in common]
                lines.append(line(f"{name}, rules that all have", shared))
    return table(["best of", *_heads()], lines)


def _samplers(results: Results) -> dict[str, tuple[str, ...]]:
    """The rules (or solvers without one) of every formulation that has a method."""
    out: dict[str, dict[str, None]] = {}
    for method in results.methods:
        out.setdefault(method.formulation, {})[method.sampler] = None
    return {name: tuple(found) for name, found in out.items()}


def _more(results: Results, rows: Sequence[Row]) -> list[str]:
    """What was not run everywhere, the best of each rule, and how the best by one figure does by the other."""
    samplers = _samplers(results)
    every = {sampler for found in samplers.values() for sampler in found}
    out = [
        f"`{name}` was run with {_and(found)} only; `skipped` lists what was not run, and why."
        for name, found in samplers.items()
        if set(found) != every
    ]
    for name, merit in MERITS.items():
        rules: dict[str, str] = {}
        for row in ranked(rows, merit):
            rules.setdefault(row.method.sampler, plus_minus(merit.value(row) or 0.0, None))
        if len(rules) > 1:
            told = ", ".join(f"`{rule}` {value}" for rule, value in rules.items())
            out.append(f"Best of each rule, {name} ({merit.title}): {told}.")
    return out + _crossed(rows)


def _and(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(f"`{n}`" for n in names[:-1]), f"`{names[-1]}`") if part)


def _crossed(rows: Sequence[Row]) -> list[str]:
    """How the best by one figure does by the other."""
    orders = [ranked(rows, merit) for merit in MERITS.values()]
    if not all(orders) or orders[0][0] is orders[1][0]:
        return []
    (sharp, *_), (likely, *_) = orders
    times = short(likely.distance / sharp.distance if sharp.distance else None)
    bound = f"has {BITS.told(sharp)}" if sharp.bound is not None else "has no bound"
    return [
        f"The best in bits/dim has a Frechet distance of {DISTANCE.text(likely)}, {times} times the least; the best in "
        f"samples {bound}."
    ]


def _other_steps(results: Results) -> str:
    lines = [
        [str(steps), *(_best(results.at(steps), merit) for merit in MERITS.values())]
        for steps in results.budgets
        if steps != results.shown
    ]
    return table(["K", *_heads()], lines) if lines else ""


def _heads() -> list[str]:
    return [f"{name}: {merit.title}" for name, merit in MERITS.items()]


def _best(rows: Sequence[Row], merit: Merit) -> str:
    """The best row, and how many are tied with it."""
    order, count = ranked(rows, merit), len(tied(rows, merit)) - 1
    if not order:
        return NONE
    return f"{order[0].method.title}: {bold(merit.text(order[0]))}" + (f" (+ {count} tied)" if count > 0 else "")
