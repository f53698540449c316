"""The network `file`: whatever config.network.pretrained holds. It is put into the config before anything is built.

What the file says becomes the config's; what it does not say and the config leaves unset is taken as published files of
its kind have it, and is told when the weights are loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from adpm import nn
from adpm.errors import UserError, lookup
from adpm.families import Kind, built
from adpm.nn.checkpoint import read_header
from adpm.run.house import House
from adpm.run.problem import Problem
from adpm.run.recognised import Recognised, recognise, require_usable
from adpm.run.said import require_followed, same_schedule
from adpm.run.weights import located


@dataclass(frozen=True)
class OfFile:
    """Facts of a network that is what a file says. Attributes: of_file: that it is."""

    of_file: bool = True


def _unread(*shape: object, **options: object) -> Any:
    raise UserError("config.network.name = 'file' is read off a file before a network is built.")


_KEPT = {name: nn.NETWORKS["iddpm"].fields[name] for name in ("num_heads", "dropout")}
"""Options that leave no trace in a state dict."""

NETWORKS: dict[str, Kind] = {"file": Kind(_unread, "whatever config.network.pretrained holds", OfFile(), _KEPT)}


def completed(config: ConfigDict, house: House) -> ConfigDict:
    """The config, with the network that its file holds where it asks for that.

    Raises:
        UserError: if there is no file, if it is of no network here, or if the data are of other channels or sides.
    """
    kind = lookup(house.families["network"], config.network.name, "config.network.name")
    if not isinstance(kind.facts, OfFile):
        return _placed(config, house)
    table, named = house.table, config.network.pretrained
    if not named or not located(named).exists():
        told = f" ('{named}' does not exist)" if named else ""
        raise UserError(f"config.network.name = 'file' builds what config.network.pretrained holds; name a file{told}.")
    found = recognise(located(named))
    if found.checkpoint.kept_by not in house.families["network"]:
        require_usable(found, house.families["network"])
    require_followed(found)
    own, header = _of_header(found, house)
    said = {"denoiser.predicts": found.checkpoint.predicts, **_process(found, config, house)}
    _fill(config, house, {name: value for name, value in said.items() if value}, own or _usual(found, house))
    fields = found.network(_side(config, house, found))
    kept = {name: value for name, value in fields.items() if name.partition(".")[2] not in _KEPT}
    table.update(config, kept | header)
    return _placed(config, house)


def _placed(config: ConfigDict, house: House) -> ConfigDict:
    """With the place of what a network's builder reads itself, wherever the run was started."""
    kind, named = house.families["network"][config.network.name], config.network.pretrained
    if named and "pretrained" in kind.fields:
        config.network.pretrained = str(located(named))
    return config


def _fill(config: ConfigDict, house: House, *values: Mapping[str, Any]) -> None:
    """Set what is unset, where the config reads it then.

    Raises:
        UserError: if the config has set what nobody reads, or what cannot be.
    """
    filled: set[str] = set()
    for some in values:
        flat = {name: value for name, value in some.items() if _get(config, name) is None}
        house.table.set(config, flat)
        filled |= flat.keys()
    house.table.unset(config, filled & set(house.table.idle(config)))
    house.table.check(config)


def _get(config: Mapping[str, Any], name: str) -> Any:
    section, _, key = name.rpartition(".")
    return config[section].get(key)


def _process(found: Recognised, config: ConfigDict, house: House) -> dict[str, Any]:
    """The process whose schedule a file holds; its steps alone where the config says which process that is.

    Raises:
        UserError: if it holds one that is none of ours.
    """
    schedule = found.checkpoint.schedule
    if schedule is None:
        return {}
    if config.process.name is not None:
        return {"process.steps": len(schedule)}
    for name, kind in house.families["process"].items():
        try:
            process = built(house.families["process"], name, "`process`", steps=len(schedule))
        except (UserError, TypeError):
            continue
        if kind.fields and same_schedule(found.checkpoint, process):
            return {"process.name": name, "process.steps": len(schedule)}
    raise UserError(
        f"weights '{found.path}' hold a schedule of {len(schedule)} steps that is none of this project's; save its "
        "betas, and name them by config.process.name = custom and config.process.betas_file."
    )


def _of_header(found: Recognised, house: House) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file of ours says of its config: (process, denoiser and data, network)."""
    config = read_header(found.path).get("config", {})
    if not config:
        return {}, {}
    fields = house.table.part(config, "weights")
    sections: dict[str, dict[str, Any]] = {}
    for name, value in fields.items():
        sections.setdefault(name.split(".")[0], {})[name] = tuple(value) if isinstance(value, list) else value
    network = sections.pop("network")
    sections.pop("train", None)
    return {name: value for section in sections.values() for name, value in section.items()}, network


def _usual(found: Recognised, house: House) -> dict[str, Any]:
    """What is assumed, by fields: a parameter's name is that of one field of these sections."""
    shape, checkpoint = found.shape, found.checkpoint
    usual = {**(shape.usual if shape is not None else {}), **checkpoint.usual, **checkpoint.settled}
    if checkpoint.noise is not None:
        usual |= {"sigma_max": checkpoint.noise[0], "sigma_min": checkpoint.noise[1]}
    out = {"process.name": usual.pop("process")} if "process" in usual else {}
    sections = ("process", "denoiser", "data")
    for key, value in usual.items():
        name = next(n for n in house.table.names if n.rpartition(".")[0] in sections and n.rpartition(".")[2] == key)
        out[name] = value
    return out


def _side(config: ConfigDict, house: House, found: Recognised) -> int:
    """Of the data, which have to be the file's in channels and, where it says so, in size."""
    frozen = FrozenConfigDict(config)
    problem = Problem(frozen, house)
    missing: Callable[..., str] = problem.kind("data.name").facts.missing
    if told := missing(**house.table.options(frozen, "data.name")):
        raise UserError(f"{told.rstrip('.')}.")
    shape, network = problem.data.shape, found.shape
    if network is not None and shape[0] != network.channels:
        raise UserError(
            f"weights '{found.path}' are of images of {network.channels} channels, but data set "
            f"'{problem.data.name}' has {shape[0]}."
        )
    side = found.checkpoint.side
    if side is not None and shape[1:] != (side, side):
        raise UserError(
            f"weights '{found.path}' are of images of {side}x{side}, but data set '{problem.data.name}' has "
            f"{shape[1]}x{shape[2]}."
        )
    return shape[-1]
