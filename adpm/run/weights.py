"""Where a session's trunk comes from: the workdir's own weights, else the config's; checked and loaded strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from adpm.errors import UserError
from adpm.nn.checkpoint import load_part, read_header, read_weights
from adpm.nn.heads import Headed
from adpm.run.assembly import REFERENCE_TIMES, Session
from adpm.run.files import TIME_LABEL, differences, digest, identity
from adpm.run.tables import filled

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
FREE_WHEN_EVALUATED = {"network.dropout"}
# Fields that files from before them do not have, and what was done then.
BEFORE = {"denoiser.label": "index"}


def function_of(config: Mapping[str, Any], session: Session, *more: str) -> dict[str, Any]:
    """The fields of a config that a network's function depends on, unset ones at their defaults; and the fields `more`.

    {} for a file that does not say what made it.
    """
    if not config:
        return {}
    free = FREE_WHEN_EVALUATED | (REFERENCE_TIMES if session.process.continuous else set())
    fields = BEFORE | identity(filled(config, session.tables), (*FUNCTION, *more))
    return {name: value for name, value in fields.items() if name not in free}


def process_identity(session: Session) -> str | None:
    """What a file says about its process besides the config: betas may change under one name.

    None for an SDE, which the config tells alone because its reference times are free. Six digits, because the last
    bits of a schedule differ between machines, to which files are carried.
    """
    process = session.process
    return None if process.continuous else digest([f"{v:.6g}" for v in process.log_snr(process.times[1:])])


def weights_header(session: Session, iterations: int) -> dict[str, Any]:
    """What a file of trained weights says about itself."""
    return {
        "config": session.config.to_dict(),
        "process": process_identity(session),
        "iterations": iterations,
        "weights": "ema",
        "torch": torch.__version__,
    }


def load_trunk(session: Session) -> tuple[Headed, Path]:
    """The network in eval mode with its trunk loaded, without gradients, and where the trunk came from.

    Raises:
        UserError: when there are no weights, or when they are for another model.
    """
    found = _find(session)
    network = session.network()
    _check_header(session, found, network)
    state = read_weights(found)
    if network.has_head:
        state = {name: tensor for name, tensor in state.items() if not network.in_head(name)}
    load_part(network, state, str(found), network.trunk_state().keys())
    network.eval().requires_grad_(False)
    return network, found


def _check_header(session: Session, found: Path, network: Headed) -> None:
    config, header = session.config, read_header(found)
    # what the second output is, its objective says; where there is a head, that output is not used
    more = ("train.objective",) if config.network.learned_variance and not network.has_head else ()
    there = function_of(header.get("config", {}), session, *more)
    if told := differences(there, function_of(config.to_dict(), session, *more)):
        raise UserError(f"weights '{found}' were trained for another model ({told}); change config or weights.")
    if header.get("process") not in (None, process_identity(session)):
        raise UserError(
            f"weights '{found}' were trained for another process of the same name (the log-SNR of its times differs); "
            "set config.process to that one, or name other weights."
        )


def trunk_file(session: Session) -> Path | None:
    """The workdir's own weights if it has trained, else the config's; None when there are neither."""
    own, pretrained = session.workdir / FILE, session.config.network.pretrained
    places = [own, Path(pretrained)] if pretrained else [own]
    return next((place for place in places if place.exists()), None)


def _find(session: Session) -> Path:
    """The file of the trunk.

    Raises:
        UserError: when there is none, naming the places and the command that makes it.
    """
    found, own, pretrained = trunk_file(session), session.workdir / FILE, session.config.network.pretrained
    if found is None and pretrained:
        raise UserError(
            f"config.network.pretrained = '{pretrained}' does not exist, and there are no weights at '{own}' either; "
            f"correct the path, or {_made_by(session)}."
        )
    if found is None:
        raise UserError(f"there are no weights at '{own}'; {_made_by(session)}.")
    return found


def _made_by(session: Session) -> str:
    if session.tables.objectives[session.config.train.objective].trains_head:
        return (
            f"config.train.objective = '{session.config.train.objective}' trains a head on trained weights: train "
            "those first, --mode=train with a config without a head, same --workdir"
        )
    return "train them: --mode=train, same --config and --workdir"
