"""The families by name, what their members are, and how one is built from a section of the config."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict
from torch import Tensor

from adpm.denoiser import Denoise, TimeLabel
from adpm.errors import UserError
from adpm.likelihood import Decoder, DecoderNeeds
from adpm.nn.heads import Headed
from adpm.objective import ObjectiveKind
from adpm.planning import Costs
from adpm.process import Array, Process
from adpm.run.data import DataSet
from adpm.solver import Solver, SolverKind
from adpm.trajectory import Builder
from adpm.variance import Rule, RuleNeeds, SecondOutput

if TYPE_CHECKING:
    from adpm.run.assembly import Session


@dataclass(frozen=True)
class Model:
    """A denoiser that is ready to be used.

    Attributes:
        denoise: the denoiser, clipping included.
        identity: what distinguishes it from other models: weights, time label, clipping.
        source: where it came from, for people.
        network: the network in it, if there is one.
        head: what distinguishes its head from others: weights, objective, kind; None where there is no head. It is no
            part of the identity, because moments do not depend on it.
    """

    denoise: Denoise
    identity: Mapping[str, Any]
    source: str
    network: Headed | None = None
    head: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class DenoiserKind:
    """How a kind of denoiser is built, and whether there is a network to train in it.

    Attributes:
        build: the model without regard to a head: that one may be untrained.
        trainable: whether there is a network to train.
        complete: the model with its head.
        second_output: what the second output of the session's network is, where it has one; no tensors are read.
    """

    build: Callable[[Session], Model]
    trainable: bool
    complete: Callable[[Session, Model], Model] = lambda session, model: model
    second_output: Callable[[Session], SecondOutput | None] = lambda session: None


@dataclass(frozen=True)
class BitsPerDim:
    """A figure over images: the mean and its standard error (None for a single image)."""

    mean: float
    error: float | None

    @classmethod
    def of(cls, bits: Array | Tensor) -> BitsPerDim:
        """Of one number per image."""
        values = np.asarray(bits)
        error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
        return cls(float(values.mean()), error)

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (f" +- {self.error:.4f}" if self.error is not None else "")


@dataclass(frozen=True)
class CostKind:
    """A way to price the steps of a path.

    Attributes:
        check: refuses a session whose steps cannot be priced so; it does no work.
        build: the costs, measured when they have to be.
    """

    check: Callable[[Session], None]
    build: Callable[[Session], Costs]


Likelihood = Callable[["Session"], Callable[[], BitsPerDim]]
"""A way to measure bits/dim: it checks the session's fields, and what it returns does the work."""


@dataclass(frozen=True)
class Tables:
    """The families by name. `main.py` merges the tables of the three packages.

    Attributes:
        origin: "module:name" of the tables that these were merged from. Members are functions without a name of their
            own, so another process gets tables by importing them.
    """

    origin: tuple[str, ...] = ()
    data_sets: Mapping[str, Callable[..., DataSet]] = field(default_factory=dict)
    processes: Mapping[str, Callable[..., Process]] = field(default_factory=dict)
    networks: Mapping[str, Callable[..., Headed]] = field(default_factory=dict)
    denoisers: Mapping[str, DenoiserKind] = field(default_factory=dict)
    objectives: Mapping[str, ObjectiveKind] = field(default_factory=dict)
    rules: Mapping[str, Callable[[RuleNeeds], Rule]] = field(default_factory=dict)
    labels: Mapping[str, Callable[[Process, float, float], TimeLabel]] = field(default_factory=dict)
    solvers: Mapping[str, SolverKind] = field(default_factory=dict)
    correctors: Mapping[str, Callable[[Solver, Process, float, int, bool], Solver]] = field(default_factory=dict)
    trajectories: Mapping[str, Builder] = field(default_factory=dict)
    costs: Mapping[str, CostKind] = field(default_factory=dict)
    likelihoods: Mapping[str, Likelihood] = field(default_factory=dict)
    decoders: Mapping[str, Callable[[DecoderNeeds], Decoder]] = field(default_factory=dict)

    def merged(self, other: Tables) -> Tables:
        """Both tables' members.

        Raises:
            ValueError: if both have a member of the same name.
        """
        merged: dict[str, dict[str, Any]] = {}
        for item in dataclasses.fields(self)[1:]:  # all but the origin
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            if twice := mine.keys() & theirs.keys():
                raise ValueError(f"{item.name}: {sorted(twice)} registered twice")
            merged[item.name] = {**mine, **theirs}
        return Tables(origin=self.origin + other.origin, **merged)

    def __reduce__(self) -> tuple[Callable[..., Tables], tuple[str, ...]]:
        return _imported, self.origin


def _imported(*origin: str) -> Tables:
    """The tables that lie at these places, merged."""
    tables = Tables()
    for place in origin:
        module, _, name = place.partition(":")
        tables = tables.merged(getattr(importlib.import_module(module), name))
    return tables


NOT_FOR_BUILDERS = {"pretrained", "head_pretrained"}


def build(table: Mapping[str, Callable[..., Any]], config: ConfigDict, section: str, *first: Any) -> Any:
    """The member that config[section].name names, built from the section's other fields.

    Fields that are unset (None) are left to the member; those of `NOT_FOR_BUILDERS` are for other readers.

    Raises:
        UserError: if a field is set that the member does not take.
    """
    fields = config[section].to_dict()
    name = fields.pop("name")
    member = table[name]
    accepted = inspect.signature(member).parameters
    options = {key: value for key, value in fields.items() if value is not None and key not in NOT_FOR_BUILDERS}
    for key, value in options.items():
        if key not in accepted:
            takes = ", ".join(key for key in fields if key in accepted) or "none"
            raise UserError(
                f"config.{section}.{key} = {value!r} does not go with config.{section}.name = '{name}', "
                f"which takes: {takes}."
            )
    try:
        return member(*first, **options)
    except UserError:
        raise
    except Exception as error:  # whatever a constructor says about numbers it cannot use
        told = ", ".join(f"{key} = {value!r}" for key, value in options.items())
        raise UserError(f"config.{section} cannot be built from {told}: {type(error).__name__}: {error}.") from error


def filled(config: Mapping[str, Any], tables: Tables) -> dict[str, Any]:
    """A config whose data, process and network have their member's defaults where a field is unset or not there.

    What the member does not take is left out. A section whose member is not known stays as it is.
    """
    out = dict(config)
    for section, table in (("data", tables.data_sets), ("process", tables.processes), ("network", tables.networks)):
        fields = config.get(section, {})
        name = fields.get("name")
        if name not in table:
            continue
        parameters = inspect.signature(table[name]).parameters
        defaults = {key: p.default for key, p in parameters.items() if p.default is not p.empty}
        given = {key: value for key, value in fields.items() if key in parameters and value not in (None, "")}
        out[section] = {"name": name, **defaults, **given}
    return out
