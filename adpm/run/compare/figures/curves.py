"""Every method's quality against its network calls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adpm.run.compare.figures.measures import BITS, DISTANCE, Measure
from adpm.run.compare.figures.style import (
    FLOOR,
    Look,
    beyond_key,
    curve,
    empty,
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


def quality_distance(results: Results) -> Figure | None:
    """Distance against network calls, with the floor: one row of panels per setting, one column per formulation."""
    figure = _every_method(results, DISTANCE)
    if figure is not None:
        told = f"Frechet distance ({results.features} features) by rule, ± standard deviation over seeds"
        figure.suptitle(f"{told}; lower is better")
    return figure


def quality_bits(results: Results) -> Figure | None:
    """Bits/dim against network calls; None when no method has a bound."""
    figure = _every_method(results, BITS)
    if figure is not None:
        figure.suptitle(f"Bits/dim of {results.split} images by rule, ± standard error over images; lower is better")
    return figure


def _every_method(results: Results, measure: Measure) -> Figure | None:
    rows = [row for row in results.rows if measure.of(row) is not None]
    if not rows:
        return None
    groups, names, look = settings(row.method for row in rows), list(results.formulations), looks(results)
    figure, axes = panels(len(groups), len(names), 1.0 + 1.9 * len(groups), sharex=True, sharey="row")
    notes: dict[str, Artist] = {}
    for line, setting in zip(axes, groups, strict=True):
        here = [row for row in rows if setting.holds(row.method)]
        top = measure.top(here)
        for panel, name in zip(line, names, strict=True):
            scale(panel.yaxis, [value for value in measure.values(here) if value <= top])
            own = [row for row in here if row.method.formulation == name]
            if _rules(panel, own, measure, look, top):
                notes["beyond"] = beyond_key()
            if not own:
                empty(panel)
            if (floor := measure.floor(results)) is not None:
                notes["floor"] = panel.axhspan(*floor, **FLOOR)
            named(panel, f"{name}: {setting.title}")
            of_calls(panel, results)
        line[0].set_ylabel(measure.label)
        if np.isfinite(top):
            line[0].set_ylim(min(measure.values(here)) / 1.1, top)
    for panel in axes[-1]:
        panel.set_xlabel("network calls per sample")
    shown = {row.method.sampler for row in rows}
    legend_of(figure, [key(look[name], name) for name in look if name in shown] + list(notes.values()))
    return figure


def _rules(axes: Axes, rows: Sequence[Row], measure: Measure, look: dict[str, Look], top: float) -> bool:
    """One curve for every method; returns whether points had to be cut. They are marked at the top, side by side."""
    marked: dict[int, int] = {}
    for method in dict.fromkeys(row.method for row in rows):
        found = [(row.nfe, *value) for row in rows if row.method == method and (value := measure.of(row)) is not None]
        calls, values, errors = zip(*found, strict=True)
        curve(axes, calls, values, errors, look[method.sampler])
        for x, y in zip(calls, values, strict=True):
            if y > top:
                mark_above(axes, x, marked.get(x, 0), look[method.sampler].color)
                marked[x] = marked.get(x, 0) + 1
    return bool(marked)
