"""A config file as a job: its config, and the families with the members that the file adds."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from adpm.errors import UserError, nearest
from adpm.run.families import house as all_families
from adpm.run.house import House


@dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        config: locked.
        house: the families, with those of the config's file.
        workdir: where it keeps its files.
    """

    config: ConfigDict
    house: House
    workdir: Path


Mode = Callable[[Job], None]


def load_config(path: str, variant: str = "") -> tuple[ConfigDict, House]:
    """The config in a file, and the families with the members that the file adds by a dict MEMBERS.

    Raises:
        UserError: if the file is missing, fails, has no get_config, or does not know the variant.
    """
    file = Path(path)
    if not file.is_file():
        folder = next(p for p in (file, file.parent, Path("configs"), Path()) if p.is_dir())
        there = [str(p) for p in sorted(folder.glob("*.py")) if p.stem not in ("__init__", "base", "compare_base")]
        told = f"; there: {', '.join(there)}" if there else ""
        raise UserError(f"--config = '{path}' is no file{nearest(path, there)}{told}.")
    try:
        names = runpy.run_path(path)
        get_config = names.get("get_config")
        config = None if get_config is None else get_config(variant) if variant else get_config()
        house = all_families(names.get("MEMBERS"))
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"--config = '{path}' cannot be run: {type(error).__name__}: {error}.") from error
    if get_config is None:
        raise UserError(f"--config = '{path}' has no function get_config.")
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config = '{path}': get_config() must return a ConfigDict, got {type(config).__name__}.")
    if "grid" not in config:
        house.table.complete(config)
    return config, house
