"""The tables of a comparison as files: every cell as CSV, and figures to paste as Markdown and LaTeX.

    cells.csv                 a line per method and K, floats in full; the last column is clock time and may differ
                              between runs, the others may not
    frechet_distance.md/.tex  methods x K, the distance of as many real images first
    bits_per_dim.md/.tex      methods x K, methods that have a bound
    skipped.md                what could not exist, by reason

A table whose figures nobody has is not written, and an old one of its name is removed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from adpm.run.compare import latex, markdown
from adpm.run.compare.grid import Skipped
from adpm.run.compare.merit import BITS, DISTANCE, Merit, plus_minus, ranked, tied
from adpm.run.compare.method import Method
from adpm.run.compare.results import Results, Row
from adpm.run.files import write_whole


def write_tables(results: Results, skipped: Sequence[Skipped], folder: Path) -> None:
    """Write the tables, each whole or not at all.

    Args:
        results: as `collect` returns them.
        skipped: as the grid's plan has it.
        folder: where to.
    """
    texts = {"cells.csv": cells(results), "skipped.md": left_out(skipped)}
    for name, found in sheets(results):
        texts[f"{name}.md"] = "" if found is None else found.markdown()
        texts[f"{name}.tex"] = "" if found is None else found.latex()
    for name, text in texts.items():
        if text:
            write_whole(folder / name, partial(Path.write_bytes, data=text.encode()))
        else:
            (folder / name).unlink(missing_ok=True)


def cells(results: Results) -> str:
    """cells.csv; an empty field is a figure that there is not."""
    lines = [_cell(row, results.seeds) for row in results.rows]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue() if lines else ""


def _cell(row: Row, seeds: Sequence[int]) -> dict[str, str]:
    method, bound = row.method, row.bound
    terms = [None] * 3 if bound is None else [bound.terms[0], bound.terms[1:-1].sum(), bound.terms[-1]]
    return {
        "formulation": method.formulation,
        "rule": method.rule or "",
        "trajectory": method.trajectory,
        "solver": method.solver,
        "eta": _full(method.eta),
        "steps": str(row.steps),
        "network_calls": str(row.nfe),
        "frechet_distance": _full(row.distance),
        "frechet_distance_std": _full(row.spread),
        **{f"frechet_distance_seed_{seed}": _full(d) for seed, d in zip(seeds, row.distances, strict=True)},
        "bits_per_dim": _full(None if bound is None else bound.total.mean),
        "bits_per_dim_error": _full(None if bound is None else bound.total.error),
        "images": "" if bound is None else str(bound.images),
        **{name: _full(term) for name, term in zip(("data_term", "kl_terms", "prior"), terms, strict=True)},
        "largest_clipped_share": _full(row.clipped.max()),
        "seconds": _full(row.seconds),
    }


def _full(value: float | None) -> str:
    """All digits: float(text) is the value again."""
    return "" if value is None else repr(float(value))


def left_out(skipped: Sequence[Skipped]) -> str:
    """skipped.md: the methods of every reason; empty when all were run."""
    reasons: dict[str, list[str]] = {}
    for item in skipped:
        told = f"* {item.method.title}; K = {', '.join(map(str, item.steps))}"
        reasons.setdefault(item.why, []).append(told)
    parts = [f"{why}\n\n" + "\n".join(names) + "\n" for why, names in reasons.items()]
    return "\n".join(["Not run; the reason stands above each list.\n", *parts]) if parts else ""


@dataclass(frozen=True)
class Cell:
    """A figure with its ±, and whether it is one of the best of its column."""

    mean: float
    error: float | None
    best: bool = False

    def text(self, sign: str) -> str:
        return plus_minus(self.mean, self.error, sign)


@dataclass(frozen=True)
class Sheet:
    """A table of one figure of merit, methods x K.

    Attributes:
        name: of the files.
        caption: protocol and rules.
        axes: what the names of a line are.
        budgets: K of the columns.
        lines: (names, cells), a cell for every K or None.
    """

    name: str
    caption: str
    axes: tuple[str, ...]
    budgets: tuple[int, ...]
    lines: tuple[tuple[tuple[str, ...], tuple[Cell | None, ...]], ...]

    def markdown(self) -> str:
        """The table, then its caption."""

        def shown(cell: Cell | None) -> str:
            if cell is None:
                return markdown.NONE
            return markdown.bold(cell.text(" ± ")) if cell.best else cell.text(" ± ")

        head = [*self.axes, *(f"K = {k}" for k in self.budgets)]
        lines = [[*names, *map(shown, found)] for names, found in self.lines]
        return f"{markdown.table(head, lines)}\n\n{self.caption}\n"

    def latex(self) -> str:
        """A table for booktabs, with a rule wherever the first name changes."""

        def shown(cell: Cell | None) -> str:
            return "--" if cell is None else latex.figure(cell.text(r" \pm "), cell.best)

        head = [*map(latex.escaped, self.axes), *(f"$K = {k}$" for k in self.budgets)]
        lines = [[*map(latex.escaped, names), *map(shown, found)] for names, found in self.lines]
        return latex.table(self.name, latex.escaped(self.caption), head, lines, len(self.axes))


def sheet(results: Results, name: str, merit: Merit, first: Cell | None = None, about: str = "") -> Sheet | None:
    """The table of a figure of merit; None when no row has it.

    Args:
        results: the comparison.
        name: of the table.
        merit: the figure.
        first: what stands in the first line, for every K.
        about: the protocol, which the caption starts with.
    """
    having = ranked(results.rows, merit)
    if not having:
        return None
    rows = {(row.method, row.steps): row for row in having}
    methods = [method for method in results.methods if any(method == row.method for row in having)]
    budgets = tuple(k for k in results.budgets if any(k == row.steps for row in having))
    alike = {k: {row.method for row in tied(results.at(k), merit)} for k in budgets}
    axes = _axes(methods)

    def cell(method: Method, k: int) -> Cell | None:
        row = rows.get((method, k))
        value = None if row is None else merit.value(row)
        return None if row is None or value is None else Cell(value, merit.error(row), method in alike[k])

    lines = [(tuple(axes[a](m) for a in axes), tuple(cell(m, k) for k in budgets)) for m in methods]
    if first is not None:
        lines.insert(0, (("real images (bootstrap)", *[""] * (len(axes) - 1)), (first,) * len(budgets)))
    common = {axis: {of(method) for method in methods} for axis, of in AXES.items() if axis not in axes}
    same = [f"{axis} {told}" for axis, (told, *others) in common.items() if told and not others]
    of_all = f" All with {', '.join(same)}." if same else ""
    bold = "In bold: the least of a column, and what is tied with it."
    caption = f"{about}{of_all} {bold} {merit.rule(results)}"
    return Sheet(name, caption, tuple(axes), budgets, tuple(lines))


AXES: dict[str, Callable[[Method], str]] = {
    "formulation": lambda method: method.formulation,
    "rule": lambda method: method.sampler,
    "trajectory": lambda method: method.trajectory,
    "solver": lambda method: method.solver,
    "eta": lambda method: "" if method.eta is None else f"{method.eta:g}",
}
"""Column -> what it says of a method. A solver without a rule stands in the rule's column."""


