"""Layouts that checkpoints are written in: this project's own, and those of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from adpm.errors import UserError
from adpm.families import Kind
from adpm.formats import diffusers
from adpm.formats.converted import facts_of
from adpm.formats.shapes.shape import Shape
from adpm.nn.checkpoint import CONVERTED, read_header, save_weights, state_hash
from adpm.nn.diffusers_folder import CONFIG, WEIGHTS
from adpm.progress import say
from adpm.run.recognised import Recognised
from adpm.run.said import said
from adpm.run.store import write_json
from adpm.run.weights import FILE
from adpm.whole import write_whole


def _ours(found: Recognised, shape: Shape, workdir: Path) -> Path:
    """The workdir's own weights, and what is known of them in a file for people."""
    path = workdir / FILE
    if path.exists():
        raise UserError(f"'{path}' is there already; use another --workdir.")
    told: dict[str, Any] = {
        "source": found.path.name,
        "layout": found.layout,
        "chosen": found.checkpoint.chosen,
        "network": {"name": shape.family, "head": shape.head, "width": shape.width, "mult": list(shape.mult)},
        "hash": state_hash(found.checkpoint.state),
        **facts_of(found.checkpoint),
    }
    header = read_header(found.path) or {CONVERTED: told}  # a file of ours goes on saying how it was trained
    write_whole(path, lambda p: save_weights(p, found.checkpoint.state, header))
    told |= {"schedule": said(found)[0]} if "schedule" in told else {}
    write_json(path.with_suffix(".json"), told)
    return path


def _state_dict(found: Recognised, shape: Shape, workdir: Path) -> Path:
    path = workdir / "model.pth"
    state = {name: tensor.detach().clone() for name, tensor in found.checkpoint.state.items()}
    write_whole(path, lambda p: _save(state, p))
    lost = [*said(found), *(["the config that it was trained by"] if read_header(found.path) else [])]
    if lost:
        say(f"'{path}' has names and tensors alone; '{found.path.name}' says besides: {', '.join(lost)}.")
    return path


def _save(state: dict[str, torch.Tensor], path: Path) -> None:
    with path.open("wb") as file:  # a path would put its own name into the archive
        torch.save(state, file)


def _diffusers(found: Recognised, shape: Shape, workdir: Path) -> Path:
    """As in a pipeline: the network's folder and, where schedule and prediction are known, the scheduler's beside it.

    Raises:
        UserError: for networks that UNet2DModel is not.
    """
    config = diffusers.config_of(shape)
    if config is None:
        raise UserError(
            "config.network.save_as = 'diffusers' is for DDPM networks without a head, of a width that 32 divides; "
            f"'{found.path}' is of {shape}."
        )
    scheduler = diffusers.scheduler_of(found.checkpoint)
    folder = workdir / "unet"
    folder.mkdir(parents=True, exist_ok=True)
    state = {n: t.contiguous() for n, t in diffusers.from_ddpm(found.checkpoint.state, len(shape.mult)).items()}
    content = save(state, metadata={"format": "pt"})
    write_whole(folder / WEIGHTS[0], lambda p: p.write_bytes(content))
    text = json.dumps(config | {"sample_size": found.checkpoint.side}, indent=2, sort_keys=True) + "\n"
    write_whole(folder / CONFIG, lambda p: p.write_text(text))
    if scheduler is None:
        say(f"no scheduler is written: '{found.path.name}' does not say both schedule and prediction.")
        return folder
    beside = workdir / diffusers.SCHEDULER
    beside.parent.mkdir(exist_ok=True)
    write_json(beside, scheduler)
    return folder


LAYOUTS: dict[str, Kind] = {
    "ours": Kind(_ours, "this project's: weights.safetensors, which runs in that workdir use, and weights.json"),
    "state_dict": Kind(_state_dict, "Extended-Analytic-DPM's and Improved DDPM's: model.pth, a bare state dict"),
    "diffusers": Kind(_diffusers, "a folder `unet` that UNet2DModel.from_pretrained reads (DDPM networks)"),
}
"""Builders take a checkpoint, its network and a folder, and give the path of what they wrote."""
