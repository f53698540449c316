"""How a session gets its denoiser: a network with weights, or the exact denoiser of data with known truth."""

from __future__ import annotations

from adpm.errors import UserError
from adpm.ideal import IdealDenoiser
from adpm.nn.checkpoint import state_hash
from adpm.run.assembly import Session
from adpm.run.files import identity
from adpm.run.heads import second_output, with_head
from adpm.run.tables import DenoiserKind, Model
from adpm.run.weights import FREE_WHEN_EVALUATED, load_trunk


def _network_trunk(session: Session) -> Model:
    """The network without regard to its head: what moments are about."""
    network, found = load_trunk(session)
    section = session.config.denoiser.to_dict()
    fields = identity(session.config.to_dict(), ("network",))
    facts = {
        "weights": state_hash(network.trunk_state()),
        **section,
        # as the config has them: moments outlive a change of defaults
        "network": {k: v for k, v in fields.items() if v not in (None, "") and k not in FREE_WHEN_EVALUATED},
    }
    return Model(session.denoiser(network, clip=section["clip"]), facts, str(found), network)


def _ideal(session: Session) -> Model:
    """The exact denoiser of data with known truth."""
    if session.data.truth is None:
        raise UserError(
            f"config.denoiser.name = 'ideal' needs data with known truth, not '{session.data.name}'; use toy."
        )
    if session.config.denoiser.clip:
        raise UserError("config.denoiser.name = 'ideal' is exact and clips nothing; set config.denoiser.clip = False.")
    return Model(IdealDenoiser(session.data.truth, session.process), {"weights": "ideal"}, "the exact denoiser")


DENOISERS: dict[str, DenoiserKind] = {
    "network": DenoiserKind(_network_trunk, trainable=True, complete=with_head, second_output=second_output),
    "ideal": DenoiserKind(_ideal, trainable=False),
}