def _axes(methods: Sequence[Method]) -> dict[str, Callable[[Method], str]]:
    """Those in which methods differ, but the solver only where two rules' solvers do; at least the first."""
    chosen = {axis: of for axis, of in AXES.items() if len({of(method) for method in methods}) > 1}
    if len({method.solver for method in methods if method.rule is not None}) < 2:
        chosen.pop("solver", None)
    return chosen or {"formulation": AXES["formulation"]}


def sheets(results: Results) -> Iterator[tuple[str, Sheet | None]]:
    """(name, table or None) of either figure of merit."""
    count = len(results.seeds)
    spread = f"mean ± standard deviation over {count} seeds" if count > 1 else "one seed"
    floor = Cell(
        float(np.mean(results.floor)), float(np.std(results.floor, ddof=1)) if len(results.floor) > 1 else None
    )
    about = (
        f"Frechet distance (less is better) between {results.samples:,} samples and the real images (features: "
        f"{results.features}), {spread}. First line: as many real images, drawn with replacement."
    )
    yield "frechet_distance", sheet(results, "frechet_distance", DISTANCE, floor, about)
    images = max((row.bound.images for row in results.rows if row.bound is not None), default=0)
    about = (
        f"Bits/dim (less is better) of the variational bound on {images} images of the {results.split} split, one "
        f"draw of noise, decoder variance {results.decoder}, mean ± one standard error over images."
    )
    yield "bits_per_dim", sheet(results, "bits_per_dim", BITS, None, about)
