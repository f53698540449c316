"""Config -> objects, once. What a config makes is immutable once checked, and no name is compared with a string.

`Session` checks every field when it is made, so that mistakes surface before any work, and builds what is asked for
when it is asked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict
from torch import nn

from adpm import variance
from adpm.denoiser import Denoiser
from adpm.errors import UserError
from adpm.families import built
from adpm.likelihood import Decoder, DecoderNeeds, first_posterior_variance
from adpm.model import Model
from adpm.nn.checkpoint import state_hash
from adpm.nn.heads import Headed
from adpm.objective import Objective, ObjectiveNeeds
from adpm.process import Array
from adpm.progress import say
from adpm.run import classes, heads, store, weights
from adpm.run.checks import check_files, check_head_file, check_method, check_second_output
from adpm.run.house import House
from adpm.run.machine import called, check_machine
from adpm.run.models import DenoiserNeeds, Loaded, Outputs, outputs_of
from adpm.run.naming import naming
from adpm.run.of_file import completed
from adpm.run.problem import Problem, cache_of
from adpm.run.said import check_weights
from adpm.run.work import resolve_device, seeded
from adpm.solver import Solver
from adpm.start import Start, StartNeeds

VarianceOf = Callable[[str], Callable[[Array], Array]]
"""Estimator -> Var_t as a function of time; measured when asked."""


@dataclass(frozen=True)
class Session(Problem):
    """One command's config, workdir and objects.

    Attributes:
        config, house: see `Problem`.
        workdir: where the run keeps its files.
        trains: whether weights are about to be made, so that none are needed.
    """

    workdir: Path
    trains: bool = False

    @classmethod
    def make(cls, config: ConfigDict, workdir: Path, house: House, trains: bool = False) -> Session:
        """The session of a config.

        Raises:
            UserError: for anything that is wrong with it and can be known before work.
        """
        whole = copy.deepcopy(config)
        house.table.complete(whole)
        session = cls(FrozenConfigDict(completed(whole, house)), house, workdir, trains)
        session._check()
        return session

    def again(self, fields: Mapping[str, Any], seed: int | None = None) -> Session:
        """A session of the same model, loaded once, with other fields; what these make nobody read is unset.

        Args:
            fields: "section.field" -> value, of what is done with a model.
            seed: instead of the config's own.

        Raises:
            UserError: as a new session would.
        """
        table = self.house.table
        config = ConfigDict(self.config.to_dict())
        table.update(config, {**fields, **({} if seed is None else {"seed": seed})})
        table.check(config)
        before, after = ({p: table.part(c, p) for p in ("model", "head")} for c in (self.config, config))
        if before["model"] != after["model"]:
            raise ValueError(f"{sorted(fields)} belong to the model; make a new session")
        session = Session(FrozenConfigDict(config), self.house, self.workdir, self.trains)
        kept = ("process", "data", "outputs", "trunk", "_sources")
        head = ("model",) if self.config.rule.name == config.rule.name else ()
        session.__dict__.update({name: self.__dict__[name] for name in (*kept, *head) if name in self.__dict__})
        session._check_method()
        return session

    # Checks

    def _check(self) -> None:
        self.house.table.check(self.config)
        check_files(self.config)
        resolve_device(self.config.device)
        _ = self.process
        self._check_there()
        check_machine(self.config, self.data.shape)
        classes.check_classes(self)
        if self.trainable:
            check_second_output(self.config, self.house.families, *self.outputs)
            check_weights(self.place, self.data, self.build("denoiser.label", self.process))
        self._check_method()
        store.check_writable(self.workdir)

    def _check_there(self) -> None:
        """Name everything that is missing, data and weights, in one message."""
        told = [self.kind("data.name").facts.missing(**self.house.table.options(self.config, "data.name"))]
        if self.trainable and not self.trains:
            told.append(weights.missing(self.place))
        if any(told):
            raise UserError("; and ".join(text.rstrip(".") for text in told if text) + ".")

    def _check_method(self) -> None:
        found = heads.second_output(self.place, self.outputs.head) if self.outputs.second else None
        check_method(self.config, self.house.families, self.data.levels, found)
        with naming(self.house.table):
            _ = self.solver(lambda _: lambda t: t, self.process.times[: self.config.trajectory.steps + 1], lambda: 1.0)
            _ = self.start

    @property
    def cache(self) -> Path:
        return cache_of(self.config, self.workdir)

    # The model

    @property
    def place(self) -> weights.Place:
        """What finding and checking weights needs of this session."""
        return weights.Place(self.config.to_dict(), self.house.table, self.workdir, self.process)

    @property
    def trainable(self) -> bool:
        """Whether there is a network to train and to load."""
        return self.kind("denoiser.name").facts.trainable

    @cached_property
    def outputs(self) -> Outputs:
        """What the network returns; it is built and called without memory or arithmetic, or refused."""
        if not self.trainable:
            return Outputs(False, False, None)
        found = outputs_of(self.network, self.data.shape)
        check_head_file(self.config.network, found.head)
        return found

    def network(self) -> Headed:
        """A freshly initialised network, a function of config.seed."""
        with seeded(self.config.seed):
            return self.build("network.name", self.data.shape)

    def denoiser(self, network: nn.Module, *, clip: bool) -> Denoiser:
        """`network` as a denoiser on this session's device, in its precision."""
        section = self.config.denoiser
        return Denoiser(
            called(self.config, network, self.device),
            self.process,
            predicts=section.predicts,
            time_label=self.build("denoiser.label", self.process),
            clip=(self.data.low, self.data.high) if clip else None,
            eps_after_clip=section.eps_after_clip,
        )

    @cached_property
    def trunk(self) -> Loaded:
        """The denoiser that the config names, its head not looked at; from then on the workdir belongs to it."""
        of_data = (lambda: self.data.truth, self.data.name, self.config.denoiser.clip)
        needs = DenoiserNeeds(self.process, *of_data, self._loaded, lambda: self.source("train"))
        trunk = self.build("denoiser.name", needs)
        self.claim("weights")
        return trunk

    def _loaded(self) -> Loaded:
        network = self.network()
        found, assumed = weights.load_trunk(self.place, network)
        if assumed:
            say(f"'{found}' does not say what it is; taken as {assumed}.")
        denoise = self.denoiser(network, clip=self.config.denoiser.clip)
        return Loaded(denoise, state_hash(network.trunk_state()), str(found), network, assumed=assumed)

    @cached_property
    def model(self) -> Loaded:
        """The denoiser that the config names, with its trained head, or what stands for it, if the rule reads it."""
        if not (facts := self.rule_facts).state_dependent:
            return self.trunk
        if facts.around is not None:
            scale = self.known("coordinates").scale(self.process)
            return replace(self.trunk, denoise=facts.around(self.trunk.denoise, self.process, scale.basis), scale=scale)
        model = heads.with_head(self.place, self.trunk)
        self._check_method()  # the head may have come about after this session
        return model

    @property
    def sampler_model(self) -> Loaded:
        """The denoiser that the solver needs: `model` if it has a variance rule, else the trunk."""
        return self.model if self.kind("sampling.solver").facts.uses_rule else self.trunk

    @property
    def front(self) -> Model:
        """The front door to the trunk, told the classes of training images: what moments are about."""
        trunk = self.trunk
        return self.front_of(replace(trunk, denoise=classes.of_images(self, trunk.denoise, "train")))

    def front_of(self, loaded: Loaded) -> Model:
        """The front door to a denoiser of this session."""
        return Model.of(
            loaded.denoise,
            self.process,
            data_range=(self.data.low, self.data.high),
            device=self.device,
            levels=self.data.levels,
            families=self.house.families,
        )

    def claim(self, product: str) -> None:
        """Bind the workdir to what a product of it depends on."""
        fields = self.house.table.part(self.config, product)
        prefix = {"head": "head: "}.get(product, "")
        wanted = {**fields, **self.data.content}
        store.claim(self.workdir, {f"{prefix}{name}": value for name, value in wanted.items()})

    @property
    def identity(self) -> dict[str, Any]:
        """What moments and samples depend on besides their own settings; a head's identity is Loaded.head."""
        fields = self.house.table.part(self.config, "model")
        model = {"weights": self.trunk.weights, "log_snr": weights.times_digest(self.process), "fields": fields}
        return {**model, **self.data.content, **classes.labels_key(self)}

    # The method

    @property
    def rule_facts(self) -> variance.RuleFacts:
        return self.kind("rule.name").facts or variance.RuleFacts()

    def rule(
        self, variance_of: VarianceOf, times: Array, data_variance: Callable[[], float] | None = None
    ) -> variance.Rule:
        """The variance rule for a path of times, with the cap on its last steps."""
        section = self.config.rule
        needs = variance.RuleNeeds(
            variance_of,
            data_variance or (lambda: self.source("train").variance),
            ((self.data.high - self.data.low) / 2.0) ** 2,
            lambda: first_posterior_variance(self.process),
            lambda: self.known("coordinates"),
            lambda: heads.scale_of(self.model),
            self.process,
        )
        rule = self.build("rule.name", needs)
        if not section.cap_levels:
            return rule
        width = self.levels.width if self.data.levels else 0.0
        last = float(times[min(section.cap_steps, len(times) - 1)])
        return variance.LastStepCap(rule, variance.cap_threshold(section.cap_levels, width), last)

    def solver(self, variance_of: VarianceOf, times: Array, data_variance: Callable[[], float] | None = None) -> Solver:
        """The solver for a path of times, with the corrector around it if one is named.

        Var_t is asked for only if the solver has a variance rule and the rule needs it; other statistics when it steps.
        """
        rule = partial(self.rule, variance_of, times, data_variance)
        facts = self.kind("sampling.solver").facts
        protocol = facts.given(times, self.config.sampling.eta, rule, lambda: self.statistics)
        solver = self.build("sampling.solver", self.process, protocol=protocol)
        corrected = self.config.sampling.corrector is not None
        return self.build("sampling.corrector", solver, self.process) if corrected else solver

    @cached_property
    def start(self) -> Start:
        """What sampling begins with; a model of the data is fitted when it is needed."""
        return self.build(
            "sampling.start", StartNeeds(self.process, lambda: self.data.shape, lambda: self.source("train"))
        )

    @property
    def statistics(self) -> Any:
        """What the solver needs to know of the network, measured where it is missing and kept; None if nothing."""
        name = self.kind("sampling.solver").facts.statistics
        return self.known(name) if name else None

    def learn(self) -> None:
        """Measure now what the solver and its rule will want to know of the network."""
        solver = self.kind("sampling.solver").facts
        for name in (solver.statistics, self.rule_facts.statistics if solver.uses_rule else ""):
            _ = self.known(name) if name else None

    def known(self, name: str) -> Any:
        """What a member of the family `statistics` gives, measured where it is missing; once for this session."""
        if name not in self._known:
            self._known[name] = self.house.families["statistics"][name].build(self)
        return self._known[name]

    @cached_property
    def _known(self) -> dict[str, Any]:
        return {}

    def decoder(self, variance_of: VarianceOf, name: str = "") -> Decoder:
        """The variance of the last step, the config's own or that of another name."""
        needs = DecoderNeeds(self.process, lambda: variance_of(self.estimator))
        if name:
            return built(self.house.families["decoder"], name, "`decoder`", needs)
        return self.build("likelihood.decoder", needs)

    @property
    def estimator(self) -> str:
        """Of Var_t, for rule, decoder and objective."""
        return self.config.rule.get("estimator") or self.house.table.field("rule.estimator").default

    def objective(self, variance_of: VarianceOf) -> Objective:
        """What training minimises."""
        variance, scale = lambda: variance_of(self.estimator), lambda: self.known("coordinates").scale(self.process)
        needs = ObjectiveNeeds(self.process, self.levels, variance, scale)
        return self.build("train.objective", needs)
