"""The grid of a comparison: its methods, those that cannot exist as configured and why, and a session for each."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from torch import nn

from adpm.errors import UserError, lookup
from adpm.run.assembly import Session
from adpm.run.compare.fields import AXES, OWN, shared_fields
from adpm.run.compare.method import Method, Skipped
from adpm.run.config import load_config
from adpm.run.house import House
from adpm.run.paths import check_path


class Grid:
    """A comparison's config, checked, as methods and sessions.

    Args:
        config: as configs/compare_base.py has it.
        workdir: of the comparison; a formulation's models, moments and samples lie in the folder of its name.
        house: the families by name.

    Raises:
        UserError: naming the field, for names that nobody knows and numbers that nobody can use.
    """

    def __init__(self, config: ConfigDict, workdir: Path, house: House) -> None:
        if "grid" not in config:
            raise UserError("this config has no grid of models to compare; use one such as configs/compare_digits.py.")
        self.config, self.workdir, self.house = config, workdir, house
        self._roots: dict[tuple[str, str | None], Session] = {}
        _check_axes(config, house)

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(self.config.grid.steps)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.config.grid.seeds)

    def all_methods(self) -> Iterator[Method]:
        """The product of the axes; what a solver makes no use of is no axis for it."""
        axes = self.config.grid
        seen = set()
        for formulation, solver, eta, trajectory, rule in itertools.product(
            self.config.formulations, axes.solvers, axes.etas, axes.trajectories, axes.rules
        ):
            facts = self.house.families["solver"][solver].facts
            method = Method(
                formulation,
                rule if facts.uses_rule else None,
                trajectory,
                solver,
                float(eta) if facts.uses_eta else None,
            )
            if method not in seen:
                seen.add(method)
                yield method

    @cached_property
    def plan(self) -> tuple[dict[Method, tuple[int, ...]], list[Skipped]]:
        """Methods with the numbers of steps that they have a path for, and what had to be left out.

        Nothing is measured; weights are looked for, because a method without them cannot be.
        """
        possible: dict[Method, tuple[int, ...]] = {}
        skipped: list[Skipped] = []
        for method in self.all_methods():
            without = list(self._impossible(method))
            skipped += without
            left = tuple(k for k in self.steps if all(k not in s.steps for s in without))
            if left:
                possible[method] = left
        return possible, skipped

    def _impossible(self, method: Method) -> Iterator[Skipped]:
        """The numbers of steps that a method cannot be run with, by reason."""
        why: dict[str, tuple[int, ...]] = {}
        for steps in self.steps:
            try:
                check_path(self.session(method, steps))
            except UserError as error:
                why[str(error)] = (*why.get(str(error), ()), steps)
        for told, these in why.items():
            yield Skipped(method, told, these)

    @cached_property
    def shared(self) -> dict[str, Any]:
        """What all cells are given, where they read it."""
        return shared_fields(self.house.table, self.config)

    def root(self, formulation: str, rule: str | None) -> Session:
        """The formulation's model, loaded once: with the head that the rule reads, if the formulation has one."""
        section = self.config.formulations[formulation]
        head = section.heads.get(rule) if rule is not None else None
        key = (formulation, None if head is None else rule)
        if key not in self._roots:
            path, _, variant = (section if head is None else head).config.partition(":")
            config, house = load_config(path, variant)
            fields = {**self.shared, "moments.file": "", "moments.ms_eps": "", "seed": self.seeds[0]}
            fields |= {"cache": str(self.workdir / "cache")} if not self.shared.get("cache") else {}
            fields |= {"network.pretrained": section.pretrained} if section.pretrained else {}
            fields |= {"network.head_pretrained": head.pretrained} if head is not None and head.pretrained else {}
            house.table.update(config, fields)
            self._roots[key] = Session.make(config, self.workdir / formulation, house)
        _ = self._roots[key].model  # missing weights are told now
        return self._roots[key]

    @cached_property
    def any_root(self) -> Session:
        """A model of the comparison, for the data that all of them have in common."""
        method = next(iter(self.plan[0]))
        return self.root(method.formulation, method.rule)

    @property
    def data_identity(self) -> dict[str, Any]:
        """What tells the data from other data; their range belongs to a model, and images are compared in [0, 1]."""
        return data_identity(self.any_root)

    def session(self, method: Method, steps: int, seed: int | None = None, moments: str = "") -> Session:
        """A cell's session.

        Args:
            method, steps: which cell.
            seed: of its noise; the first one when not given.
            moments: a file of them; empty: those of the cache.
        """
        fields: dict[str, Any] = {
            **self.shared,
            "moments.file": moments,
            "trajectory.name": method.trajectory,
            "trajectory.steps": steps,
            "sampling.solver": method.solver,
        }
        if method.rule is not None:
            fields["rule.name"] = method.rule
        if method.eta is not None:
            fields["sampling.eta"] = method.eta
        return self.root(method.formulation, method.rule).again(fields, self.seeds[0] if seed is None else seed)

    def has_bound(self, method: Method) -> bool:
        """Whether the method is a reverse kernel with a finite bound, as far as eta tells."""
        return self.house.families["solver"][method.solver].facts.uses_rule and method.eta != 0.0

    def features(self) -> nn.Module:
        """The network in whose features distances are measured."""
        try:
            return self.house.families["features"][self.config.distance.features].build(self.any_root.data.shape)
        except UserError as error:
            raise UserError(str(error).replace("`features`", "config.distance.features")) from error


