"""The path of a session: which trajectory, planned on what, and how a method is named in files and TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpm.denoiser import EPS_AFTER_CLIP
from adpm.errors import UserError
from adpm.kernel import Kernel
from adpm.ms_eps import read_array
from adpm.planning import Costs, Plan, Planner, bound_costs, kl_costs, measured_costs, planner
from adpm.process import Array
from adpm.run.assembly import Session
from adpm.run.prepare import cost_table_for, data_row_for, moments_for, moments_key, variance_for
from adpm.run.report import say
from adpm.run.tables import CostKind, Model
from adpm.shortest_path import IntArray
from adpm.trajectory import Request


@dataclass(frozen=True)
class ChosenPath:
    """A path of reference indices with its times.

    Attributes:
        indices: [K+1], indices[0] = 0 is the data.
        times: [K+1].
    """

    indices: IntArray
    times: Array


def path_for(session: Session) -> ChosenPath:
    """The config's trajectory; planning says what it planned on and how far projection moved the cost.

    Raises:
        UserError: if the path cannot be had, before anything is estimated where that can be known.
    """
    section = session.config.trajectory
    planners: list[Planner] = []

    def solved() -> Planner:
        kind = session.tables.costs[section.cost]
        kind.check(session)
        planners.append(planner(kind.build(session), section.steps, section.method))
        return planners[0]

    indices = _indices(session, solved, lambda: _ms_eps(session))
    if planners:
        say(_told(planners[0].plan(section.steps, section.budget)))
    return ChosenPath(indices, session.process.times[indices])


def check_path(session: Session) -> None:
    """Refuse a path that cannot be had, as far as that is known without measuring anything.

    Raises:
        UserError: as `path_for` does.
    """

    def planned() -> Planner:
        session.tables.costs[session.config.trajectory.cost].check(session)
        raise _Unmeasured

    def unknown() -> NDArray[np.floating[Any]]:
        raise _Unmeasured

    with suppress(_Unmeasured):
        _indices(session, planned, unknown)


class _Unmeasured(Exception):
    """A path depends on what nobody has measured yet."""


def _indices(
    session: Session, solved: Callable[[], Planner], ms_eps: Callable[[], NDArray[np.floating[Any]]]
) -> IntArray:
    section, process = session.config.trajectory, session.process
    if section.steps > process.steps:
        raise UserError(
            f"config.trajectory.steps = {section.steps} is longer than the process "
            f"(config.process.steps = {process.steps}); use at most that many."
        )
    ends = (section.log_snr_min, section.log_snr_max)
    request = Request(
        process,
        section.steps,
        log_snr_range=ends if any(ends) else None,
        ms_eps=ms_eps,
        planner=solved,
        budget=section.budget,
    )
    return session.tables.trajectories[section.name](request)


def _told(plan: Plan) -> str:
    told = f"planned {plan.steps} steps ({plan.budget} {plan.asked}; {plan.method} search): {plan.raw:.4f} nats/dim"
    if plan.gap:
        told += f" by the costs as measured, {plan.planned:.4f} by their monotone projection (gap {plan.gap:+.1e})"
    return told + "."


def _kl(session: Session) -> Costs:
    """Of the optimal isotropic covariance, planned on the monotone projection unless the config says otherwise."""
    process, table = session.process, moments_for(session)
    variance = _residual(session)
    errors = np.concatenate([[0.0], table.standard_error("residual", process)(process.times[1:])])
    return kl_costs(process, variance, errors, _data_row(session), session.config.trajectory.projection)


def _bound(session: Session) -> Costs:
    """Of the config's own rule, from the measured residual."""
    return _rule_costs(session, _residual(session), _data_row(session))


def _check_bound(session: Session) -> None:
    """Refuse a rule that reads the state, of which the residual says too little, and what has no finite bound."""
    if session.state_dependent:
        raise UserError(
            f"config.trajectory.cost = 'bound' needs one variance per step, and config.rule.name = "
            f"'{session.config.rule.name}' depends on the state; use 'measured', or 'kl' (of the best scalar)."
        )
    _check_priceable(session)


