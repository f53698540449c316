"""DPM-Solver-v3's statistics of a session's network: the file that the config names, the cache's, or new ones."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from adpm.derivative import DERIVATIVES
from adpm.ems import EMS
from adpm.progress import say
from adpm.run.assembly import Session
from adpm.run.measure import cache
from adpm.run.naming import naming
from adpm.run.store import Parts, digest, kept, parts_of

CHOICE = "ems"
"""The member of the family `statistics` whose options these are."""
_SHOWN = 8


def ems_for(session: Session) -> EMS:
    """The statistics of the session's trunk, from its last reference time to its first; measured when missing.

    Raises:
        UserError: if a named file is about another model (the differing entries are named).
    """
    with naming(session.house.table, "moments"):
        if named := _options(session)["ems_file"]:
            ems = EMS.load(Path(named))
            ems.require(session.identity, Path(named))
            return ems
        path = ems_path(session)
        return kept(path, "statistics", EMS.load, lambda: _measured(session, path), lambda ems: ems.save)


def _measured(session: Session, path: Path) -> EMS:
    options, config = _options(session), session.config
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
        provenance=ems_provenance(session),
    )
    if ems.derivative != options["derivative"]:
        say(f"the network is differentiated by '{ems.derivative}': {DERIVATIVES[ems.derivative].about}.")
    return ems


def _options(session: Session) -> dict[str, Any]:
    return session.house.table.options(session.config, "moments.statistics", CHOICE)


def ems_provenance(session: Session) -> dict[str, Any]:
    """What statistics measured by this config depend on."""
    kind = ("moments", session.house.families["statistics"][CHOICE])
    return {**session.identity, "split": "train", "own": session.house.table.part(session.config, "statistics", kind)}


def ems_key(session: Session) -> str:
    """What tells this session's statistics from others: a named file's contents, or what its own are measured with."""
    if named := _options(session)["ems_file"]:
        return hashlib.sha256(Path(named).read_bytes()).hexdigest()[:12]
    return digest(ems_provenance(session))


def ems_path(session: Session) -> Path:
    """The cache's file for this model and these settings."""
    return cache(session) / f"statistics-{ems_key(session)}.npz"


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
