"""All methods at one number of steps: quality as dots, and the times of their paths."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adpm.run.compare.figures.measures import BITS, DISTANCE, Measure
from adpm.run.compare.figures.style import (
    FLOOR,
    INK,
    Look,
    key,
    legend_of,
    looks,
    mark_right,
    panels,
    right_key,
    scale,
    settings,
)
from adpm.run.compare.results import Results, Row

_GAP = 0.6
"""Between the lines of two formulations, in lines."""
_LABEL = 40
"""Letters in a line of a label."""


def quality_shown(results: Results) -> Figure | None:
    """Distance and bits/dim of every method at K = results.shown: a line per formulation and setting, dots by rule."""
    rows = results.at(results.shown)
    measures = [measure for measure in (DISTANCE, BITS) if measure.values(rows)]
    lines = [
        (name, setting.title, here)
        for name in results.formulations
        for setting in settings(row.method for row in rows)
        if (here := [row for row in rows if row.method.formulation == name and setting.holds(row.method)])
    ]
    if not lines:
        return None
    labels = [f"{name}, {title}" for name, title, _ in lines]
    places = _places([name for name, _, _ in lines], labels)
    figure, axes = panels(1, len(measures), 1.2 + 0.26 * places[-1], sharey=True)
    axes[0, 0].set_yticks(places, labels)
    axes[0, 0].set_ylim(places[-1] + 0.5, -0.5)
    look, notes = looks(results), dict[str, Artist]()
    for panel, measure in zip(axes[0], measures, strict=True):
        values, top = measure.values(rows), measure.top(rows)
        scale(panel.xaxis, [value for value in values if value <= top])
        if np.isfinite(top):
            panel.set_xlim(min(values) / 1.1, top)
            notes["beyond"] = right_key()
        if (floor := measure.floor(results)) is not None:
            notes["floor"] = panel.axvspan(*floor, **FLOOR)
        for place, (_, _, here) in zip(places, lines, strict=True):
            _dots(panel, place, here, measure, look, top)
        panel.set_xlabel(measure.label)
    legend_of(figure, [*(key(look[name], name, "none") for name in look), *notes.values()])
    figure.suptitle(f"All methods at K = {results.shown}; further left is better")
    return figure


def _places(names: Sequence[str], labels: Sequence[str]) -> list[float]:
    """Where lines stand: one below the other, with a gap before a new name and room for labels of several lines."""
    out = [0.0]
    for i in range(1, len(names)):
        more = 0.35 * (labels[i - 1].count("\n") + labels[i].count("\n"))
        out.append(out[-1] + 1.0 + more + _GAP * (names[i] != names[i - 1]))
    return out


def _dots(axes: Axes, place: float, rows: Sequence[Row], measure: Measure, look: dict[str, Look], top: float) -> None:
    """The rows of a line; those beyond the axis as carets at its end."""
    beyond = 0
    for row in rows:
        found = measure.of(row)
        if found is None:
            continue
        value, error = found
        own = look[row.method.sampler]
        if value > top:
            mark_right(axes, place, beyond, own.color)
            beyond += 1
            continue
        axes.plot([value], [place], color=own.color, marker=own.marker, linestyle="none", markersize=5.5)
        if error is not None:
            axes.errorbar([value], [place], xerr=[error], fmt="none", ecolor=own.color, linewidth=0.8)


def trajectories(results: Results) -> Figure | None:
    """Times of the paths at K = results.shown as log-SNR: a line per path, equal paths of a trajectory together."""
    lines = _paths(results)
    if not lines:
        return None
    places = _places([name for name, _, _ in lines], [label for _, label, _ in lines])
    figure, axes = panels(1, 1, 1.0 + 0.2 * places[-1])
    panel, look = axes[0, 0], looks(results)
    for place, (_, _, rows) in zip(places, lines, strict=True):
        samplers = {row.method.sampler for row in rows}
        color = look[samplers.pop()].color if len(samplers) == 1 else INK
        panel.plot(
            rows[0].log_snr, [place] * len(rows[0].log_snr), color=color, linewidth=0.5, marker="|", markersize=9
        )
    panel.set_yticks(places, [label for _, label, _ in lines])
    panel.set_ylim(places[-1] + 0.7, -0.7)
    panel.grid(False, axis="y")
    panel.set_xlabel("log-SNR of the times where the network is called: noise at the left, data at the right")
    figure.suptitle(f"Where the paths of K = {results.shown} spend their steps")
    return figure


def _paths(results: Results) -> list[tuple[str, str, list[Row]]]:
    """(formulation, label, rows with this path), in the order of the grid."""
    rows = results.at(results.shown)
    out = []
    for name, trajectory in dict.fromkeys((row.method.formulation, row.method.trajectory) for row in rows):
        here = [row for row in rows if (row.method.formulation, row.method.trajectory) == (name, trajectory)]
        paths: dict[bytes, list[Row]] = {}
        for row in here:
            paths.setdefault(row.times.tobytes(), []).append(row)
        etas = len({row.method.eta for row in here}) > 1
        for same in paths.values():
            who = "all rules" if len(same) == len(here) > 1 else ", ".join(_names(same, etas))
            out.append((name, fill(f"{name}, {trajectory}: {who}", _LABEL, break_long_words=False), same))
    return out


def _names(rows: Sequence[Row], etas: bool) -> list[str]:
    """The rules of rows, with eta where it tells them apart."""
    told: dict[str, None] = {}
    for row in rows:
        eta = f" eta {row.method.eta:g}" if etas and row.method.eta is not None else ""
        told[row.method.sampler + eta] = None
    return list(told)
