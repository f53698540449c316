"""The figures of a comparison by name, drawn and saved; a rule has one colour and one marker in all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from adpm.kernel import reverse_kernel
from adpm.process import Array
from adpm.run.compare.merit import BITS, DISTANCE, Merit, ranked
from adpm.run.compare.results import Formulation, Images, Results, Row, mean_and_spread
from adpm.run.figures import save_figure
from adpm.run.report import image_grid

WIDTH, DPI, FORMATS = 7.2, 150, ("png", "svg")  # inches: a printed page, or the column of a README
STYLE: Any = {
    **dict.fromkeys(("font.size", "axes.labelsize", "legend.fontsize", "xtick.labelsize", "ytick.labelsize"), 8.0),
    **{"axes.titlesize": 9.0, "figure.titlesize": 9.5, "lines.linewidth": 1.2, "lines.markersize": 4.5},
    **{"errorbar.capsize": 2.0, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
}
INK, GREY = "#333333", "#d0d0d0"
# Okabe and Ito's colours, which stay apart for the colour-blind; grey and black first, for what has no model of Var.
COLORS = ("#7f7f7f", "#000000", "#0072b2", "#009e73", "#d55e00", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("s", "^", "o", "D", "v", "X", "P", "*", "<", ">", "p")  # come round after another number than colours
LINES: tuple[Any, ...] = ("-", "--", ":", "-.")
COLUMNS = 8
"""Samples of a method."""

Look = Mapping[str, Any]


def save_figures(results: Results, folder: Path) -> dict[str, Figure]:
    """Draw and write every figure that the results have something for, as folder/NAME.png and .svg.

    Returns:
        The figures by name. Files of a figure that has nothing to show are removed: they would be of other results.
    """
    drawn: dict[str, Figure] = {}
    for name, build in FIGURES.items():
        with matplotlib.rc_context(STYLE):
            figure = build(results)
            for path in (folder / f"{name}.{kind}" for kind in FORMATS):
                if figure is None:
                    path.unlink(missing_ok=True)
                else:
                    save_figure(path, figure, DPI)
                    drawn[name] = figure
    return drawn


def quality(results: Results) -> Figure | None:
    """Every method against network calls, a row of panels per figure of merit and a column per formulation.

    A rule has its colour, a path and eta its line. The best rule of each path and eta is drawn bold, with markers and
    error bars; axes end with the worst of these, because some rules cost thousands.
    """
    merits = [merit for merit in (DISTANCE, BITS) if ranked(results.rows, merit)]
    if not merits:
        return None
    settings = dict.fromkeys(method.setting for method in results.methods)
    styles = dict(zip(settings, itertools.cycle(LINES), strict=False))
    notes: list[Artist] = [Line2D([], [], color=INK, linestyle=style, label=name) for name, style in styles.items()]
    notes += [Patch(color=GREY, label="real images (bootstrap)")] if results.floor else []
    title = "Less is better. Bold: the best rule (marker) of every path and eta (line); thin: the others"
    ylabels = [merit.title for merit in merits]
    figure, axes = _panels(results, results.rows, title, "network calls", ylabels, notes)
    for line, merit in zip(axes, merits, strict=True):
        seen: list[float] = []
        for panel, own in line:
            seen += _curves(panel, ranked(own, merit), merit, looks(results), styles)
            if merit is DISTANCE and results.floor:
                mean, spread = mean_and_spread(results.floor)
                panel.axhspan(mean - (spread or 0.0), mean + (spread or 0.0), color=GREY, zorder=0)
                seen.append(mean)
            panel.set_xscale("log")
        _scale(panel, seen)
    calls = sorted({row.nfe for row in results.rows})
    ticks = calls[:: -(-len(calls) // 8)]
    panel.set_xticks(ticks, map(str, ticks))
    panel.xaxis.set_minor_locator(NullLocator())
    return figure


def _curves(
    panel: Axes, rows: Sequence[Row], merit: Merit, look: Mapping[str, Look], styles: Mapping[str, Any]
) -> list[float]:
    """The rows of a panel, which come best first; returns what is drawn bold."""
    for method in dict.fromkeys(row.method for row in rows):
        points = sorted((row.nfe, merit.of(row)) for row in rows if row.method == method)
        thin: Any = {"color": look[method.sampler]["color"], "linewidth": 0.6, "alpha": 0.6}
        panel.plot(*zip(*points, strict=True), linestyle=styles[method.setting], **thin)
    seen: list[float] = []
    for setting, style in styles.items():
        best = {row.nfe: row for row in reversed(rows) if row.method.setting == setting}
        panel.plot(sorted(best), [merit.of(best[calls]) for calls in sorted(best)], color=INK, linestyle=style)
        for row in best.values():
            error = merit.error(row)
            panel.errorbar([row.nfe], [merit.of(row)], None if error is None else [error], **look[row.method.sampler])
        seen += map(merit.of, best.values())
    return seen


def _scale(panel: Axes, values: Sequence[float]) -> None:
    """A vertical axis for these values, logarithmic if they are positive and far apart."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low or 1.0)
    panel.set_ylim(low - margin, high + margin)
    if 0.0 < 5.0 * low < high:
        panel.set(yscale="log", ylim=(0.8 * low, 1.25 * high))
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_locator(NullLocator())


