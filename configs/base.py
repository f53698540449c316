"""Every config field with its default, as the table of fields has it; the other files state differences.

`python main.py --config=FILE.py --mode=describe` lists all fields. One that only some members of a family take does
nothing for the others, and is refused there. Override any field on the command line:
    python main.py --config=configs/digits.py:cosine --mode=sample --config.trajectory.steps=25
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from adpm.errors import lookup
from adpm.run.families import house


def get_config() -> ConfigDict:
    return house().table.config()


def with_variant(config: ConfigDict, variant: str, variants: Mapping[str, Callable[[ConfigDict], None]]) -> ConfigDict:
    """`config` changed by the named variants, several joined by '+'."""
    for name in filter(None, variant.split("+")):
        lookup(variants, name, "config variant")(config)
    return config
