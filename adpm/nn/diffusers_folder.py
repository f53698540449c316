"""Folders of diffusers networks: `config.json`, which says what the network is, and its weights beside it.

A network's folder, or a pipeline's with the network in `unet/`. Weights are in `diffusion_pytorch_model.safetensors`
or, in older uploads, `.bin`; these also spell attention in another way (`query`, `key`, `value`, `proj_attn`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from adpm.errors import UserError
from adpm.reading import plain_file

CONFIG = "config.json"
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_NOW = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_ATTENTION = re.compile(rf"(.*\battentions\.\d+)\.({'|'.join(_NOW)})\.(weight|bias)")


def network_folder(path: Path) -> Path | None:
    """The folder of the network at a path: itself, or the `unet` of a pipeline; None where there is none."""
    return next((folder for folder in (path, path / "unet") if (folder / CONFIG).is_file()), None)


def read_config(path: Path) -> dict[str, Any]:
    """What a network's folder, or a pipeline's, says that the network is.

    Raises:
        UserError: if there is no such folder, or its config is none.
    """
    folder = network_folder(path)
    if folder is None:
        raise UserError(f"'{path}' is no folder of a diffusers network: it has no {CONFIG}, and no unet/{CONFIG}.")
    file = folder / CONFIG
    plain_file(file, "network config")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{file}' is not a whole JSON file ({error}).") from error
    if not isinstance(found, dict):
        raise UserError(f"'{file}' does not say what a network is: it holds no names with values.")
    return found


def weights_file(path: Path) -> Path:
    """The weights in a network's folder, or a pipeline's; safetensors first.

    Raises:
        UserError: naming the files that are looked for.
    """
    folder = network_folder(path) or path
    found = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"'{folder}' holds no weights: {' or '.join(_WEIGHTS)} is looked for there.")
    return found


def current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with attention spelled as diffusers has it now."""
    return {_current(name): tensor for name, tensor in state.items()}


def _current(name: str) -> str:
    match = _ATTENTION.fullmatch(name)
    return f"{match[1]}.{_NOW[match[2]]}.{match[3]}" if match else name
