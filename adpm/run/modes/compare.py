"""--mode=compare: every cell of a grid measured once, then tables, figures and TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from adpm.errors import UserError, lookup
from adpm.families import Families
from adpm.progress import progress, say
from adpm.ranks import ranks
from adpm.run.compare.board import view, write_board
from adpm.run.compare.cells import Cells, in_words
from adpm.run.compare.collect import collect, rows_of
from adpm.run.compare.figures import save_figures
from adpm.run.compare.grid import Grid, data_identity
from adpm.run.compare.method import Method, Skipped
from adpm.run.compare.results import Results
from adpm.run.compare.tables import write_tables
from adpm.run.compare.verdict import headline, verdict
from adpm.run.config import Job
from adpm.run.families import house
from adpm.run.store import check_writable
from adpm.run.work import available, resolve_device, side_by_side
from adpm.whole import write_whole


def compare(job: Job) -> None:
    """Measure what is missing, report everything.

    Raises:
        UserError: for a config that is wrong, or when no cell of it can exist as configured; after the report, when
            cells failed.
    """
    config, workdir = job.config, job.workdir
    check_writable(workdir)
    grid = Grid(config, workdir, job.house)
    methods, skipped = grid.plan
    _tell_skipped(grid)
    if not methods:
        raise UserError("no cell of this comparison can exist: see the reasons above.")
    if not any(config.shown in steps for steps in methods.values()):
        raise UserError(f"config.shown = {config.shown}: no method can take so many steps, for the reasons above.")
    _check_data(grid)
    cells = Cells(grid)
    failed = _measure(cells)
    results = collect(cells)
    report(results, skipped, workdir)
    if failed:
        told = "\n  ".join(failed)
        raise UserError(
            f"{len(failed)} cells failed, the others are in the tables; the same command tries again:\n  {told}"
        )


def _tell_skipped(grid: Grid) -> None:
    """The cells that cannot exist as configured, by name, under the reason that they share."""
    _, skipped = grid.plan
    if not skipped:
        return
    reasons: dict[str, list[str]] = {}
    for item in skipped:
        at = "" if item.steps == grid.steps else f" at K = {', '.join(map(str, item.steps))}"
        reasons.setdefault(item.why, []).append(item.method.name + at)
    say(f"not run ({len({item.method for item in skipped})} methods):")
    for why, names in reasons.items():
        say(f"  {', '.join(names)}:\n    {why}")


def _check_data(grid: Grid) -> None:
    """Distances and bits/dim compare models of the same data only, in splits that it has."""
    methods, _ = grid.plan
    roots = {method.formulation: grid.root(method.formulation, None) for method in methods}
    names = {"distance.splits": grid.config.distance.splits, "likelihood.split": (grid.config.likelihood.split,)}
    for field, splits in names.items():
        for name in splits:
            lookup(grid.any_root.data.splits, name, f"config.{field}")
    if any(data_identity(root) != grid.data_identity for root in roots.values()):
        told = ", ".join(f"{name}: {root.data.name} {root.data.shape}" for name, root in roots.items())
        raise UserError(f"config.formulations are models of different data ({told}); compare models of the same.")


def _measure(cells: Cells) -> list[str]:
    """Make the missing records; returns what went wrong."""
    grid = cells.grid
    missing = [method for method in grid.plan[0] if cells.missing(method)]
    # methods share moments, and the figures want them even when nothing else is missing
    without = {
        method.formulation: method for method in grid.plan[0] if method in missing or not cells.has_moments(method)
    }
    wanted, first = ranks().of_first((missing, without))
    failed: list[str] = []
    if first:
        say(f"{len(wanted)} of {len(grid.plan[0])} methods have cells to measure.")
    for method, wrong in _side_by_side(grid, _moments, list(first.values())):
        say(f"moments of {method.formulation}: {wrong or 'ready'}.")
    for method, wrong in progress(_side_by_side(grid, _work, wanted), total=len(wanted), what="methods"):
        say(f"{method.title}: {_told(cells, method)}" + (f"; {len(wrong)} cells failed." if wrong else "."))
        failed += wrong
    return failed


def _side_by_side(grid: Grid, work: Callable[[Method], Any], methods: list[Method]) -> Iterator[tuple[Method, Any]]:
    """In as many processes as the config says, however many are left to do: figures depend on the threads of one.

    Raises:
        UserError: when a process is ended by the system.
    """
    if not methods:
        return
    processes = grid.config.processes or available(resolve_device(grid.config.device))
    if processes > 1:
        processes = max(2, min(processes, len(methods)))
    try:
        yield from side_by_side(work, methods, processes, _begin, grid.config, grid.workdir, grid.house.added)
    except BrokenProcessPool as error:
        raise UserError(
            "a process was ended by the system, perhaps for want of memory; the same command goes on where it stopped, "
            f"with fewer processes by --config.processes (now {processes})."
        ) from error


def _told(cells: Cells, method: Method) -> str:
    """The figures of a method, K rising."""
    rows = list(rows_of(cells, method))
    distances = ", ".join(f"{row.distance:.3g}" for row in rows)
    bits = ", ".join(f"{row.bound.total.mean:.3g}" for row in rows if row.bound is not None)
    return f"distance {distances}" + (f"; bits/dim {bits}" if bits else "")


_CELLS: list[Cells] = []
"""The comparison that this process works for."""


def _begin(config: ConfigDict, workdir: Path, added: Families) -> None:
    _CELLS[:] = [Cells(Grid(config, workdir, house(added)))]


def _moments(method: Method) -> str:
    """What went wrong, in words; every cell of the formulation will say it again."""
    with _aside(f"moments-{method.formulation}"):
        try:
            _CELLS[0].moments(method)
        except Exception as error:
            return in_words(error)
    return ""


def _work(method: Method) -> list[str]:
    with _aside(method.name):
        return _CELLS[0].measure(method)


@contextlib.contextmanager
def _aside(name: str) -> Iterator[None]:
    """What the work says goes to a file, because several talk at once."""
    path = _CELLS[0].grid.workdir / "logs" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield


def report(results: Results, skipped: Sequence[Skipped], workdir: Path) -> None:
    """Tables, figures and TensorBoard."""
    folder, board = workdir / "tables", workdir / "tensorboard"
    write_tables(results, skipped, folder)
    write_whole(folder / "verdict.md", lambda path: path.write_text(verdict(results), encoding="utf-8"))
    write_board(results, save_figures(results, workdir / "figures"), board)
    say(headline(results))
    say(f"tables:      {folder}")
    say(f"figures:     {workdir / 'figures'}")
    say(f"verdict:     {folder / 'verdict.md'}")
    say(f"TensorBoard: tensorboard --logdir {board}, then open http://localhost:6006/{view(results)}")
