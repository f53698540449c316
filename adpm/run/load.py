"""A model from a config, with its weights and data: the front door's other side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from adpm.model import Model
from adpm.run.assembly import Session
from adpm.run.config import load_config
from adpm.run.dataset import DataSet
from adpm.run.stored import Later, Scaled


def load(config: str, workdir: str | Path = "runs/notebook", **fields: object) -> Model:
    """The model that a config describes, with its training and test images.

    Args:
        config: "FILE.py[:VARIANT]".
        workdir: whose own weights are used if there are any.
        fields: changes to the config, "section__field" for config.section.field.

    Raises:
        UserError: as `main.py` says it.
    """
    path, _, variant = str(config).partition(":")
    made, house = load_config(path, variant)
    made.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    session = Session.make(made, Path(workdir), house)
    data, loaded = session.data, session.model
    model = session.front_of(loaded)
    model.scale = loaded.scale
    model.images = Later(data.splits, lambda: {name: _scaled(data, name) for name in data.splits})
    return model


def _scaled(data: DataSet, split: str) -> Any:
    stored = data.split(split)
    return data.scaled(stored) if isinstance(stored, Tensor) else Scaled(stored, data.scaled)
