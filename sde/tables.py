"""What continuous time adds to the families of adpm/, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from adpm.denoiser import TimeLabel
from adpm.process import Process
from adpm.run.tables import Tables
from adpm.solver import Solver, SolverKind
from sde.corrector import CORRECTORS, Langevin, PredictorCorrector
from sde.mode import flow
from sde.process import PROCESSES
from sde.score import LABELS
from sde.solver import SOLVERS, ReverseSDE


def _label(of_process: Callable[[Process], TimeLabel]) -> Callable[[Process, float, float], TimeLabel]:
    return lambda process, shift, scale: of_process(process)


def _solver(build: Callable[..., ReverseSDE]) -> SolverKind:
    """These solvers bring their own diffusion, so the variance rule is not theirs; eta is where it is a choice."""
    return SolverKind(build, uses_rule=False, uses_eta="eta" in inspect.signature(build).parameters)


def _corrector(build: Callable[..., Langevin]) -> Callable[[Solver, Process, float, int, bool], Solver]:
    def wrap(solver: Solver, process: Process, snr: float, n_steps: int, first: bool) -> Solver:
        return PredictorCorrector(solver, build(process, snr=snr, n_steps=n_steps), first)

    return wrap


SDE_TABLES = Tables(
    origin=("sde.tables:SDE_TABLES",),
    processes=PROCESSES,
    labels={name: _label(label) for name, label in LABELS.items()},
    solvers={name: _solver(build) for name, build in SOLVERS.items()},
    likelihoods={"flow": flow},
    correctors={name: _corrector(build) for name, build in CORRECTORS.items()},
)
