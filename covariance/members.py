"""What state-dependent covariances add to the families of adpm/, by name."""

from __future__ import annotations

from adpm.families import Families
from covariance.lanczos import SOLVERS
from covariance.objective import OBJECTIVES
from covariance.rules import RULES

MEMBERS: Families = {"objective": OBJECTIVES, "rule": RULES, "solver": SOLVERS}
