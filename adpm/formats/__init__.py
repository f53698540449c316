"""Checkpoints on disk, each layout in a file of its own: how it is recognised, and what is in it under our names.

`FORMATS` is asked in order; a builder takes what was opened and gives a `Checkpoint`. Nothing stored is run. Of raw and
averaged weights the average is taken, and said. What network the entries are of, `shapes` reads off them.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from adpm.errors import UserError
from adpm.families import Kind
from adpm.formats import analytic_dpm, ddim, diffusers, edm, ms_eps, plain, score_sde
from adpm.formats.checkpoint import Checkpoint, unknown_layout
from adpm.formats.names import NOISE
from adpm.formats.opening import opened

FORMATS: dict[str, Kind] = {
    "diffusers": diffusers.FOLDER,
    "extended_analytic_dpm": analytic_dpm.FOLDER,
    "edm": edm.PICKLE,
    "ddim": ddim.LIST,
    "ms_eps": ms_eps.ARRAY,
    "state_dict": plain.BARE,
    "analytic_dpm": analytic_dpm.DICT,
    "score_sde": score_sde.DICT,
    "wrapped": plain.WRAPPED,
}
"""The narrow ones first."""


def read(path: Path) -> tuple[Kind, Checkpoint]:
    """A checkpoint file or folder: its format and what is in it.

    Raises:
        UserError: if it is missing or not plain, of an unknown layout, needs code execution to be read, or holds
            tensors that are no weights.
    """
    found = opened(path)
    kind = next((kind for kind in FORMATS.values() if kind.facts.recognises(found)), None)
    if kind is None and path.is_dir():
        raise UserError(
            f"weights '{path}' is a folder with neither ema_models_states/model.pth nor config.json; "
            "name the file in it."
        )
    if kind is None:
        raise unknown_layout(path)
    checkpoint: Checkpoint = kind.build(found)
    for name, tensor in checkpoint.state.items():
        if name != NOISE and not (tensor.is_floating_point() and tensor.layout is torch.strided):
            raise UserError(
                f"weights file '{path}' holds {_kind(tensor)} in '{name}'; weights are dense tensors of floating point."
            )
    return kind, checkpoint


def read_weights(path: Path, names: Collection[str] = ()) -> dict[str, Tensor]:
    """The weights in a checkpoint that are to be used, under the names of our networks; raises as `read` does.

    Args:
        path: of the file or folder.
        names: of the network, if it is one that may keep the names of others.

    Raises:
        UserError: if no network of ours computes what the stored one does.
    """
    _, checkpoint = read(path)
    state = checkpoint.under(names)
    if checkpoint.unusable and not set(names) & state.keys():
        raise UserError(f"weights file '{path}' fits no network of this project: {checkpoint.unusable}.")
    return dict(state)


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype if tensor.layout is torch.strided else tensor.layout).removeprefix("torch.")
