"""The families of the mathematics by name: what the front door chooses from, and where every run begins."""

from __future__ import annotations

from adpm.bases import BASES
from adpm.classes import CLASSES
from adpm.costs import COSTS
from adpm.denoiser import EPS_AFTER_CLIP, LABELS
from adpm.derivative import DERIVATIVES
from adpm.dpm_solver_v3 import DIFFERENCES, HALVES
from adpm.dpm_solver_v3 import SOLVERS as V3
from adpm.egsde import ENERGIES
from adpm.exponential import DEIS_VARIABLES, DPMPP_SECONDS, DPMPP_THIRDS, UNIPC_BASES
from adpm.families import Families
from adpm.fitted import SOLVERS as FITTED
from adpm.likelihood import DECODERS
from adpm.mixture_fit import CLUSTERS
from adpm.moments import ESTIMATORS
from adpm.multistep import FINAL_ORDERS, INTERPOLATED
from adpm.neighbours import RULES as NEIGHBOUR_RULES
from adpm.neighbours import SOLVERS as NEIGHBOUR_SOLVERS
from adpm.objective import OBJECTIVES
from adpm.parametrisation import PREDICTIONS
from adpm.planning import BUDGETS, PLANNING_METHODS
from adpm.process import PROCESSES
from adpm.published_multistep import SOLVERS as MULTISTEP
from adpm.solver import SOLVERS
from adpm.start import STARTS
from adpm.trajectory import TRAJECTORIES
from adpm.variance import RULES

MEMBERS: Families = {
    "process": PROCESSES,
    "prediction": PREDICTIONS,
    "label": LABELS,
    "eps_after_clip": EPS_AFTER_CLIP,
    "objective": OBJECTIVES,
    "basis": BASES,
    "rule": {**RULES, **NEIGHBOUR_RULES},
    "estimator": ESTIMATORS,
    "trajectory": TRAJECTORIES,
    "cost": COSTS,
    "budget": BUDGETS,
    "planning_method": PLANNING_METHODS,
    "solver": {**SOLVERS, **MULTISTEP, **V3, **FITTED, **NEIGHBOUR_SOLVERS},
    "dpmpp_second": DPMPP_SECONDS,
    "dpmpp_third": DPMPP_THIRDS,
    "unipc_basis": UNIPC_BASES,
    "deis_variable": DEIS_VARIABLES,
    "interpolated": INTERPOLATED,
    "final_order": FINAL_ORDERS,
    "differences": DIFFERENCES,
    "correct_half": HALVES,
    "derivative": DERIVATIVES,
    "start": STARTS,
    "energy": ENERGIES,
    "classes": CLASSES,
    "clusters": CLUSTERS,
    "decoder": DECODERS,
}
