"""What a training run trains: a whole network, or a head on the trunk that the session would use. Decided once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adpm.errors import UserError
from adpm.objective import Objective, ObjectiveKind
from adpm.run import heads, weights
from adpm.run.assembly import Session
from adpm.run.files import HEAD_TRAINING, TRAINING
from adpm.run.prepare import moments_key, variance_for
from adpm.run.report import say
from adpm.run.times import TIMES
from adpm.run.training import TrainOptions


@dataclass(frozen=True)
class Trainee:
    """What is trained and where it goes.

    Attributes:
        network: the module to train; its parameters are the trained ones.
        objective: what it minimises.
        options: config.train, without what makes no sense for it.
        clip: whether the denoiser that the objective sees clips x0: heads are trained on the denoiser as it is used,
            networks without clipping.
        name: "train" or "train_head": folder in TensorBoard, and stem of the state file.
        file: the result.
        tensors: trained module -> the tensors of the result.
        header: iterations -> what the result says about itself.
        facts: what the training depends on besides the config.
    """

    network: nn.Module
    objective: Objective
    options: TrainOptions
    clip: bool
    name: str
    file: Path
    tensors: Callable[[nn.Module], Mapping[str, Tensor]]
    header: Callable[[int], dict[str, Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)


def trainee_for(session: Session) -> Trainee:
    """The whole network, or the head of the trunk that the session would use.

    Raises:
        UserError: where objective, network and options do not go together, and when a head has no trained trunk.
    """
    if not session.tables.denoisers[session.config.denoiser.name].trainable:
        raise UserError(f"config.denoiser.name = '{session.config.denoiser.name}' has nothing to train; use network.")
    kind = session.tables.objectives[session.config.train.objective]
    _check(session, kind)
    return _head(session, kind) if kind.trains_head else _whole(session, kind)


def _check(session: Session, kind: ObjectiveKind) -> None:
    config, objectives = session.config, session.tables.objectives
    train, network, told = config.train, config.network, f"config.train.objective = '{config.train.objective}'"
    if kind.trains_head and not session.has_head:
        raise UserError(f"{told} trains a head; set config.network.head to simple or complex.")
    if session.has_head and not kind.trains_head:
        names = ", ".join(name for name, k in objectives.items() if k.trains_head) or "none known"
        raise UserError(
            f"{told} does not train a head, but config.network.head = '{network.head}'; set that to none, or the "
            f"objective to one that does ({names})."
        )
    if kind.learns_variance and not network.learned_variance:
        raise UserError(
            f"{told} trains the network's own second output; set config.network.learned_variance = True (iddpm)."
        )
    if not kind.loss_aware and TIMES[train.times](session.process).learns:
        names = ", ".join(name for name, k in objectives.items() if k.loss_aware) or "none known"
        raise UserError(
            f"config.train.times = '{train.times}' goes with objectives whose terms differ by orders of magnitude "
            f"({names}), not with '{train.objective}'; use uniform or log_snr."
        )
    if train.trunk_dropout and not kind.trains_head:
        raise UserError(f"config.train.trunk_dropout = True is for heads on a trunk; {told} trains no head.")


def _whole(session: Session, kind: ObjectiveKind) -> Trainee:
    objective = kind.build(session.objective_needs(variance_for(session)))  # refuses before the workdir is claimed
    session.claim(TRAINING)
    return Trainee(
        network=session.network(),
        objective=objective,
        options=session.train_options,
        clip=False,
        name="train",
        file=session.workdir / weights.FILE,
        tensors=lambda module: module.state_dict(),
        header=lambda iterations: weights.weights_header(session, iterations),
        facts={"process": weights.process_identity(session)},
    )


def _head(session: Session, kind: ObjectiveKind) -> Trainee:
    name, trunk = session.config.train.objective, session.trunk
    assert kind.freeze is not None
    session.claim_head(HEAD_TRAINING)
    objective = kind.build(session.objective_needs(variance_for(session)))
    facts = {"trunk": trunk.identity["weights"], "process": weights.process_identity(session)}
    if session.used_moments:
        facts |= {"moments": moments_key(session), "estimator": session.config.rule.estimator}
    if session.train_options.sample_every:
        say(f"no sample grids (config.train.sample_every): '{name}' does not change the means that they are made of.")
    return Trainee(
        network=kind.freeze(trunk.network, session.config.train.trunk_dropout),
        objective=objective,
        options=replace(session.train_options, sample_every=0),
        clip=session.config.denoiser.clip,
        name="train_head",
        file=session.workdir / heads.FILE,
        tensors=lambda module: module.head.state_dict(),  # type: ignore[union-attr]
        header=lambda iterations: {**heads.head_header(session, name, iterations), **facts},
        facts=facts,
    )
