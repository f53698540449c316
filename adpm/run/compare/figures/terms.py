"""The terms of the bound, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from adpm.run.compare.figures.style import (
    INK,
    Look,
    below_key,
    empty,
    legend_of,
    looks,
    mark_below,
    named,
    panels,
    settings,
)
from adpm.run.compare.results import Results, Row

_LEAST = 1e-4
"""Of the axis, as a share of the least total; smaller terms are marked, because they cost nothing."""

_RING: dict[str, Any] = {"marker": "o", "markersize": 9.0, "fillstyle": "none", "linestyle": "none"}


def bound_terms(results: Results) -> Figure | None:
    """Terms of the bound against log-SNR at K = results.shown: a row of panels per formulation, a column per setting.

    The last term, the data's, has a ring; the prior's is not drawn. None when nothing has a bound.
    """
    rows = [row for row in results.at(results.shown) if row.bound is not None]
    names = [name for name in results.formulations if any(row.method.formulation == name for row in rows)]
    if not names:
        return None
    groups, look = settings(row.method for row in rows), looks(results)
    figure, axes = panels(len(names), len(groups), 1.0 + 1.9 * len(names), sharex=True, sharey="col")
    notes = {"ring": Line2D([], [], color=INK, label="the data term", **_RING)}
    for column, setting in zip(axes.T, groups, strict=True):
        here = [row for row in rows if setting.holds(row.method)]
        least = _range(column[0], here)
        for panel, name in zip(column, names, strict=True):
            if _terms(panel, [row for row in here if row.method.formulation == name], look, least):
                notes["below"] = below_key()
            named(panel, f"{name}: {setting.title}")
        column[-1].set_xlabel("log-SNR of the step's start")
    for panel in axes[:, 0]:
        panel.set_ylabel("bits/dim of a step")
    legend_of(figure, list(notes.values()))
    figure.suptitle(f"Which steps cost how much, K = {results.shown}; at the side: bits/dim in total")
    return figure


def _range(axes: Axes, rows: Sequence[Row]) -> float:
    """A logarithmic axis for the terms of rows; returns its lower end."""
    bounds = [row.bound for row in rows if row.bound is not None]
    largest = max(float(bound.terms[:-1].max()) for bound in bounds)
    least = _LEAST * min((bound.total.mean for bound in bounds if bound.total.mean > 0.0), default=largest)
    axes.set_yscale("log")
    axes.set_ylim(least, 3.0 * max(largest, least))
    return least


def _terms(axes: Axes, rows: Sequence[Row], look: dict[str, Look], least: float) -> bool:
    """A curve for every row, with its total in a legend beside the axes; returns whether terms are too small to see."""
    small: set[float] = set()
    for row in rows:
        assert row.bound is not None
        own, terms = look[row.method.sampler], row.bound.terms[:-1]
        label = f"{row.method.sampler} {_total(row.bound.total.mean)}"
        axes.plot(row.log_snr, terms, color=own.color, marker=own.marker, label=label)
        axes.plot(row.log_snr[:1], terms[:1], color=own.color, **_RING)
        small |= set(row.log_snr[~(terms >= least)].tolist())
    for x in sorted(small):
        mark_below(axes, x)
    if rows:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.05), frameon=False, handlelength=1.2, borderpad=0.0)
    else:
        empty(axes)
    return bool(small)


def _total(bits: float) -> str:
    return f"{bits:.0f}" if abs(bits) >= 100.0 else f"{bits:.2f}"
