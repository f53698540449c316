"""Figures of moments, by matplotlib without a screen; imported when a figure is asked for."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from adpm.coordinates import Spectrum
from adpm.draws import Estimate
from adpm.moments import ESTIMATORS, MomentTable
from adpm.process import Array, Process


def moment_figure(table: MomentTable, process: Process) -> Figure:
    """Left: v = Var[eps | x_t] by each estimator. Right: the excess precision 1/Var - SNR. Bars: 95 % intervals."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    log_snr = process.log_snr(table.times)
    for name in measured(table):
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


def unexplained_figure(share: Estimate, log_snr: Array, level: float, what: str) -> Figure:
    """The share of the score that `what` leaves unexplained against log-SNR, with 95 % intervals and a level."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(log_snr, share.values, share.interval(), fmt=".", markersize=3)
    axes.axhline(level, linewidth=0.8, color="gray")
    axes.set(yscale="log", xlabel="log-SNR", ylabel="unexplained share of the score")
    axes.set_title(f"{what}: it may stand in for the network where the share is small", fontsize=9)
    return figure


def spectrum_figure(spectrum: Spectrum, process: Process) -> Figure:
    """Left: SNR r_f, measured and as it is used, for some coordinates. Right: what the data add, 1/r_f - SNR."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    log_snr, values = process.log_snr(spectrum.times), spectrum.smoothed()
    snr = np.exp(log_snr)
    for rank in np.unique(np.geomspace(1, values.shape[1], 6).astype(int)):
        at = spectrum.order[rank - 1]
        (line,) = left.plot(log_snr, snr * values[:, at], linewidth=1, label=f"{rank}")
        bars = 2.0 * snr * spectrum.error[:, at]
        left.errorbar(log_snr, snr * spectrum.residual[:, at], bars, fmt=".", markersize=2, color=line.get_color())
        right.plot(log_snr, 1.0 / values[:, at] - snr, linewidth=1, color=line.get_color())
    left.set(yscale="log", ylim=(1e-6, 3), xlabel="log-SNR", ylabel="SNR E (x0 - x0_hat)_f^2")
    left.legend(title="by variance", fontsize=7)
    right.set(yscale="symlog", xlabel="log-SNR", ylabel="1/r - SNR")
    right.set_title(f"basis '{spectrum.name}'; bars: two standard errors", fontsize=9)
    return figure


def measured(table: MomentTable) -> list[str]:
    """The estimators that a table has statistics for: a published file has gamma alone."""
    return list(ESTIMATORS) if not np.isnan(table.data_variance) else ["gamma"]


def excess_precision(table: MomentTable, process: Process) -> tuple[Array, Array]:
    """kappa_t = 1/Var_t - gamma_t by the residual, with the half-width of its 95 % interval (first order).

    NaN where Var_t is zero: data that are all the same are infinitely precise.
    """
    if np.isnan(table.data_variance):
        nan = np.full(len(table.times), np.nan)
        return nan, nan
    estimate = table.posterior_variance("residual", process)
    values = np.where(estimate.values == 0.0, np.nan, estimate.values)
    return 1.0 / values - np.exp(process.log_snr(table.times)), estimate.interval() / values**2
