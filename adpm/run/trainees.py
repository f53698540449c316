"""What a training run trains: a whole network, or a head on the trunk that the session would use. Decided once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adpm.errors import UserError
from adpm.families import Kind
from adpm.formats import read_weights
from adpm.nn.heads import Headed
from adpm.objective import Objective
from adpm.progress import say
from adpm.run import classifiers, heads, weights
from adpm.run.assembly import Session
from adpm.run.checks import named
from adpm.run.classes import TrainingClasses
from adpm.run.measure import moments_key, used_statistics, variance_for
from adpm.run.naming import naming
from adpm.run.training import Trainer, TrainOptions


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
        start: weights to begin with; None: those that the network has.
        trainer: takes the iterations.
        denoiser: trained module -> what the trainer's loss is about; None: the session's denoiser around it.
        classes: of the images; None: those that a denoiser is told.
    """

    network: nn.Module
    objective: Objective | None
    options: TrainOptions
    clip: bool
    name: str
    file: Path
    tensors: Callable[[nn.Module], Mapping[str, Tensor]]
    header: Callable[[int], dict[str, Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    start: Mapping[str, Tensor] | None = None
    trainer: type[Trainer] = Trainer
    denoiser: Callable[[nn.Module], Any] | None = None
    classes: TrainingClasses | None = None


def trainee_for(session: Session) -> Trainee:
    """What config.train.trainee names.

    Raises:
        UserError: as the member raises.
    """
    return session.kind("train.trainee").build(session)


def _denoiser(session: Session) -> Trainee:
    """The whole network, or the head of the trunk that the session would use.

    Raises:
        UserError: where objective, network and options do not go together, and when a head has no trained trunk.
    """
    if not session.trainable:
        raise UserError(f"config.denoiser.name = '{session.config.denoiser.name}' has nothing to train; use network.")
    kind = session.kind("train.objective")
    _check(session, kind)
    return _head(session, kind) if kind.facts.trains_head else _whole(session)


def options_of(session: Session) -> TrainOptions:
    """config.train, as the trainer takes it."""
    section = session.config.train
    names = TrainOptions.__dataclass_fields__
    return TrainOptions(**{name: section[name] for name in names if name in section})


def _check(session: Session, kind: Kind) -> None:
    config, objectives, facts = session.config, session.house.families["objective"], kind.facts
    train, network, told = config.train, config.network, f"config.train.objective = '{config.train.objective}'"
    has_head = session.outputs.head
    if facts.trains_head and not has_head:
        kinds = "coordinates" if facts.basis_head else "simple or complex"
        raise UserError(f"{told} trains a head; set config.network.head to {kinds}.")
    if has_head and not facts.trains_head:
        raise UserError(
            f"{told} does not train a head, but config.network.head = '{network.head}'; set that to none, or the "
            f"objective to one that does ({named(objectives, 'trains_head')})."
        )
    if facts.learns_variance and not network.get("learned_variance"):
        raise UserError(
            f"{told} trains the network's own second output; set config.network.learned_variance = True (iddpm)."
        )
    if not facts.loss_aware and session.kind("train.times").facts.learns:
        raise UserError(
            f"config.train.times = '{train.times}' goes with objectives whose terms differ by orders of magnitude "
            f"({named(objectives, 'loss_aware')}), not with '{train.objective}'; use uniform or log_snr."
        )


def _whole(session: Session) -> Trainee:
    objective = session.objective(variance_for(session))  # refuses before the workdir is claimed
    session.claim("weights")
    session.claim("training")
    network = session.network()
    return Trainee(
        network=network,
        objective=objective,
        options=options_of(session),
        clip=False,
        name="train",
        file=session.workdir / weights.FILE,
        tensors=lambda module: module.state_dict(),
        header=lambda iterations: weights.weights_header(session.place, iterations),
        facts={"process": weights.process_digest(session.process)},
        start=_given(session, network),
    )


def _given(session: Session, network: Headed) -> Mapping[str, Tensor] | None:
    """Fine-tuning: the weights that training begins with, where the config names some.

    Raises:
        UserError: if they are not there.
    """
    named = session.config.network.pretrained
    if not named:
        return None
    file = weights.located(named)
    if not file.exists():
        raise UserError(
            f"config.network.pretrained = '{named}' does not exist; training starts from these weights. Correct the "
            "path, or set it to '' to start from scratch."
        )
    say(f"training starts from '{file}'; set config.network.pretrained = '' to start from scratch.")
    return read_weights(file, set(network.state_dict()))


def _head(session: Session, kind: Kind) -> Trainee:
    name, trunk, place = session.config.train.objective, session.trunk, session.place
    session.claim("head")
    with naming(session.house.table, "train"):
        objective = session.objective(variance_for(session))
    facts = {"trunk": trunk.weights, "process": weights.process_digest(session.process)}
    if kind.facts.uses_moments:
        facts |= {"moments": moments_key(session), "estimator": session.estimator}
    facts |= used_statistics(session, "train.objective")
    scale = session.known("coordinates").scale(session.process) if kind.facts.basis_head else None
    if session.config.train.sample_every:
        say(f"no sample grids (config.train.sample_every): '{name}' does not change the means that they are made of.")
    return Trainee(
        network=kind.facts.freeze(trunk.network, bool(session.config.train.get("trunk_dropout"))),
        objective=objective,
        options=replace(options_of(session), sample_every=0),
        clip=session.config.denoiser.clip,
        name="train_head",
        file=session.workdir / heads.FILE,
        tensors=lambda module: {**module.head.state_dict(), **heads.scale_tensors(scale)},  # type: ignore[union-attr]
        header=lambda iterations: {**heads.head_header(place, trunk, name, iterations, scale), **facts},
        facts=facts,
    )


def _classifier(session: Session) -> Trainee:
    """The classifier of noisy images, of the labels that the data have.

    Raises:
        UserError: if they have none.
    """
    splits = {split: session.data.labels[split] for split in ("train", "test") if split in session.data.labels}
    if len(splits) < 2:
        raise UserError(
            f"config.train.trainee = 'classifier' learns classes, and data set '{session.data.name}' has no labels for "
            "train and test; use one that has."
        )
    count = 1 + max(int(labels.max()) for labels in splits.values())
    network = classifiers.network_of(session, count)
    if session.config.train.sample_every:
        say("no sample grids (config.train.sample_every): a classifier draws nothing.")
    return Trainee(
        network=network,
        objective=None,
        options=replace(options_of(session), sample_every=0),
        clip=False,
        name="train_classifier",
        file=session.workdir / classifiers.FILE,
        tensors=lambda module: module.state_dict(),
        header=lambda iterations: classifiers.header(session, count, iterations),
        facts={**classifiers.facts(session), **session.data.content},
        trainer=classifiers.ClassifierTrainer,
        denoiser=lambda module: classifiers.as_function(session, module),
        classes=TrainingClasses(splits, None, 0.0, session.config.seed),
    )


TRAINEES: dict[str, Kind] = {
    "denoiser": Kind(_denoiser, "the network of the denoiser, or its head: what the objective is about"),
    "classifier": Kind(_classifier, "the classifier of noisy images, by cross-entropy", reads=("classifier.name",)),
}
"""Builders take a session and give a `Trainee`."""
