"""--mode=estimate: measure statistics of a network and show what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from adpm.explained import LEVEL, reach
from adpm.families import Field, Kind
from adpm.moments import MomentTable, spread_times
from adpm.ms_eps import write_ms_eps
from adpm.plots import measured, moment_figure, unexplained_figure
from adpm.progress import say
from adpm.run import spectrum, statistics, trajectories
from adpm.run.assembly import Session
from adpm.run.figures import save_figure
from adpm.run.measure import moments_for, moments_key, unexplained_for
from adpm.run.report import Report
from adpm.whole import write_whole

_SHOWN = 8


def estimate(session: Session) -> None:
    """Measure (or reuse) what config.moments.statistics names, and show it."""
    kind = session.kind("moments.statistics")
    kind.facts.show(session, kind.build(session))


def _show_moments(session: Session, table: MomentTable) -> None:
    """Print the table with error bars, draw it."""
    name = f"moments-{moments_key(session)}"
    _print_table(session, table)
    figure = moment_figure(table, session.process)
    picture = session.workdir / f"{name}.png"
    save_figure(picture, figure)
    with Report(session.workdir / "tensorboard" / "estimate" / name) as report:
        report.figure("moments/posterior_variance", figure)
        steps = np.searchsorted(session.process.times, table.times).tolist()
        for estimator in measured(table):
            values = table.posterior_variance(estimator, session.process)
            report.curve(f"moments/{estimator}", dict(zip(steps, values.values.tolist(), strict=True)))
            errors = dict(zip(steps, values.errors.tolist(), strict=True))
            report.curve(f"moments/{estimator}_standard_error", errors)
        _explain(session, report)
    if session.config.moments.write_ms_eps:
        path = session.workdir / f"{name}.ms_eps.pth"
        write_whole(path, lambda p: write_ms_eps(p, table, session.process))
        say(f"ms_eps:      {path}")
    say(f"figure:      {picture}")
    say(f"TensorBoard: tensorboard --logdir {session.workdir / 'tensorboard'}")


def _explain(session: Session, report: Report) -> None:
    """How far the config's start may jump, if it has a model of the data."""
    model, process, name = session.start.mixture, session.process, session.config.sampling.start
    if model is None:
        return
    share = unexplained_for(session, model)
    times = spread_times(process, session.config.moments.times)
    log_snr = process.log_snr(times)
    figure = unexplained_figure(share, log_snr, LEVEL, name)
    save_figure(session.workdir / f"unexplained-{name}.png", figure)
    report.figure("moments/unexplained_share", figure)
    steps = np.searchsorted(process.times, times).tolist()
    for tag, values in (("", share.values), ("_standard_error", share.errors)):
        report.curve(f"moments/unexplained_share{tag}", dict(zip(steps, values.tolist(), strict=True)))
    say(f"share of the score that '{name}' leaves unexplained, +- one standard error:")
    for i in np.linspace(0, len(times) - 1, _SHOWN).round().astype(int):
        say(f"{times[i]:8g} {log_snr[i]:8.2f}  {share.values[i]:14.3e} +- {share.errors[i]:.1e}")
    found = reach(share, LEVEL)
    told = f"'{name}' leaves {LEVEL:.0%} or more of the score unexplained at every time: no jump is free"
    if found is not None:
        up = np.ceil(100.0 * log_snr[found]) / 100.0  # rounded to the side on which this time is reached
        told = (
            f"'{name}' leaves less than {LEVEL:.0%} of the score unexplained up to t = {times[found]:g}: "
            f"config.sampling.start_log_snr = {up:.2f} jumps there"
        )
    report.text("moments/jump", told)
    say(f"{told}.")


def _print_table(session: Session, table: MomentTable) -> None:
    process, names = session.process, measured(table)
    estimates = {name: table.posterior_variance(name, process) for name in names}
    known = len(names) > 1  # a published file has no error bars
    told = f", +- one standard error; {len(table.times)} times, {_counts(table)} draws each" if known else ""
    say(f"Var[x0|x_t] per dimension{told}:")
    say("       t  log-SNR  " + "".join(f"{name:>26}" for name in names))
    for i in np.linspace(0, len(table.times) - 1, _SHOWN).round().astype(int):
        cells = "".join(
            f"{e.values[i]:14.3e}" + (f" +- {e.errors[i]:.1e}" if known else "") for e in estimates.values()
        )
        say(f"{table.times[i]:8g} {float(process.log_snr(table.times[i])):8.2f}  {cells}")
    chosen = session.estimator
    if known and len(table.times) > 3:
        left_out = np.abs(table.interpolation_error(chosen, process))
        relative = estimates[chosen].relative()
        say(
            f"'{chosen}': standard error {np.median(relative):.1%} in the median, {relative.max():.1%} at worst; "
            f"left-out times are interpolated within {np.median(left_out):.1%} (median), {left_out.max():.1%} (worst)."
        )


def _counts(table: MomentTable) -> str:
    counts = [draws.n for draws in table.draws]
    return f"{counts[0]}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


@dataclass(frozen=True)
class StatisticsFacts:
    """What may be asked of statistics without measuring them.

    Attributes:
        key: session -> what tells its own from others.
        show: (session, statistics): prints and draws what they say.
    """

    key: Callable[[Session], str]
    show: Callable[[Session, Any], None]


def _file(what: str) -> Field:
    return Field("", f"{what} to use; empty = measured when missing", of=(), given=False)


STATISTICS: dict[str, Kind] = {
    "moments": Kind(
        moments_for,
        "Var[x0 | x_t] per time: for rules, plans and decoders",
        StatisticsFacts(moments_key, _show_moments),
    ),
    statistics.KEPT.name: Kind(
        statistics.ems_for,
        "l, s and b per pixel along the log-SNR, for the solver dpm_solver_v3 (Zheng et al. 2023)",
        StatisticsFacts(statistics.KEPT.key, statistics.show_ems),
        {
            "nodes": Field(61, "times at which they are measured, even in log-SNR", low=3),
            "ems_draws": Field(1000, "(image, noise, signs) triples per node", low=2),
            "derivative": Field("auto", "how the network is differentiated", choices="derivative"),
            statistics.KEPT.file: _file("a statistics file"),
        },
    ),
    spectrum.KEPT.name: Kind(
        spectrum.spectrum_for,
        "Var[x0 | x_t] per time and coordinate of a basis: for rule spectral and its plans",
        StatisticsFacts(spectrum.KEPT.key, spectrum.show_spectrum),
        {
            "basis": Field("auto", "whose coordinates", choices="basis"),
            spectrum.KEPT.file: _file("a coordinates file"),
        },
    ),
    trajectories.KEPT.name: Kind(
        trajectories.flow_for,
        "trajectories of the network's own flow, for the solver and the times 'fitted'",
        StatisticsFacts(trajectories.KEPT.key, trajectories.show_flow),
        {
            "starts": Field(200, "trajectories", low=2),
            "flow_nodes": Field(60, "times along each, even in log-SNR: network calls", low=4),
            "flow_basis": Field("pca", "whose coordinates steps are fitted in", choices="basis"),
            trajectories.KEPT.file: _file("a trajectories file"),
        },
    ),
}
"""Builders take a session and give its statistics, measured when missing."""
