"""How a session gets its denoiser: a network with weights, or the exact denoiser of data with known truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adpm.errors import UserError
from adpm.ideal import IdealDenoiser
from adpm.nn.checkpoint import load_weights, read_header, read_weights, weights_hash
from adpm.process import Process
from adpm.run.assembly import REFERENCE_TIMES, DenoiserKind, Model, Session
from adpm.run.files import TIME_LABEL, differences, identity

# What the function that a network computes depends on, besides its weights.
FUNCTION = (
    "data.name",
    "data.low",
    "data.high",
    "process",
    "network",
    "denoiser.name",
    "denoiser.predicts",
    *TIME_LABEL,
)
NOT_WHEN_EVALUATED = {"network.dropout"}


def present(fields: Mapping[str, Any], process: Process) -> dict[str, Any]:
    """Fields that are set and that the network's function depends on."""
    free = NOT_WHEN_EVALUATED | (REFERENCE_TIMES if process.continuous else set())
    return {name: value for name, value in fields.items() if value not in (None, "") and name not in free}


def _network_model(session: Session) -> Model:
    """The workdir's own weights if it has trained, else the shipped ones.

    Raises:
        UserError: when there are neither, naming the places and the command that makes them.
    """
    own = session.workdir / "weights.safetensors"
    pretrained = session.config.network.pretrained
    if pretrained and not own.exists() and not Path(pretrained).exists():
        raise UserError(
            f"config.network.pretrained = '{pretrained}' does not exist, and there are no weights at '{own}' either; "
            "correct the path, or train with --mode=train, same --config and --workdir."
        )
    found = own if own.exists() or not pretrained else Path(pretrained)
    if not found.exists():
        raise UserError(f"there are no weights at '{found}'; train them: --mode=train, same --config and --workdir.")
    header = present(identity(read_header(found).get("config", {}), FUNCTION), session.process)
    if told := differences(header, present(identity(session.config.to_dict(), FUNCTION), session.process)):
        raise UserError(f"weights '{found}' were trained for another model ({told}); change config or weights.")
    network = session.network()
    load_weights(network, read_weights(found), str(found))
    network.eval().requires_grad_(False)
    section = session.config.denoiser.to_dict()
    facts = {
        "weights": weights_hash(network),
        **section,
        "network": present(identity(session.config.to_dict(), ("network",)), session.process),
    }
    return Model(session.denoiser(network, clip=section["clip"]), facts, str(found))


def _ideal_model(session: Session) -> Model:
    """The exact denoiser of data with known truth."""
    if session.data.truth is None:
        raise UserError(
            f"config.denoiser.name = 'ideal' needs data with known truth, not '{session.data.name}'; use toy."
        )
    if session.config.denoiser.clip:
        raise UserError("config.denoiser.name = 'ideal' is exact and clips nothing; set config.denoiser.clip = False.")
    return Model(IdealDenoiser(session.data.truth, session.process), {"weights": "ideal"}, "the exact denoiser")


DENOISERS: dict[str, DenoiserKind] = {
    "network": DenoiserKind(_network_model, trainable=True),
    "ideal": DenoiserKind(_ideal_model, trainable=False),
}
