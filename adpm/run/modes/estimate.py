"""--mode=estimate: measure the moments and show what they say, with error bars."""

from __future__ import annotations

import numpy as np

from adpm.moments import ESTIMATORS, MomentTable
from adpm.ms_eps import write_ms_eps
from adpm.run.assembly import Session
from adpm.run.figures import moment_figure, save_figure
from adpm.run.files import write_whole
from adpm.run.prepare import moments_for, moments_key
from adpm.run.report import Report, say

_SHOWN = 8


def estimate(session: Session) -> None:
    """Measure (or reuse) the moment table, print it, draw it."""
    table = moments_for(session)
    name = f"moments-{moments_key(session)}"
    _print_table(session, table)
    figure = moment_figure(table, session.process)
    picture = session.workdir / f"{name}.png"
    save_figure(picture, figure)
    report = Report(session.workdir / "tensorboard" / "estimate" / name)
    report.figure("moments/posterior_variance", figure)
    for estimator in _measured(table):
        values = table.posterior_variance(estimator, session.process)
        for t, v, e in zip(table.times, values.values, values.errors, strict=True):
            index = int(np.searchsorted(session.process.times, t))
            report.scalars({f"moments/{estimator}": float(v), f"moments/{estimator}_standard_error": float(e)}, index)
    report.close()
    if session.config.moments.write_ms_eps:
        path = session.workdir / f"{name}.ms_eps.pth"
        write_whole(path, lambda p: write_ms_eps(p, table, session.process))
        say(f"ms_eps:      {path}")
    say(f"figure:      {picture}")
    say(f"TensorBoard: tensorboard --logdir {session.workdir / 'tensorboard'}")


def _measured(table: MomentTable) -> list[str]:
    """The estimators that the table has statistics for."""
    return list(ESTIMATORS) if not np.isnan(table.data_variance) else ["gamma"]


def _print_table(session: Session, table: MomentTable) -> None:
    process, names = session.process, _measured(table)
    estimates = {name: table.posterior_variance(name, process) for name in names}
    known = len(names) > 1  # a published file has no error bars
    told = f", +- one standard error; {len(table.times)} times, {table.draws[0].n} draws each" if known else ""
    say(f"Var[x0|x_t] per dimension{told}:")
    say("       t  log-SNR  " + "".join(f"{name:>26}" for name in names))
    for i in np.linspace(0, len(table.times) - 1, _SHOWN).round().astype(int):
        cells = "".join(
            f"{e.values[i]:14.3e}" + (f" +- {e.errors[i]:.1e}" if known else "") for e in estimates.values()
        )
        say(f"{table.times[i]:8g} {float(process.log_snr(table.times[i])):8.2f}  {cells}")
    chosen = session.config.rule.estimator
    if known and len(table.times) > 3:
        left_out = np.abs(table.interpolation_error(chosen, process))
        relative = estimates[chosen].errors / np.abs(estimates[chosen].values)
        say(
            f"'{chosen}': standard error {np.median(relative):.1%} in the median, {relative.max():.1%} at worst; "
            f"left-out times are interpolated within {np.median(left_out):.1%} (median), {left_out.max():.1%} (worst)."
        )
