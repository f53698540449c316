"""--mode=compare: every cell of a grid measured once, then tables, figures and TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from adpm.errors import UserError
from adpm.run.compare.board import VIEW, write_board
from adpm.run.compare.cells import Cells
from adpm.run.compare.figures import save_figures
from adpm.run.compare.grid import Grid, Skipped
from adpm.run.compare.method import Method
from adpm.run.compare.results import Results, collect, rows_of
from adpm.run.compare.sheets import write_tables
from adpm.run.compare.verdict import headline, verdict
from adpm.run.device import resolve_device
from adpm.run.files import check_writable, write_whole
from adpm.run.pool import available, side_by_side
from adpm.run.report import progress, say
from adpm.run.tables import Tables


def compare(config: ConfigDict, workdir: Path, tables: Tables) -> None:
    """Measure what is missing, report everything.

    Raises:
        UserError: for a config that is wrong, or when no cell of it can exist; after the report, when cells failed.
    """
    check_writable(workdir)
    grid = Grid(config, workdir, tables)
    methods, skipped = grid.plan
    _tell_skipped(grid)
    if not methods:
        raise UserError("no cell of this comparison can exist: see the reasons above.")
    _same_data(grid)
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
    """The cells that cannot exist, by name, under the reason that they share."""
    _, skipped = grid.plan
    if not skipped:
        return
    reasons: dict[str, list[str]] = {}
    for item in skipped:
        at = "" if item.steps == grid.steps else f" at K = {', '.join(map(str, item.steps))}"
        reasons.setdefault(item.why, []).append(item.method.name + at)
    say(f"left out, because they cannot exist ({len({item.method for item in skipped})} methods):")
    for why, names in reasons.items():
        say(f"  {', '.join(names)}:\n    {why}")


def _same_data(grid: Grid) -> None:
    """Distances and bits/dim compare models of the same data only."""
    methods, _ = grid.plan
    data = {method.formulation: grid.root(method.formulation, None).data for method in methods}
    kinds = {name: (found.name, found.shape, found.levels) for name, found in data.items()}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{name}: {kind[0]} {kind[1]}" for name, kind in kinds.items())
        raise UserError(f"config.formulations are models of different data ({told}); compare models of the same.")


def _measure(cells: Cells) -> list[str]:
    """Make the missing records; returns what went wrong."""
    grid = cells.grid
    wanted = [method for method in grid.plan[0] if cells.missing(method)]
    if not wanted:
        return []
    say(f"{len(wanted)} of {len(grid.plan[0])} methods have cells to measure.")
    processes = grid.config.processes or available(resolve_device(grid.config.device))
    given = (grid.config, grid.workdir, grid.tables)
    # moments first, one formulation a process: methods share them
    first = list({method.formulation: method for method in wanted}.values())
    for method, _ in side_by_side(_moments, first, min(processes, len(first)), _begin, *given):
        say(f"moments of {method.formulation}: ready.")
    failed: list[str] = []
    done = side_by_side(_work, wanted, min(processes, len(wanted)), _begin, *given)
    for method, wrong in progress(done, total=len(wanted), what="methods"):
        say(f"{method.title}: {_told(cells, method)}" + (f"; {len(wrong)} cells failed." if wrong else "."))
        failed += wrong
    return failed


def _told(cells: Cells, method: Method) -> str:
    """The figures of a method, K rising."""
    rows = list(rows_of(cells, method))
    distances = ", ".join(f"{row.distance:.3g}" for row in rows)
    bits = ", ".join(f"{row.bound.total.mean:.3g}" for row in rows if row.bound is not None)
    return f"distance {distances}" + (f"; bits/dim {bits}" if bits else "")


_CELLS: list[Cells] = []
"""The comparison that this process works for."""


def _begin(config: ConfigDict, workdir: Path, tables: Tables) -> None:
    _CELLS[:] = [Cells(Grid(config, workdir, tables))]


def _moments(method: Method) -> None:
    with _aside(f"moments-{method.formulation}"):
        _CELLS[0].moments(method)


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
    write_tables(results, skipped, workdir / "tables")
    text = verdict(results)
    write_whole(workdir / "tables" / "verdict.md", lambda path: path.write_text(text))
    figures = save_figures(results, workdir / "figures")
    names = ("verdict", "frechet_distance", "bits_per_dim", "skipped")
    files = {name: workdir / "tables" / f"{name}.md" for name in names}
    texts = {name: file.read_text() for name, file in files.items() if file.exists()}
    write_board(results, figures, texts, workdir / "tensorboard")
    say(headline(results))
    say(f"tables:      {workdir / 'tables'}")
    say(f"figures:     {workdir / 'figures'}")
    say(f"verdict:     {files['verdict']}")
    say(f"TensorBoard: tensorboard --logdir {workdir / 'tensorboard'}, then open http://localhost:6006/{VIEW}")
