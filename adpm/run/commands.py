"""What `--mode` can be: MODES maps names to functions of a job."""

from __future__ import annotations

from collections.abc import Callable

from adpm.errors import UserError
from adpm.run.assembly import Session
from adpm.run.config import Job, Mode
from adpm.run.modes.compare import compare
from adpm.run.modes.convert import convert
from adpm.run.modes.describe import describe
from adpm.run.modes.estimate import estimate
from adpm.run.modes.evaluate import evaluate
from adpm.run.modes.inspect import inspect
from adpm.run.modes.likelihood import likelihood
from adpm.run.modes.sample import sample
from adpm.run.modes.train import train
from adpm.run.modes.translate import translate


def _of_one_model(work: Callable[[Session], None], trains: bool = False) -> Mode:
    """A mode that works on one model."""

    return _of_no_grid(lambda job: work(Session.make(job.config, job.workdir, job.house, trains)))


def _of_no_grid(work: Mode) -> Mode:
    def mode(job: Job) -> None:
        if "grid" in job.config:
            raise UserError("this config has a grid of models to compare; use it with --mode=compare.")
        work(job)

    return mode


MODES: dict[str, Mode] = {
    "train": _of_one_model(train, trains=True),
    "estimate": _of_one_model(estimate),
    "sample": _of_one_model(sample),
    "translate": _of_one_model(translate),
    "likelihood": _of_one_model(likelihood),
    "evaluate": _of_no_grid(evaluate),
    "compare": compare,
    "describe": describe,
    "inspect": inspect,
    "convert": convert,
}
