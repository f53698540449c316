"""Config -> objects, once. Below this file nobody reads the config, and no name is compared with a string.

`Session` checks every field when it is made, so that mistakes surface before any work, and builds what a mode asks for
when it asks.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from adpm import variance
from adpm.denoiser import EPS_AFTER_CLIP, PREDICTIONS, Denoise, Denoiser, TimeLabel
from adpm.errors import UserError, lookup
from adpm.likelihood import Decoder, DecoderNeeds, Levels, first_posterior_variance
from adpm.moments import ESTIMATORS, Source
from adpm.nn.heads import Headed
from adpm.objective import ObjectiveKind, ObjectiveNeeds
from adpm.planning import BUDGETS, PLANNING_METHODS, Costs
from adpm.process import Array, Process
from adpm.run.data import DataSet
from adpm.run.device import PRECISIONS, resolve_device, runnable
from adpm.run.files import MODEL, check_writable, claim_workdir, digest, identity
from adpm.run.times import TIMES
from adpm.run.training import SCHEDULES, TrainOptions
from adpm.solver import Solver, SolverKind
from adpm.trajectory import Builder


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
    """

    build: Callable[[Session], Model]
    trainable: bool
    complete: Callable[[Session, Model], Model] = lambda session, model: model


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


Likelihood = Callable[["Session"], Callable[[], BitsPerDim]]
"""A way to measure bits/dim: it checks the session's fields, and what it returns does the work."""


@dataclass(frozen=True)
class Tables:
    """The families by name. `main.py` merges the tables of the three packages."""

    data_sets: Mapping[str, Callable[..., DataSet]] = field(default_factory=dict)
    processes: Mapping[str, Callable[..., Process]] = field(default_factory=dict)
    networks: Mapping[str, Callable[..., Headed]] = field(default_factory=dict)
    denoisers: Mapping[str, DenoiserKind] = field(default_factory=dict)
    objectives: Mapping[str, ObjectiveKind] = field(default_factory=dict)
    rules: Mapping[str, Callable[[variance.RuleNeeds], variance.Rule]] = field(default_factory=dict)
    labels: Mapping[str, Callable[[Process, float, float], TimeLabel]] = field(default_factory=dict)
    solvers: Mapping[str, SolverKind] = field(default_factory=dict)
    correctors: Mapping[str, Callable[[Solver, Process, float, int, bool], Solver]] = field(default_factory=dict)
    trajectories: Mapping[str, Builder] = field(default_factory=dict)
    costs: Mapping[str, Callable[[Session], Costs]] = field(default_factory=dict)
    likelihoods: Mapping[str, Likelihood] = field(default_factory=dict)
    decoders: Mapping[str, Callable[[DecoderNeeds], Decoder]] = field(default_factory=dict)

    def merged(self, other: Tables) -> Tables:
        """Both tables' members.

        Raises:
            ValueError: if both have a member of the same name.
        """
        merged: dict[str, dict[str, Any]] = {}
        for item in dataclasses.fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            if twice := mine.keys() & theirs.keys():
                raise ValueError(f"{item.name}: {sorted(twice)} registered twice")
            merged[item.name] = {**mine, **theirs}
        return Tables(**merged)


NOT_FOR_BUILDERS = {"pretrained", "head_pretrained"}

# What a network trained on an SDE does not depend on.
REFERENCE_TIMES = {"process.steps", "process.t_min", "process.grid"}

# The least value of each number that has one.
LEAST = {
    "seed": 0,
    "moments.times": 0,
    "moments.draws": 6,
    "moments.batch_size": 1,
    "rule.cap_levels": 0.0,
    "rule.cap_steps": 1,
    "trajectory.steps": 1,
    "sampling.samples": 1,
    "sampling.batch_size": 1,
    "sampling.grid": 1,
    "likelihood.batch_size": 1,
    "likelihood.images": 0,
    "denoiser.time_scale": 0.0,
    "network.model_channels": 1,
    "network.num_res_blocks": 1,
}


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


