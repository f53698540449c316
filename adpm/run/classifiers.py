"""The classifier of noisy images of a run: built, trained by --mode=train, found and checked.

Its file, like a head's, says what it was trained on: config, process, classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from adpm.denoiser import per_sample
from adpm.egsde import Timed, timed
from adpm.errors import UserError
from adpm.formats import read_weights
from adpm.nn.checkpoint import load_weights, read_header, state_hash
from adpm.nn.encoder import classes_in, renamed
from adpm.process import Array
from adpm.run.assembly import Session
from adpm.run.store import differences
from adpm.run.training import Trainer
from adpm.run.weights import located, process_digest
from adpm.run.work import runnable, seeded

FILE = "classifier.safetensors"


class ClassifierTrainer(Trainer):
    """A training of a classifier at x_t = alpha_t x0 + sigma_t eps: `denoiser` makes it a function (x, t) -> logits."""

    def loss_of(self, denoise: Any, x0: Tensor, eps: Tensor, t: Array, classes: Tensor | None = None) -> Tensor:
        """Cross-entropy of each example, nats."""
        assert classes is not None, "its images have labels"
        x = per_sample(self.process.alpha(t), x0) * x0 + per_sample(self.process.sigma(t), x0) * eps
        return F.cross_entropy(denoise(x, t), classes.to(x.device), reduction="none")


def network_of(session: Session, classes: int) -> nn.Module:
    """A freshly initialised classifier, a function of config.seed."""
    with seeded(session.config.seed):
        return session.build("classifier.name", session.data.shape, classes)


def as_function(session: Session, network: nn.Module, call: Callable[[Tensor, Tensor], Tensor] | None = None) -> Timed:
    """(x, t) -> what the network, or another function of it, makes of x at the process's times, on the device."""
    forward = runnable(network, session.config.precision, False, session.device)
    return timed(call or forward, session.build("denoiser.label", session.process))


def header(session: Session, classes: int, iterations: int) -> dict[str, Any]:
    """What a classifier's file says about itself."""
    return {**facts(session), "classes": classes, "iterations": iterations, "config": session.config.to_dict()}


def facts(session: Session) -> dict[str, Any]:
    """What a classifier is a function of besides its weights."""
    fields = session.house.table.part(session.config, "classifier")
    return {"network": "classifier", "process": process_digest(session.process), "fields": fields}


def classifier_file(session: Session) -> Path:
    """The workdir's own, or the config's.

    Raises:
        UserError: if there is none, naming the places and the command that makes one.
    """
    own, named = session.workdir / FILE, session.config.classifier.pretrained
    if own.exists():
        return own
    if named and located(named).is_file():
        return located(named)
    told = f"config.classifier.pretrained = '{named}'" + (" does not exist" if named else "")
    raise UserError(
        f"the energies ask for a classifier of noisy images, and '{own}' does not exist, {told}; train one: "
        "--mode=train with config.train.trainee = 'classifier', same --config and --workdir."
    )


@dataclass(frozen=True)
class NoisyClassifier:
    """A session's trained classifier. Attributes: session, file: whose it is and where it lies."""

    session: Session
    file: Path

    @cached_property
    def network(self) -> nn.Module:
        """In evaluation mode, without gradients of its weights.

        Raises:
            UserError: if the file is of another network or process.
        """
        said = read_header(self.file)
        told = differences(said, {"process": process_digest(self.session.process)})
        told = told or differences(said.get("fields", {}), facts(self.session)["fields"])
        if told:
            raise UserError(f"classifier '{self.file}' was trained for another config ({told}); name another.")
        state = renamed(read_weights(self.file, set()))
        network = network_of(self.session, classes_in(state))
        load_weights(network, state, str(self.file))
        return network.eval().requires_grad_(False)

    @property
    def weights(self) -> str:
        return state_hash(self.network.state_dict())

    @property
    def logits(self) -> Timed:
        """(x, t) -> [B, K]."""
        return as_function(self.session, self.network)

    @property
    def features(self) -> Timed:
        """(x, t) -> [B, F, h, w]."""
        self.network.to(self.session.device)
        return as_function(self.session, self.network, self.network.features)  # type: ignore[arg-type]
