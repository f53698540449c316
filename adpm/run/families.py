"""The families of all packages by name.

The packages beside adpm/ add members by a dict MEMBERS of family -> members, and so does a user's config file: whatever
stands there is checked, keyed and documented like our own.
"""

from __future__ import annotations

import importlib

from adpm.costs import COSTS
from adpm.denoiser import EPS_AFTER_CLIP, LABELS, PREDICTIONS
from adpm.families import Families, merged
from adpm.likelihood import DECODERS
from adpm.moments import ESTIMATORS
from adpm.nn import NETWORKS
from adpm.objective import OBJECTIVES
from adpm.planning import BUDGETS, PLANNING_METHODS
from adpm.process import PROCESSES
from adpm.run.data import DATA_SETS
from adpm.run.house import House
from adpm.run.metrics import FEATURES
from adpm.run.models import DENOISERS
from adpm.run.modes.likelihood import LIKELIHOODS
from adpm.run.times import TIMES
from adpm.run.training import SCHEDULES
from adpm.run.work import PRECISIONS
from adpm.solver import SOLVERS
from adpm.trajectory import TRAJECTORIES
from adpm.variance import RULES

CORE: Families = {
    "data": DATA_SETS,
    "process": PROCESSES,
    "network": NETWORKS,
    "denoiser": DENOISERS,
    "prediction": PREDICTIONS,
    "label": LABELS,
    "eps_after_clip": EPS_AFTER_CLIP,
    "objective": OBJECTIVES,
    "times": TIMES,
    "schedule": SCHEDULES,
    "rule": RULES,
    "estimator": ESTIMATORS,
    "trajectory": TRAJECTORIES,
    "cost": COSTS,
    "budget": BUDGETS,
    "planning_method": PLANNING_METHODS,
    "solver": SOLVERS,
    "decoder": DECODERS,
    "likelihood": LIKELIHOODS,
    "precision": PRECISIONS,
    "features": FEATURES,
}

PACKAGES = ("sde.members", "covariance.members")
"""Modules with a dict MEMBERS; by name, because adpm/ imports neither package."""


def house(added: Families | None = None) -> House:
    """The families of this project, with those of a user's file.

    Raises:
        ValueError: for a family that there is not, or a name that is taken.
    """
    own = House(merged(CORE, *(importlib.import_module(name).MEMBERS for name in PACKAGES)))
    return own.with_members(added) if added else own
