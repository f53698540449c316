"""Head files: a head without its trunk, what it was trained on, and how a session finds and checks its own.

A file of ours holds the head's tensors alone, and a header with the config, the objective, the hash of the trunk and of
the process. The published layouts hold backbone and head in one file and say none of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adpm.errors import UserError
from adpm.nn.checkpoint import load_part, read_header, read_weights, state_hash
from adpm.nn.heads import Headed
from adpm.run.assembly import Session
from adpm.run.files import differences, identity
from adpm.run.tables import Model
from adpm.run.weights import FUNCTION, present

FILE = "head.safetensors"


def head_header(session: Session, objective: str, iterations: int) -> dict[str, Any]:
    """What a head file says about itself."""
    return {
        "config": session.config.to_dict(),
        "objective": objective,
        "trunk": session.trunk.identity["weights"],  # of its tensors alone
        "process": _process(session),
        "iterations": iterations,
        "weights": "ema",
        "torch": torch.__version__,
    }


def _process(session: Session) -> Any:
    """The process's identity; an SDE is told by the config alone, because its reference times are free."""
    return None if session.process.continuous else session.model_identity["process"]


def with_head(session: Session, trunk: Model) -> Model:
    """The model with the trained head of its network, if that has one.

    Raises:
        UserError: when there is no head file, naming the places and the command that makes one; when the head is of
            another trunk, process or kind.
    """
    network = trunk.network
    if network is None or not network.has_head:
        return trunk
    found, state = _find(session, network, trunk)
    header = read_header(found)
    kind = _check_header(session, trunk, found, header) if header else None
    load_part(network, state, str(found), network.head().state_dict().keys())
    head = {"weights": state_hash(network.head().state_dict()), "objective": kind, "kind": session.config.network.head}
    source = trunk.source if str(found) == trunk.source else f"{trunk.source}, head of {found}"
    return Model(trunk.denoise, trunk.identity, source, network, head)


def _find(session: Session, network: Headed, trunk: Model) -> tuple[Path, Mapping[str, Tensor]]:
    """The head's file and tensors: the workdir's own, the config's, or those in the trunk's own file."""
    section = session.config.network
    own, named = session.workdir / FILE, section.head_pretrained
    if own.exists():
        return own, read_weights(own)
    if named and Path(named).exists():
        return Path(named), _head_of(network, read_weights(Path(named)))
    theirs = not named and not read_header(Path(trunk.source))  # a weights file of ours holds no trained head
    inside = _head_of(network, read_weights(Path(trunk.source))) if theirs else {}
    if inside:
        return Path(trunk.source), inside
    told = f"config.network.head_pretrained = '{named}'" + (" does not exist" if named else "")
    raise UserError(
        f"config.network.head = '{section.head}', but no trained head was found: '{own}' does not exist, {told}"
        + ("" if named else f", and '{trunk.source}' holds none")
        + "; train it with --mode=train, same --config and --workdir."
    )


def _head_of(network: Headed, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if network.in_head(name)}


def wanted_kind(session: Session) -> tuple[str, str] | None:
    """The field that says which objective's head is wanted, and that objective: the rule's own, else the config's."""
    objectives, config = session.tables.objectives, session.config
    for field, name in (("config.rule.name", config.rule.name), ("config.train.objective", config.train.objective)):
        if name in objectives and objectives[name].trains_head:
            return field, name
    return None


def _check_header(session: Session, trunk: Model, found: Path, header: Mapping[str, Any]) -> str:
    """The objective that the head was trained by.

    Raises:
        UserError: if the head is not for this trunk, process, or what the config wants it for.
    """
    config = header.get("config", {})
    kind = str(header.get("objective", config.get("train", {}).get("objective", "")))
    wanted = wanted_kind(session)
    if wanted and wanted[1] != kind:
        raise UserError(
            f"head '{found}' was trained by the objective '{kind}', but {wanted[0]} = '{wanted[1]}' needs one trained "
            "by that; change config.network.head_pretrained or train it in another workdir."
        )
    depends = session.tables.objectives[kind].depends if kind in session.tables.objectives else ()

    def fields(config: Mapping[str, Any]) -> dict[str, Any]:
        function = present(identity(config, (*FUNCTION, *depends)), session.process)
        return {**function, "network.head": config.get("network", {}).get("head")}

    if told := differences(fields(config), fields(session.config.to_dict())):
        raise UserError(f"head '{found}' was trained for another model ({told}); change config or head.")
    if header.get("process") != _process(session):
        raise UserError(f"head '{found}' was trained for another process; train it for this one.")
    if header.get("trunk") != trunk.identity["weights"]:
        raise UserError(
            f"head '{found}' was trained on another trunk (weights {header.get('trunk')} there, "
            f"{trunk.identity['weights']} in '{trunk.source}'); train a head on this one."
        )
    return kind
