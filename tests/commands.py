"""Commands in tests: one line each, and what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from adpm.run.cli import run
from adpm.run.commands import MODES

ROOT = Path(__file__).parent.parent
SMALL = ("rule.name=small", "trajectory.name=even", "trajectory.steps=3", "sampling.samples=4")
"""Fields of a sampling run that measures nothing."""


def go(workdir: Path, config: str, mode: str, *fields: str) -> int:
    """The exit code of a mode of one of the configs, such as "toy:unet"; fields are "section.field=value"."""
    name, _, variant = config.partition(":")
    path = f"{ROOT}/configs/{name}.py{':' * bool(variant)}{variant}"
    flags = [f"--config.{field}" for field in fields]
    return run(["main.py", f"--config={path}", f"--mode={mode}", f"--workdir={workdir}", *flags], MODES)


def refused(capsys: pytest.CaptureFixture[str], workdir: Path, *command: str) -> str:
    """The one sentence of a command that ends with exit code 2."""
    capsys.readouterr()
    assert go(workdir, *command) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1, told
    return told


def the_file(folder: Path, pattern: str) -> Path:
    """The only file of a pattern."""
    (found,) = folder.glob(pattern)
    return found
