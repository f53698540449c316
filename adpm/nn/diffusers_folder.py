"""Folders of diffusers networks: `config.json`, which says what the network is, in it or in a pipeline's `unet`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adpm.errors import UserError
from adpm.reading import read_json

CONFIG = "config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
CLASS = "UNet2DModel"
_WANTED = {"time_embedding_type": "positional", "class_embed_type": None}
"""What a config has to say: time as sines of a number, classes as rows of a table."""
_SKIPS = {"SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D"}
"""Blocks that add the image's own pyramid to the output, behind the last hidden layer."""


def network_folder(path: Path) -> Path | None:
    """The folder of a network that a path means: itself, a pipeline's `unet`, or that of the weights; None: none."""
    places = (path, path / "unet") if path.is_dir() else (path.parent,) if path.name in WEIGHTS else ()
    return next((folder for folder in places if (folder / CONFIG).is_file()), None)


def read_config(path: Path) -> dict[str, Any]:
    """What a network's folder, or a pipeline's, says that the network is.

    Raises:
        UserError: if there is no such folder, or its config is none.
    """
    folder = network_folder(path)
    if folder is None:
        raise UserError(f"'{path}' is no folder of a diffusers network: it has no {CONFIG}, and no unet/{CONFIG}.")
    return read_json(folder / CONFIG, "network config")


def uncalled(config: Mapping[str, Any]) -> str:
    """Why the network of a config is not called here, in words that follow its name; "" where it is."""
    if config.get("_class_name") != CLASS:
        return f"is a network of the class {config.get('_class_name')}; {CLASS} is read here"
    for name, wanted in _WANTED.items():
        if config.get(name, wanted) != wanted:
            return f"says {name} = {config[name]!r}; networks with {wanted!r} are read here"
    skipping = _SKIPS & {*config.get("down_block_types", ()), *config.get("up_block_types", ())}
    return f"has blocks {', '.join(sorted(skipping))}, which this project does not read" if skipping else ""
