"""The shipped configs of networks that people have checkpoints of: a config file names its variants in CHECKPOINTS."""

from __future__ import annotations

import runpy
from functools import cache
from pathlib import Path
from typing import Any

from adpm.run.table import Table

FOLDER = Path(__file__).resolve().parents[2] / "configs"


@cache
def shipped() -> tuple[tuple[str, dict[str, Any], Table], ...]:
    """(name as --config takes it, config, table of its fields) of every such variant."""
    from adpm.run.config import load_config  # whose families import the modes, and these what is recognised

    out = []
    for file in sorted(FOLDER.glob("*.py")):
        if "CHECKPOINTS" not in file.read_text():
            continue
        for variant in runpy.run_path(str(file))["CHECKPOINTS"]:
            config, house = load_config(str(file), variant)
            out.append((f"configs/{file.name}" + f":{variant}" * bool(variant), config.to_dict(), house.table))
    return tuple(out)
