"""Config -> objects, once. Below this file nobody reads the config, and no name is compared with a string.

`Session` checks every field when it is made, so that mistakes surface before any work, and builds what a mode asks for
when it asks.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from adpm import variance
from adpm.denoiser import EPS_AFTER_CLIP, PREDICTIONS, Denoise, Denoiser, index_label
from adpm.errors import UserError, lookup
from adpm.ideal import IdealDenoiser
from adpm.likelihood import DECODERS, Decoder, DecoderNeeds, Levels
from adpm.moments import ESTIMATORS, Source
from adpm.nn import NETWORKS
from adpm.nn.checkpoint import load_weights, read_weights, weights_hash
from adpm.planning import BUDGETS, PLANNING_METHODS
from adpm.process import PROCESSES, Array, Process
from adpm.run.data import DATA_SETS, DataSet
from adpm.run.device import PRECISIONS, resolve_device, runnable
from adpm.run.files import claim_workdir, digest
from adpm.run.training import OBJECTIVES, SCHEDULES, Objective, TrainOptions
from adpm.solver import SOLVERS, Solver
from adpm.trajectory import TRAJECTORIES, Builder


@dataclass(frozen=True)
class Model:
    """A denoiser that is ready to be used.

    Attributes:
        denoise: the denoiser, clipping included.
        identity: what distinguishes it from other models: weights, time label, clipping.
        source: where it came from, for people.
    """

    denoise: Denoise
    identity: Mapping[str, Any]
    source: str


@dataclass(frozen=True)
class DenoiserKind:
    """How a kind of denoiser is built, and whether there is a network to train in it."""

    build: Callable[[Session], Model]
    trainable: bool


@dataclass(frozen=True)
class Tables:
    """The families by name. `main.py` merges the tables of the three packages."""

    data_sets: Mapping[str, Callable[..., DataSet]] = field(default_factory=dict)
    processes: Mapping[str, Callable[..., Process]] = field(default_factory=dict)
    networks: Mapping[str, Callable[..., nn.Module]] = field(default_factory=dict)
    denoisers: Mapping[str, DenoiserKind] = field(default_factory=dict)
    objectives: Mapping[str, Objective] = field(default_factory=dict)
    rules: Mapping[str, Callable[[variance.RuleNeeds], variance.Rule]] = field(default_factory=dict)
    solvers: Mapping[str, Callable[..., Solver]] = field(default_factory=dict)
    trajectories: Mapping[str, Builder] = field(default_factory=dict)
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


NOT_FOR_BUILDERS = {"pretrained"}

# config.trajectory.cost -> plan on the bound of the config's own rule (else on the optimal covariance's)
PLAN_ON = {"kl": False, "rule": True}


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
    return member(*first, **options)


class Session:
    """One command's config, workdir and objects."""

    def __init__(self, config: ConfigDict, workdir: Path, tables: Tables) -> None:
        self.config, self.workdir, self.tables = config, workdir, tables
        self.device = resolve_device(config.device)
        self._check()
        claim_workdir(workdir, config.to_dict())

    def _check(self) -> None:
        """Refuse unknown names, ranges and combinations that cannot work, before anything is written."""
        config, tables = self.config, self.tables
        for table, section, name in (
            (tables.data_sets, "data", "name"),
            (tables.processes, "process", "name"),
            (tables.networks, "network", "name"),
            (tables.denoisers, "denoiser", "name"),
            (PREDICTIONS, "denoiser", "predicts"),
            (EPS_AFTER_CLIP, "denoiser", "eps_after_clip"),
            (tables.objectives, "train", "objective"),
            (tables.rules, "rule", "name"),
            (ESTIMATORS, "rule", "estimator"),
            (tables.solvers, "sampling", "solver"),
            (tables.decoders, "likelihood", "decoder"),
            (tables.trajectories, "trajectory", "name"),
            (PLAN_ON, "trajectory", "cost"),
            (BUDGETS, "trajectory", "budget"),
            (PLANNING_METHODS, "trajectory", "method"),
            (SCHEDULES, "train", "schedule"),
        ):
            lookup(table, config[section][name], f"config.{section}.{name}")
        lookup(PRECISIONS, config.precision, "config.precision")
        for section, name, least in (
            ("moments", "draws", 6),
            ("moments", "batch_size", 1),
            ("sampling", "samples", 1),
            ("sampling", "batch_size", 1),
            ("likelihood", "batch_size", 1),
            ("likelihood", "images", 0),
            ("trajectory", "steps", 1),
        ):
            if config[section][name] < least:
                raise UserError(f"config.{section}.{name} = {config[section][name]} must be at least {least}.")
        if not 0.0 <= config.sampling.eta <= 1.0:
            raise UserError(f"config.sampling.eta = {config.sampling.eta} must lie in [0, 1]: 1 is DDPM, 0 is DDIM.")
        if config.trajectory.steps > self.process.steps:
            raise UserError(
                f"config.trajectory.steps = {config.trajectory.steps} is longer than the process "
                f"(config.process.steps = {self.process.steps}); use at most that many."
            )
        if config.rule.cap_levels and not self.data.levels:
            raise UserError(f"config.rule.cap_levels = {config.rule.cap_levels} needs data with levels; set it to 0.")
        for name in ("file", "ms_eps"):
            if config.moments[name] and not Path(config.moments[name]).is_file():
                raise UserError(f"config.moments.{name} = '{config.moments[name]}' does not exist.")
        if config.moments.file and config.moments.ms_eps:
            raise UserError("config.moments.file and config.moments.ms_eps both name moments; set one of them.")
        _ = self.train_options
        needs = dataclasses.replace(self.rule_needs(lambda: lambda t: t), average_bound=lambda: 1.0)
        self.tables.rules[config.rule.name](needs)  # refuses, for example, large with eta < 1

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
    def levels(self) -> Levels:
        return Levels(self.data.levels, self.data.low, self.data.high)

    @cached_property
    def train_options(self) -> TrainOptions:
        return TrainOptions(**self.config.train.to_dict())

    @cached_property
    def model(self) -> Model:
        """The denoiser that the config names."""
        return self.tables.denoisers[self.config.denoiser.name].build(self)

    def network(self) -> nn.Module:
        """A freshly initialised network, a function of config.seed."""
        torch.manual_seed(self.config.seed)
        return build(self.tables.networks, self.config, "network", self.data.shape)

    def denoiser(self, network: nn.Module, *, clip: bool) -> Denoiser:
        """`network` as a denoiser on this session's device, in its precision."""
        section = self.config.denoiser
        scale = section.time_scale or 1000.0 / self.process.steps
        return Denoiser(
            runnable(network, self.config.precision, self.config.compile, self.device),
            self.process,
            predicts=section.predicts,
            time_label=index_label(section.time_shift, scale),
            clip=(self.data.low, self.data.high) if clip else None,
            eps_after_clip=section.eps_after_clip,
        )

    @cached_property
    def model_identity(self) -> dict[str, Any]:
        """What moments and samples depend on besides their own settings."""
        config = self.config
        return {
            "model": dict(self.model.identity),
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

    def rule_needs(self, make_variance: Callable[[], Callable[[Any], Any]]) -> variance.RuleNeeds:
        """What the variance rule may ask for; `make_variance` gives Var_t when it does."""
        high, low = (self.data.high, self.data.low) if self.data.levels else (float("inf"), float("-inf"))
        return variance.RuleNeeds(
            eta=self.config.sampling.eta,
            bounds=self.config.rule.bounds,
            state_bound=((high - low) / 2) ** 2,
            average_bound=lambda: self.source("train").variance,
            variance=make_variance,
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

    def solver(self, rule: variance.Rule) -> Solver:
        section = self.config.sampling
        return self.tables.solvers[section.solver](self.process, rule, section.eta)

    def decoder(self, make_variance: Callable[[], Callable[[Any], Any]]) -> Decoder:
        name = self.config.likelihood.decoder
        return self.tables.decoders[name](DecoderNeeds(self.process, make_variance))


def _network_model(session: Session) -> Model:
    """The workdir's own weights if it has trained, else the shipped ones.

    Raises:
        UserError: when there are neither, naming the places and the command that makes them.
    """
    own = session.workdir / "weights.safetensors"
    pretrained = session.config.network.pretrained
    candidates = [own, *([Path(pretrained)] if pretrained else [])]
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        looked = " nor ".join(f"'{path}'" for path in candidates)
        raise UserError(f"there are no weights at {looked}; train them with --mode=train, same --config and --workdir.")
    network = session.network()
    load_weights(network, read_weights(found), str(found))
    network.eval().requires_grad_(False)
    section = session.config.denoiser.to_dict()
    return Model(
        session.denoiser(network, clip=section["clip"]), {"weights": weights_hash(network), **section}, str(found)
    )


def _ideal_model(session: Session) -> Model:
    """The exact denoiser of data with known truth."""
    if session.data.truth is None:
        raise UserError(
            f"config.denoiser.name = 'ideal' needs data with known truth, not '{session.data.name}'; use toy."
        )
    return Model(IdealDenoiser(session.data.truth, session.process), {"weights": "ideal"}, "the exact denoiser")


DENOISERS: dict[str, DenoiserKind] = {
    "network": DenoiserKind(_network_model, trainable=True),
    "ideal": DenoiserKind(_ideal_model, trainable=False),
}

CORE = Tables(
    data_sets=DATA_SETS,
    processes=PROCESSES,
    networks=NETWORKS,
    denoisers=DENOISERS,
    objectives=OBJECTIVES,
    rules=variance.RULES,
    solvers=SOLVERS,
    trajectories=TRAJECTORIES,
    decoders=DECODERS,
)
