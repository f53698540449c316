"""DPM-Solver-v3's statistics of a session's network, measured when missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adpm.derivative import DERIVATIVES
from adpm.ems import EMS
from adpm.progress import say
from adpm.run.assembly import Session
from adpm.run.kept import Kept
from adpm.run.store import Parts, parts_of

KEPT = Kept("ems", "statistics", "ems_file", "statistics", EMS.load)
_SHOWN = 8


def ems_for(session: Session) -> EMS:
    """The statistics of the session's trunk, from its last reference time to its first."""
    return KEPT.of(session, lambda path: _measured(session, path))


def _measured(session: Session, path: Path) -> EMS:
    options, config = KEPT.options(session), session.config
    nodes, draws = options["nodes"], options["ems_draws"]
    say(f"no statistics at '{path}': measuring them with {draws} draws at {nodes} nodes ({session.trunk.source}).")
    if config.denoiser.clip:
        say("statistics are of the raw network; limits of x0 have no part in them.")
    ems = session.front.measure_statistics(
        session.source("train"),
        nodes,
        draws,
        seed=config.seed,
        derivative=options["derivative"],
        batch_size=config.moments.batch_size,
        keep=Parts(parts_of(path)),
        provenance=KEPT.provenance(session),
    )
    if ems.derivative != options["derivative"]:
        say(f"the network is differentiated by '{ems.derivative}': {DERIVATIVES[ems.derivative].about}.")
    return ems


def show_ems(session: Session, ems: EMS) -> None:
    """Print what statistics say: their means and spreads over pixels, and how many values were held."""
    say(
        f"l, s and b per pixel, mean (least .. greatest); {len(ems.grid)} nodes, {ems.draws} draws each, by "
        f"'{ems.derivative}':"
    )
    say(" log-SNR" + "".join(f"{name:>30}" for name in "lsb"))
    for i in np.linspace(0, len(ems.grid) - 1, _SHOWN).round().astype(int):
        cells = (
            f"{v[i].mean():9.4f} ({v[i].min():8.4f} ..{v[i].max():8.4f})" for v in (ems.linear, ems.scale, ems.bias)
        )
        say(f"{2.0 * ems.grid[i]:8.2f}" + "".join(f"{cell:>30}" for cell in cells))
    pixels = ems.linear.size
    say(
        f"s was cut to its limit in {ems.clamped.sum()} of {pixels} values, at {np.count_nonzero(ems.clamped)} nodes; "
        f"f is constant in {ems.constant.sum()}, where s = 0."
    )
