"""Config -> objects, once. Below this file nobody reads the config, and no name is compared with a string.

`Session` checks every field when it is made, so that mistakes surface before any work, and builds what a mode asks for
when it asks.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from adpm import variance
from adpm.denoiser import Denoiser
from adpm.errors import UserError, lookup
from adpm.likelihood import Decoder, DecoderNeeds, Levels, first_posterior_variance
from adpm.moments import Source
from adpm.nn.heads import Headed
from adpm.objective import ObjectiveNeeds
from adpm.process import Array, Process
from adpm.run.checks import check_fields, check_second_output
from adpm.run.data import DataSet
from adpm.run.device import resolve_device, runnable
from adpm.run.files import MODEL, check_writable, claim_workdir, digest, identity
from adpm.run.tables import Model, Tables, build
from adpm.run.training import TrainOptions
from adpm.solver import Solver, SolverKind

# Sections that choose what is done with a model; the model itself does not depend on them.
METHOD = {"seed", "moments", "rule", "trajectory", "sampling", "likelihood"}
# What a network trained on an SDE does not depend on.
REFERENCE_TIMES = {"process.steps", "process.t_min", "process.grid"}


class Session:
    """One command's config, workdir and objects."""

    def __init__(self, config: ConfigDict, workdir: Path, tables: Tables) -> None:
        self.config, self.workdir, self.tables = config, workdir, tables
        self.device = resolve_device(config.device)
        self.has_second_output = False  # whether there is a network with a second output, of whatever kind
        self.has_head = False  # whether that is a head: modules of its own on the last hidden layer
        # whether rule, path or decoder asked for moments; set to False where the work on a figure begins, so that
        # its protocol names them only if it depends on them
        self.used_moments = False
        check_fields(config, tables)
        _ = self.process, self.data
        if tables.denoisers[config.denoiser.name].trainable:
            self._check_network()
        self._check_method()
        check_writable(workdir)

    def again(self, fields: Mapping[str, Any]) -> Session:
        """A session of the same model, loaded once, with other fields of `METHOD`.

        Args:
            fields: "section.field" -> value.

        Raises:
            UserError: as a new session would.
        """
        if other := [name for name in fields if name.split(".")[0] not in METHOD]:
            raise ValueError(f"{other} belong to the model; make a new session")
        session = copy.copy(self)
        session.config = copy.deepcopy(self.config)
        session.config.update_from_flattened_dict(dict(fields))
        if session.config.rule.name != self.config.rule.name:
            session.__dict__.pop("model", None)  # it has a head if the rule reads one
        session.used_moments = False
        check_fields(session.config, self.tables)
        session._check_method()
        return session

    def _check_method(self) -> None:
        """Refuse a rule or solver that cannot work with this model, before anything is written."""
        config = self.config
        if config.rule.cap_levels and not self.data.levels:
            raise UserError(f"config.rule.cap_levels = {config.rule.cap_levels} needs data with levels; set it to 0.")
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
        self.has_second_output, self.has_head = out.shape[1] > self.data.shape[0], network.has_head
        check_second_output(self.config, self.tables, self.has_second_output, self.has_head)
        section = self.config.network
        if section.head_pretrained and not self.has_head:
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
        """The denoiser that the config names, with its trained head if the variance rule reads it."""
        if not self.state_dependent:
            return self.trunk
        return self.tables.denoisers[self.config.denoiser.name].complete(self, self.trunk)

    @property
    def sampler_model(self) -> Model:
        """The denoiser that the solver needs: `model` if it has a variance rule, else the trunk."""
        return self.model if self.solver_kind.uses_rule else self.trunk

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
            "data": identity(config.to_dict(), ("data",)),
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
            head=self._second_output,
            first_variance=lambda: first_posterior_variance(self.process),
        )

    def _second_output(self) -> variance.SecondOutput | None:
        kind = self.tables.denoisers[self.config.denoiser.name]
        return kind.second_output(self) if self.has_second_output else None

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
