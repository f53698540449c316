"""Figures of a run, by matplotlib without a screen."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from adpm.moments import ESTIMATORS, MomentTable
from adpm.process import Array, Process
from adpm.run.files import write_whole

_METADATA: dict[str, dict[str, None]] = {"svg": {"Date": None}}
"""Of formats that would name the day."""


def save_figure(path: Path, figure: Figure, dpi: int = 120) -> None:
    """Write a figure in the format that the path's suffix says (none: PNG); the same figure makes the same file."""
    kind = path.suffix.removeprefix(".") or "png"
    with matplotlib.rc_context({"svg.hashsalt": "adpm"}):  # names of an SVG's parts, random without
        write_whole(path, lambda p: figure.savefig(p, format=kind, dpi=dpi, metadata=_METADATA.get(kind)))


def moment_figure(table: MomentTable, process: Process) -> Figure:
    """Left: v = Var[eps | x_t] by each estimator. Right: the excess precision 1/Var - SNR. Bars: 95 % intervals."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    log_snr = process.log_snr(table.times)
    for name in ESTIMATORS:
        if np.isnan(table.data_variance) and name not in ("gamma",):
            continue
        estimate = table.posterior_variance(name, process)
        snr = np.exp(log_snr)
        left.errorbar(log_snr, snr * estimate.values, snr * estimate.interval(), fmt=".", markersize=3, label=name)
    left.set(yscale="log", ylim=(1e-6, 3), xlabel="log-SNR", ylabel="v = SNR Var[x0|x_t]")
    left.legend()
    kappa, error = excess_precision(table, process)
    right.errorbar(log_snr, kappa, error, fmt=".", markersize=3)
    right.set(yscale="symlog", xlabel="log-SNR", ylabel="excess precision 1/Var - SNR")
    right.set_title("residual; for an exact score it cannot fall to the right", fontsize=9)
    return figure


def excess_precision(table: MomentTable, process: Process) -> tuple[Array, Array]:
    """kappa_t = 1/Var_t - gamma_t by the residual, with the half-width of its 95 % interval (first order)."""
    if np.isnan(table.data_variance):
        nan = np.full(len(table.times), np.nan)
        return nan, nan
    estimate = table.posterior_variance("residual", process)
    kappa = 1.0 / estimate.values - np.exp(process.log_snr(table.times))
    return kappa, estimate.interval() / estimate.values**2