def trajectories(results: Results) -> Figure | None:
    """Times of the paths at K = results.shown as log-SNR: a line per path, in the colour of the rule that it is of."""
    paths: dict[tuple[str, str, bytes], list[Row]] = {}
    for row in results.at(results.shown):
        paths.setdefault((row.method.formulation, row.method.trajectory, row.times.tobytes()), []).append(row)
    if not paths:
        return None
    figure, labels = Figure(figsize=(WIDTH, 1.0 + 0.2 * len(paths)), layout="constrained"), []
    panel = figure.subplots()
    for place, ((name, trajectory, _), rows) in enumerate(paths.items()):
        rules = list(dict.fromkeys(row.method.sampler for row in rows))
        alone = sum(key[:2] == (name, trajectory) for key in paths) == 1
        told = "all rules" if alone else ", ".join(rules[:3]) + (f" + {len(rules) - 3}" if rules[3:] else "")
        labels.append(f"{name}, {trajectory}: {told}")
        color = looks(results)[rules[0]]["color"] if len(rules) == 1 else INK
        calls = rows[0].log_snr
        panel.plot(calls, [place] * len(calls), color=color, linewidth=0.5, marker="|", markersize=9)
    panel.set_yticks(range(len(labels)), labels)
    panel.set(ylim=(len(labels) - 0.3, -0.7), xlabel="log-SNR of the network calls, from noise (left) to data")
    figure.suptitle(f"Where the paths of K = {results.shown} spend their steps")
    return figure


def bound_terms(results: Results) -> Figure | None:
    """Bits/dim spent up to each log-SNR at K = results.shown, a panel per formulation, with the best path and eta.

    A curve begins with the prior's term; every step adds its own where it lands, and the data term is the last jump.
    Axes are those of the methods within 3 bits/dim, or 3 times the least, of the least.
    """
    order = ranked(results.at(results.shown), BITS)
    if not order:
        return None
    least, setting, seen = BITS.of(order[0]), order[0].method.setting, list[float]()
    rows = [row for row in results.at(results.shown) if row.bound is not None and row.method.setting == setting]
    title = f"Where the bits go, from noise (left) to data: K = {results.shown}, {setting}"
    figure, (line,) = _panels(results, rows, title, "log-SNR", ["bits/dim spent up to here"])
    for panel, own in line:
        for row in own:
            assert row.bound is not None
            spent = np.cumsum(row.bound.terms[::-1])
            panel.plot([*row.log_snr[::-1], row.log_snr[0]], spent, **looks(results)[row.method.sampler])
            seen += spent.tolist() if BITS.of(row) - least <= max(3.0, 3.0 * abs(least)) else []
    margin = 0.05 * (max(seen) - min(seen))
    panel.set_ylim(min(seen) - margin, max(seen) + margin)
    return figure


def reverse_variance(results: Results) -> Figure | None:
    """Mean variance of each rule's steps at K = results.shown, a panel per formulation; None for paths of one step.

    Of the first path, with its largest eta; without the step to the data, which adds no noise.
    """
    rows = [row for row in results.at(results.shown) if row.steps > 1]
    if not rows:
        return None
    chosen = max((row.method for row in rows), key=lambda method: method.eta or 0.0)
    rows = [row for row in rows if row.method.setting == chosen.setting]
    title = f"Variance of the reverse steps, from noise (left) to data: K = {results.shown}, {chosen.setting}"
    band = Patch(color=GREY, label="bounds of the best single variance")
    figure, (line,) = _panels(results, rows, title, "log-SNR", ["variance per dimension"], [band])
    for panel, own in line:
        for row in own:
            panel.plot(row.log_snr[1:], row.variance[1:], **looks(results)[row.method.sampler])
        if len({row.times.tobytes() for row in own}) == 1:
            formulation = results.formulations[row.method.formulation]
            bounds = variance_bounds(formulation, row.times, 1.0 if chosen.eta is None else chosen.eta)
            panel.fill_between(row.log_snr[1:], *bounds, color=GREY, linewidth=0, zorder=0)
        panel.set_yscale("log")
    return figure


