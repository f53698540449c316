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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adpm.run.compare.merit import BITS, DISTANCE, Merit, plus_minus, ranked, tied
from adpm.run.compare.method import Method, Skipped
from adpm.run.compare.results import Results, Row, mean_and_spread
from adpm.whole import write_whole

NONE = "–"
"""In Markdown, where there is no figure."""

AXES: dict[str, Callable[[Method], str]] = {
    "formulation": lambda method: method.formulation,
    "rule": lambda method: method.sampler,
    "trajectory": lambda method: method.trajectory,
    "solver": lambda method: method.solver,
    "eta": lambda method: "" if method.eta is None else f"{method.eta:g}",
}
"""Column -> what it says of a method. A solver without a rule stands in the rule's column."""


def write_tables(results: Results, skipped: Sequence[Skipped], folder: Path) -> None:
    """Write the tables into a folder, each whole or not at all."""
    texts = {"cells.csv": cells(results), "skipped.md": left_out(skipped)}
    meanings = names(results)
    for name, found in sheets(results):
        texts[f"{name}.md"] = "" if found is None else found.markdown() + (f"\n{meanings}\n" if meanings else "")
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
    parts = (None,) * 3 if bound is None else bound.parts
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
        "bits_per_dim": _full(BITS.value(row)),
        "bits_per_dim_error": _full(BITS.error(row)),
        "images": "" if bound is None else str(bound.images),
        **{name: _full(part) for name, part in zip(("data_term", "kl_terms", "prior"), parts, strict=True)},
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
    parts = [f"{why}\n\n" + "\n".join(methods) + "\n" for why, methods in reasons.items()]
    return "\n".join(["Not run; the reason stands above each list.\n", *parts]) if parts else ""


def names(results: Results) -> str:
    """What the names in these results mean, as far as it is known: a Markdown table, or nothing."""
    used = dict.fromkeys(
        name
        for axis in ("formulation", "rule", "trajectory", "solver")
        for method in results.methods
        if (name := getattr(method, axis)) in results.about
    )
    return table(["name", "what it is"], [[f"`{name}`", results.about[name]] for name in used]) if used else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; it wants an empty line on either side."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "<": "$<$",
        ">": "$>$",
        **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    }
)


def escaped(text: str) -> str:
    """Plain text as LaTeX sets it."""
    return text.translate(_ESCAPES)


Cell = tuple[float, float | None, bool]
"""A figure, its ±, and whether it is one of the best of its column."""


@dataclass(frozen=True)
class Sheet:
    r"""A table of one figure of merit, methods x K.

    Attributes:
        name: of the files, and the label in LaTeX.
        caption: protocol and rules.
        axes: what the names of a line are; in LaTeX a \midrule stands wherever the first of them changes.
        budgets: K of the columns.
        lines: (names, cells), a cell for every K or None.
    """

    name: str
    caption: str
    axes: tuple[str, ...]
    budgets: tuple[int, ...]
    lines: tuple[tuple[tuple[str, ...], tuple[Cell | None, ...]], ...]

    def _texts(self, sign: str, plain: str, bold: str, none: str) -> Iterator[list[str]]:
        """The lines without their names; plain and bold have a place for the figure."""
        for _, figures in self.lines:
            yield [
                none if found is None else (bold if found[2] else plain).format(plus_minus(*found[:2], sign))
                for found in figures
            ]

    def markdown(self) -> str:
        """The table, then its caption."""
        head = [*self.axes, *(f"K = {k}" for k in self.budgets)]
        texts = zip(self.lines, self._texts(" ± ", "{}", "**{}**", NONE), strict=True)
        return f"{table(head, ([*line, *figures] for (line, _), figures in texts))}\n\n{self.caption}\n"

    def latex(self) -> str:
        """A table for the package booktabs."""
        head = [*map(escaped, self.axes), *(f"$K = {k}$" for k in self.budgets)]
        rows, group = [], None
        texts = self._texts(r" \pm ", "${}$", r"$\mathbf{{{}}}$", "--")
        for (line, _), figures in zip(self.lines, texts, strict=True):
            rows += [r"\midrule"] * (line[0] != group) + [f"{' & '.join([*map(escaped, line), *figures])} \\\\"]
            group = line[0]
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{escaped(self.caption)}}}",
                rf"\label{{tab:{self.name}}}",
                rf"\begin{{tabular}}{{{'l' * len(self.axes)}{'r' * len(self.budgets)}}}",
                r"\toprule",
                f"{' & '.join(head)} \\\\",
                *rows,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )


def sheets(results: Results) -> Iterator[tuple[str, Sheet | None]]:
    """(name, table or None) of either figure of merit."""
    for name, merit, about, first in (
        ("frechet_distance", DISTANCE, of_distances(results), results.floor),
        ("bits_per_dim", BITS, of_bits(results), ()),
    ):
        yield name, _sheet(results, name, merit, about, first)


def of_distances(results: Results) -> str:
    """How distances were measured."""
    count = len(results.seeds)
    spread = f"mean ± standard deviation over {count} seeds" if count > 1 else "one seed"
    return (
        f"Frechet distance (less is better) between {results.samples:,} samples and the real images (features: "
        f"{results.features}), {spread}. Real images: as many, drawn with replacement."
    )


def of_bits(results: Results) -> str:
    """How bits/dim were measured."""
    images = max((row.bound.images for row in results.rows if row.bound is not None), default=0)
    return (
        f"Bits/dim (less is better) of the variational bound on {images} images of the {results.split} split, one "
        f"draw of noise, decoder variance {results.decoder}, mean ± one standard error over images."
    )


def _sheet(results: Results, name: str, merit: Merit, about: str, real: Sequence[float]) -> Sheet | None:
    """The table of a figure of merit, real images first where they have it; None when no row has it."""
    rows = {(row.method, row.steps): row for row in ranked(results.rows, merit)}
    if not rows:
        return None
    methods = [method for method in results.methods if any(method == having for having, _ in rows)]
    budgets = tuple(sorted({steps for _, steps in rows}))
    best = {(row.method, k) for k in budgets for row in tied(results.at(k), merit)}
    axes = _axes(methods)

    figures = {key: (merit.of(row), merit.error(row), key in best) for key, row in rows.items()}
    lines = [(tuple(of(m) for of in axes.values()), tuple(figures.get((m, k)) for k in budgets)) for m in methods]
    if real:
        first = ("real images (bootstrap)", *[""] * (len(axes) - 1))
        lines.insert(0, (first, ((*mean_and_spread(real), False),) * len(budgets)))
    common = {axis: {of(method) for method in methods} for axis, of in AXES.items() if axis not in axes}
    same = [f"{axis} {told}" for axis, (told, *others) in common.items() if told and not others]
    of_all = f" All with {', '.join(same)}." if same else ""
    caption = f"{about}{of_all} In bold: the least of a column, and what is tied with it. {merit.rule}"
    return Sheet(name, caption, tuple(axes), budgets, tuple(lines))


def _axes(methods: Sequence[Method]) -> dict[str, Callable[[Method], str]]:
    """Those in which methods differ, but the solver only where two rules' solvers do; at least the first."""
    chosen = {axis: of for axis, of in AXES.items() if len({of(method) for method in methods}) > 1}
    if len({method.solver for method in methods if method.rule is not None}) < 2:
        chosen.pop("solver", None)
    return chosen or {"formulation": AXES["formulation"]}