def data_identity(session: Session) -> dict[str, Any]:
    """Which images these are, less the range that the network sees."""
    fields = session.house.table.part(session.config, "model")
    own = {k: v for k, v in fields.items() if k.startswith("data.") and k not in ("data.low", "data.high")}
    return {**own, **session.data.content}


def _check_axes(config: ConfigDict, house: House) -> None:
    grid = config.grid
    if not config.formulations:
        raise UserError("config.formulations is empty; name at least one, with formulation(...).")
    for name in config.formulations:
        if not re.fullmatch(r"[\w+]+", name) or name in RESERVED:
            raise UserError(
                f"config.formulations: '{name}' is no name for a folder; use letters, digits, '_' and '+', but not "
                f"{', '.join(RESERVED)}."
            )
    for axis in grid:
        if not len(grid[axis]):
            raise UserError(f"config.grid.{axis} is empty; name at least one.")
        if len(set(grid[axis])) < len(grid[axis]):
            raise UserError(f"config.grid.{axis} = {tuple(grid[axis])} names something twice.")
    for axis in ("rules", "trajectories", "solvers"):
        family = house.families[house.table.field(AXES[axis].sets).choices]
        for name in grid[axis]:
            lookup(family, name, f"config.grid.{axis}")
    for axis, least in (("steps", 1), ("seeds", 0)):
        if not all(isinstance(value, int) and value >= least for value in grid[axis]):
            raise UserError(f"config.grid.{axis} = {tuple(grid[axis])} must be whole numbers of at least {least}.")
    if not all(isinstance(eta, (int, float)) for eta in grid.etas):
        raise UserError(f"config.grid.etas = {tuple(grid.etas)} must be numbers in [0, 1].")
    if config.sampling.samples < 2:
        raise UserError(f"config.sampling.samples = {config.sampling.samples} must be at least 2, for a distance.")
    if config.shown not in grid.steps:
        raise UserError(f"config.shown = {config.shown} must be one of config.grid.steps = {tuple(grid.steps)}.")
    for section, fields in OWN.items():
        for key, field in fields.items():
            value, name = (config[section] if section else config)[key], f"config.{section}.{key}".replace("..", ".")
            field.check(name, value)
            if field.choices:
                lookup(house.families[field.choices], value, name)


# Folders of a comparison's workdir that are no formulation's.
RESERVED = ("cache", "cells", "tables", "figures", "logs", "tensorboard")
