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
from adpm.formats.shapes.shape import Shape
from adpm.nn.checkpoint import save_weights, state_hash
from adpm.run.recognised import Recognised
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
    }
    write_whole(path, lambda p: save_weights(p, found.checkpoint.state, {"converted": told}))
    write_json(path.with_suffix(".json"), told)
    return path


def _state_dict(found: Recognised, shape: Shape, workdir: Path) -> Path:
    path = workdir / "model.pth"
    state = {name: tensor.detach().clone() for name, tensor in found.checkpoint.state.items()}
    write_whole(path, lambda p: _save(state, p))
    return path


def _save(state: dict[str, torch.Tensor], path: Path) -> None:
    with path.open("wb") as file:  # a path would put its own name into the archive
        torch.save(state, file)


def _diffusers(found: Recognised, shape: Shape, workdir: Path) -> Path:
    """Raises: UserError for networks that UNet2DModel is not."""
    config = diffusers.config_of(shape)
    if config is None:
        raise UserError(
            f"config.network.save_as = 'diffusers' is for DDPM networks without a head; '{found.path}' is of {shape}."
        )
    folder = workdir / "unet"
    folder.mkdir(parents=True, exist_ok=True)
    state = {n: t.contiguous() for n, t in diffusers.from_ddpm(found.checkpoint.state, len(shape.mult)).items()}
    content = save(state, metadata={"format": "pt"})
    write_whole(folder / diffusers.WEIGHTS[0], lambda p: p.write_bytes(content))
    text = json.dumps(config | {"sample_size": found.checkpoint.side}, indent=2, sort_keys=True) + "\n"
    write_whole(folder / "config.json", lambda p: p.write_text(text))
    return folder


LAYOUTS: dict[str, Kind] = {
    "ours": Kind(_ours, "this project's: weights.safetensors, which runs in that workdir use, and weights.json"),
    "state_dict": Kind(_state_dict, "Extended-Analytic-DPM's and Improved DDPM's: model.pth, a bare state dict"),
    "diffusers": Kind(_diffusers, "a folder `unet` that UNet2DModel.from_pretrained reads (DDPM networks)"),
}
"""Builders take a checkpoint, its network and a folder, and give the path of what they wrote."""
