"""Every field of a comparison with its default; configs/compare_*.py fill in formulations and grid.

A cell of the grid is a formulation's own config with the comparison's fields in the place of its own, where the cell
reads them; what the grid chooses (rule, trajectory, solver, eta, steps, seed) is missing in them.
`python main.py --config=configs/compare_digits.py --mode=describe` lists all fields.
"""

from __future__ import annotations

from collections.abc import Mapping

from ml_collections import ConfigDict

from adpm.run.compare.fields import comparison_config
from adpm.run.families import house


def get_config() -> ConfigDict:
    return comparison_config(house().table)


def formulation(config: str, heads: Mapping[str, str] | None = None) -> ConfigDict:
    """A model to compare.

    Args:
        config: its config, "FILE.py[:VARIANT]".
        heads: rule -> a config of the same trunk with the head that the rule reads.
    """
    out = ConfigDict()
    out.config = config
    out.pretrained = ""  # weights in the place of the config's own
    out.heads = ConfigDict()
    for rule, source in (heads or {}).items():
        out.heads[rule] = ConfigDict()
        out.heads[rule].config = source
        out.heads[rule].pretrained = ""  # the head's file in the place of the config's own
    return out