def _check_priceable(session: Session) -> None:
    """Refuse what a table of single steps cannot price.

    Raises:
        UserError: naming the field.
    """
    config = session.config
    cost = f"config.trajectory.cost = '{config.trajectory.cost}'"
    if config.sampling.eta == 0.0:
        raise UserError(
            f"{cost} has no finite bound to plan on at config.sampling.eta = 0; use a value in (0, 1], or cost = 'kl'."
        )
    if config.rule.cap_levels and (config.trajectory.data_term or config.rule.cap_steps > 1):
        raise UserError(
            f"{cost} prices steps one by one, but config.rule.cap_levels = {config.rule.cap_levels:g} caps the last "
            "steps of a whole path; set it to 0, or config.rule.cap_steps = 1 without config.trajectory.data_term, or "
            "cost = 'kl'."
        )
    if config.denoiser.clip and not EPS_AFTER_CLIP[config.denoiser.eps_after_clip].consistent:
        raise UserError(
            f"{cost} prices the bound with eps re-derived from a clipped x0, but config.denoiser.eps_after_clip = "
            f"'{config.denoiser.eps_after_clip}'; use 'rederive', or cost = 'kl'."
        )


def _measured(session: Session) -> Costs:
    """Of the config's own rule, every reference time measured on training images, data term included if asked for."""
    return measured_costs(cost_table_for(session))


COSTS: dict[str, CostKind] = {
    "kl": CostKind(lambda session: None, _kl),
    "bound": CostKind(_check_bound, _bound),
    "measured": CostKind(_check_priceable, _measured),
}


def _rule_costs(session: Session, variance: Array, data_row: Array | None) -> Costs:
    rule = session.rule(variance_for(session), session.process.times[:2])

    def width(kernel: Kernel) -> Array:
        return np.asarray(rule(kernel, None).values, dtype=np.float64)

    return bound_costs(session.process, variance, width, session.config.sampling.eta, data_row)


def _residual(session: Session) -> Array:
    """Var_t [N+1] by the residual, entry 0 unused."""
    process, table = session.process, moments_for(session)
    if np.isnan(table.data_variance):
        raise UserError(
            "planning needs the residual, which a published ms_eps file does not hold; unset config.moments.ms_eps to "
            "estimate it, or use config.trajectory.name = 'published_split' or 'even'."
        )
    return np.concatenate([[0.0], table.variance("residual", process)(process.times[1:])])


def _data_row(session: Session) -> Array | None:
    return data_row_for(session) if session.config.trajectory.data_term else None


def _ms_eps(session: Session) -> NDArray[np.floating[Any]]:
    """Published gamma at every reference step, entry 0 unused: a named file's own numbers, else the moments'."""
    process, named = session.process, session.config.moments.ms_eps
    if named:
        return read_array(Path(named), process)
    variance = moments_for(session).variance("gamma", process)(process.times[1:])
    return np.concatenate([[0.0], 1.0 - variance * np.exp(process.log_snr(process.times[1:]))])


def kernel_name(session: Session) -> str:
    """A short name of the reverse kernel along a path, for files: rule, trajectory, steps, eta."""
    return f"{session.config.rule.name}-{_path_name(session)}-eta{session.config.sampling.eta:g}"


def kernel_protocol(session: Session, path: ChosenPath) -> dict[str, Any]:
    """Everything that a figure of the reverse kernel along a path depends on. Call it once rule and path are there:
    moments that neither asked for are left out."""
    config = session.config
    return {**_path_protocol(session, path, session.model), "rule": config.rule.to_dict(), "eta": config.sampling.eta}


def sampler_name(session: Session) -> str:
    """A short name of the sampler, for files: its rule or its own name, corrector, trajectory, steps, eta."""
    section, kind = session.config.sampling, session.solver_kind
    name = session.config.rule.name if kind.uses_rule else section.solver
    corrector = f"+{section.corrector}" if section.corrector else ""
    eta = f"-eta{section.eta:g}" if kind.uses_eta else ""
    return f"{name}{corrector}-{_path_name(session)}{eta}"


def sampler_protocol(session: Session, path: ChosenPath) -> dict[str, Any]:
    """Everything that samples depend on: `kernel_protocol`, less what the solver has no use for, and the solver."""
    section, kind = session.config.sampling, session.solver_kind
    protocol = _path_protocol(session, path, session.sampler_model) | {"solver": section.solver}
    if kind.uses_rule:
        protocol["rule"] = session.config.rule.to_dict()
    if kind.uses_eta:
        protocol["eta"] = section.eta
    if section.corrector:
        protocol |= {name: value for name, value in section.items() if name.startswith("corrector")}
    return protocol


def _path_name(session: Session) -> str:
    section = session.config.trajectory
    return f"{section.name}-K{section.steps}"


def _path_protocol(session: Session, path: ChosenPath, model: Model) -> dict[str, Any]:
    head = {} if model.head is None else {"head": dict(model.head)}
    return {
        "identity": session.model_identity,
        **head,
        "weights_from": model.source,
        "seed": session.config.seed,
        "trajectory": session.config.trajectory.to_dict(),
        "path": path.indices.tolist(),
        "moments": moments_key(session) if session.used_moments else None,
    }
