"""Moments per coordinate of a session's network, measured when missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from adpm.bases import BasisNeeds, bases_of, basis_arrays, basis_from
from adpm.basis import Basis
from adpm.coordinates import Spectrum
from adpm.draws import Source
from adpm.errors import UserError
from adpm.plots import spectrum_figure
from adpm.progress import say
from adpm.run.assembly import Session
from adpm.run.figures import save_figure
from adpm.run.kept import Kept
from adpm.run.measure import check_plausible, moment_provenance, moments_path
from adpm.run.report import Report
from adpm.run.store import Parts, parts_of, read_arrays, save_arrays
from adpm.whole import write_whole

KEPT = Kept("coordinates", "moments", "coordinates_file", "coordinates", Spectrum.load)
_SHOWN = 8


def spectrum_for(session: Session) -> Spectrum:
    """r_f(t) of the session's trunk, measured in one pass with the moments.

    Raises:
        UserError: if a named file has another basis than the config asks for, and for all that `Kept.of` refuses.
    """
    found = KEPT.of(session, lambda path: _measured(session, path))
    section, anything = session.config.moments, session.house.table.default("moments.basis")
    if section.basis not in (found.name, anything):
        raise UserError(
            f"config.moments.basis = '{section.basis}' is not the basis of config.moments.coordinates_file = "
            f"'{section.coordinates_file}', '{found.name}'; name that one, or '{anything}'."
        )
    return found


def _measured(session: Session, path: Path) -> Spectrum:
    section = session.config.moments
    say(f"no moments per coordinate at '{path}': measuring them ({session.trunk.source}).")
    source = session.source("train")
    measured = session.front.measure(
        source,
        section.draws,
        section.times,
        seed=session.config.seed,
        batch_size=section.batch_size,
        keep=Parts(parts_of(path)),
        provenance=KEPT.provenance(session),
        basis=_bases(session, source, parts_of(path)),
    )
    check_plausible(session, measured.table)
    if not (section.file or section.ms_eps or moments_path(session).exists()):
        table = replace(measured.table, provenance=moment_provenance(session))
        write_whole(moments_path(session), table.save)  # the same draws
    assert measured.spectrum is not None
    return measured.spectrum


def _bases(session: Session, source: Source, folder: Path) -> dict[str, Basis]:
    """The bases that are measured, kept beside the ranges: eigenvectors made again may be others."""
    options = KEPT.options(session)
    needs, out = BasisNeeds(session.data.shape, lambda: source), dict[str, Basis]()
    for name, basis in bases_of(session.house.families["basis"], options.pop("basis"), needs, **options).items():
        file = folder / f"basis-{name}.npz"
        arrays = read_arrays(file, basis_from)
        if arrays is None:
            save_arrays(file, basis_arrays(basis))
        out[name] = basis if arrays is None else basis_from(arrays)
    return out


def show_spectrum(session: Session, spectrum: Spectrum) -> None:
    """Print and draw r_f(t): its average, its spread and its error bars, and what every basis would have given."""
    values, how, process = spectrum.smoothed(), spectrum.how, session.process
    say(f"held-out bound of about ten steps, bits per dimension, {spectrum.draws} draws a time:")
    for name, bound in sorted(spectrum.bounds.items(), key=lambda item: item[1]):
        say(f"  {name:12}{bound / np.log(2.0):9.4f}{'  (chosen)' if name == spectrum.name else ''}")
    say(f"smoothed over {how.width} neighbours and {how.times} times on either side, spread {how.spread:g}.")
    say(f"E (x0 - x0_hat)^2 along {values.shape[1]} coordinates of '{spectrum.name}':")
    say("       t  log-SNR          mean         least      greatest  error (median)   before limits: mean")
    for i in np.linspace(0, len(values) - 1, _SHOWN).round().astype(int):
        row, error = values[i], np.median(spectrum.error[i] / np.maximum(values[i], 1e-300))
        told = f"{row.mean():14.3e}{row.min():14.3e}{row.max():14.3e}{error:16.1%}{spectrum.raw[i].mean():22.3e}"
        say(f"{spectrum.times[i]:8g} {float(process.log_snr(spectrum.times[i])):8.2f}{told}")
    figure = spectrum_figure(spectrum, process)
    name = f"{KEPT.name}-{KEPT.key(session)}"
    picture = session.workdir / f"{name}.png"
    save_figure(picture, figure)
    with Report(session.workdir / "tensorboard" / "estimate" / name) as report:
        report.figure("coordinates/residual", figure)
    say(f"figure:      {picture}")
    say(f"TensorBoard: tensorboard --logdir {session.workdir / 'tensorboard'}")