class Session:
    """One command's config, workdir and objects."""

    def __init__(self, config: ConfigDict, workdir: Path, tables: Tables) -> None:
        self.config, self.workdir, self.tables = config, workdir, tables
        self.device = resolve_device(config.device)
        self.has_head = False  # whether there is a network with a second output
        self.used_moments = False  # whether a rule or path asked for moments; provenance names them only then
        self._check()
        check_writable(workdir)

    def _check(self) -> None:
        """Refuse unknown names, ranges and combinations that cannot work, before anything is written."""
        config, tables = self.config, self.tables
        for table, section, name in (
            (tables.data_sets, "data", "name"),
            (tables.processes, "process", "name"),
            (tables.networks, "network", "name"),
            (tables.denoisers, "denoiser", "name"),
            (tables.labels, "denoiser", "label"),
            (PREDICTIONS, "denoiser", "predicts"),
            (EPS_AFTER_CLIP, "denoiser", "eps_after_clip"),
            (tables.objectives, "train", "objective"),
            (tables.rules, "rule", "name"),
            (ESTIMATORS, "rule", "estimator"),
            (tables.solvers, "sampling", "solver"),
            (tables.decoders, "likelihood", "decoder"),
            (tables.trajectories, "trajectory", "name"),
            (tables.costs, "trajectory", "cost"),
            (BUDGETS, "trajectory", "budget"),
            (PLANNING_METHODS, "trajectory", "method"),
            (SCHEDULES, "train", "schedule"),
            (TIMES, "train", "times"),
        ):
            lookup(table, config[section][name], f"config.{section}.{name}")
        for name in self.likelihood_methods:
            lookup(tables.likelihoods, name, "config.likelihood.method")
        lookup(PRECISIONS, config.precision, "config.precision")
        for name, least in LEAST.items():
            section, _, key = name.rpartition(".")
            value = (config[section] if section else config)[key]
            if not least <= value < math.inf:
                raise UserError(f"config.{name} = {value} must be a number of at least {least}.")
        if config.seed >= 2**31:
            raise UserError(f"config.seed = {config.seed} must be below 2^31.")
        if not 0.0 <= config.sampling.eta <= 1.0:
            raise UserError(f"config.sampling.eta = {config.sampling.eta} must lie in [0, 1]: 1 is DDPM, 0 is DDIM.")
        _ = self.process, self.data
        if tables.denoisers[config.denoiser.name].trainable:
            self._check_network()
        if config.rule.cap_levels and not self.data.levels:
            raise UserError(f"config.rule.cap_levels = {config.rule.cap_levels} needs data with levels; set it to 0.")
        for name in ("file", "ms_eps"):
            if config.moments[name] and not Path(config.moments[name]).is_file():
                raise UserError(f"config.moments.{name} = '{config.moments[name]}' is no file.")
        if config.moments.file and config.moments.ms_eps:
            raise UserError("config.moments.file and config.moments.ms_eps both name moments; set one of them.")
        _ = self.train_options
        needs = dataclasses.replace(self.rule_needs(lambda: lambda t: t), average_bound=lambda: 1.0)
        rule = self.tables.rules[config.rule.name](needs)  # refuses, for example, large with eta < 1
        self.state_dependent = rule.state_dependent
        if config.rule.average and not rule.state_dependent:
            raise UserError(
                f"config.rule.average = True does nothing with config.rule.name = '{config.rule.name}', which is the "
                "same for all pixels; set it to False."
            )
        self._solver(lambda: rule)

    def _check_network(self) -> None:
        """Build the network and call it without memory or arithmetic, so that what cannot work is refused now."""
        with torch.device("meta"):
            network = self.network()
            try:
                out = network(torch.zeros(1, *self.data.shape), torch.zeros(1))
            except UserError:
                raise
            except Exception as error:
                raise UserError(
                    f"config.network cannot be built: its layers do not fit each other ({error})."
                ) from error
        self.has_head = out.shape[1] > self.data.shape[0]
        section = self.config.network
        if section.head_pretrained and not network.has_head:
            raise UserError(
                f"config.network.head_pretrained = '{section.head_pretrained}' goes with a head, but "
                f"config.network.head = '{section.head}'; unset one of them."
            )

    @cached_property
    def process(self) -> Process:
        return build(self.tables.processes, self.config, "process")

    @cached_property
    def data(self) -> DataSet:
        data = build(self.tables.data_sets, self.config, "data")
        if len(data.shape) != 3:
            raise UserError(f"data set '{data.name}' has images of shape {data.shape}; (C, H, W) is wanted.")
        return data

    @property
    def likelihood_methods(self) -> list[str]:
        """The ways that bits/dim are to be measured, in order."""
        return str(self.config.likelihood.method).split("+")

    @property
    def levels(self) -> Levels:
        return Levels(self.data.levels, self.data.low, self.data.high)

    @cached_property
    def train_options(self) -> TrainOptions:
        return TrainOptions(**self.config.train.to_dict())

    @cached_property
    def trunk(self) -> Model:
        """The denoiser that the config names, its head not looked at; from then on the workdir belongs to it."""
        model = self.tables.denoisers[self.config.denoiser.name].build(self)
        self.claim(MODEL)
        return model

    @cached_property
    def model(self) -> Model:
        """The denoiser that the config names, with its trained head if it has one."""
        return self.tables.denoisers[self.config.denoiser.name].complete(self, self.trunk)

    def claim(self, parts: Sequence[str]) -> None:
        """Bind the workdir to these parts of the config; the reference times of an SDE stay free."""
        free = REFERENCE_TIMES if self.process.continuous else set()
        fields = identity(self.config.to_dict(), parts)
        claim_workdir(self.workdir, {name: value for name, value in fields.items() if name not in free})

    def claim_head(self, parts: Sequence[str]) -> None:
        """Bind the workdir's one head to these parts of the config and to its kind, apart from the trunk's own."""
        fields = {**identity(self.config.to_dict(), parts), "network.head": self.config.network.head}
        claim_workdir(self.workdir, {f"head: {name}": value for name, value in fields.items()})

    def network(self) -> Headed:
        """A freshly initialised network, a function of config.seed."""
        torch.manual_seed(self.config.seed)
        return build(self.tables.networks, self.config, "network", self.data.shape)

    def denoiser(self, network: nn.Module, *, clip: bool) -> Denoiser:
        """`network` as a denoiser on this session's device, in its precision."""
        section = self.config.denoiser
        label = self.tables.labels[section.label](self.process, section.time_shift, section.time_scale)
        return Denoiser(
            runnable(network, self.config.precision, self.config.compile, self.device),
            self.process,
            predicts=section.predicts,
            time_label=label,
            clip=(self.data.low, self.data.high) if clip else None,
            eps_after_clip=section.eps_after_clip,
        )

    @cached_property
    def model_identity(self) -> dict[str, Any]:
        """What moments and samples depend on besides their own settings; a head's identity is Model.head."""
        config = self.config
        return {
            "model": dict(self.trunk.identity),
            "process": digest([float(v) for v in self.process.log_snr(self.process.times[1:])]),
            "data": config.data.to_dict(),
            "precision": config.precision,
        }

    def images(self, split: str, index: Tensor) -> Tensor:
        """Images of a split in the network's range, on the device."""
        return self.data.scaled(self.data.split(split)[index]).to(self.device)

    def source(self, split: str) -> Source:
        """A split as the moments see it, with its exact mean and variance."""
        stored = self.data.split(split)
        total = torch.zeros(self.data.shape, dtype=torch.float64)
        square = 0.0
        for part in stored.split(4096):
            scaled = self.data.scaled(part).double()
            total += scaled.sum(0)
            square += float(scaled.square().sum())
        mean = total / len(stored)
        variance_ = square / stored.numel() - float(mean.square().mean())
        mean = mean.float().to(self.device)
        return Source(len(stored), lambda index: self.images(split, index), mean, variance_)

    def objective_needs(self, make_variance: Callable[[], Callable[[Any], Any]]) -> ObjectiveNeeds:
        """What the training objective may ask for; `make_variance` gives Var_t when it does."""
        return ObjectiveNeeds(self.process, self.levels, make_variance)

    def rule_needs(self, make_variance: Callable[[], Callable[[Any], Any]]) -> variance.RuleNeeds:
        """What the variance rule may ask for; `make_variance` gives Var_t when it does."""
        return variance.RuleNeeds(
            eta=self.config.sampling.eta,
            bounds=self.config.rule.bounds,
            average_bound=lambda: self.source("train").variance,
            variance=make_variance,
            state_bound=((self.data.high - self.data.low) / 2.0) ** 2,
            average=self.config.rule.average,
            head=self.config.train.objective if self.has_head else "",
            first_variance=lambda: first_posterior_variance(self.process),
        )

    def rule(self, make_variance: Callable[[], Callable[[Any], Any]], times: Array) -> variance.Rule:
        """The variance rule for a path of times, with the cap on its last steps."""
        section = self.config.rule
        rule = self.tables.rules[section.name](self.rule_needs(make_variance))
        if not section.cap_levels:
            return rule
        width = self.levels.width if self.data.levels else 0.0
        last = float(times[min(section.cap_steps, len(times) - 1)])
        return variance.LastStepCap(rule, variance.cap_threshold(section.cap_levels, width), last)

    @property
    def solver_kind(self) -> SolverKind:
        """What the config's solver makes use of."""
        return self.tables.solvers[self.config.sampling.solver]

    def solver(self, make_variance: Callable[[], Callable[[Any], Any]], times: Array) -> Solver:
        """The solver for a path of times, with the corrector around it if one is named.

        Var_t is asked for only if the solver has a variance rule and the rule needs it.
        """
        return self._solver(lambda: self.rule(make_variance, times))

    def _solver(self, make_rule: Callable[[], variance.Rule]) -> Solver:
        section, kind = self.config.sampling, self.solver_kind
        options: dict[str, Any] = {"eta": section.eta} if kind.uses_eta else {}
        if kind.uses_rule:
            options["rule"] = make_rule()
        solver = kind.build(self.process, **options)
        if section.corrector is None:
            return solver
        wrap = lookup(self.tables.correctors, section.corrector, "config.sampling.corrector")
        return wrap(solver, self.process, section.corrector_snr, section.corrector_steps, section.corrector_first)

    def decoder(self, make_variance: Callable[[], Callable[[Any], Any]]) -> Decoder:
        name = self.config.likelihood.decoder
        return self.tables.decoders[name](DecoderNeeds(self.process, make_variance))
