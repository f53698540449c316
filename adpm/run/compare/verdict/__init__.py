"""Which formulation and rule win at the K that a comparison shows, and why; in Markdown, from its results alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adpm.run.compare.markdown import NONE, bits, bold, bullets, short, table
from adpm.run.compare.merit import BITS, DISTANCE, Merit, plus_minus, ranked, tied
from adpm.run.compare.results import Results, Row
from adpm.run.compare.verdict.neighbours import AXES, Neighbourhood
from adpm.run.compare.verdict.reasons import sentences
from adpm.run.compare.verdict.why import BANDS, Anatomy

MERITS = {"samples": DISTANCE, "likelihood": BITS}


def verdict(results: Results) -> str:
    """The text: winners, one choice changed at a time for samples and for bits/dim, and how to read it.

    Args:
        results: as `collect` returns them.
    """
    rows = results.at(results.shown)
    blocks = [f"## Who wins at K = {results.shown}", *_winners(results, rows), *_other_steps(results)]
    for merit, tables in ((DISTANCE, _samples), (BITS, _likelihood)):
        if ranked(rows, merit):
            around = Neighbourhood.of(results, rows, merit)
            blocks += [*tables(around), bullets(sentences(around, results, rows))]
    blocks += ["## How to read this", bullets(_notes(results))]
    return "\n\n".join(block for block in blocks if block) + "\n"


def headline(results: Results) -> str:
    """The best at results.shown in plain lines, one for each figure of merit that there is."""
    rows, lines = results.at(results.shown), []
    for name, merit in MERITS.items():
        alike = tied(rows, merit)
        if alike:
            more = f"; not told apart: {len(alike) - 1} of {len(ranked(rows, merit)) - 1} others" if alike[1:] else ""
            told = f"{alike[0].method.title} ({merit.title} {merit.text(alike[0], ' +- ')}{more})"
            lines.append(f"best {name} at K = {results.shown}: {told}")
    return "\n".join(lines) or f"no method has finished at K = {results.shown}."


def _winners(results: Results, rows: Sequence[Row]) -> list[str]:
    """The best of all and of each formulation, then what else can be said about the best."""
    if not rows:
        return [f"No method has finished at K = {results.shown}."]
    lines = [[bold("all"), *(_best(rows, merit) for merit in MERITS.values())]]
    if len(results.formulations) > 1:
        for name in results.formulations:
            own = [row for row in rows if row.method.formulation == name]
            lines.append([name, *(_best(own, merit) for merit in MERITS.values())])
    told = [_ranking(rows, name, merit) for name, merit in MERITS.items() if ranked(rows, merit)]
    return [table(["best of", *_heads()], lines), bullets([*told, *_crossed(rows)])]


def _heads() -> list[str]:
    return [f"{name}: {merit.title}" for name, merit in MERITS.items()]


def _best(rows: Sequence[Row], merit: Merit) -> str:
    order = ranked(rows, merit)
    return f"{order[0].method.title}: {bold(merit.text(order[0]))}" if order else NONE


def _ranking(rows: Sequence[Row], name: str, merit: Merit) -> str:
    """What is not told apart from the best, what those share, and the best of each rule."""
    order, alike = ranked(rows, merit), tied(rows, merit)
    rules: dict[str, Row] = {}
    for row in order:
        rules.setdefault(row.method.sampler, row)
    best = ", ".join(f"`{rule}` {plus_minus(merit.value(row) or 0.0, None)}" for rule, row in rules.items())
    told = f"Best of each rule: {best}."
    if not order[1:]:
        return f"{bold(name.capitalize())}: no other method has this figure."
    if merit.errors(order[0], order[1:2]) == [None]:
        return f"{bold(name.capitalize())}: without error bars no difference can be judged. {told}"
    if not alike[1:]:
        return f"{bold(name.capitalize())}: the best is told apart from all others. {told}"
    others = "; ".join(row.method.title for row in alike[1:5]) + (f"; {len(alike) - 5} more" if alike[5:] else "")
    return f"{bold(name.capitalize())}: not told apart from the best: {others} (in all: {_among(rows, alike)}). {told}"


def _among(rows: Sequence[Row], alike: Sequence[Row]) -> str:
    """What these methods chose on every axis on which there is a choice."""
    told = []
    for axis in AXES:
        every = {getattr(row.method, axis) for row in rows}
        chosen = list(dict.fromkeys(getattr(row.method, axis) for row in alike))
        names = [f"{value:g}" if isinstance(value, float) else str(value or "none") for value in chosen]
        if len(every) > 1:
            told.append(f"any {axis}" if len(chosen) == len(every) else f"{axis} {' or '.join(names)}")
    return ", ".join(told)


def _crossed(rows: Sequence[Row]) -> list[str]:
    """How the best by one figure does by the other."""
    orders = [ranked(rows, merit) for merit in (DISTANCE, BITS)]
    if not all(orders) or orders[0][0] is orders[1][0]:
        return []
    (sharp, *_), (likely, *_) = orders
    times = short(likely.distance / sharp.distance if sharp.distance else None)
    bound = f"{BITS.text(sharp)} bits/dim" if sharp.bound is not None else "no bound"
    return [
        f"{bold('Both')}: the best in bits/dim has a Frechet distance of {DISTANCE.text(likely)}, {times} times the "
        f"least; the best in samples has {bound}."
    ]


def _other_steps(results: Results) -> list[str]:
    lines = []
    for steps in results.budgets:
        if steps != results.shown:
            rows = results.at(steps)
            lines.append([str(steps), *(_best(rows, merit) + _others(rows, merit) for merit in MERITS.values())])
    return [table(["K", *_heads()], lines)] if lines else []


def _others(rows: Sequence[Row], merit: Merit) -> str:
    count = len(tied(rows, merit)) - 1
    return f" (+ {count} not told apart)" if count > 0 else ""


def _changes(around: Neighbourhood) -> list[tuple[str, Row, Anatomy, str]]:
    """(what was changed, row, anatomy, mark) of the best and its neighbours."""
    first = (bold(around.best.method.title), around.best, around.anatomy, "")
    rest = [(f"{o.axis} {o.value}", o.row, o.anatomy, "" if o.apart else " (tie)") for o in around.others]
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


def _notes(results: Results) -> list[str]:
    images = max((row.bound.images for row in results.rows if row.bound is not None), default=0)
    several = len(results.seeds) > 1
    seeds = f"mean over {len(results.seeds)} seeds, ± their standard deviation" if several else "one seed"
    notes = [
        f"{bold('Frechet distance')}: {results.samples:,} samples against the real images in the features "
        f"`{results.features}`, {seeds}; as many real images score {floor_text(results)}. {DISTANCE.rule(results)}",
        f"{bold('bits/dim')}: the variational bound on {images} images of `{results.split}`, one draw of noise, ± one "
        f"standard error over images; decoder variance `{results.decoder}`; none exists at eta = 0. "
        + BITS.rule(results),
        *_NOTES,
    ]
    if not images:
        notes[1] = f"{bold('bits/dim')}: no method of this comparison has a bound."
    if len(results.methods) > 1:
        notes.append(
            f"The best of {len(results.methods)} methods is chosen by the very figures that are told of it, which are "
            "a little too good for that."
        )
    if len(results.formulations) > 1:
        notes.append("Formulations are different networks, and a difference between them includes the networks'.")
    return notes


_NOTES = (
    "**variance ÷ measured**: mean reverse variance over lambda2 + gain^2 E[(x0 - x0_hat)^2], the best single one, "
    "measured on training images; geometric mean over the steps that land in a band of log-SNR.",
    "**last noise ÷ sigma**: of the last noisy step, where it lands; above 1, the last call is told of less noise than "
    "there is. **clipped**: share of the variances that the rule's bounds changed.",
    "**path**: data term, prior, and what these steps would cost with the best single variances. **size**: what the "
    "rule's mean variances, over samples, cost beyond that. **rest**: from variances that differ between pixels and "
    "states (below 0 they save, far above 0 some are too small), and from images whose errors are not those of the "
    "training images. With one variance a step it is the images alone; between rules of a formulation with the same "
    "path and the same mean variances, a difference in it is the pixels' and states'.",
)


def floor_text(results: Results, sign: str = " ± ") -> str:
    """What real images score."""
    values = results.floor
    return plus_minus(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, sign)
