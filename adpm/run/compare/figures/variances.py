"""Variances against theory: of the steps, between their bounds; of x_0, as the precision that moments imply."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adpm.kernel import reverse_kernel
from adpm.process import Array
from adpm.run.compare.figures.style import (
    FORMULATIONS,
    INK,
    Setting,
    beyond_key,
    key,
    legend_of,
    looks,
    mark_above,
    named,
    panels,
    settings,
)
from adpm.run.compare.results import Formulation, Results, Row
from adpm.run.figures import excess_precision as measured

_BAND: dict[str, Any] = {"color": "#d9d9d9", "linewidth": 0, "zorder": 0, "label": "bounds"}
_HIGHEST = 2.5
"""Of the axis for places in the band, where 0 and 1 are its bounds."""


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


def reverse_variance(results: Results) -> Figure | None:
    """Mean variance of each rule's steps against t at K = results.shown: a column of panels per formulation.

    Above: the variance and its bounds. Below: its place between them, where rules differ at noisy times, too. The step
    to the data is left out, because it adds no noise. None for paths of one step.
    """
    setting = _common_setting(results.at(results.shown))
    rows = [row for row in results.at(results.shown) if setting and setting.holds(row.method) and len(row.times) > 1]
    names = [name for name in results.formulations if any(row.method.formulation == name for row in rows)]
    if not names or setting is None:
        return None
    figure, axes = panels(2, len(names), 5.0)
    notes: dict[str, Artist] = {}
    for column, name in zip(axes.T, names, strict=True):
        here = [row for row in rows if row.method.formulation == name]
        # a solver without eta takes steps of the Markov process, which eta = 1 is
        notes |= _variances(column, here, results, 1.0 if setting.eta is None else setting.eta)
        named(column[0], name)
        column[1].set_xlabel("t")
    axes[0, 0].set_ylabel("variance per dimension")
    axes[1, 0].set_ylabel("place between the bounds")
    look, shown = looks(results), {row.method.sampler for row in rows}
    legend_of(figure, [key(look[name], name) for name in look if name in shown] + list(notes.values()))
    told = f"Variance of the reverse steps, K = {results.shown}, {setting.title}"
    figure.suptitle(
        f"{told}.\nThe best single variance per step lies in the grey band; "
        "heads may leave it\nwhere the network errs more than the best linear guess"
    )
    return figure


def _variances(column: Sequence[Axes], rows: Sequence[Row], results: Results, eta: float) -> dict[str, Artist]:
    """A formulation's two panels; returns entries for the legend. Paths that differ have no band in common."""
    above, below = column
    look, marked = looks(results), dict[float, int]()
    for row in rows:
        own = look[row.method.sampler]
        low, high = variance_bounds(results.formulations[row.method.formulation], row.times, eta)
        place = (row.variance[1:] - low) / (high - low)
        above.plot(row.times[1:], row.variance[1:], color=own.color, marker=own.marker)
        below.plot(row.times[1:], place, color=own.color, marker=own.marker)
        for t in row.times[1:][place > _HIGHEST].tolist():
            mark_above(below, t, marked.setdefault(t, 0), own.color)
            marked[t] += 1
    above.set_yscale("log")
    below.set_ylim(-0.15, _HIGHEST)
    below.axhspan(0.0, 1.0, **_BAND)
    notes: dict[str, Artist] = {"beyond": beyond_key()} if marked else {}
    if _one_path(rows):
        notes["band"] = above.fill_between(rows[0].times[1:], low, high, **_BAND)
    return notes


def _common_setting(rows: Sequence[Row]) -> Setting | None:
    """The first trajectory whose path no rule changes (else the first), with its largest eta."""
    found = settings(row.method for row in rows)
    common = [setting for setting in found if _one_path(row for row in rows if setting.holds(row.method))]
    chosen = next(iter(common or found), None)
    of_it = [setting for setting in found if chosen and setting.trajectory == chosen.trajectory]
    return max(of_it, key=lambda setting: setting.eta or 0.0, default=None)


def _one_path(rows: Iterable[Row]) -> bool:
    """Whether all rows of a formulation have one path."""
    paths: dict[str, set[bytes]] = {}
    for row in rows:
        paths.setdefault(row.method.formulation, set()).add(row.times.tobytes())
    return all(len(found) == 1 for found in paths.values())


def excess_precision(results: Results) -> Figure | None:
    """kappa_t = 1/Var_t - SNR_t by the residual with 95 % intervals, all formulations in one axes.

    Both axes are in units of the data's variance, Var[x_0] kappa_t against log(Var[x_0] SNR_t), so that the range that
    a formulation scales its data to does not matter: for exact scores of the same data all formulations give one curve.
    It is at least 1, as for the best linear guess, and rises with the SNR. None where only gamma was measured.
    """
    known = {name: found for name, found in results.formulations.items() if not np.isnan(found.moments.data_variance)}
    if not known:
        return None
    figure, axes = panels(1, 1, 3.2)
    panel, lowest, highest = axes[0, 0], 0.0, 1.0
    for number, (name, formulation) in enumerate(known.items()):
        moments, process = formulation.moments, formulation.process
        kappa, error = (moments.data_variance * value for value in measured(moments, process))
        signal = process.log_snr(moments.times) + np.log(moments.data_variance)
        look = FORMULATIONS[number % len(FORMULATIONS)]
        style: dict[str, Any] = {"fmt": look.marker, "color": look.color, "markersize": 3.5, "linewidth": 0.7}
        panel.errorbar(signal, kappa, error, **style, capsize=0, label=name)
        lowest, highest = min(lowest, float(kappa.min())), max(highest, float(kappa.max()))
    panel.axhline(1.0, color=INK, linewidth=0.8, label="1, the least for an exact score")
    panel.set_yscale("symlog", linthresh=1.0)
    panel.set_ylim(1.1 * lowest - 0.1, 3.0 * highest)  # intervals that reach further are cut
    panel.set_xlabel("log-SNR in units of the data's variance, log(Var[x0] SNR)")
    panel.set_ylabel("Var[x0] (1/Var[x0|x_t] - SNR)")
    legend_of(figure, panel.get_legend_handles_labels()[0])
    figure.suptitle("Excess precision, 95 % intervals: for an exact score it cannot fall to the right, nor below 1")
    return figure
