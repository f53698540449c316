"""How a scheduler samples, what it knows of its network, and the times that follow.

Moments serve every number of steps; what is planned on more than they say (`fitted` times) is found when they are
measured, for the numbers of steps that are named then, and kept with them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from adpm.data_term import data_row
from adpm.denoiser import Prediction
from adpm.errors import UserError, lookup
from adpm.fitting import Flow
from adpm.kernel import reverse_kernel
from adpm.measured import Moments
from adpm.members import MEMBERS
from adpm.paths import find_path, gamma_of, moment_needs
from adpm.process import Array, DiscreteProcess
from adpm.shortest_path import IntArray
from adpm.subject import Subject
from adpm.variance import Rule


@dataclass(frozen=True)
class Choice:
    """How is sampled.

    Attributes:
        rule, rule_options: the variance of a step; see `adpm.variance.RULES`.
        eta: 1 = DDPM, 0 = DDIM.
        trajectory, trajectory_options: which times; see `adpm.trajectory.TRAJECTORIES`.
    """

    rule: str
    eta: float
    trajectory: str
    rule_options: Mapping[str, Any]
    trajectory_options: Mapping[str, Any]

    def check(self, process: DiscreteProcess) -> None:
        """Refuse what there is not, before anything is measured.

        Raises:
            UserError: for unknown names, an eta outside [0, 1], or one that the rule is not defined for.
        """
        reverse_kernel(process, process.times[1], 0.0, self.eta)
        facts = lookup(MEMBERS["rule"], self.rule, "`rule`").facts
        if facts.only_eta not in (None, self.eta):
            raise UserError(f"the rule '{self.rule}' goes with `eta` = {facts.only_eta:g} only, got {self.eta:g}.")
        lookup(MEMBERS["trajectory"], self.trajectory, "`trajectory`")

    @property
    def per_coordinate(self) -> bool:
        """Whether the rule wants moments along the axes of a basis."""
        return bool(MEMBERS["rule"][self.rule].facts.statistics)

    @property
    def needs_moments(self) -> bool:
        rule, times = MEMBERS["rule"][self.rule].facts, MEMBERS["trajectory"][self.trajectory].facts
        return bool(rule.uses_moments or rule.statistics or times.plans or times.uses_moments)

    @property
    def prices_the_data(self) -> bool:
        """Whether the last step is part of what the times are planned on."""
        takes = "data_term" in MEMBERS["trajectory"][self.trajectory].fields
        return takes and bool(self.trajectory_options.get("data_term", True))

    def key(self, steps: int) -> str:
        """All that a path of so many steps depends on, besides what was measured."""
        told = [self.rule, dict(self.rule_options), self.eta, self.trajectory, dict(self.trajectory_options)]
        return json.dumps([steps, *told], sort_keys=True)


@dataclass(frozen=True)
class Known:
    """What was measured of a network.

    Attributes:
        moments: Var[x_0 | x_t] per dimension, and per coordinate if a rule wants it.
        data_nats: [T], what a last step costs from each time that moments were measured at; None: not measured.
        paths: `Choice.key` -> indices of the times, of what was planned so far.
    """

    moments: Moments
    data_nats: Array | None = None
    paths: dict[str, IntArray] = field(default_factory=dict)


def rule_of(choice: Choice, process: DiscreteProcess, known: Known | None) -> Rule:
    """The variance rule of a choice."""
    return Subject(_no_network, process).rule(choice.rule, known.moments if known else None, **choice.rule_options)


def path_of(
    choice: Choice, steps: int, process: DiscreteProcess, known: Known | None, flow: Callable[[], Flow] | None = None
) -> NDArray[np.int64]:
    """Indices of the times of a path of so many steps, [K+1], from 0 up; found once.

    Args:
        choice, known: as above; without moments only times that need none are found.
        steps: K.
        process: the forward process.
        flow: gives trajectories of the network, for the times that are fitted to them.

    Raises:
        UserError: if there is no such path, or what it is planned on is not known.
    """
    paths, key = known.paths if known else {}, choice.key(steps)
    if key not in paths:
        paths[key] = _found(choice, steps, process, known, flow or _no_flow)
    return paths[key]


def _found(
    choice: Choice, steps: int, process: DiscreteProcess, known: Known | None, flow: Callable[[], Flow]
) -> NDArray[np.int64]:
    moments = known.moments if known else None
    row = known.data_nats if known else None
    options = dict(choice.trajectory_options)
    if "data_term" in MEMBERS["trajectory"][choice.trajectory].fields:
        options = {"data_term": row is not None, **options}

    def table() -> Any:
        assert moments is not None  # `Choice.needs_moments`
        return moments.table

    def priced() -> Array | None:
        if row is None:
            raise UserError("`trajectory_options` price the last step (`data_term`), which was not measured.")
        return data_row(process, {"times": table().times, "nats": row})

    def needs(prices: bool) -> Any:
        return moment_needs(
            table,
            process,
            data_row=priced if prices else lambda: None,
            rule=lambda: rule_of(choice, process, known),
            spectrum=lambda: _spectrum(moments),
            costs=_no_costs,
            eta=choice.eta,
        )

    gamma = (lambda: gamma_of(table(), process)) if known else None
    return find_path(MEMBERS, choice.trajectory, process, steps, needs, gamma, flow=flow, **options).indices


def given_path(timesteps: Sequence[int], last: int) -> NDArray[np.int64]:
    """Indices of the times of a path that is given in the numbers of diffusers, from the noise down.

    Raises:
        UserError: unless they fall, and lie within 0..N-1.
    """
    down = np.asarray(timesteps)
    whole = down.ndim == 1 and down.size > 0 and down.dtype.kind in "iu"
    if not whole or down[0] >= last or down[-1] < 0 or (np.diff(down) >= 0).any():
        raise UserError(
            f"`timesteps` = {timesteps} must be whole numbers that fall, from at most {last - 1} to 0 or above."
        )
    return np.concatenate([[0], down[::-1].astype(np.int64) + 1])


def _no_network(x: Tensor, t: ArrayLike) -> Prediction:
    raise AssertionError("rules do not call the network, and a scheduler has none")


def _spectrum(moments: Moments | None) -> Any:
    if moments is None or moments.spectrum is None:
        raise UserError("`cost` = 'axes' wants moments per coordinate: use `rule` = 'spectral' when they are measured.")
    return moments.spectrum


def _no_costs() -> Any:
    raise UserError(
        "`cost` = 'measured' passes through the network at every time; a scheduler plans on 'kl' or 'axes'."
    )


def _no_flow() -> Any:
    raise UserError(
        "fitted times are found when the network is measured, for the steps named then: "
        "AnalyticScheduler.from_pipeline(pipe, images, steps=K, trajectory='fitted')."
    )
