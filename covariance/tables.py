"""What state-dependent covariances add to the families of adpm/, by name."""

from __future__ import annotations

from adpm.run.tables import Tables
from covariance.objective import OBJECTIVES
from covariance.rules import RULES

COVARIANCE_TABLES = Tables(origin=("covariance.tables:COVARIANCE_TABLES",), objectives=OBJECTIVES, rules=RULES)
