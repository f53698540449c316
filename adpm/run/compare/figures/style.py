"""How the figures of a comparison look: one colour and marker for a rule in all of them, sizes for a printed page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import CARETDOWN, CARETRIGHT, CARETUP
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from adpm.run.compare.method import Method
from adpm.run.compare.results import Results

WIDTH = 7.2
"""Inches; what a printed page and the column of a README have."""

SMALL = 8.0
"""Points, of everything but titles."""

LETTER, _HANDLE = 0.065, 0.47
"""Inches that a letter of SMALL points takes on average, and an entry of a legend besides its letters."""

STYLE: Any = {
    "font.size": SMALL,
    "axes.titlesize": 9.0,
    "axes.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "figure.titlesize": 9.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

INK = "#333333"

# Okabe and Ito's colours, which stay apart for the colour-blind; grey and black first, for what has no model of Var.
_COLORS = ("#7f7f7f", "#000000", "#0072b2", "#009e73", "#d55e00", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("s", "^", "o", "D", "v", "X", "P", "*", "<", ">", "p")

LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
"""Of settings, where several share axes."""

FLOOR: dict[str, Any] = {"color": "#d0d0d0", "linewidth": 0, "zorder": 0, "label": "real images (bootstrap)"}
"""The band of what real images score."""

_UP: dict[str, Any] = {"marker": CARETUP, "linestyle": "none"}
_DOWN: dict[str, Any] = {"marker": CARETDOWN, "linestyle": "none"}
_RIGHT: dict[str, Any] = {"marker": CARETRIGHT, "linestyle": "none"}

Panels = NDArray[np.object_]
Builder = Callable[[Results], Figure | None]


@dataclass(frozen=True)
class Look:
    """How a rule (or a solver without one) is drawn."""

    color: str
    marker: str


FORMULATIONS = (Look("#332288", "o"), Look("#117733", "^"), Look("#aa4499", "s"), Look("#999933", "D"))
"""Of formulations, where several share axes and there are no rules."""


@dataclass(frozen=True)
class Setting:
    """What a panel of curves by rule has in common: trajectory and eta, which is None for solvers that have none."""

    trajectory: str
    eta: float | None

    @property
    def title(self) -> str:
        return f"{self.trajectory}, no eta" if self.eta is None else f"{self.trajectory}, eta {self.eta:g}"

    def holds(self, method: Method) -> bool:
        return (method.trajectory, method.eta) == (self.trajectory, self.eta)


def looks(results: Results) -> dict[str, Look]:
    """By `Method.sampler`, in the order of the grid; colours and markers come round after different numbers."""
    samplers = dict.fromkeys(method.sampler for method in results.methods)
    return {name: Look(_COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(samplers)}


def settings(methods: Iterable[Method]) -> list[Setting]:
    """Those of methods, in the order of the grid."""
    return list(dict.fromkeys(Setting(method.trajectory, method.eta) for method in methods))


def styled(build: Builder) -> Builder:
    """`build` with the sizes above."""

    @wraps(build)
    def inside(results: Results) -> Figure | None:
        with matplotlib.rc_context(STYLE):
            return build(results)

    return inside


def panels(rows: int, columns: int, height: float, **shared: Any) -> tuple[Figure, Panels]:
    """A figure of WIDTH x height inches and its axes [rows, columns]."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **shared)
    for panel in axes.flat:
        panel.tick_params(labelsize=SMALL)  # ticks are made when they are drawn, with the sizes of then
        panel.grid(linewidth=0.4, color="#dddddd")
        panel.set_axisbelow(True)
    return figure, axes


def named(axes: Axes, text: str) -> None:
    """A title at the left, where rows of panels are read from."""
    axes.set_title(text, loc="left")


def empty(axes: Axes) -> None:
    """Say that a panel has nothing because there is nothing."""
    axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", color=INK)


def curve(axes: Axes, x: Sequence[float], y: Sequence[float], error: Sequence[float | None], look: Look) -> None:
    """A line with markers, and error bars where an error is known."""
    axes.plot(x, y, color=look.color, marker=look.marker, zorder=3)
    known = [point for point in zip(x, y, error, strict=True) if point[2] is not None]
    if known:
        a, b, bars = np.array(known, dtype=np.float64).T
        axes.errorbar(a, b, bars, fmt="none", ecolor=look.color, linewidth=0.8)


