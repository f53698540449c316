"""What networks with a second output add to the families of adpm/, by name."""

from __future__ import annotations

from adpm.run.assembly import Tables
from covariance.rules import RULES

COVARIANCE_TABLES = Tables(rules=RULES)
