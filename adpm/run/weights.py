"""Where a session's trunk comes from: the workdir's own weights, else the config's; checked and loaded strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adpm.errors import UserError
from adpm.nn.checkpoint import load_part, read_header, read_weights
from adpm.nn.heads import Headed
from adpm.process import Process
from adpm.run.assembly import REFERENCE_TIMES, Session
from adpm.run.files import TIME_LABEL, differences, identity

FILE = "weights.safetensors"

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


def load_trunk(session: Session) -> tuple[Headed, Path]:
    """The network in eval mode with its trunk loaded, without gradients, and where the trunk came from.

    Raises:
        UserError: when there are no weights, or when they are for another model.
    """
    found = _find(session)
    config = session.config
    # what a second output is, its objective says
    fields = (*FUNCTION, "train.objective") if config.network.learned_variance else FUNCTION
    header = present(identity(read_header(found).get("config", {}), fields), session.process)
    if told := differences(header, present(identity(config.to_dict(), fields), session.process)):
        raise UserError(f"weights '{found}' were trained for another model ({told}); change config or weights.")
    network, state = session.network(), read_weights(found)
    if network.has_head:
        state = {name: tensor for name, tensor in state.items() if not network.in_head(name)}
    load_part(network, state, str(found), network.trunk_state().keys())
    network.eval().requires_grad_(False)
    return network, found


def _find(session: Session) -> Path:
    """The workdir's own weights if it has trained, else the config's.

    Raises:
        UserError: when there are neither, naming the places and the command that makes them.
    """
    own = session.workdir / FILE
    pretrained = session.config.network.pretrained
    if pretrained and not own.exists() and not Path(pretrained).exists():
        raise UserError(
            f"config.network.pretrained = '{pretrained}' does not exist, and there are no weights at '{own}' either; "
            f"correct the path, or {_made_by(session)}."
        )
    found = own if own.exists() or not pretrained else Path(pretrained)
    if not found.exists():
        raise UserError(f"there are no weights at '{found}'; {_made_by(session)}.")
    return found


def _made_by(session: Session) -> str:
    if session.tables.objectives[session.config.train.objective].trains_head:
        return (
            f"config.train.objective = '{session.config.train.objective}' trains a head on trained weights: train "
            "those first, --mode=train with a config without a head, same --workdir"
        )
    return "train them: --mode=train, same --config and --workdir"
