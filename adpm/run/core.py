"""The discrete core's tables: every family of adpm/ by name."""

from __future__ import annotations

from adpm.denoiser import LABELS
from adpm.likelihood import DECODERS
from adpm.nn import NETWORKS
from adpm.objective import OBJECTIVES
from adpm.process import PROCESSES
from adpm.run.data import DATA_SETS
from adpm.run.models import DENOISERS
from adpm.run.modes.likelihood import bound
from adpm.run.paths import COSTS
from adpm.run.tables import Tables
from adpm.solver import SOLVERS
from adpm.trajectory import TRAJECTORIES
from adpm.variance import RULES

CORE = Tables(
    origin=("adpm.run.core:CORE",),
    data_sets=DATA_SETS,
    processes=PROCESSES,
    networks=NETWORKS,
    denoisers=DENOISERS,
    objectives=OBJECTIVES,
    rules=RULES,
    labels=LABELS,
    solvers=SOLVERS,
    trajectories=TRAJECTORIES,
    costs=COSTS,
    likelihoods={"bound": bound},
    decoders=DECODERS,
)
