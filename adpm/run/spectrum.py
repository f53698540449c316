"""Moments per coordinate of a session's network: the file that the config names, the cache's, or new ones."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from adpm.coordinates import Spectrum
from adpm.errors import UserError
from adpm.plots import spectrum_figure
from adpm.progress import say
from adpm.run.assembly import Session
from adpm.run.figures import save_figure
from adpm.run.measure import cache, check_plausible, moment_provenance, moments_path
from adpm.run.naming import naming
from adpm.run.report import Report
from adpm.run.store import Parts, digest, kept, parts_of, write_whole

NAME = "coordinates"
"""The member of the family `statistics` whose options these are."""
_SHOWN = 8


def spectrum_for(session: Session) -> Spectrum:
    """r_f(t) of the session's trunk; measured when missing, in one pass with the moments.

    Raises:
        UserError: if a named file is about another model (the differing entries are named), or data of another shape.
    """
    with naming(session.house.table, "moments"):
        if named := session.config.moments.coordinates_file:
            spectrum = Spectrum.load(Path(named))
            spectrum.require(session.identity, Path(named))
            return _fitting(session, spectrum, Path(named))
        path = spectrum_path(session)
        return kept(path, NAME, Spectrum.load, lambda: _measured(session, path), lambda spectrum: spectrum.save)


def _fitting(session: Session, spectrum: Spectrum, path: Path) -> Spectrum:
    if spectrum.shape != session.data.shape:
        raise UserError(
            f"coordinates file '{path}' is about data of shape {spectrum.shape}, not of {session.data.shape}."
        )
    return spectrum


def _measured(session: Session, path: Path) -> Spectrum:
    options, section = session.house.table.options(session.config, "moments.statistics", NAME), session.config.moments
    say(f"no moments per coordinate at '{path}': measuring them ({session.trunk.source}).")
    measured = session.front.measure(
        session.source("train"),
        section.draws,
        section.times,
        seed=session.config.seed,
        batch_size=section.batch_size,
        keep=Parts(parts_of(path)),
        provenance=spectrum_provenance(session),
        **options,
    )
    check_plausible(session, measured.table)
    if not (section.file or section.ms_eps or moments_path(session).exists()):
        table = replace(measured.table, provenance=moment_provenance(session))
        write_whole(moments_path(session), table.save)  # the same draws
    assert measured.spectrum is not None
    return measured.spectrum


def spectrum_provenance(session: Session) -> dict[str, Any]:
    """What moments per coordinate measured by this config depend on."""
    kind = ("moments", session.house.families["statistics"][NAME])
    return {**session.identity, "split": "train", "own": session.house.table.part(session.config, "moments", kind)}


def spectrum_key(session: Session) -> str:
    """What tells this session's from others: a named file's contents, or what its own are measured with."""
    if named := session.config.moments.coordinates_file:
        return hashlib.sha256(Path(named).read_bytes()).hexdigest()[:12]
    return digest(spectrum_provenance(session))


def spectrum_path(session: Session) -> Path:
    """The cache's file for this model and these settings."""
    return cache(session) / f"{NAME}-{spectrum_key(session)}.npz"


def show_spectrum(session: Session, spectrum: Spectrum) -> None:
    """Print and draw r_f(t): its average, its spread and its error bars, and what every basis would have given."""
    values, how, process = spectrum.smoothed(), spectrum.how, session.process
    say(f"held-out bound of about ten steps, bits per dimension, {spectrum.draws} draws a time:")
    for name, bound in sorted(spectrum.bounds.items(), key=lambda item: item[1]):
        say(f"  {name:12}{bound / np.log(2.0):9.4f}{'  (chosen)' if name == spectrum.name else ''}")
    say(f"smoothed over {how.width} neighbours and {how.times} times on either side, spread {how.spread:g}.")
    say(f"E (x0 - x0_hat)^2 along {values.shape[1]} coordinates of '{spectrum.name}':")
    say("       t  log-SNR          mean         least      greatest  error (median)")
    for i in np.linspace(0, len(values) - 1, _SHOWN).round().astype(int):
        row, error = values[i], np.median(spectrum.error[i] / np.maximum(values[i], 1e-300))
        told = f"{row.mean():14.3e}{row.min():14.3e}{row.max():14.3e}{error:16.1%}"
        say(f"{spectrum.times[i]:8g} {float(process.log_snr(spectrum.times[i])):8.2f}{told}")
    figure = spectrum_figure(spectrum, process)
    name = f"{NAME}-{spectrum_key(session)}"
    picture = session.workdir / f"{name}.png"
    save_figure(picture, figure)
    with Report(session.workdir / "tensorboard" / "estimate" / name) as report:
        report.figure("coordinates/residual", figure)
    say(f"figure:      {picture}")
    say(f"TensorBoard: tensorboard --logdir {session.workdir / 'tensorboard'}")
