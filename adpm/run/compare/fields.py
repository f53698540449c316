"""The fields of a comparison: its own, and those of a run that it gives to all of its cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from adpm.families import Field
from adpm.run.table import Table

COMPARED = ("moments", "costs", "samples", "bound", "cell", "amount", "machine")
"""Products of a cell: fields that these start with, or read, are the comparison's."""


@dataclass(frozen=True)
class Axis:
    """An axis of the grid: a tuple of values of one field.

    Attributes:
        sets: the field of a cell that it sets.
        default: its values.
        about: what it is, for people.
    """

    sets: str
    default: tuple[Any, ...]
    about: str


AXES: dict[str, Axis] = {
    "rules": Axis("rule.name", ("small", "large", "analytic"), "left out for solvers without a rule"),
    "trajectories": Axis("trajectory.name", ("even",), "how steps are chosen"),
    "solvers": Axis("sampling.solver", ("reverse_gaussian",), "how a step is taken"),
    "etas": Axis("sampling.eta", (1.0,), "left out for solvers without eta"),
    "steps": Axis("trajectory.steps", (5, 10, 25, 50, 100), "K"),
    "seeds": Axis("seed", (0, 1), "of the samples; moments, paths and bits/dim are those of the first"),
}

OWN: dict[str, dict[str, Field]] = {
    "distance": {
        "features": Field("digits", "what distances are measured in", choices="features"),
        "splits": Field(("train", "test"), "of the data that samples are compared with"),
    },
    "": {
        "shown": Field(10, "the number of steps that summaries and pictures are about", low=1),
        "processes": Field(0, "that work side by side; 0 = one per core, or one with a GPU", low=0),
    },
}


def shared_names(table: Table) -> list[str]:
    """The fields of a run that a comparison has: all that any of its cells may read, less what the axes set."""
    todo, seen = table.starting(*COMPARED), dict[str, None]()
    while todo:
        name = todo.pop(0)
        if name in seen:
            continue
        seen[name] = None
        found, section = table.field(name), name.rpartition(".")[0]
        todo += found.reads
        for kind in table.families[found.choices].values() if found.choices else ():
            todo += [f"{section}.{key}" for key in kind.fields]
            todo += [other for read in kind.reads for other, _ in table.named(read)]
    sets = {axis.sets for axis in AXES.values()}

    def wanted(name: str) -> bool:
        of = table.field(name).of
        return name not in sets and (of is None or bool(set(of) & set(COMPARED)))

    return [name for name in table.names if name in seen and wanted(name)]


def comparison_config(table: Table) -> ConfigDict:
    """Every field of a comparison with its default; formulations are to be filled in."""
    config = table.config(shared_names(table))
    config.formulations = ConfigDict()  # name -> formulation(...); the name is its folder in the workdir
    config.grid = ConfigDict({name: axis.default for name, axis in AXES.items()})
    for section, fields in OWN.items():
        inside = ConfigDict({key: field.default for key, field in fields.items()})
        if section:
            config[section] = inside
        else:
            config.update(inside)
    return config


def shared_fields(table: Table, config: ConfigDict) -> dict[str, Any]:
    """The values that a comparison gives to its cells, those that are unset left out."""
    out = {}
    for name in shared_names(table):
        section, _, key = name.rpartition(".")
        inside = config.get(section) if section else config
        value = None if inside is None else inside.get(key)
        if value is not None:
            out[name] = value
    return out
