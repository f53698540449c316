"""Head files: a head without its trunk, what it was trained on, and how a run finds and checks its own.

A file of ours holds the head's tensors alone, and a header with the config, the objective, the hash of the trunk and of
the process. One about the coordinates of a basis brings that basis and r_f along, which it is in units of: measured
again, they would be others. The published layouts hold backbone and head in one file and say none of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adpm.errors import UserError
from adpm.formats import read_weights
from adpm.nn.checkpoint import load_part, read_header, state_hash
from adpm.nn.heads import Headed
from adpm.run.models import Loaded
from adpm.run.weights import Place, located, trunk_file, weights_header
from adpm.scale import Scale

FILE = "head.safetensors"
_SCALE = "scale."


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


def head_header(
    place: Place, trunk: Loaded, objective: str, iterations: int, scale: Scale | None = None
) -> dict[str, Any]:
    """What a head file says about itself."""
    own = {"objective": objective, "trunk": trunk.weights}
    words = {} if scale is None else {"scale": {name: a.tolist() for name, a in _words(scale.arrays()).items()}}
    return {**weights_header(place, iterations), **own, **words}


def scale_tensors(scale: Scale | None) -> dict[str, Tensor]:
    """The numbers of a scale, as a head file holds them beside the head's own tensors; the rest is in its header."""
    arrays = {} if scale is None else scale.arrays()
    return {f"{_SCALE}{name}": torch.as_tensor(arrays[name]) for name in arrays.keys() - _words(arrays).keys()}


def _words(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Names and whole numbers."""
    return {name: array for name, array in arrays.items() if not np.issubdtype(array.dtype, np.floating)}


def scale_of(model: Loaded) -> Scale:
    """What the model's head is in units of.

    Raises:
        UserError: if nobody has said.
    """
    if model.scale is None:
        raise UserError(f"the head of {model.source} does not say which variances it is in units of; train it again.")
    return model.scale


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
    own = {name: tensor for name, tensor in state.items() if not name.startswith(_SCALE)}
    load_part(network, own, str(found), network.head().state_dict().keys())
    scale = _scale(place, found, header, state)
    head = {
        "weights": state_hash({**network.head().state_dict(), **scale_tensors(scale)}),
        "objective": kind,
        "kind": place.config["network"]["head"],
    }
    source = trunk.source if str(found) == trunk.source else f"{trunk.source}, head of {found}"
    return replace(trunk, source=source, head=head, scale=scale)


def _scale(place: Place, found: Path, header: Mapping[str, Any], state: Mapping[str, Tensor]) -> Scale | None:
    """What a head about the coordinates of a basis is in units of.

    Raises:
        UserError: if the file's numbers are none, or the config names another basis.
    """
    words, numbers = header.get("scale"), {n: tensor for n, tensor in state.items() if n.startswith(_SCALE)}
    if words is None and not numbers:
        return None
    try:
        arrays = {name.removeprefix(_SCALE): tensor.numpy() for name, tensor in numbers.items()}
        scale = Scale.of(arrays | {name: np.array(value) for name, value in dict(words or {}).items()})
    except Exception as error:  # whatever numpy says about what is in a file
        raise UserError(f"head '{found}' is damaged: what it is in units of are no variances ({error}).") from error
    wanted, anything = place.config["moments"]["basis"], place.table.default("moments.basis")
    if wanted not in (scale.name, anything):
        raise UserError(
            f"head '{found}' is about the basis '{scale.name}', and config.moments.basis = '{wanted}'; set that to "
            f"'{scale.name}' or '{anything}', or {_other_head(place, found)}."
        )
    return scale


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
        inside = {n: tensor for n, tensor in state.items() if network.in_head(n) or n.startswith(_SCALE)}
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
    reads = [name for name in (objectives[kind].reads if kind in objectives else ()) if "=" not in name]
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
