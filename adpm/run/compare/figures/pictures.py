"""Samples of selected methods below each other, all from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure

from adpm.run.compare.figures.measures import BITS, DISTANCE, Measure
from adpm.run.compare.figures.style import LETTER, SMALL, WIDTH
from adpm.run.compare.results import Images, Results, Row

MOST = 10
"""Rows of a picture."""

COLUMNS = 8
"""Samples of a method."""


def selected(results: Results) -> list[Row]:
    """At most MOST rows at K = results.shown that stand for the others, formulation by formulation, the best first.

    Of every formulation the best distance, then the best bits/dim, the worst distance, and the best distance of every
    rule; each of these for all formulations or, where there is no room left, for none.
    """
    rows, names = results.at(results.shown), list(results.formulations)
    chosen: list[Row] = []
    for choose in _CHOICES:
        found = [row for name in names for row in choose([row for row in rows if row.method.formulation == name])]
        new = {row.method: row for row in found if all(row.method != one.method for one in chosen)}
        if len(chosen) + len(new) <= MOST or not chosen:
            chosen += new.values()
    return sorted(chosen[:MOST], key=lambda row: (names.index(row.method.formulation), row.distance))


Choice = Callable[[Sequence[Row]], list[Row]]


def _best(measure: Measure) -> Choice:
    def choose(rows: Sequence[Row]) -> list[Row]:
        known = [row for row in rows if measure.of(row) is not None]
        return [min(known, key=lambda row: measure.values([row]))] if known else []

    return choose


def _worst(rows: Sequence[Row]) -> list[Row]:
    return [max(rows, key=lambda row: row.distance)] if rows else []


def _best_of_rules(rows: Sequence[Row]) -> list[Row]:
    by_rule: dict[str, list[Row]] = {}
    for row in rows:
        by_rule.setdefault(row.method.sampler, []).append(row)
    return [min(same, key=lambda row: row.distance) for same in by_rule.values()]


_CHOICES: tuple[Choice, ...] = (_best(DISTANCE), _best(BITS), _worst, _best_of_rules)


def strips(results: Results) -> Figure | None:
    """x0 predictions of one sample along the path, K = results.shown: a line per selected method."""
    rows = selected(results)
    figure = _picture(results, rows, [row.strip[0] for row in rows])
    if figure is not None:
        figure.suptitle(f"What the network takes for x0 at each of K = {results.shown} calls: same sample, same noise")
        figure.axes[0].set_xlabel("from noise to data")
    return figure


def samples(results: Results) -> Figure | None:
    """The first samples of each selected method, K = results.shown."""
    rows = selected(results)
    figure = _picture(results, rows, [row.images[:COLUMNS] for row in rows])
    if figure is not None:
        figure.suptitle(f"Samples at K = {results.shown}: every column began with the same noise")
    return figure


def _picture(results: Results, rows: Sequence[Row], lines: Sequence[Images]) -> Figure | None:
    """Lines of images [n, C, H, W] below each other, with what they are of; None when there are none."""
    if not rows or not max(len(line) for line in lines):
        return None
    names = [row.method.formulation for row in rows]
    canvas, middles = tiled(lines, [before != name for before, name in zip([names[0], *names], names, strict=False)])
    labels = [_label(row) for row in rows]
    left = LETTER * max(len(line) for label in labels for line in label.split("\n")) + 0.1
    wide = WIDTH - left - 0.1
    high = wide * canvas.shape[0] / canvas.shape[1]
    figure = Figure(figsize=(WIDTH, high + 0.6))  # sizes are known: a layout would only have to guess them
    axes = figure.add_axes((left / WIDTH, 0.25 / (high + 0.6), wide / WIDTH, high / (high + 0.6)))
    axes.imshow(canvas, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set_yticks(middles, labels)
    axes.set_xticks([])
    axes.tick_params(labelsize=SMALL, length=0)
    axes.spines[:].set_visible(False)
    return figure


def _label(row: Row) -> str:
    spread = "" if row.spread is None else f" ± {row.spread:.1f}"
    bits = "" if row.bound is None else f", {row.bound.total.mean:.4g} bits/dim"
    return f"{row.method.title}\ndistance {row.distance:.1f}{spread}{bits}"


def tiled(lines: Sequence[Images], apart: Sequence[bool]) -> tuple[Images, list[float]]:
    """Lines of images [n, C, H, W] in [0, 1] on white, one channel as gray and else three as colours.

    Args:
        lines: of images of one shape; their n may differ.
        apart: whether a line keeps away from the one above it.

    Returns:
        Canvas [height, width] or [height, width, 3], and the height of the middle of every line.
    """
    _, channels, high, wide = lines[0].shape
    tops = np.arange(len(lines)) * (high + 1) + np.cumsum(apart) * (high // 4)
    shape = (int(tops[-1]) + high, max(len(line) for line in lines) * (wide + 1) - 1)
    canvas = np.ones(shape if channels < 3 else (*shape, 3))
    for top, line in zip(tops, lines, strict=True):
        for left, image in zip(range(0, shape[1], wide + 1), line, strict=False):
            pixels = image[0] if channels < 3 else image[:3].transpose(1, 2, 0)
            canvas[top : top + high, left : left + wide] = pixels.clip(0.0, 1.0)
    return canvas, (tops + (high - 1) / 2.0).tolist()
