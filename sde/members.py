"""What continuous time adds to the families of adpm/, by name."""

from __future__ import annotations

from adpm.families import Families
from sde.corrector import CORRECTORS
from sde.dequantise import DEQUANTISATIONS
from sde.grids import GRIDS
from sde.likelihood import PROBES
from sde.mode import LIKELIHOODS
from sde.process import PROCESSES
from sde.score import LABELS
from sde.solver import SOLVERS

MEMBERS: Families = {
    "process": PROCESSES,
    "grid": GRIDS,
    "label": LABELS,
    "solver": SOLVERS,
    "corrector": CORRECTORS,
    "likelihood": LIKELIHOODS,
    "dequantisation": DEQUANTISATIONS,
    "probe": PROBES,
}
