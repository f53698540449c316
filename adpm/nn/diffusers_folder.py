"""Folders of diffusers networks: `config.json`, which says what the network is, in it or in a pipeline's `unet`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adpm.errors import UserError
from adpm.reading import plain_file

CONFIG = "config.json"


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
