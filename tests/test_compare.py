"""--mode=compare: figures as the other modes give them, nothing done twice, nothing lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from adpm.errors import UserError
from adpm.run.bound import bound_for
from adpm.run.cli import run
from adpm.run.commands import MODES
from adpm.run.compare import cells
from adpm.run.compare.cells import Cells
from adpm.run.compare.collect import collect
from adpm.run.compare.grid import Grid
from adpm.run.families import house
from adpm.run.measure import moments_for, moments_path
from adpm.run.metrics import FrechetDistance, pixel_features
from adpm.run.paths import path_for
from adpm.run.samples import samples_for
from benchmarks import compare_kills
from benchmarks.compare_kills import files, kill_at, start
from tests.processes import HANG, UNPAINTED, at_work, started, until
from tests.test_compare_grid import toy
from tests.threads import single_thread

ROOT = Path(__file__).parent.parent

CONFIG = """
from configs import compare_toy
from configs.compare_base import formulation

def get_config(variant=""):
    config = compare_toy.get_config("tiny")
    for name in ("subvp", "ve"):
        del config.formulations[name]
    config.grid.rules = ("small", "analytic")
    config.grid.trajectories = ("even", "least_cost")
    config.grid.etas = (1.0,)
    config.processes = 1
    return config
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A config file of 8 methods, 2 numbers of steps and 2 seeds."""
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory):
    """The comparison run once, for all tests that begin with one that is there; to be copied, not to be changed."""
    workdir = tmp_path_factory.mktemp("compared") / "whole"
    with pytest.MonkeyPatch.context() as patch, single_thread():  # fixtures of a function come after those of a module
        patch.chdir(ROOT)
        patch.setattr(Figure, "draw", lambda *_: None)
        assert go(file, workdir) == 0
    return workdir


@pytest.fixture
def config(file, monkeypatch, unpainted):
    monkeypatch.chdir(ROOT)
    return file


def go(config: Path, workdir: Path, *options: str) -> int:
    return run(["main.py", f"--config={config}", "--mode=compare", f"--workdir={workdir}", *options], MODES)


def csv_of(workdir: Path) -> list[str]:
    """The table of cells without its last column, which is clock time."""
    return [line.rpartition(",")[0] for line in (workdir / "tables" / "cells.csv").read_text().splitlines()]


def everything_but_clocks(workdir: Path) -> dict[str, bytes]:
    tables = {path.name: path.read_bytes() for path in (workdir / "tables").iterdir() if path.suffix != ".csv"}
    return {**tables, "cells.csv": "\n".join(csv_of(workdir)).encode()}


def test_figures_are_those_of_the_other_modes(tmp_path):
    """Distances and bits/dim equal, to the last bit, what sessions made by hand give in a folder of their own."""
    config = toy(("discrete", "vp"), trajectories=("least_cost",), etas=(0.5,), rules=("analytic",))
    made = Cells(Grid(config, tmp_path / "compared", house()))
    for method in made.grid.plan[0]:
        assert made.measure(method) == []
    results = collect(made)
    assert len(results.rows) == 4
    for row in results.rows:
        alone = Grid(config, tmp_path / "alone", house())
        first = alone.session(row.method, row.steps)
        moments_for(first)
        file = str(moments_path(first))
        path = path_for(alone.session(row.method, row.steps, moments=file))
        real = first.data.to_unit(first.data.scaled(first.data.split("test")))
        distance = FrechetDistance(pixel_features(first.data.shape), 2.0 * real - 1.0)
        for seed, found in zip((0, 1), row.distances, strict=True):
            drawn = samples_for(alone.session(row.method, row.steps, seed, file), path)
            images = drawn.images()
            assert found == distance(2.0 * first.data.to_unit(images) - 1.0)
            if seed == 0:
                assert np.array_equal(row.images, first.data.to_unit(images[:24]).numpy())
                assert np.array_equal(row.variance, drawn.first["variance"][::-1])
                assert np.array_equal(row.times, drawn.first["t"][::-1]) and row.nfe == row.steps
        evaluated, _ = bound_for(alone.session(row.method, row.steps, moments=file), path)
        assert row.bound.total.mean == evaluated.bits.sum(0).mean()
        assert row.bound.total.error == pytest.approx(evaluated.bits.sum(0).std(ddof=1) / np.sqrt(40), rel=1e-12)
        assert row.bound.terms.sum() == pytest.approx(row.bound.total.mean, rel=1e-12)
        assert results.floor == tuple(distance.floor(60, seed) for seed in (0, 1))


def test_all_methods_start_from_the_same_noise(tmp_path):
    """With the exact denoiser and eta = 0, VP and the discrete process end close by from the same start."""
    config = toy(("discrete", "vp"), trajectories=("even",), etas=(0.0,), rules=("small",), steps=(60,), seeds=(0,))
    config.shown = 60
    made = Cells(Grid(config, tmp_path, house()))
    for method in made.grid.plan[0]:
        made.measure(method)
    one, other = (row.images for row in collect(made).rows)
    apart = np.abs(one - other).mean()
    assert apart < 0.1 * np.abs(one - np.roll(other, 1, axis=0)).mean()


def test_a_second_run_calls_no_denoiser_and_gives_the_same_tables(config, tmp_path, monkeypatch, capsys):
    assert go(config, tmp_path / "run") == 0
    before = everything_but_clocks(tmp_path / "run")
    assert "8 of 8 methods have cells to measure" in capsys.readouterr().out

    def called(*_: object) -> None:
        raise AssertionError("a network call")

    monkeypatch.setattr("adpm.ideal.IdealDenoiser.__call__", called)
    assert go(config, tmp_path / "run") == 0
    assert everything_but_clocks(tmp_path / "run") == before
    assert "cells to measure" not in capsys.readouterr().out


def test_only_new_cells_are_measured(config, whole, tmp_path):
    """A longer grid reuses the cells of a shorter one; samples of another seed are drawn, paths and moments are not."""
    shutil.copytree(whole, tmp_path / "run")
    short = csv_of(tmp_path / "run")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.npz")}
    assert go(config, tmp_path / "run", "--config.grid.steps=(3, 6, 9)") == 0
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert set(short) < set(csv_of(tmp_path / "run"))
    assert go(config, tmp_path / "run", "--config.likelihood.images=20") == 0
    drawn = [path for path in (tmp_path / "run" / "cells").rglob("*.npz") if "seed" in path.name]
    assert len(drawn) == 8 * 3 * 2, "fewer images of the bound change no samples"


def test_what_is_measured_depends_on_what_it_should(config, tmp_path):
    """Each of these settings asks for other cells; the number of pictures and processes does not."""

    def records(**fields: object) -> set[Path]:
        changed = toy(("vp",), rules=("analytic",), etas=(1.0,), trajectories=("least_cost",))
        changed.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
        made = Cells(Grid(changed, tmp_path, house()))
        return {record.file for method in made.grid.plan[0] for record in made.of(method)}

    plain = records()
    assert records(processes=3) == records(shown=6) == plain
    for field, value in {
        "moments__draws": 21,
        "rule__estimator": "data",
        "rule__bounds": False,
        "trajectory__data_term": False,
        "trajectory__budget": "at_most",
        "likelihood__decoder": "published",
        "precision": "bfloat16",
        "grid__seeds": (5, 1),
    }.items():
        assert not records(**{field: value}) & plain, field
    for field, value in {"sampling__samples": 61, "sampling__batch_size": 7, "distance__splits": ("train",)}.items():
        shared = {path.name.split("-")[1] for path in records(**{field: value}) & plain}
        assert shared == {"bound"}, field
    shared = {path.name.split("-")[1] for path in records(likelihood__images=7) & plain}
    assert shared == {"seed0", "seed1"}


@pytest.mark.parametrize("error", [UserError("the state is not finite."), MemoryError("the state is not finite.")])
def test_a_cell_that_fails_is_told_and_the_rest_runs(config, whole, tmp_path, monkeypatch, capsys, error):
    draw = cells.samples_for

    def fails(session, path):
        if session.config.rule.name == "analytic" and session.config.trajectory.steps == 6:
            raise error
        return draw(session, path)

    monkeypatch.setattr(cells, "samples_for", fails)
    capsys.readouterr()
    assert go(config, tmp_path / "run") == 2
    told = capsys.readouterr()
    assert "8 cells failed" in told.err and told.err.count("the state is not finite") == 8
    kind = "" if isinstance(error, UserError) else "MemoryError: "
    assert f"discrete-analytic-even-eta1, K = 6, seed 1: {kind}the state is not finite." in told.err
    assert len(csv_of(tmp_path / "run")) == 1 + 16 - 4
    monkeypatch.setattr(cells, "samples_for", draw)
    assert go(config, tmp_path / "run") == 0
    assert everything_but_clocks(tmp_path / "run") == everything_but_clocks(whole)


def test_moments_that_were_lost_are_measured_again(config, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    before = everything_but_clocks(tmp_path / "run")
    for lost in (tmp_path / "run" / "cache").glob("moments-*.npz"):
        lost.unlink()
    assert go(config, tmp_path / "run") == 0
    assert lost.exists() and everything_but_clocks(tmp_path / "run") == before


def test_a_process_that_the_system_ends_is_told(config, tmp_path, monkeypatch, capsys):
    def ends(*_: object):
        raise BrokenProcessPool
        yield

    module = sys.modules["adpm.run.modes.compare"]  # the package's name `compare` is the mode itself
    monkeypatch.setattr(module, "side_by_side", ends)
    assert go(config, tmp_path / "run", "--config.processes=3") == 2
    told = capsys.readouterr().err
    assert (
        "a process was ended by the system" in told and "--config.processes (now 2)" in told
    )  # there are two formulations to begin with


WRONG = {
    "--config.distance.splits=('valid',)": "config.distance.splits = 'valid' is unknown; known: test, train.",
    "--config.likelihood.split=valid": "config.likelihood.split = 'valid' is unknown; known: test, train.",
    "--config.sampling.samples=1": "config.sampling.samples = 1 must be at least 2, for a distance.",
    "--config.grid.etas=('a',)": "config.grid.etas = ('a',) must be numbers in [0, 1].",
    "--config.grid.etas=(1.5,)": "no cell of this comparison can exist",
    "--config.shown=4": "config.shown = 4 must be one of config.grid.steps = (3, 6).",
}


@pytest.mark.parametrize("option", WRONG)
def test_what_is_wrong_is_told_before_anything_is_measured(config, tmp_path, capsys, option):
    assert go(config, tmp_path / "run", option) == 2
    assert WRONG[option] in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.npz"))


def test_killed_and_continued(config, whole, tmp_path, monkeypatch):
    """Tables equal byte for byte; killed among the cells here, anywhere twenty times by benchmarks/compare_kills.py."""
    monkeypatch.setattr(compare_kills, "MAIN", UNPAINTED)
    killed = tmp_path / "killed"
    assert kill_at(start(str(config), killed, "--config.processes=2"), killed, len(files(whole)) // 3)
    assert go(config, killed) == 0
    assert everything_but_clocks(killed) == everything_but_clocks(whole)


def test_ctrl_c_leaves_nobody_at_work(config, tmp_path, ctrl_c):
    argv = ["main.py", f"--config={config}", "--mode=compare", f"--workdir={tmp_path / 'run'}"]
    many = ["--config.processes=2", "--config.sampling.samples=100000"]
    with started(*argv, *many, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        until(lambda: list((tmp_path / "run" / "logs").glob("*.txt")), process)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=HANG)
        assert process.returncode == 130 and "run the same command again" in told and "Traceback" not in told
        until(lambda: not at_work(process.pid))


def test_modes_and_configs_that_do_not_go_together(config, tmp_path, capsys):
    argv = ["main.py", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    for mode in ("train", "estimate", "sample", "likelihood"):
        assert run([*argv, f"--mode={mode}"], MODES) == 2
        assert "this config has a grid of models to compare; use it with --mode=compare." in capsys.readouterr().err
    assert run(["main.py", "--config=configs/toy.py", argv[2], "--mode=compare"], MODES) == 2
    assert "has no grid of models to compare; use one such as configs/compare" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.npz"))


def test_nothing_that_can_exist_is_told(config, tmp_path, capsys):
    options = ("--config.grid.rules=('large',)", "--config.grid.etas=(0.5,)")
    assert go(config, tmp_path / "run", *options) == 2
    told = capsys.readouterr()
    assert "no cell of this comparison can exist" in told.err
    assert "discrete-large-even-eta0.5" in told.out and "eta = 1 only" in told.out


def test_models_of_different_data_are_not_compared(tmp_path, capsys):
    file = tmp_path / "mixed.py"
    file.write_text(
        CONFIG.replace(
            "    return config", "    config.formulations.digits = formulation('configs/digits.py')\n    return config"
        )
    )
    assert go(file, tmp_path / "run") == 2
    assert "models of different data (digits: digits (1, 8, 8), discrete: toy (1, 4, 4)" in capsys.readouterr().err
