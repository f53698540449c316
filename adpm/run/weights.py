"""Where a run's trunk comes from: the workdir's own weights, else the config's; checked and loaded strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adpm.errors import UserError
from adpm.formats import read_weights
from adpm.nn.checkpoint import give_up, load_part, read_header
from adpm.nn.heads import Headed
from adpm.process import Process
from adpm.run.store import differences, digest
from adpm.run.table import Table

FILE = "weights.safetensors"
ROOT = Path(__file__).resolve().parents[2]
"""Of the checkout, in which shipped files lie."""


@dataclass(frozen=True)
class Place:
    """What finding and checking weights needs of a run.

    Attributes:
        config: all of it.
        table: of its fields.
        workdir: whose own weights come first.
        process: the forward process.
    """

    config: Mapping[str, Any]
    table: Table
    workdir: Path
    process: Process

    def same(self, product: str, header: Mapping[str, Any], *more: str) -> str:
        """How a file's config differs from this one in what the product depends on, in words; "" where it does not."""
        there = header.get("config", {})
        if not there:
            return ""
        return differences(_fields(self.table, there, product, more), _fields(self.table, self.config, product, more))

    def same_process(self, header: Mapping[str, Any]) -> bool:
        """Whether a file's process has this log-SNR: betas may change under one name.

        Older files of heads have all digits of it.
        """
        return header.get("process") in (None, process_digest(self.process), exact_digest(self.process))


def _fields(table: Table, config: Mapping[str, Any], product: str, more: tuple[str, ...]) -> dict[str, Any]:
    found = table.part(config, product)
    extra = {r.name: r.value for r in table.walk(config, more)}
    return found | {name: extra[name] for name in more}


def process_digest(process: Process) -> str | None:
    """The log-SNR of a discrete process's times. Six digits: last bits differ between machines.

    None for an SDE, which the config tells alone because its reference times are free.
    """
    return None if process.continuous else digest([f"{v:.6g}" for v in process.log_snr(process.times[1:])])


def times_digest(process: Process) -> str:
    """The log-SNR of all reference times, an SDE's too, which moments and samples depend on."""
    return digest([f"{v:.6g}" for v in process.log_snr(process.times[1:])])


def exact_digest(process: Process) -> str:
    """As files of version 0.1 have it."""
    return digest([float(v) for v in process.log_snr(process.times[1:])])


def weights_header(place: Place, iterations: int) -> dict[str, Any]:
    """What a file of trained weights says about itself."""
    return {
        "config": dict(place.config),
        "process": process_digest(place.process),
        "iterations": iterations,
        "weights": "ema",
        "torch": torch.__version__,
    }


def load_trunk(place: Place, network: Headed) -> tuple[Path, str]:
    """Load the trunk of a fresh network; it is then in eval mode, without gradients.

    Returns:
        Where the trunk came from, and what its file does not say and nobody could check.

    Raises:
        UserError: when there are no weights, or when they are for another model.
    """
    found = trunk_file(place)
    if found is None:
        raise UserError(f"{missing(place)}.")
    header = read_header(found)
    # what the second output is, its objective says; where there is a head, that output is not used
    own = not network.has_head and bool(place.config["network"].get("learned_variance"))
    if told := place.same("weights", header, *(("train.objective",) if own else ())):
        raise UserError(f"weights '{found}' were trained for another model ({told}); change config or weights.")
    if not place.same_process(header):
        raise UserError(
            f"weights '{found}' were trained for another process of the same name (the log-SNR of its times differs); "
            "set config.process to that one, or name other weights."
        )
    names = set(network.trunk_state())
    give_up(network, names)
    state = read_weights(found, names)
    if network.has_head:
        state = {name: tensor for name, tensor in state.items() if not network.in_head(name)}
    load_part(network, state, str(found), names, shared=True)
    network.eval().requires_grad_(False)
    return found, "" if header else assumed(place)


def assumed(place: Place) -> str:
    """What a file of others does not say, as this run takes it."""
    fields = place.table.part(place.config, "weights")
    told = ("process.name", "denoiser.predicts", "denoiser.label", "denoiser.time_shift")
    shown = (*told, "data.low", "data.high", "network.num_heads")
    return ", ".join(f"{name} = {fields[name]}" for name in shown if name in fields)


def located(name: str) -> Path:
    """A file that the config names: as it is, or among the shipped ones, from wherever the run was started."""
    path = Path(name)
    shipped = ROOT / path
    return shipped if not path.is_absolute() and not path.exists() and shipped.exists() else path


def trunk_file(place: Place) -> Path | None:
    """The workdir's own weights if it has trained, else the config's; None when there are neither."""
    own, pretrained = place.workdir / FILE, place.config["network"]["pretrained"]
    places = [own, located(pretrained)] if pretrained else [own]
    return next((found for found in places if found.exists()), None)


def missing(place: Place) -> str:
    """Why there are no weights, and how they come about; "" where there are some."""
    own, pretrained = place.workdir / FILE, place.config["network"]["pretrained"]
    if trunk_file(place) is not None:
        return ""
    if pretrained:
        return (
            f"config.network.pretrained = '{pretrained}' does not exist, and there are no weights at '{own}' either; "
            f"correct the path, or {_made_by(place)}"
        )
    return f"there are no weights at '{own}'; name a file in config.network.pretrained, or {_made_by(place)}"


def _made_by(place: Place) -> str:
    objective = place.config["train"]["objective"]
    if place.table.families["objective"][objective].facts.trains_head:
        return (
            f"config.train.objective = '{objective}' trains a head on trained weights: train "
            "those first, --mode=train with a config without a head, same --workdir"
        )
    return "train them: --mode=train, same --config and --workdir"
