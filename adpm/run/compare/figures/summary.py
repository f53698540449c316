"""Quality in one picture: the best rule of every path and eta against network calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from adpm.run.compare.figures.measures import BITS, DISTANCE, Measure
from adpm.run.compare.figures.style import (
    FLOOR,
    INK,
    LINES,
    Look,
    beyond_key,
    curve,
    key,
    legend_of,
    looks,
    mark_above,
    named,
    of_calls,
    panels,
    scale,
    settings,
)
from adpm.run.compare.results import Results, Row

_SHADE, _CARET = "#cbe6f6", "#56b4e9"


def quality(results: Results) -> Figure | None:
    """The best rule of every setting against network calls: a row of panels per measure, a column per formulation.

    The line is the setting, the marker the rule. All rules of the first setting are shaded, from the best to the worst.
    """
    measures = [measure for measure in (DISTANCE, BITS) if measure.values(results.rows)]
    if not measures:
        return None
    groups, look = settings(results.methods), looks(results)
    height = 1.1 + 1.7 * len(measures)
    figure, axes = panels(len(measures), len(results.formulations), height, sharex=True, sharey="row")
    won: set[str] = set()
    notes: dict[str, Artist] = {}
    for line, measure in zip(axes, measures, strict=True):
        notes |= _frame(line, results, measure)
        top = measure.top(results.rows)
        for panel, name in zip(line, results.formulations, strict=True):
            rows = [row for row in results.rows if row.method.formulation == name and measure.of(row) is not None]
            _shade(panel, [row for row in rows if groups[0].holds(row.method)], measure, top)
            for number, setting in enumerate(groups):
                best = _best([row for row in rows if setting.holds(row.method)], measure)
                _named_line(panel, best, measure, look, LINES[number % len(LINES)], top)
                won |= {row.method.sampler for row in best}
            named(panel, name)
    for panel in axes[-1]:
        panel.set_xlabel("network calls per sample")
    lines = [Line2D([], [], color=INK, linestyle=LINES[i % len(LINES)], label=s.title) for i, s in enumerate(groups)]
    markers = [key(look[name], name, "none") for name in look if name in won]
    shade = [Patch(color=_SHADE, label=f"all rules, {groups[0].title}")] if len(look) > 1 else []
    title = "The best rule of every path and eta, named by its marker, against all rules; lower is better"
    legend_of(figure, [*lines, *shade], "upper", title)
    legend_of(figure, [*markers, *notes.values()])
    return figure


def _frame(line: Sequence[Axes], results: Results, measure: Measure) -> dict[str, Artist]:
    """Axes of a measure's panels, which they share; returns entries for the legend."""
    values, top = measure.values(results.rows), measure.top(results.rows)
    notes: dict[str, Artist] = {}
    scale(line[0].yaxis, [value for value in values if value <= top])
    line[0].set_ylabel(measure.label)
    if np.isfinite(top):
        line[0].set_ylim(min(values) / 1.1, top)
        notes["beyond"] = beyond_key()
    for panel in line:
        of_calls(panel, results)
        if (floor := measure.floor(results)) is not None:
            notes["floor"] = panel.axhspan(*floor, **FLOOR)
    return notes


def _at_each(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows with the same number of network calls together, rising."""
    return [[row for row in rows if row.nfe == calls] for calls in sorted({row.nfe for row in rows})]


def _best(rows: Sequence[Row], measure: Measure) -> list[Row]:
    """The best row at each number of calls."""
    return [min(here, key=lambda row: measure.values([row])) for here in _at_each(rows)]


def _named_line(
    axes: Axes, rows: Sequence[Row], measure: Measure, look: dict[str, Look], style: Any, top: float
) -> None:
    """A line through rows whose markers name their rules."""
    axes.plot([row.nfe for row in rows], measure.values(rows), color=INK, linestyle=style)
    for row in rows:
        found, own = measure.of(row), look[row.method.sampler]
        if found is not None and found[0] > top:
            mark_above(axes, row.nfe, 0, own.color)
        elif found is not None:
            curve(axes, [row.nfe], [found[0]], [found[1]], own)


def _shade(axes: Axes, rows: Sequence[Row], measure: Measure, top: float) -> None:
    """From the best to the worst row at each number of calls."""
    groups = _at_each(rows)
    calls, values = [here[0].nfe for here in groups], [measure.values(here) for here in groups]
    low, high = [min(v) for v in values], [max(v) for v in values]
    axes.fill_between(calls, low, high, color=_SHADE, linewidth=0, zorder=1)
    for x, y in zip(calls, high, strict=True):
        if y > top:
            mark_above(axes, x, 0, _CARET)
