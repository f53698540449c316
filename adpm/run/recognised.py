"""What a checkpoint of others says of itself, held against a config; and the config that it is of.

A file tells its family, widths, blocks, attention, head and channels, sometimes schedule, range of noise or what is
predicted. Schedule, label, prediction and range of the data are assumed elsewhere, as published files have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adpm.errors import UserError
from adpm.families import Family
from adpm.formats import read
from adpm.formats.checkpoint import Checkpoint
from adpm.formats.shapes import READERS, shape_of
from adpm.formats.shapes.shape import Shape
from adpm.run.shipped import shipped
from adpm.run.store import differences
from adpm.run.table import Table

ANY = "configs/any.py"


@dataclass(frozen=True)
class Recognised:
    """A checkpoint, and the network that it is of.

    Attributes:
        path: of the file.
        layout: of the file, in words.
        checkpoint: what is in it.
        shape: the network; None where its names are those of no family here.
    """

    path: Path
    layout: str
    checkpoint: Checkpoint
    shape: Shape | None

    def network(self, side: int) -> dict[str, Any]:
        """Fields of the network for images of a side; {} where it is not known."""
        shape, kept_by = self.shape, self.checkpoint.kept_by
        if self.checkpoint.unusable and kept_by:
            return {"network.name": kept_by}
        if shape is None:
            return {}
        return {"network.name": shape.family} | {f"network.{k}": v for k, v in shape.build_options(side).items()}

    def built(self, networks: Family, side: int) -> nn.Module:
        """The network without memory for its values; for checkpoints whose network is known."""
        shape = self.shape
        assert shape is not None
        with torch.device("meta"):
            made: nn.Module = networks[shape.family].build((shape.channels, side, side), **shape.build_options(side))
        return made


def recognise(path: Path) -> Recognised:
    """What a checkpoint is.

    Raises:
        UserError: if it cannot be read.
    """
    kind, checkpoint = read(path)
    return Recognised(path, kind.about, checkpoint, shape_of(checkpoint.state))


def require_usable(found: Recognised, networks: Family) -> Shape:
    """The network of a checkpoint, where one of these families computes it.

    Raises:
        UserError: saying what it is instead.
    """
    told, shape = f"weights '{found.path}'", found.shape
    if found.checkpoint.unusable:
        raise UserError(f"{told} fit no network of this project: {found.checkpoint.unusable}.")
    if shape is None:
        first = ", ".join(list(found.checkpoint.state)[:3])
        raise UserError(f"{told} are of no network that is known here (their names: {first}, ...).")
    if shape.family not in networks:
        raise UserError(f"{told} are of {shape}, which no family here runs.")
    return shape


def require_fit(found: Recognised, config: Mapping[str, Any], shape: tuple[int, ...], table: Table) -> None:
    """Refuse a checkpoint of another network than the config's, naming the config that it is of.

    Args:
        found: the checkpoint.
        config: all of it.
        shape: of an image, (C, H, W).
        table: of the config's fields.

    Raises:
        UserError: if a field of the network is another in the file, or its channels are.
    """
    network = found.shape
    if config["network"]["name"] not in READERS:
        return  # a family that nobody reads off
    if found.checkpoint.unusable:
        require_usable(found, table.families["network"])
    if network is None:
        return  # loading names what is missing
    if told := _differences(found, config, shape, table):
        raise UserError(
            f"weights '{found.path}' are of {network}; this config's network is another ({told}), and "
            f"{where(found, table)}."
        )


def _differences(found: Recognised, config: Mapping[str, Any], shape: tuple[int, ...], table: Table) -> str:
    network, section = found.shape, config["network"]
    assert network is not None
    if network.channels != shape[0]:
        return f"images of {network.channels} channels there, {shape[0]} now"
    if network.family != section["name"]:
        return f"network.name: {network.family} there, {section['name']} now"
    here = {f"network.{name}": value for name, value in table.options(config, "network.name").items()}
    there = {name: value for name, value in found.network(shape[-1]).items() if name in here}
    for name in (
        *(f"network.{n}" for n in network.assumed),
        "network.num_classes",  # a file tells rows, the last of which may be for no class
        *(["network.head"] if _may_lack(network, section) else []),
    ):
        there.pop(name, None)
    return differences(_lists(there), _lists({name: here[name] for name in there}))


def _may_lack(network: Shape, section: Mapping[str, Any]) -> bool:
    """A config with a head may get trunk and head from other files; one without a head has no place for one."""
    without = Shape.__dataclass_fields__["head"].default
    return section["head"] != without or network.head == without


def _lists(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, (tuple, list)) else value for name, value in fields.items()}


def where(found: Recognised, table: Table) -> str:
    """Which config is of this network, in words."""
    network = found.shape
    if network is None or network.family not in table.families["network"]:
        return "no config here is of it"
    names = fitting(found)
    if not names:
        return f"no shipped config is of it, --config={ANY} builds it"
    return f"it is the network of {' and '.join(names)}"


def fitting(found: Recognised) -> list[str]:
    """The shipped configs whose network a checkpoint is of, as --config takes them."""
    network, out = found.shape, []
    for name, config, table in shipped() if network is not None else ():
        assert network is not None
        levels = config["network"].get(network.option) or ()
        # an option of attention may count sides: those of images for which it says the same levels
        sides = {value * 2**level for value, level in zip(sorted(levels, reverse=True), network.attends, strict=False)}
        for side in sorted(sides) or [network.least_side]:
            if not _differences(found, config, (network.channels, side, side), table):
                if network.head == config["network"]["head"]:
                    out.append(name)
                break
    return out