def mark_above(axes: Axes, x: float, number: int, color: str) -> None:
    """A caret at the top of the axes for a value above them; `number` others at this x stand over it."""
    axes.plot([x], [0.98 - 0.06 * number], transform=axes.get_xaxis_transform(), color=color, zorder=3, **_UP)


def mark_right(axes: Axes, y: float, number: int, color: str) -> None:
    """A caret at the right of the axes for a value beyond them; `number` others at this y stand right of it."""
    axes.plot([0.99 - 0.03 * number], [y], transform=axes.get_yaxis_transform(), color=color, zorder=3, **_RIGHT)


def mark_below(axes: Axes, x: float) -> None:
    """A caret at the bottom of the axes for values below them."""
    axes.plot([x], [0.02], transform=axes.get_xaxis_transform(), color=INK, zorder=3, **_DOWN)


def beyond_key() -> Line2D:
    return Line2D([], [], color=INK, label="off scale", **_UP)


def right_key() -> Line2D:
    return Line2D([], [], color=INK, label="off scale", **_RIGHT)


def below_key() -> Line2D:
    return Line2D([], [], color=INK, label="off scale", **_DOWN)


def key(look: Look, label: str, line: Any = "-") -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], color=look.color, marker=look.marker, linestyle=line, label=label)


def legend_of(figure: Figure, entries: Sequence[Artist], place: str = "lower", title: str | None = None) -> None:
    """One legend for all panels, under ("lower") or over ("upper") them; as many entries in a line as there is room."""
    for columns in range(len(entries), 0, -1):
        lines = [entries[i : i + columns] for i in range(0, len(entries), columns)]
        widest = [max(len(str(line[i].get_label())) for line in lines if i < len(line)) for i in range(columns)]
        if columns == 1 or sum(widest) * LETTER + columns * _HANDLE <= WIDTH:
            blank = Line2D([], [], linestyle="none", label=" ")
            ordered = [line[i] if i < len(line) else blank for i in range(columns) for line in lines]  # by columns
            where: Any = f"outside {place} center"
            kind: Any = {"ncols": columns, "frameon": False, "columnspacing": 1.2, "title": title}
            figure.legend(handles=ordered, loc=where, **kind, title_fontsize=STYLE["figure.titlesize"])
            return


def of_calls(axes: Axes, results: Results) -> None:
    """A logarithmic x axis with ticks at the numbers of network calls, those that have room with their number."""
    calls = sorted({row.nfe for row in results.rows})
    labels, last = [], 0.0
    for k in calls:
        room = np.log(k / last) >= _APART * np.log(calls[-1] / calls[0]) if last else True
        labels.append(str(k) if room else "")
        last = k if room else last
    axes.set_xscale("log")
    axes.set_xticks(calls, labels)
    axes.xaxis.set_minor_locator(NullLocator())


_APART = 0.13
"""Share of an axis that a number takes."""


_TICKS: tuple[tuple[float, tuple[float, ...]], ...] = (
    (5.0, (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)),
    (30.0, (1, 2, 3, 5)),
    (2000.0, (1, 3)),
)
"""Ratios of the largest to the least value, and the multiples of powers of ten that an axis below it has."""


def scale(axis: Any, values: Iterable[float]) -> None:
    """Logarithmic with plain numbers where all values are positive, else logarithmic away from zero only.

    Args:
        axis: axes.xaxis or axes.yaxis.
        values: that will be seen.
    """
    seen = np.array([value for value in values if np.isfinite(value)])
    set_scale = {"x": axis.axes.set_xscale, "y": axis.axes.set_yscale}[axis.axis_name]
    if (seen <= 0).any():
        away = np.abs(seen[seen != 0])
        set_scale("symlog", linthresh=float(np.median(away)) if away.size else 1.0)
        return
    set_scale("log")
    ratio = seen.max() / seen.min() if seen.size else 1.0
    ticks = next((ticks for most, ticks in _TICKS if ratio < most), None)
    if ticks is not None:
        axis.set_major_locator(LogLocator(subs=ticks, numticks=99))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
