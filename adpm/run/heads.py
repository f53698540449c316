"""Head files: a head without its trunk, what it was trained on, and how a run finds and checks its own.

A file of ours holds the head's tensors alone, and a header with the config, the objective, the hash of the trunk and of
the process. The published layouts hold backbone and head in one file and say none of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from adpm.errors import UserError
from adpm.formats import read_weights
from adpm.nn.checkpoint import load_part, read_header, state_hash
from adpm.nn.heads import Headed
from adpm.run.models import Loaded
from adpm.run.weights import Place, located, trunk_file, weights_header

FILE = "head.safetensors"


@dataclass(frozen=True)
class SecondOutput:
    """What a network's second output is.

    Attributes:
        objective: what it was trained by; None when it is yet to be trained, which no rule can object to.
        said_by: the file or field that says so, for people.
        advice: what would change that, for people.
    """

    objective: str | None
    said_by: str = ""
    advice: str = ""


def head_header(place: Place, trunk: Loaded, objective: str, iterations: int) -> dict[str, Any]:
    """What a head file says about itself."""
    return {**weights_header(place, iterations), "objective": objective, "trunk": trunk.weights}


def with_head(place: Place, trunk: Loaded) -> Loaded:
    """The model with the trained head of its network, if that has one.

    Raises:
        UserError: when there is no head file, naming the places and the command that makes one; when the head is of
            another trunk or process.
    """
    network = trunk.network
    if network is None or not network.has_head:
        return trunk
    found, state = _find(place, network, trunk)
    header = read_header(found)
    kind = _check_header(place, trunk, found, header) if header else None
    load_part(network, state, str(found), network.head().state_dict().keys())
    head = {
        "weights": state_hash(network.head().state_dict()),
        "objective": kind,
        "kind": place.config["network"]["head"],
    }
    source = trunk.source if str(found) == trunk.source else f"{trunk.source}, head of {found}"
    return replace(trunk, source=source, head=head)


def head_file(place: Place) -> Path | None:
    """Where a head would come from: the workdir's own, the config's, or the trunk's file; None when there is none.

    A trunk's file of ours holds no trained head; one of others may hold one, which only its tensors tell.
    """
    own, named = place.workdir / FILE, place.config["network"]["head_pretrained"]
    if own.exists():
        return own
    if named:
        return located(named) if located(named).exists() else None
    trunk = trunk_file(place)
    return None if trunk is None or read_header(trunk) else trunk


def second_output(place: Place, has_head: bool) -> SecondOutput:
    """What the network's second output was trained by: a head's file of ours says it, else the config.

    No tensors are read.
    """
    by_config = SecondOutput(
        place.config["train"]["objective"], "by config.train.objective", "set that to what the output was trained by"
    )
    if not has_head:
        return by_config
    found = head_file(place)
    if found is None:
        return SecondOutput(None)
    header = read_header(found)
    if not header:
        return by_config
    advice = f"set config.rule.name to its rule, or {_other_head(place, found)}"
    return SecondOutput(_objective(header), f"head '{found}'", advice)


def _find(place: Place, network: Headed, trunk: Loaded) -> tuple[Path, Mapping[str, Tensor]]:
    """The head's file and tensors."""
    section, own, found = place.config["network"], place.workdir / FILE, head_file(place)
    if found is not None:
        state = read_weights(found, set(network.trunk_state()))
        inside = {name: tensor for name, tensor in state.items() if network.in_head(name)}
        if found == own:
            return found, state  # nothing else may be in it
        if inside or section["head_pretrained"]:
            return found, inside
    named = section["head_pretrained"]
    told = f"config.network.head_pretrained = '{named}'" + (" does not exist" if named else "")
    raise UserError(
        f"config.network.head = '{section['head']}', but no trained head was found: '{own}' does not exist, {told}"
        + ("" if named else f", and '{trunk.source}' holds none")
        + "; train it with --mode=train, same --config and --workdir."
    )


def _objective(header: Mapping[str, Any]) -> str:
    return str(header.get("objective", header.get("config", {}).get("train", {}).get("objective", "")))


def _other_head(place: Place, found: Path) -> str:
    """What to do about a head of no use: the workdir's own has precedence over the config's."""
    if found == place.workdir / FILE:
        return "use another --workdir, or remove that file"
    return "name another in config.network.head_pretrained"


def _check_header(place: Place, trunk: Loaded, found: Path, header: Mapping[str, Any]) -> str:
    """The objective that the head was trained by.

    Raises:
        UserError: if the head is not for this trunk or process.
    """
    kind, other = _objective(header), _other_head(place, found)
    objectives = place.table.families["objective"]
    reads = objectives[kind].reads if kind in objectives else ()
    if told := place.same("weights", header, "network.head", *reads):
        raise UserError(f"head '{found}' was trained for another model ({told}); change the config back, or {other}.")
    if not place.same_process(header):
        raise UserError(f"head '{found}' was trained for another process; set config.process to that one, or {other}.")
    if header.get("trunk") != trunk.weights:
        raise UserError(
            f"head '{found}' was trained on another trunk (weights {header.get('trunk')} there, "
            f"{trunk.weights} in '{trunk.source}'); use those weights, or {other}."
        )
    return kind
