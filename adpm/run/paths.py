"""The path of a session: which trajectory, planned on what, and how a method is named in files and TensorBoard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from adpm.kernel import Kernel
from adpm.planning import Costs, Plan, Planner, bound_costs, kl_costs, planner
from adpm.process import Array
from adpm.run.assembly import PLAN_ON, Session
from adpm.run.prepare import data_row_for, moments_for, moments_key, variance_for
from adpm.run.report import say
from adpm.shortest_path import IntArray
from adpm.trajectory import Request


@dataclass(frozen=True)
class ChosenPath:
    """A path of reference indices with its times.

    Attributes:
        indices: [K+1], indices[0] = 0 is the data.
        times: [K+1].
        plan: what planning said, None for fixed trajectories.
    """

    indices: IntArray
    times: Array
    plan: Plan | None


def path_for(session: Session) -> ChosenPath:
    """The config's trajectory; planning says what it planned on and how far projection moved the cost."""
    section, process = session.config.trajectory, session.process
    planners: list[Planner] = []

    def solved() -> Planner:
        planners.append(planner(costs_for(session), section.steps, section.method))
        return planners[0]

    ends = (section.log_snr_min, section.log_snr_max)
    request = Request(
        process,
        section.steps,
        log_snr_range=ends if any(ends) else None,
        ms_eps=lambda: _ms_eps(session),
        planner=solved,
        budget=section.budget,
    )
    indices = session.tables.trajectories[section.name](request)
    plan = planners[0].plan(section.steps, section.budget) if planners else None
    if plan is not None:
        say(
            f"planned {plan.steps} steps ({plan.budget} {plan.asked}; {plan.method} search): {plan.raw:.4f} nats/dim "
            f"by the moments as measured, {plan.planned:.4f} by their monotone projection (gap {plan.gap:+.1e})."
        )
    return ChosenPath(indices, process.times[indices], plan)


def costs_for(session: Session) -> Costs:
    """Edge costs of config.trajectory.cost, with or without the data term."""
    section, process = session.config.trajectory, session.process
    table = moments_for(session)
    data_row = data_row_for(session) if section.data_term else None
    times = process.times[1:]
    variance = np.concatenate([[0.0], table.variance("residual", process)(times)])
    errors = np.concatenate([[0.0], table.standard_error("residual", process)(times)])
    if not PLAN_ON[section.cost]:
        return kl_costs(process, variance, errors, data_row, section.projection)
    rule = session.rule(variance_for(session), process.times[:2])

    def width(kernel: Kernel) -> Array:
        return np.asarray(rule(kernel, None).values, dtype=np.float64)

    return bound_costs(process, variance, width, session.config.sampling.eta, data_row)


def _ms_eps(session: Session) -> Array:
    """Published gamma at every reference step, entry 0 unused."""
    process = session.process
    variance = moments_for(session).variance("gamma", process)(process.times[1:])
    return np.concatenate([[0.0], 1.0 - variance * np.exp(process.log_snr(process.times[1:]))])


def method_name(session: Session) -> str:
    """A short name for files: rule, trajectory, steps, eta."""
    config = session.config
    return f"{config.rule.name}-{config.trajectory.name}-K{config.trajectory.steps}-eta{config.sampling.eta:g}"


def method_protocol(session: Session, path: ChosenPath) -> dict[str, Any]:
    """Everything a figure of this method depends on, the moments included."""
    config = session.config
    return {
        "identity": session.model_identity,
        "weights_from": session.model.source,
        "seed": config.seed,
        "rule": config.rule.to_dict(),
        "trajectory": config.trajectory.to_dict(),
        "path": path.indices.tolist(),
        "eta": config.sampling.eta,
        "solver": config.sampling.solver,
        "moments": moments_key(session),
    }
