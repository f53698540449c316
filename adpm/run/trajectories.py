"""Trajectories of a session's network, measured when missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adpm.fitting import Flow
from adpm.progress import say
from adpm.reference import Reference
from adpm.run.assembly import Session
from adpm.run.kept import Kept
from adpm.run.store import Parts, parts_of

KEPT = Kept("trajectories", "statistics", "trajectories_file", "trajectories", Reference.load)
_SHOWN = (3, 5, 7, 10, 15, 25)


def flow_for(session: Session) -> Flow:
    """The trajectories of the session's trunk, with the network; of training images' classes, if it is told any."""
    reference = KEPT.of(session, lambda path: _measured(session, path))
    batch = session.config.moments.batch_size
    return Flow(reference, session.front.denoise, session.process, batch, session.device)


def _measured(session: Session, path: Path) -> Reference:
    options, config = KEPT.options(session), session.config
    say(
        f"no trajectories at '{path}': following the network's flow from {options['starts']} starts "
        f"({session.trunk.source})."
    )
    flow = session.front.measure_trajectories(
        session.source("train"),
        options.pop("starts"),
        options.pop("flow_nodes"),
        basis=options.pop("flow_basis"),
        seed=config.seed,
        batch_size=config.moments.batch_size,
        keep=Parts(parts_of(path)),
        provenance=KEPT.provenance(session),
        **options,
    )
    return flow.reference


def show_flow(session: Session, flow: Flow) -> None:
    """Print the times that fitted steps miss least at."""
    reference, process = flow.reference, session.process
    say(f"{reference.starts} trajectories at {len(reference.times) - 1} times; steps fitted to them miss least at")
    for steps in (k for k in _SHOWN if k < len(reference.times)):
        times = process.times[flow.best_times(process, steps)]
        say(f"  K = {steps:2}: t = " + " ".join(f"{t:g}" for t in times[:0:-1]))
    ends = reference.states[0]
    say(f"their ends lie in [{float(ends.min()):.3f}, {float(ends.max()):.3f}], std {float(np.std(ends.numpy())):.3f}.")
