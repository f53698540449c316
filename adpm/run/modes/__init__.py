"""What `--mode` can be: MODES maps names to functions of (config, workdir, tables)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from adpm.errors import UserError
from adpm.run.assembly import Session
from adpm.run.cli import Mode
from adpm.run.modes.compare import compare
from adpm.run.modes.estimate import estimate
from adpm.run.modes.likelihood import likelihood
from adpm.run.modes.sample import sample
from adpm.run.modes.train import train
from adpm.run.tables import Tables


def _of_one_model(work: Callable[[Session], None]) -> Mode:
    """A mode that works on one model."""

    def mode(config: ConfigDict, workdir: Path, tables: Tables) -> None:
        if "grid" in config:
            raise UserError("this config has a grid of models to compare; use it with --mode=compare.")
        work(Session(config, workdir, tables))

    return mode


MODES: dict[str, Mode] = {
    "train": _of_one_model(train),
    "estimate": _of_one_model(estimate),
    "sample": _of_one_model(sample),
    "likelihood": _of_one_model(likelihood),
    "compare": compare,
}
