"""The path of a session: which trajectory, planned on what; and how its samplers are named and keyed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path as File
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpm.costs import CostNeeds
from adpm.errors import UserError
from adpm.jump import after
from adpm.moments import MomentTable
from adpm.ms_eps import read_array
from adpm.paths import Path, find_path, gamma_of, moment_needs
from adpm.progress import say
from adpm.run.assembly import Session
from adpm.run.checks import check_costs
from adpm.run.measure import cost_table_for, data_row_for, moments_for, used_moments, used_statistics, variance_for
from adpm.run.naming import naming


def path_for(session: Session) -> Path:
    """The config's trajectory; planning says what it planned on and how far projection moved the cost.

    Raises:
        UserError: if the path cannot be had, before anything is measured where that can be known.
    """
    check_path(session)
    path = _path(session, session, lambda: _ms_eps(session))
    if path.plan is not None:
        say(f"{path}.")
    return path


def check_path(session: Session) -> None:
    """Refuse a path that cannot be had, as far as that is known without measuring anything.

    Raises:
        UserError: as `path_for` does.
    """
    with suppress(_Unmeasured):
        _path(session, None, _unmeasured)


def path_after_start(session: Session, path: Path) -> Path:
    """What the config's start leaves to walk of its path; says how far it jumps.

    Raises:
        UserError: if it does not fit the path.
    """
    with naming(session.house.table, "sampling"):
        found = after(
            session.start, session.process, path, lambda last: _path(session, session, lambda: _ms_eps(session), last)
        )
    if found is not path:
        ends = session.process.log_snr(np.array([session.process.times[-1], found.times[-1]]))
        say(
            f"'{session.config.sampling.start}' carries the noise from t = {session.process.times[-1]:g} to "
            f"{found.times[-1]:g} (log-SNR {ends[0]:.2f} to {ends[1]:.2f}); {found.steps} steps are left."
        )
    elif session.kind("sampling.start").facts.jumps:
        say(f"'{session.config.sampling.start}' reaches no time of this path but its first; no step is saved.")
    return found


def path_up_to(session: Session, last: int) -> Path:
    """The config's trajectory from the reference time `last`, by its index, down to the data.

    Raises:
        UserError: if there is none that begins there.
    """
    found = _path(session, session, lambda: _ms_eps(session), last)
    if int(found.indices[-1]) != last:
        raise UserError(
            f"config.trajectory.name = '{session.config.trajectory.name}' stops at t = {found.times[-1]:g}, short of "
            f"t = {session.process.times[last]:g} (config.translate.share); use another, such as even."
        )
    return found


class _Unmeasured(Exception):
    """A path depends on what nobody has measured yet."""


def _unmeasured(*args: Any) -> Any:
    raise _Unmeasured


def _path(session: Session, measured: Session | None, ms_eps: Any, last: int | None = None) -> Path:
    """The path, from the reference time `last` if there is one; as far as it goes unmeasured if `measured` is None."""
    config, table = session.config, session.house.table
    kind = session.kind("trajectory.name")
    options = table.options(config, "trajectory.name")
    if kind.facts is not None and kind.facts.plans:
        cost = options["cost"]
        facts, priced = session.house.families["cost"][cost].facts, bool(options["data_term"])
        check_costs(config, cost, facts, session.rule_facts, priced)
    with naming(table, "trajectory"):
        _check_single(session, options)
        return find_path(
            session.house.families,
            config.trajectory.name,
            session.process,
            config.trajectory.steps,
            _unmeasured if measured is None else lambda priced: needs_of(session, priced),
            ms_eps,
            last,
            _unmeasured if measured is None else lambda: session.known("trajectories"),
            **options,
        )


def _check_single(session: Session, options: dict[str, Any]) -> None:
    """A single step is priced by the data term alone."""
    if session.config.trajectory.steps == 1 and options.get("data_term") is False and session.process.steps > 1:
        raise UserError(
            "`steps` = 1 has no path: without a data term every path goes through the first reference time, and the "
            "step from there to the data counts; use steps >= 2, or set `data_term` = True."
        )


def needs_of(session: Session, priced: bool) -> CostNeeds:
    """What planning may ask this session for; `priced`: the last step, too."""
    made: list[MomentTable] = []

    def moments() -> MomentTable:
        made[:] = made or [moments_for(session)]
        return made[0]

    return moment_needs(
        moments,
        session.process,
        data_row=lambda: data_row_for(session) if priced else None,
        rule=lambda: session.rule(variance_for(session), session.process.times[:2]),
        spectrum=lambda: session.known("coordinates"),
        costs=lambda: cost_table_for(session, priced),
        eta=session.config.sampling.eta,
    )


def _ms_eps(session: Session) -> NDArray[np.floating[Any]]:
    """Published gamma at every reference step, entry 0 unused: a named file's own numbers, else the moments'."""
    named = session.config.moments.ms_eps
    return read_array(File(named), session.process) if named else gamma_of(moments_for(session), session.process)


# Names and keys of what is made along a path


def kernel_name(session: Session) -> str:
    """A short name of the reverse kernel along a path, for files: rule, trajectory, steps, eta."""
    return f"{session.config.rule.name}-{_path_name(session)}-eta{session.config.sampling.eta:g}"


def sampler_name(session: Session) -> str:
    """A short name of the sampler, for files: its rule or its own name, corrector, start, trajectory, steps, eta."""
    section, facts = session.config.sampling, session.kind("sampling.solver").facts
    name = session.config.rule.name if facts.uses_rule else section.solver
    around = f"+{section.corrector}" if section.corrector else ""
    around += f"+{section.start}" if session.kind("sampling.start").facts.jumps else ""
    eta = f"-eta{section.eta:g}" if facts.uses_eta else ""
    return f"{name}{around}-{_path_name(session)}{eta}"


def _path_name(session: Session) -> str:
    section = session.config.trajectory
    return f"{section.name}-K{section.steps}"


def sampler_key(session: Session, path: Path) -> dict[str, Any]:
    """Everything that samples depend on."""
    facts = session.kind("sampling.solver").facts
    uses_rule, statistics = facts.uses_rule, session.house.families["statistics"].get(facts.statistics)
    return {
        **session.identity,
        **({} if statistics is None else {"statistics": statistics.facts.key(session)}),
        "head": session.sampler_model.head,
        "own": session.house.table.part(session.config, "samples"),
        "path": path.indices.tolist(),
        "moments": used_moments(session, "rule.name") if uses_rule else None,
        **(used_statistics(session, "rule.name") if uses_rule else {}),
    }


def bound_key(session: Session, path: Path) -> dict[str, Any]:
    """Everything that the bound depends on."""
    kind = session.house.families["likelihood"]["bound"]
    return {
        **session.identity,
        "head": session.model.head,
        "own": session.house.table.part(session.config, "bound", ("likelihood", kind)),
        "path": path.indices.tolist(),
        "moments": used_moments(session, "rule.name", "likelihood.decoder"),
        **used_statistics(session, "rule.name"),
    }