def variance_bounds(formulation: Formulation, times: Array, eta: float) -> tuple[Array, Array]:
    """Least and largest mean variance that the optimal isotropic Gaussian of a reverse step can have, [K-1] each.

    It is lambda2 + gain^2 v, and v, the mean of Var[x_0 | x_t] over states and dimensions, is at least 0 and at most
    what the best linear guess of x_0 leaves, 1 / (1/Var[x_0] + SNR_t), which is less than Var[x_0] and than 1/SNR_t.

    Args:
        formulation: its process, and Var[x_0] by its moments (its bound, where they do not know it).
        times: [K], increasing; the steps are those from times[1:], each to the time before.
        eta: of the kernel.
    """
    known = formulation.moments.data_variance
    data_variance = formulation.bound if np.isnan(known) else known
    kernel = reverse_kernel(formulation.process, times[1:], times[:-1], eta)
    largest = 1.0 / (1.0 / data_variance + np.exp(formulation.process.log_snr(times[1:])))
    return kernel.lambda2, kernel.lambda2 + kernel.gain**2 * largest


def samples(results: Results) -> Figure | None:
    """First samples at K = results.shown: best and worst distance and best bits/dim of every formulation."""
    chosen: dict[str, Images] = {}
    for rows in _by_formulation(results.at(results.shown)).values():
        order = ranked(rows, DISTANCE)
        found = {id(row): row for row in [*order[:1], *ranked(rows, BITS)[:1], *order[-1:]]}
        for row in sorted(found.values(), key=lambda row: row.distance):
            bits = f", {BITS.text(row)} bits/dim" if row.bound else ""
            chosen[f"{row.method.title}\n{DISTANCE.text(row)}{bits}"] = row.images[:COLUMNS]
    if not chosen:
        return None
    figure = _picture(np.stack(list(chosen.values())), left=list(chosen))
    figure.suptitle(f"Samples at K = {results.shown} with their distances: every column began with the same noise")
    return figure


def strip(row: Row, lines: int = 4) -> Figure:
    """What the network takes x0 for along a path, under each column the log-SNR of the call."""
    with matplotlib.rc_context(STYLE):
        figure = _picture(row.strip[:lines], below=[f"{value:.1f}" for value in row.strip_log_snr])
        figure.axes[0].set_xlabel("log-SNR")
        return figure


def _picture(images: Images, left: Sequence[str] = (), below: Sequence[str] = ()) -> Figure:
    """Images [lines, columns, C, H, W] in [0, 1] with what stands beside and below them; C = 1 is gray."""
    lines, columns, _, high, wide = images.shape
    grid = image_grid(torch.as_tensor(images).flatten(0, 1), columns=columns)
    figure = Figure(figsize=(WIDTH, 0.6 + 0.55 * lines), layout="compressed")
    axes = figure.subplots()
    pixels = grid[0] if len(grid) < 3 else grid[:3].permute(1, 2, 0)
    axes.imshow(pixels.clamp(0.0, 1.0).numpy(), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set_yticks([(high + 1) * (i + 0.5) for i in range(len(left))], left)
    axes.set_xticks([(wide + 1) * (i + 0.5) for i in range(len(below))], below)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def looks(results: Results) -> dict[str, Look]:
    """Colour and marker by `Method.sampler`, in the order of the grid."""
    samplers = enumerate(dict.fromkeys(method.sampler for method in results.methods))
    return {name: {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]} for i, name in samplers}


def _by_formulation(rows: Iterable[Row]) -> dict[str, list[Row]]:
    out: dict[str, list[Row]] = {}
    for row in rows:
        out.setdefault(row.method.formulation, []).append(row)
    return out


def _panels(
    results: Results, rows: Iterable[Row], title: str, xlabel: str, ylabels: Sequence[str], notes: Sequence[Artist] = ()
) -> tuple[Figure, list[list[tuple[Axes, list[Row]]]]]:
    """Panels [ylabels, formulations] with their rows, under a title and above a legend of the rules and notes."""
    parts = _by_formulation(rows)
    figure = Figure(figsize=(WIDTH, 1.2 + 1.9 * len(ylabels)), layout="constrained")
    axes = figure.subplots(len(ylabels), len(parts), squeeze=False, sharex=True, sharey="row")
    for panel in axes.flat:
        panel.grid(linewidth=0.4, color="#dddddd")
    for first, label in zip(axes[:, 0], ylabels, strict=True):
        first.set_ylabel(label)
    for top, bottom, name in zip(axes[0], axes[-1], parts, strict=True):
        top.set_title(name, loc="left")
        bottom.set_xlabel(xlabel)
    shown = {row.method.sampler for own in parts.values() for row in own}
    keys = [*(Line2D([], [], label=name, **look) for name, look in looks(results).items() if name in shown), *notes]
    columns = max(1, int(WIDTH / (0.6 + 0.065 * max(len(str(entry.get_label())) for entry in keys))))
    figure.legend(handles=keys, loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(title)
    return figure, [list(zip(line, parts.values(), strict=True)) for line in axes]


FIGURES: dict[str, Callable[[Results], Figure | None]] = {
    "quality": quality,
    "trajectories": trajectories,
    "bound_terms": bound_terms,
    "reverse_variance": reverse_variance,
    "samples": samples,
}
"""Name -> results -> figure; None when the results have nothing to show in it."""
